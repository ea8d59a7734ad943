"""LinearSpline against np.interp, exact fractions, gradcheck and the operator's definition."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdeploy.nn import LinearSpline, bake, spline_kernels, tv2
from lipdeploy.nn.spline import interpolate
from lipdeploy.ops import OPERATORS


def random_spline(channels: int = 4, num_knots: int = 11, seed: int = 0, **options: object) -> LinearSpline:
    spline = LinearSpline(channels, num_knots, 0.7, **options)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        spline.coefficients.copy_(torch.from_numpy(rng.normal(size=spline.coefficients.shape)))
        if spline.scaling is not None:
            spline.scaling.copy_(torch.from_numpy(rng.uniform(0.3, 3, size=spline.scaling.shape)))
    return spline


def interp_with_tails(x: np.ndarray, knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """np.interp, continued by the end slopes."""
    inside = np.interp(x, knots, values)
    left = values[0] + (values[1] - values[0]) / (knots[1] - knots[0]) * (x - knots[0])
    right = values[-1] + (values[-1] - values[-2]) / (knots[-1] - knots[-2]) * (x - knots[-1])
    return np.where(x < knots[0], left, np.where(x > knots[-1], right, inside))


@pytest.mark.parametrize("shape", [(200, 4), (20, 4, 5, 3)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_agrees_with_numpy_interpolation(shape: tuple[int, ...], training: bool, shared: bool) -> None:
    spline = random_spline(shared=shared).double().train(training)
    x = np.random.default_rng(1).normal(size=shape)
    y = spline(torch.from_numpy(x)).detach().numpy()
    coefficients = spline.projected_coefficients().detach().numpy()
    scaling = spline.scaling.detach().numpy()  # type: ignore[union-attr]
    knots = spline.lower + spline.knot_spacing * np.arange(11)
    for channel in range(4):
        row = 0 if shared else channel
        expected = interp_with_tails(scaling[row] * x[:, channel], knots, coefficients[row]) / scaling[row]
        np.testing.assert_allclose(y[:, channel], expected, rtol=1e-12, atol=1e-12)


def test_gradients_first_and_second_order() -> None:
    spline = LinearSpline(3, 7, 0.5)
    generator = torch.Generator().manual_seed(0)
    intervals = torch.randint(-2, 9, (5, 3, 2), generator=generator)
    inside = 0.1 + 0.8 * torch.rand(5, 3, 2, generator=generator, dtype=torch.float64)  # away from the kinks
    x = (spline.lower + spline.knot_spacing * (intervals + inside)).requires_grad_()
    coefficients = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, coefficients: Tensor) -> Tensor:
        return interpolate(x, coefficients, spline.lower, spline.knot_spacing)

    assert torch.autograd.gradcheck(run, (x, coefficients))
    assert torch.autograd.gradgradcheck(run, (x, coefficients))


def test_projection_and_scale_are_differentiable() -> None:
    spline = random_spline(num_knots=6).double()
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    names, values = zip(*spline.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(spline, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_in_evaluation_mode_are_those_of_training(
    dtype: torch.dtype, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inverse of the scale is rounded inward there; its derivative is that of 1/scale all the same."""
    if not library:
        monkeypatch.setattr(spline_kernels, "serves", lambda *_: False)
    spline = random_spline(num_knots=6).to(dtype)
    x = torch.randn(8, 4, dtype=dtype, generator=torch.Generator().manual_seed(3))
    weights = torch.randn(8, 4, dtype=dtype, generator=torch.Generator().manual_seed(4))
    gradients = []
    for training in (True, False):
        y = (spline.train(training)(x) * weights).sum()
        gradients.append(torch.autograd.grad(y, [spline.scaling, spline.coefficients]))
    for trained, evaluated in zip(*gradients, strict=True):
        torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-4)


def test_the_scale_is_differentiable_in_evaluation_mode() -> None:
    spline = random_spline(num_knots=6, seed=2).double().eval()
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scaling = spline.scaling.detach().clone().requires_grad_()  # type: ignore[union-attr]

    def run(scaling: Tensor) -> Tensor:
        return torch.func.functional_call(spline, {"scaling": scaling}, (x,))

    assert torch.autograd.gradcheck(run, (scaling,))
    assert torch.autograd.gradgradcheck(run, (scaling,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_inverse_scale_of_evaluation_mode_is_the_stored_one_bit_for_bit(dtype: torch.dtype) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    spread = (1 + torch.rand(4000, generator=torch.Generator().manual_seed(0))) * 10 ** torch.linspace(-4, 4, 4000)
    spline = LinearSpline(4008).to(dtype)
    with torch.no_grad():
        edges = torch.tensor([largest, largest / 3, smallest * 8, smallest * 9, 1, 3, 1 / 3, 0.1], dtype=dtype)
        spline.scaling.copy_(torch.cat([spread.to(dtype), -edges]))  # type: ignore[union-attr]
    _, inverse = spline.eval()._scales()
    expected = spline.stored().inverse_scale
    assert torch.equal(inverse, expected) and not expected.requires_grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lipschitz", [0.5, 1.0, 3.0])
def test_projection_clips_slopes_and_keeps_the_mean(training: bool, lipschitz: float) -> None:
    spline = random_spline(lipschitz=lipschitz).train(training)
    raw = spline.coefficients.detach().double().numpy()
    projected = spline.projected_coefficients().detach().double().numpy()
    limit = lipschitz * spline.knot_spacing
    np.testing.assert_allclose(projected.mean(axis=1), raw.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(np.diff(projected), np.clip(np.diff(raw), -limit, limit), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("num_knots", "limit"), [(21, 0.15), (51, 0.1), (101, 0.5), (3, 1.0)])
def test_stored_slopes_are_within_the_bound_in_exact_arithmetic(
    dtype: torch.dtype, num_knots: int, limit: float
) -> None:
    """Clipping and re-summing in float32 overshoots by up to 5e-6; what is stored must not."""
    spline = LinearSpline(40, num_knots, limit)
    with torch.no_grad():
        spline.coefficients.copy_(torch.randn(40, num_knots, generator=torch.Generator().manual_seed(num_knots)))
    stored = bake(spline.to(dtype))
    spacing = Fraction(stored.knot_spacing)
    for row in stored.coefficients.double().tolist():
        exact = [Fraction(value) for value in row]
        slopes = [abs(b - a) / spacing for a, b in pairwise(exact)]
        assert max(slopes) <= 1
        if dtype != torch.float16 and num_knots > 20:
            assert max(slopes) > 1 - Fraction(1, 10**4)  # inward, but only just


def test_the_stored_scale_and_its_inverse_multiply_to_at_most_one() -> None:
    stored = bake(random_spline(200))
    products = [
        Fraction(a) * Fraction(b)
        for a, b in zip(stored.scale.double().tolist(), stored.inverse_scale.double().tolist(), strict=True)
    ]
    assert max(products) <= 1
    assert min(products) > 1 - Fraction(1, 10**6)


def test_tv2_is_the_sum_of_slope_changes() -> None:
    splines = torch.nn.Sequential(random_spline(seed=1), random_spline(num_knots=5, seed=2)).double()
    expected = 0.0
    for spline in splines:
        values = spline.projected_coefficients().detach().numpy()
        changes = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
        expected += float(np.abs(changes).sum() / spline.knot_spacing)
        assert spline.tv2().item() == pytest.approx(float(np.abs(changes).sum() / spline.knot_spacing))
    assert tv2(splines).item() == pytest.approx(expected)
    assert tv2(torch.nn.Linear(2, 2)).item() == 0.0


@pytest.mark.parametrize("num_knots", [51, 20])
def test_initial_shapes(num_knots: int) -> None:
    """An even number of knots has none at 0, so the kink of |x| is cut there; elsewhere the shapes are exact."""
    x = torch.linspace(-0.5, 0.5, 401)[:, None].expand(-1, 2)
    x = x[x[:, 0].abs() > 0.006] if num_knots == 20 else x
    shapes = {
        "identity": x,
        "relu": x.clamp(min=0),
        "absolute_value": x.abs(),
        "maxmin": torch.stack((x[:, 0].abs(), x[:, 1]), dim=1),
    }
    for init, expected in shapes.items():
        torch.testing.assert_close(LinearSpline(2, num_knots, 0.1, init)(x), expected, rtol=2e-5, atol=2e-6)


def test_nan_and_infinity() -> None:
    spline = LinearSpline(2, 3, 1.0, learnable_scaling=False)
    spline.load_coefficients([[0.5, 0.5, 1.0], [1.0, 0.0, 0.25]], -1.0, 1.0)
    x = torch.tensor([[np.nan, np.nan], [np.inf, np.inf], [-np.inf, -np.inf]])
    y = spline.eval()(x)
    assert torch.isnan(y[0]).all()
    assert y[1].tolist() == [np.inf, np.inf]
    assert y[2, 0].item() == pytest.approx(0.5) and y[2, 1].item() == np.inf


def test_agrees_with_the_operator_definition_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    stored = bake(random_spline(8, 51))
    x = np.concatenate([rng.normal(size=(3000, 8)), rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30], (50, 8))])
    attributes = {"lower": stored.lower, "knot_spacing": stored.knot_spacing, "axis": 1}
    for dtype in (torch.float32, torch.float64):
        data, coefficients = torch.from_numpy(x).to(dtype), stored.coefficients.to(dtype)
        with np.errstate(all="ignore"):
            spec = OPERATORS["LinearSpline"].evaluate(data.numpy(), coefficients.numpy(), **attributes)
        ours = interpolate(data, coefficients, stored.lower, stored.knot_spacing).numpy()
        np.testing.assert_array_equal(ours, spec)


def test_low_precision_computes_in_float32() -> None:
    spline = bake(random_spline(learnable_scaling=False))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(spline(x), spline(x.float()).half())


def test_the_grid_travels_in_the_state_dict(tmp_path) -> None:
    trained = random_spline()
    trained.load_coefficients(np.random.default_rng(0).normal(size=(4, 11)), -0.3, 0.05)
    torch.save(trained.state_dict(), tmp_path / "spline.pt")
    fresh = LinearSpline(4, 11, 9.0)
    fresh.load_state_dict(torch.load(tmp_path / "spline.pt", weights_only=True))
    x = torch.linspace(-1, 1, 12).view(3, 4)
    assert torch.equal(fresh(x), trained(x))


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_unusable_scales_are_refused(scale: float) -> None:
    spline = LinearSpline(2)
    with torch.no_grad():
        spline.scaling.fill_(scale)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="zero or a value that is not finite"):
        bake(spline)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearSpline(4, 1), "num_knots ≥ 2"),
        (lambda: LinearSpline(4, limit=0.0), "finite and positive"),
        (lambda: LinearSpline(4, init="zero"), "init is 'zero'"),
        (lambda: LinearSpline(4, init="maxmin", shared=True), "shared=False"),
        (lambda: LinearSpline(4)(torch.zeros(2, 3)), "for 4 channels on axis 1 got an input of shape (2, 3)"),
        (lambda: LinearSpline(4).load_coefficients(np.zeros((3, 5)), 0, 1), "must have shape (4, K ≥ 2), got (3, 5)"),
        (lambda: LinearSpline(4).load_coefficients(np.zeros((4, 5)), 0, 0), "knot_spacing finite and positive"),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)
