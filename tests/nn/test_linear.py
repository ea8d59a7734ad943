"""Dense layers against the SVD and exact row sums."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lipdeploy.nn import BjorckLinear, LInfLinear, SpectralLinear, bake
from lipdeploy.nn.linear import bjorck, gram_norm_bound, project_rows_l1


def singular_values(layer: torch.nn.Linear) -> np.ndarray:
    return np.linalg.svd(bake(layer).weight.double().numpy(), compute_uv=False)


def randomised(layer: torch.nn.Linear, scale: float = 1.0) -> torch.nn.Linear:
    raw = layer.parametrizations.weight.original
    with torch.no_grad():
        raw.copy_(scale * torch.randn(raw.shape, generator=torch.Generator().manual_seed(7)))
    return layer


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(30, 80), (80, 30), (1, 5), (5, 1)])
def test_bjorck_converges_to_orthonormal(order: int, size: tuple[int, int]) -> None:
    layer = randomised(BjorckLinear(*size, iterations=25, order=order), 10.0)
    values = singular_values(layer)
    assert values.max() <= 1
    np.testing.assert_allclose(values, 1, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_bjorck_never_exceeds_its_constant(order: int, iterations: int) -> None:
    layer = randomised(BjorckLinear(48, 48, iterations=iterations, order=order, lipschitz=1.5), 3.0)
    assert singular_values(layer).max() <= 1.5
    training = layer.train().weight.detach().double()
    assert torch.linalg.matrix_norm(training, 2) <= 1.5 * (1 + 2e-6)


def test_bjorck_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    result = bjorck(matrix / gram_norm_bound(matrix), 60).numpy()
    np.testing.assert_allclose(result, u @ vt, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (64, 64), (100, 7)])
def test_gram_bound_is_above_the_norm(size: tuple[int, int]) -> None:
    for seed in range(5):
        matrix = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10.0**seed
        exact, bound = np.linalg.norm(matrix.numpy(), 2), gram_norm_bound(matrix).item()
        assert exact * (1 - 1e-12) <= bound <= exact * min(size) ** (1 / 64) * (1 + 1e-12)


def test_zero_weights_stay_finite() -> None:
    for layer in (BjorckLinear(4, 3), SpectralLinear(4, 3), LInfLinear(4, 3)):
        assert bake(randomised(layer, 0.0)).weight.isfinite().all()


@pytest.mark.parametrize("size", [(30, 80), (80, 30), (64, 64)])
def test_spectral_linear_has_norm_one_from_below(size: tuple[int, int]) -> None:
    top = singular_values(randomised(SpectralLinear(*size), 4.0)).max()
    assert 1 - 1e-5 < top <= 1


def test_spectral_gradient() -> None:
    layer = SpectralLinear(5, 4, bias=False).double()
    constrain = layer.parametrizations.weight[0].train()
    raw = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(constrain, (raw,))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l1", np.inf)])
def test_row_norms_in_exact_arithmetic(norm: str, dual: float) -> None:
    weight = bake(randomised(LInfLinear(300, 40, input_norm=norm), 2.0)).weight.double().tolist()
    rows = [[abs(Fraction(value)) for value in row] for row in weight]
    sizes = [sum(row) if dual == 1 else max(row) for row in rows]
    assert 1 - Fraction(1, 10**5) < max(sizes) <= 1


def test_euclidean_rows_in_exact_arithmetic() -> None:
    weight = bake(randomised(LInfLinear(300, 40, input_norm="l2"), 2.0)).weight.double().tolist()
    squares = [sum(Fraction(value) ** 2 for value in row) for row in weight]
    assert 1 - Fraction(1, 10**5) < max(squares) <= 1


def test_l1_projection_is_the_nearest_point() -> None:
    """Against SciPy's solver on the same quadratic programme, w = p − q with p, q ≥ 0 and Σ(p + q) ≤ 1."""
    rows = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows[3] *= 0.05  # inside the ball: must not move
    ours = project_rows_l1(rows, 1.0).numpy()
    for row, projected in zip(rows.numpy(), ours, strict=True):
        solution = minimize(
            lambda z, row=row: float(((z[:5] - z[5:] - row) ** 2).sum()),
            np.zeros(10),
            bounds=[(0, None)] * 10,
            constraints={"type": "ineq", "fun": lambda z: 1 - z.sum()},
            tol=1e-12,
        )
        np.testing.assert_allclose(projected, solution.x[:5] - solution.x[5:], atol=2e-4)
    np.testing.assert_array_equal(ours[3], rows[3].numpy())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BjorckLinear(3, 3, order=5), "order from 1 to 4"),
        (lambda: BjorckLinear(3, 3, iterations=-1), "iterations ≥ 0"),
        (lambda: SpectralLinear(3, 3, lipschitz=0.0), "finite and positive"),
        (lambda: LInfLinear(3, 3, input_norm="l3"), "input_norm is 'l3'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
