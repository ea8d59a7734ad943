"""Operator norms of dense matrices, from the stored numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import Gains, Norm
from lipdeploy.verify.operator_norm.psd import BLOCK, ProofFailed, largest_eigenvalue_up
from lipdeploy.verify.operator_norm.sums import TINY, Array, absolute_sums, frobenius, largest, square_sum, square_sums
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, add_up, gamma_up, mul_up, sqrt_up

LANCZOS_FROM = 192
LANCZOS_STEPS = 80
ATTEMPTS = 16


def dense_gains(weight: Array, norms: tuple[Norm, ...], guide: Guide | None = None) -> Gains:
    """Bounds of ‖W‖_{q→q'} for the norms carried; ``weight`` is (outputs, inputs), float64.

    Exact formulas up to one rounding: ∞→∞ largest row sum, 1→1 largest column sum, 2→∞ largest row length, 1→2
    largest column length, 1→∞ largest entry (numerics, §1.4); 2→2 by ``spectral_norm_up``.
    """
    gains = cheap_gains(weight, norms)
    if Norm.L2 in norms:
        gains[Norm.L2, Norm.L2] = spectral_norm_up(weight, guide)
    return gains


def cheap_gains(weight: Array, norms: tuple[Norm, ...]) -> dict[tuple[Norm, Norm], Bound]:
    """``dense_gains`` without the 2→2 norm."""
    gains = {(Norm.LINF, Norm.LINF): _largest(absolute_sums(weight, 1))}
    if Norm.L2 in norms:
        gains[Norm.L2, Norm.LINF] = Bound(sqrt_up(float(square_sums(weight, 1).max(initial=0.0))))
    if Norm.L1 in norms:
        gains[Norm.L1, Norm.L1] = _largest(absolute_sums(weight, 0))
        gains[Norm.L1, Norm.LINF] = Bound(largest(weight))
    if Norm.L1 in norms and Norm.L2 in norms:
        gains[Norm.L1, Norm.L2] = Bound(sqrt_up(float(square_sums(weight, 0).max(initial=0.0))))
    return gains


def absolute_gains(weight: Array, gains: Gains) -> Gains:
    """Gains of |W|: equal to W's except 2→2, where ‖|W|‖ ≤ min(‖W‖_F, √(‖W‖₁·‖W‖∞)) (Schur's test)."""
    if (Norm.L2, Norm.L2) not in gains:
        return gains
    rows, columns = _largest(absolute_sums(weight, 1)), _largest(absolute_sums(weight, 0))
    schur = Bound(sqrt_up((rows * columns).value))
    return {**gains, (Norm.L2, Norm.L2): min(frobenius(weight), schur)}


def _largest(values: Array) -> Bound:
    return Bound(float(values.max(initial=0.0)))


def spectral_norm_up(weight: Array, guide: Guide | None = None) -> Bound:
    """Upper bound of the largest singular value of an (m, n) float64 matrix; slack about 1e-11 relative.

    Lemma C3 (docs/mathematics.md): Gram matrix with an a-priori rounding bound, then C2. Raises ``ProofFailed``.
    """
    matrix = weight if weight.shape[0] >= weight.shape[1] else weight.T
    if not np.any(matrix):
        return Bound(0.0)
    guide = guide if guide is not None else Guide()
    scale = power_of_two(largest(matrix))
    gram, error = _gram(np.ascontiguousarray(matrix) / scale)
    upper, tau = gram_eigenvalue_up(gram, error, guide.shift("tau"))
    guide.found["tau"] = tau.hex()
    return Bound(mul_up(scale, sqrt_up(upper)))


def power_of_two(value: float) -> float:
    """A power of two near ``value``, the largest entry: dividing by it keeps squares from overflow and underflow.

    The division is exact, but for entries that are 2¹⁰²² times or more below the largest (or below 2⁻¹²² where the
    exponent is held at 900): these may underflow, by less than the slack that rounding bounds of the squares carry.
    """
    return math.ldexp(1.0, min(max(math.frexp(value)[1], -900), 900))


def _gram(matrix: Array) -> tuple[Array, float]:
    """(WᵀW, bound of ‖computed − exact‖): every entry sums blocks of at most BLOCK products."""
    rows, size = matrix.shape
    gram = np.zeros((size, size))
    for start in range(0, rows, BLOCK):
        block = matrix[start : start + BLOCK]
        gram += block.T @ block
    blocks = -(-rows // BLOCK)
    rounding = mul_up(gamma_up(min(rows, BLOCK) + blocks), square_sum(matrix))
    return gram, add_up(rounding, mul_up(float(rows), float(size), TINY))


def gram_eigenvalue_up(gram: Array, error: float, tau: float | None = None) -> tuple[float, float]:
    """(bound of λ_max, shift that was enough) of a matrix within ``error`` of ``gram``; ``tau`` is tried first (C2)."""
    if not (np.all(np.isfinite(gram)) and np.isfinite(error)):
        raise ProofFailed("the Gram matrix overflowed")
    size, allowed = len(gram), np.asarray(error)
    upper = largest_eigenvalue_up(tau, gram, allowed) if tau is not None else None
    if tau is not None and upper is not None:
        return float(upper), tau
    estimate, margin = _top_eigenvalue(gram), max(64 * size * UNIT_ROUNDOFF, 1e-13)
    for attempt in range(ATTEMPTS):
        shift = max(estimate * (1.0 + margin), TINY)
        upper = largest_eigenvalue_up(shift, gram, allowed)
        if upper is not None:
            return float(upper), shift
        if attempt == 3:
            estimate = float(np.linalg.eigvalsh(gram)[-1])
        margin *= 4.0
    raise ProofFailed("no shifted Gram matrix could be factorised")


def _top_eigenvalue(gram: Array) -> float:
    """A guess of λ_max (untrusted: the factorisation decides)."""
    if gram.shape[0] < LANCZOS_FROM:
        return float(np.linalg.eigvalsh(gram)[-1])
    return lanczos(gram)


def lanczos(gram: np.ndarray[Any, Any]) -> float:
    """The largest eigenvalue of a real symmetric or Hermitian matrix by Lanczos' method: a guess, from below."""
    vector = np.random.default_rng(0).standard_normal(gram.shape[0]).astype(gram.dtype)
    vector /= np.linalg.norm(vector)
    previous, beta = np.zeros_like(vector), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(LANCZOS_STEPS):
        image = gram @ vector - beta * previous
        alphas.append(float(np.vdot(vector, image).real))
        image -= alphas[-1] * vector
        beta = float(np.linalg.norm(image))
        betas.append(beta)
        if beta <= 1e-14 * abs(alphas[0]):
            break
        previous, vector = vector, image / beta
    tridiagonal = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return float(np.linalg.eigvalsh(tridiagonal)[-1])
