"""Splines in training by the operator library: the bits of torch's operations, gradients of the plain formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdeploy.nn import LinearSpline, bake, spline_kernels

SHAPES = [(5, 3), (64, 40), (2, 3, 9, 7), (3, 5, 33, 40), (1, 3), (4, 3, 1, 1), (7, 2, 5), (0, 3), (2, 3, 0, 4)]
KNOTS = [2, 3, 51, 1025]


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, ops_library: Path) -> Iterator[list[str]]:
    """What the library was asked, in order: no test may pass because torch's operations did the work."""
    asked: list[str] = []
    call = spline_kernels._call

    def noted(name: str, *rest: object) -> None:
        asked.append(name)
        call(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(spline_kernels, "_call", noted)
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", str(ops_library))
    yield asked


def make(channels: int, num_knots: int = 11, *, seed: int = 0, **options: bool) -> LinearSpline:
    """A spline with slopes on both sides of the clip and scales of both signs."""
    spline = LinearSpline(channels, num_knots, 0.7, **options)
    rng = np.random.default_rng((seed, channels, num_knots))
    with torch.no_grad():
        values = rng.normal(size=spline.coefficients.shape) * spline.knot_spacing
        spline.coefficients.copy_(torch.from_numpy(values))
        if spline.scaling is not None:
            scales = rng.uniform(0.3, 3, spline.scaling.shape) * rng.choice([-1, 1], spline.scaling.shape)
            spline.scaling.copy_(torch.from_numpy(scales))
    return spline.train()


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, *shape)).normal(size=shape)).to(dtype)


def in_torch(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> Tensor:
    """The same without the library."""
    with monkeypatch.context() as patch:
        patch.setenv("LIPDEPLOY_OPS_LIBRARY", "")
        return run()


def textbook(spline: LinearSpline, x: Tensor, coefficients: Tensor, scaling: Tensor | None) -> Tensor:
    """Projection, scale and linear interpolation in float64 from the formulas of the class's docstring.

    Intervals are found as the input's own type finds them, so that an input beside a knot is no other function.
    """
    shape = (1, -1, *[1] * (x.ndim - 2))
    h, lower, limit = spline.knot_spacing, spline.lower, spline.lipschitz * spline.knot_spacing
    steps = coefficients.diff(dim=-1).clamp(-limit, limit)
    summed = torch.cat((torch.zeros_like(steps[:, :1]), steps.cumsum(dim=-1)), dim=-1)
    values = summed - summed.mean(dim=-1, keepdim=True) + coefficients.mean(dim=-1, keepdim=True)
    alpha = torch.ones(len(coefficients), dtype=torch.float64) if scaling is None else scaling
    z = x * alpha.view(shape)
    own = spline.coefficients.dtype
    found = (z.detach().to(own) - torch.tensor(lower).to(own)) / torch.tensor(h).to(own)
    k = found.floor().clamp(0, coefficients.shape[1] - 2).long()
    rows = torch.arange(x.shape[1]).view(shape) % len(coefficients)
    left, right = values[rows, k], values[rows, k + 1]
    return (left + (z - (lower + k.double() * h)) / h * (right - left)) / alpha.view(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_knots", KNOTS)
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"learnable_scaling": False}], ids=["", "shared", "fixed"])
def test_the_same_bits_and_the_textbooks_gradients(
    dtype: torch.dtype,
    num_knots: int,
    options: dict[str, bool],
    served: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for shape in SHAPES:
        spline = make(shape[1], num_knots, **options).to(dtype)
        x, grad = inputs(shape, dtype).requires_grad_(), inputs(shape, dtype, seed=1)
        y = spline(x)
        y.backward(grad)
        assert served == ["scaled", "gradient"]
        served.clear()
        assert torch.equal(y, in_torch(monkeypatch, lambda: spline(x)))  # noqa: B023
        assert not served
        exact = [None if p is None else p.detach().double().requires_grad_() for p in (x, *_parameters(spline))]
        textbook(spline, *exact).backward(grad.double())  # type: ignore[arg-type]
        for ours, theirs in zip((x, *_parameters(spline)), exact, strict=True):
            if ours is not None and theirs is not None:
                _assert_close(ours.grad, theirs.grad, num_knots)


def _parameters(spline: LinearSpline) -> tuple[Tensor, Tensor | None]:
    return spline.coefficients, spline.scaling


def _assert_close(ours: Tensor | None, theirs: Tensor | None, num_knots: int) -> None:
    assert ours is not None and theirs is not None and ours.shape == theirs.shape
    if theirs.numel():
        largest = float(theirs.abs().max()) + 1
        # The projection adds a thousand steps up; positions are rounded as numbers of the size of the range.
        tolerance = 8 * (num_knots + 16) * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * largest)


def test_gradcheck_and_gradgradcheck(served: list[str]) -> None:
    for options in ({}, {"shared": True}, {"learnable_scaling": False}):
        spline = make(3, 7, **options).double()
        x = inputs((4, 3, 2), torch.float64).requires_grad_()
        names, values = zip(*spline.named_parameters(), strict=True)

        def run(x: Tensor, *parameters: Tensor) -> Tensor:
            state = dict(zip(names, parameters, strict=True))  # noqa: B023
            return torch.func.functional_call(spline, state, (x,))  # noqa: B023

        assert torch.autograd.gradcheck(run, (x, *values), eps=1e-7)
        assert served.count("gradient") > 0
        served.clear()
        assert torch.autograd.gradgradcheck(run, (x, *values), eps=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_penalty_is_that_of_torchs_operations(
    dtype: torch.dtype, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spline, x = make(3, 21).to(dtype), inputs((6, 3, 5), dtype).requires_grad_()

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(spline(x).sum(), x, create_graph=True)
        loss = ((slope - 1) ** 2).mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, (spline.coefficients,))])

    ours = penalty()
    assert served == ["scaled"]
    torch.testing.assert_close(ours, in_torch(monkeypatch, penalty))
    assert ours.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learnable", [True, False])
def test_numbers_that_are_not_finite(
    dtype: torch.dtype, learnable: bool, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, infinities, zeros of both signs and huge numbers: forward and the gradient of x as torch's operations."""
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 1e-42, 0.7, -0.7], dtype=dtype)
    spline = make(4, 11, learnable_scaling=learnable).to(dtype)
    with torch.no_grad():
        spline.coefficients[0, 1] = spline.coefficients[0, 0]  # flat ends: the value there, for an infinity
        spline.coefficients[0, -1] = spline.coefficients[0, -2]
    x = special[:, None, None].expand(-1, 4, 9).contiguous().requires_grad_()
    y = spline(x)
    y.backward(torch.ones_like(y))
    ours = x.grad
    assert served == ["scaled", "gradient"]
    x.grad = None
    expected = in_torch(monkeypatch, lambda: spline(x))
    expected.backward(torch.ones_like(y))
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(y)[3:], torch.signbit(expected)[3:])
    torch.testing.assert_close(ours, x.grad, equal_nan=True)


def test_gradients_spoil_only_the_intervals_that_saw_nan_or_infinity(served: list[str]) -> None:
    spline = make(2, 5, learnable_scaling=False)
    x = torch.tensor([[math.nan, 0.1], [math.inf, 0.2], [0.0, 0.3]])
    values = spline.projected_coefficients().detach().requires_grad_()
    formula = type("Formula", (), {"lower": spline.lower, "knot_spacing": spline.knot_spacing, "limit": None})()
    formula.projected = lambda coefficients: coefficients
    spline_kernels.apply(formula, x, values, None, None).sum().backward()
    assert values.grad is not None
    assert torch.isnan(values.grad[0, :2]).all() and not torch.isfinite(values.grad[0, 3:]).any()
    assert torch.isfinite(values.grad[0, 2]) and torch.isfinite(values.grad[1]).all()


def test_evaluation_mode_and_baked_splines(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spline = make(3, 21).eval()
    x = inputs((4, 3, 5, 5), torch.float32).requires_grad_()
    stored = bake(spline)
    for layer in (spline, stored):
        y = layer(x)
        y.sum().backward()
        assert served == ["scaled", "gradient"]
        served.clear()
        ours, x.grad = x.grad, None
        expected = in_torch(monkeypatch, lambda: layer(x))  # noqa: B023
        expected.sum().backward()
        assert torch.equal(y, expected)
        torch.testing.assert_close(ours, x.grad)
        x.grad = None
        with torch.no_grad():  # nothing to differentiate: what is compared with an exported file is torch's own
            assert torch.equal(layer(x), y) and not served


def test_memory_orders(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spline, x = make(6), inputs((5, 6, 7, 4), torch.float32)
    for ordered, asked in (
        (x.to(memory_format=torch.channels_last), ["scaled", "gradient"]),
        (x.transpose(2, 3), []),
        (x[:, :, ::2], []),
        (x[:1].expand(3, -1, -1, -1), []),
    ):
        leaf = ordered.detach().requires_grad_()
        y = spline(leaf)
        y.backward(torch.ones(()).expand_as(y))
        assert served == asked
        served.clear()
        again = x.new_empty(0).set_().new_tensor(ordered.tolist()).requires_grad_()
        expected = in_torch(monkeypatch, lambda: spline(again))  # noqa: B023
        expected.sum().backward()
        assert torch.equal(y, expected) and again.grad is not None and leaf.grad is not None
        torch.testing.assert_close(leaf.grad, again.grad)
        assert not asked or y.is_contiguous(memory_format=torch.channels_last)
        served.clear()


@pytest.mark.parametrize("frozen", ["x", "coefficients", "scaling", "coefficients scaling"])
def test_only_what_is_wanted(frozen: str, served: list[str]) -> None:
    spline, x = make(3), inputs((4, 3, 6), torch.float32).requires_grad_()
    everything = {"x": x, **dict(spline.named_parameters())}
    spline(x).sum().backward()
    whole = {name: tensor.grad for name, tensor in everything.items()}
    for name, tensor in everything.items():
        tensor.grad = None
        tensor.requires_grad_(name not in frozen.split())
    spline(x).sum().backward()
    assert served == ["scaled", "gradient"] * 2
    for name, tensor in everything.items():
        assert (tensor.grad is None) == (name in frozen.split())
        assert tensor.grad is None or torch.equal(tensor.grad, whole[name])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_torchs_operations_are_left_for(served: list[str]) -> None:
    spline, x = make(3), inputs((4, 3, 6), torch.float32)
    with torch.no_grad():
        spline(x)
    torch.jit.trace(spline, x, check_trace=False)
    torch.export.export(spline, (x,))
    make(3).to("meta")(x.to("meta"))
    spline(x.half()), spline(x.double())
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        spline(x)
    assert not served
    spline(x)
    assert served == ["scaled"]


def test_compiled(served: list[str]) -> None:
    spline, x = make(3), inputs((4, 3, 6), torch.float32).requires_grad_()
    torch._dynamo.reset()
    y = torch.compile(spline, backend="aot_eager", fullgraph=True)(x)
    y.sum().backward()
    assert not served
    ours, x.grad = x.grad, None
    expected = spline(x)
    expected.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours, x.grad)


@pytest.mark.parametrize("library", ["", "/nowhere.so", "not a library", "pinned"])
def test_without_a_library(
    library: str, served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ops_library: Path
) -> None:
    (tmp_path / "liblipdeploy_ops.so").write_bytes(b"no library")
    asked = {"not a library": str(tmp_path / "liblipdeploy_ops.so"), "pinned": str(ops_library)}.get(library, library)
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", asked)
    if library == "pinned":
        monkeypatch.setenv("LIPDEPLOY_OPS_SHA256", "0" * 64)
    spline, x = make(3).double(), inputs((4, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(spline, x, eps=1e-7)
    assert not served


def test_threads_and_determinism(served: list[str], torch_settings: None) -> None:
    spline, x = make(8, 51), inputs((4, 8, 150, 150), torch.float32).requires_grad_()
    torch.use_deterministic_algorithms(True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        spline.zero_grad()
        x.grad = None
        y = spline(x)
        y.sum().backward()
        results.append((y.detach(), x.grad, *(p.grad.clone() for p in spline.parameters() if p.grad is not None)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))  # type: ignore[arg-type]
    assert len(served) == 6


def test_half_the_derivative_where_a_step_is_at_the_limit(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh splines have all their steps there, up to rounding; torch's minimum shares a tie."""
    spline = LinearSpline(2, 5, 1.0)  # spacing 0.5: the steps are exact
    x = inputs((9, 2), torch.float32)
    weights = inputs((9, 2), torch.float32, seed=1)
    (ours,) = torch.autograd.grad(spline(x), spline.coefficients, weights)
    assert served == ["scaled", "gradient"]
    theirs = in_torch(monkeypatch, lambda: torch.autograd.grad(spline(x), spline.coefficients, weights)[0])
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        spline.coefficients.mul_(0.5)
    (inside,) = torch.autograd.grad(spline(x), spline.coefficients, weights)
    assert not torch.allclose(inside, ours)
