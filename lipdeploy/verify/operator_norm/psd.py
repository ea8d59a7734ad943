"""How far a symmetric matrix can be from positive semidefinite, from an untrusted Cholesky factor.

Lemma C1. For every L, A = LLᵀ + (A − LLᵀ), and LLᵀ ⪰ 0, so λ_min(A) ≥ −‖A − LLᵀ‖. Only the residual has to be
bounded; the factor may come from anywhere. Nothing of LAPACK is trusted. (docs/mathematics.md, C1; assumption A2:
a matrix product sums its products in some order, fused or not, without reduced-precision emulation.) Hermitian
matrices: ``panels``.
"""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, gamma_up, mul_up, sqrt_up, up

BLOCK = 256
PANELS_FROM = 256  # smaller matrices are factorised by LAPACK in one call, and multiplied out
PANEL = 64
SQRT2_UP = sqrt_up(2.0)
SQRT_TINY = 2.0**-510  # what a square that underflows can hide


class ProofFailed(ArithmeticError):
    """No finite bound could be proven (overflow, or factorisations that keep failing)."""


def mirror_lower(matrix: Array, sign: float = 1.0) -> Array:
    """Make the last two axes exactly symmetric (``sign`` 1) or antisymmetric (−1) by copying the lower triangle."""
    lower = np.tril(matrix, -1)
    diagonal = np.tril(matrix) - lower if sign > 0 else 0.0
    mirrored: Array = lower + sign * np.swapaxes(lower, -1, -2) + diagonal
    return mirrored


def residual_up(matrix: Array, factor: Array) -> Array:
    """Upper bounds of ‖H − LLᵀ‖ for a stack of n × n matrices A, H = (A + Aᵀ)/2, and any lower triangular L.

    ‖H − LLᵀ‖ ≤ ‖A − LLᵀ‖_F, since LLᵀ is symmetric: A need not be so in its last digits. Each entry of the computed
    LLᵀ is a sum over ``blocks`` column blocks of at most BLOCK products, so it errs by γ_{k}·(|L||L|ᵀ) with
    k = BLOCK + blocks + 2, and ‖|L||L|ᵀ‖ ≤ ‖L‖_F².
    """
    size = factor.shape[-1]
    squares, factor_squares = _squares(matrix - _gram(factor)), _squares(factor)
    rounding = mul_up(SQRT2_UP, gamma_up(min(size, BLOCK) + -(-size // BLOCK) + 2))
    slack = up(1.0 + 4.0 * gamma_up(2 * size * size + 8))
    eta = np.sqrt(squares) * slack + rounding * factor_squares * slack + 4.0 * size * size * SQRT_TINY
    result: Array = np.nextafter(eta * up(1.0 + 8 * UNIT_ROUNDOFF), np.inf)
    return result


def _squares(stack: Array) -> Array:
    return np.asarray(np.einsum("...ij,...ij->...", stack, stack))


def _gram(factor: Array) -> Array:
    """LLᵀ, summed block by block (columns of L above its diagonal are zero, so rows start there)."""
    total = np.zeros_like(factor)
    for start in range(0, factor.shape[-1], BLOCK):
        block = np.ascontiguousarray(factor[..., start:, start : start + BLOCK])
        total[..., start:, start:] += block @ np.swapaxes(block, -1, -2)
    return total


def largest_eigenvalue_up(tau: float, gram: Array, gram_error: Array) -> Array | None:
    """Upper bounds of λ_max(G) for symmetric G that differs from Ĝ = ``gram`` by ``gram_error``.

    ``gram_error`` bounds ‖G − (Ĝ + Ĝᵀ)/2‖. Factorises τI − Ĝ; ``None`` when that fails (τ too small). Lemma C2:
    λ_max ≤ τ + η + u·max|A_ii| + ε.
    """
    index = np.arange(gram.shape[-1])
    try:
        eta = (_whole_residual_up if gram.shape[-1] < PANELS_FROM else _shifted_residual_up)(tau, gram)
    except np.linalg.LinAlgError:
        return None
    diagonal = np.abs(tau - gram[..., index, index]).max(axis=-1)
    upper: Array = np.nextafter(tau + (eta + 2 * UNIT_ROUNDOFF * diagonal + gram_error), np.inf)
    upper = upper * up(1.0 + 4 * UNIT_ROUNDOFF)
    if not np.all(np.isfinite(upper)):
        raise ProofFailed("the residual of a factorisation is not finite")
    return upper


def _whole_residual_up(tau: float, gram: Array) -> Array:
    """``residual_up`` of τI − Ĝ and the factor that LAPACK finds."""
    index = np.arange(gram.shape[-1])
    shifted = -gram
    shifted[..., index, index] += tau
    return residual_up(shifted, np.asarray(np.linalg.cholesky(shifted), np.float64))


def _shifted_residual_up(tau: float, gram: Array) -> Array:
    """Upper bounds of ‖H − LLᵀ‖ for a stack of A = fl(τ) I − Ĝ, H = (A + Aᵀ)/2, and a factor L made on the way.

    Panel by panel from the left: what earlier panels explain is taken off, a Cholesky factor of the corner and its
    inverse (untrusted) make the panel of L, and its own product is taken off too. What remains of each entry is the
    residual of ``residual_up``, summed in the same blocks, so the same bound of its rounding holds; entries above the
    diagonal count as those below, and how far A is from symmetric is added.
    """
    size = gram.shape[-1]
    factor = np.empty_like(gram)
    squares, factor_squares, unlike = (np.zeros(gram.shape[:-2]) for _ in range(3))
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        left = _panel(tau, gram, start, stop)
        below = factor[..., start:, :]
        for first in range(0, start, BLOCK):
            columns = slice(first, min(first + BLOCK, start))
            left -= below[..., columns] @ np.swapaxes(below[..., : stop - start, columns], -1, -2)
        own = slice(start, stop)
        below[..., own] = _next_panel(left)
        left -= below[..., own] @ np.swapaxes(below[..., : stop - start, own], -1, -2)
        squares += 2.0 * _squares(left) - _squares(left[..., : stop - start, :])
        factor_squares += _squares(below[..., own])
        unlike += _squares(gram[..., stop:, own] - np.swapaxes(gram[..., own, stop:], -1, -2))
    rounding = mul_up(SQRT2_UP, gamma_up(min(size, BLOCK) + -(-size // BLOCK) + 4))
    slack = up(1.0 + 4.0 * gamma_up(2 * size * size + 8))
    eta = (np.sqrt(squares) + np.sqrt(unlike)) * slack + rounding * factor_squares * slack
    result: Array = np.nextafter((eta + 8.0 * size * size * SQRT_TINY) * up(1.0 + 8 * UNIT_ROUNDOFF), np.inf)
    return result


def _panel(tau: float, gram: Array, start: int, stop: int) -> Array:
    """Columns ``start`` to ``stop`` of τI − Ĝ from the diagonal down."""
    index = np.arange(stop - start)
    left: Array = -gram[..., start:, start:stop]
    left[..., index, index] += tau
    return left


def _next_panel(left: Array) -> Array:
    """The panel of L that explains ``left``, about; raises ``LinAlgError``."""
    width = left.shape[-1]
    corner = np.linalg.cholesky(left[..., :width, :])
    result = left @ np.swapaxes(np.linalg.inv(corner), -1, -2)
    result[..., :width, :] = corner
    return np.asarray(result)
