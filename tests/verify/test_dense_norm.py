"""Operator norms of dense matrices: never below the truth, and within 1e-9 of it.

Truth: an exact rational LDLᵀ factorisation for small matrices, ball arithmetic (Arb), and float64 SVD with slack.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest

from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import psd
from lipdeploy.verify.operator_norm.dense import absolute_gains, dense_gains, spectral_norm_up
from lipdeploy.verify.operator_norm.psd import ProofFailed, largest_eigenvalue_up, residual_up

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def kinds(rng: np.random.Generator, rows: int, columns: int) -> dict[str, Matrix]:
    """Matrices whose spectra are hard in different ways."""
    gauss = rng.standard_normal((rows, columns))
    orthogonal = np.linalg.qr(rng.standard_normal((max(rows, columns),) * 2))[0][:rows, :columns]
    return {
        "gauss": gauss.astype(np.float32).astype(np.float64),
        "orthogonal": orthogonal.astype(np.float32).astype(np.float64),
        "float64": gauss,
        "rank one": np.outer(gauss[:, 0], gauss[0]),
        "graded": gauss * np.logspace(0, -12, columns),
        "one entry": np.eye(rows, columns, k=1) * 3.0,
        "positive": np.abs(gauss),
    }


def is_psd_exactly(matrix: Matrix, scale: Fraction) -> bool:
    """scale·I − WᵀW ⪰ 0 by LDLᵀ in rational arithmetic."""
    w = [[Fraction(float(v)) for v in row] for row in matrix]
    size = len(w[0])
    a = [[-sum(row[i] * row[j] for row in w) + (scale if i == j else 0) for j in range(size)] for i in range(size)]
    for k in range(size):
        if a[k][k] < 0 or (a[k][k] == 0 and any(a[i][k] for i in range(k + 1, size))):
            return False
        for i in range(k + 1, size):
            if a[k][k] != 0:
                factor = a[i][k] / a[k][k]
                a[i][k:] = [x - factor * y for x, y in zip(a[i][k:], a[k][k:], strict=True)]
    return True


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 5), (6, 6), (9, 7)])
def test_exact_proof_for_small_matrices(shape: tuple[int, int]) -> None:
    for seed in range(4):
        for name, weight in kinds(np.random.default_rng(seed), *shape).items():
            proven = spectral_norm_up(weight).value
            tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
            assert is_psd_exactly(tall, Fraction(proven) ** 2), f"{name}: {proven} is below the truth"


def test_the_exact_proof_can_fail() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 6))
    assert not is_psd_exactly(weight, Fraction(float(np.linalg.norm(weight, 2)) * (1 - 1e-9)) ** 2)


@pytest.mark.parametrize("size", [12, 24])
def test_against_ball_arithmetic(size: int) -> None:
    previous = flint.ctx.prec
    flint.ctx.prec = 200
    try:
        for name, weight in kinds(np.random.default_rng(size), size, size).items():
            if name in {"one entry", "rank one", "graded"}:
                continue  # clustered eigenvalues, which the enclosure algorithm cannot separate
            exact = flint.arb_mat(weight.tolist())
            gram = flint.acb_mat(exact.transpose() * exact)
            try:
                eigenvalues = gram.eig(algorithm="rump", tol=1e-30)
            except (ValueError, ZeroDivisionError):
                continue
            truth = max((value.real for value in eigenvalues), key=lambda ball: float(ball.mid())).sqrt()
            proven = flint.arb(spectral_norm_up(weight).value)
            assert proven >= truth, name
            assert proven <= truth * (1 + flint.arb(1e-9)), name
    finally:
        flint.ctx.prec = previous


@pytest.mark.parametrize("shape", [(64, 64), (10, 300), (300, 10), (257, 256), (513, 200), (200, 700)])
def test_slack_is_small_at_every_size(shape: tuple[int, int]) -> None:
    for name, weight in kinds(np.random.default_rng(7), *shape).items():
        truth = float(np.linalg.norm(weight, 2))
        proven = spectral_norm_up(weight).value
        assert truth * (1 - 1e-13) <= proven <= truth * (1 + 1e-9), name


@pytest.mark.parametrize("exponent", [-1040, -600, -200, 200, 600, 1000])
def test_scale_does_not_matter(exponent: int) -> None:
    weight = np.round(np.random.default_rng(1).standard_normal((7, 5)) * 2**20)
    truth = float(np.linalg.norm(weight, 2)) * 2.0**-20
    proven = spectral_norm_up(np.ldexp(weight, exponent - 20)).value
    assert np.ldexp(proven, -exponent) == pytest.approx(truth, rel=1e-9) if exponent > -1000 else proven > 0.0
    assert Fraction(proven) >= Fraction(truth) * Fraction(2) ** exponent * (1 - Fraction(1, 10**13))


def test_wide_range_within_one_matrix() -> None:
    weight = np.array([[1e-200, 1e150], [1e-300, 3.0]])
    assert is_psd_exactly(weight, Fraction(spectral_norm_up(weight).value) ** 2)


def test_zero_matrix() -> None:
    assert spectral_norm_up(np.zeros((3, 4))).value == 0.0


def test_garbage_factors_prove_nothing_false() -> None:
    """Lemma C1 holds for every L: a useless factor makes the bound large, never small."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, 6))
    gram = weight.T @ weight
    shifted = np.linalg.eigvalsh(gram)[-1] * np.eye(6) - gram
    for factor in (np.zeros((6, 6)), np.tril(rng.standard_normal((6, 6))), np.eye(6) * 1e3):
        least = float(np.linalg.eigvalsh(shifted)[0])
        assert -float(residual_up(shifted, factor)) <= least + 1e-12


def symmetric(size: int, *, lean: float, stack: int = 2) -> Numbers:
    """A stack of Gram matrices, bent by ``lean`` away from symmetry."""
    rng = np.random.default_rng(size)
    root = rng.standard_normal((stack, size, size))
    return np.asarray(root @ np.swapaxes(root, -1, -2) / size + lean * rng.standard_normal((stack, size, size)))


@pytest.mark.parametrize("lean", [0.0, 1e-3])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("size", [64, 133, 330])
def test_the_residual_found_on_the_way_is_that_of_the_factor(
    size: int, noise: float, lean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the panels hold: the bound lies above ‖(A + Aᵀ)/2 − LLᵀ‖ of the factor that they make, and near it."""
    gram = symmetric(size, lean=lean)
    rng, panels = np.random.default_rng(0), []
    honest = psd._next_panel

    def spoiled(left: Numbers) -> Numbers:
        panels.append(honest(left) + noise * rng.standard_normal(left.shape))
        return panels[-1]

    monkeypatch.setattr(psd, "_next_panel", spoiled)
    monkeypatch.setattr(np.linalg, "cholesky", lambda matrix, like=np.linalg.cholesky: like(definite(matrix)))
    eta = psd._shifted_residual_up(9.0, gram)
    factor, start = np.zeros((2, size, size)), 0
    for panel in panels:
        factor[:, start:, start : start + panel.shape[-1]] = panel
        start += panel.shape[-1]
    shifted = 9.0 * np.eye(size) - gram
    missing = (shifted + np.swapaxes(shifted, -1, -2)) / 2 - factor @ np.swapaxes(factor, -1, -2)
    truth = np.linalg.norm(missing, 2, axis=(-2, -1))
    assert np.all(eta >= truth * (1 - 1e-12))
    assert np.all(eta <= 3.0 * np.linalg.norm(missing, axis=(-2, -1)) + 3.0 * lean * size + 1e-9)


def definite(matrix: Numbers) -> Numbers:
    """A matrix that surely has a Cholesky factor: spoiled panels leave corners that have none."""
    return (
        matrix if np.linalg.eigvalsh(matrix).min() > 1e-6 else np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)
    )


@pytest.mark.parametrize("size", [257, 500])
def test_panels_and_one_call_agree(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ_max of large matrices by panels, against NumPy's eigenvalues and the bound by one factorisation."""
    gram = symmetric(size, lean=0.0)
    truth = np.linalg.eigvalsh(gram)[:, -1]
    tau = float(truth.max()) * (1 + 1e-9)
    by_panels = largest_eigenvalue_up(tau, gram, np.asarray(0.0))
    assert largest_eigenvalue_up(float(truth.max()) * (1 - 1e-9), gram, np.asarray(0.0)) is None
    monkeypatch.setattr(psd, "PANELS_FROM", 10**6)
    at_once = largest_eigenvalue_up(tau, gram, np.asarray(0.0))
    assert by_panels is not None and at_once is not None
    assert np.all(by_panels >= tau) and np.all(by_panels <= tau * (1 + 1e-9))
    assert np.allclose(by_panels, at_once, rtol=1e-9)


def test_a_shift_below_the_largest_eigenvalue_is_noticed() -> None:
    gram = np.diag([1.0, 4.0])
    assert largest_eigenvalue_up(3.9, gram, np.asarray(0.0)) is None
    result = largest_eigenvalue_up(4.1, gram, np.asarray(0.0))
    assert result is not None
    assert 4.0 <= float(result) <= 4.1 * (1 + 1e-12)


def test_overflow_is_a_failed_proof() -> None:
    with np.errstate(all="ignore"), pytest.raises(ProofFailed):
        spectral_norm_up(np.full((4, 4), np.inf))


def test_cheap_norms_are_exact_up_to_rounding() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        weight = rng.standard_normal((5, 8)) * np.logspace(-5, 5, 8)
        exact = [[abs(Fraction(float(v))) for v in row] for row in weight]
        columns = list(zip(*exact, strict=True))
        truths = {
            (Norm.LINF, Norm.LINF): max(map(sum, exact)),
            (Norm.L1, Norm.L1): max(map(sum, columns)),
            (Norm.L1, Norm.LINF): max(map(max, exact)),
        }
        squares = {
            (Norm.L2, Norm.LINF): max(sum(v**2 for v in row) for row in exact),
            (Norm.L1, Norm.L2): max(sum(v**2 for v in column) for column in columns),
        }
        gains = dense_gains(weight, tuple(Norm))
        for pair, truth in truths.items():
            assert truth <= Fraction(gains[pair].value) <= truth * (1 + Fraction(1, 10**12)), pair
        for pair, truth in squares.items():
            assert truth <= Fraction(gains[pair].value) ** 2 <= truth * (1 + Fraction(1, 10**12)), pair


def test_absolute_matrix_is_covered() -> None:
    for seed in range(20):
        weight = np.random.default_rng(seed).standard_normal((6, 9))
        gains = absolute_gains(weight, dense_gains(weight, tuple(Norm)))
        assert gains[Norm.L2, Norm.L2].value >= float(np.linalg.norm(np.abs(weight), 2)) * (1 - 1e-13)
