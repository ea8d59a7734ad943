"""How far a Hermitian matrix can be from positive semidefinite, from an untrusted Cholesky factor.

Lemma C1. For every L, A = LL* + (A − LL*), and LL* ⪰ 0, so λ_min(A) ≥ −‖A − LL*‖. Only the residual has to be
bounded; the factor may come from anywhere. Nothing of LAPACK is trusted. (docs/mathematics.md, C1; assumption A2:
a matrix product sums its products in some order, fused or not, without reduced-precision emulation.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, gamma_up, mul_up, sqrt_up, up

BLOCK = 256
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


def residual_up(real: Array, imaginary: Array | None, factor: np.ndarray[Any, Any]) -> Array:
    """Upper bounds of ‖H − LL*‖ for a stack of n × n matrices A = real + i·imaginary, H = (A + A*)/2, and any L.

    ‖H − LL*‖ ≤ ‖A − LL*‖_F, since LL* is Hermitian: A need not be so in its last digits. Each entry of the computed LL*
    is a sum over ``blocks`` column blocks of at most ``width`` products (twice that for a complex factor), so it errs
    by γ_{k}·(|L||L|ᵀ) with k = width + blocks + 2, and ‖|L||L|ᵀ‖ ≤ ‖L‖_F².
    """
    size = factor.shape[-1]
    lower_re = np.ascontiguousarray(factor.real)
    lower_im = np.ascontiguousarray(factor.imag) if imaginary is not None else None
    width = BLOCK if lower_im is None else BLOCK // 2
    squares = _squares(real - _gram(lower_re, lower_im, width))
    factor_squares = _squares(lower_re)
    if imaginary is not None and lower_im is not None:
        squares = squares + _squares(imaginary - _cross(lower_im, lower_re, width))
        factor_squares = factor_squares + _squares(lower_im)
    rounding = mul_up(SQRT2_UP, gamma_up(min(2 * size, BLOCK) + -(-size // width) + 2))
    slack = up(1.0 + 4.0 * gamma_up(2 * size * size + 8))
    eta = np.sqrt(squares) * slack + rounding * factor_squares * slack + 4.0 * size * size * SQRT_TINY
    result: Array = np.nextafter(eta * up(1.0 + 8 * UNIT_ROUNDOFF), np.inf)
    return result


def _squares(stack: Array) -> Array:
    return np.asarray(np.einsum("...ij,...ij->...", stack, stack))


def _gram(lower_re: Array, lower_im: Array | None, width: int) -> Array:
    """Real part of LL*, summed block by block (columns of L above its diagonal are zero, so rows start there)."""
    total = np.zeros_like(lower_re)
    for start in range(0, lower_re.shape[-1], width):
        block = lower_re[..., start:, start : start + width]
        if lower_im is not None:
            block = np.concatenate([block, lower_im[..., start:, start : start + width]], axis=-1)
        total[..., start:, start:] += block @ np.swapaxes(block, -1, -2)
    return total


def _cross(lower_im: Array, lower_re: Array, width: int) -> Array:
    """Imaginary part of LL*: Im·Reᵀ − Re·Imᵀ."""
    total = np.zeros_like(lower_re)
    for start in range(0, lower_re.shape[-1], width):
        columns = slice(start, start + width)
        total[..., start:, start:] += lower_im[..., start:, columns] @ np.swapaxes(
            lower_re[..., start:, columns], -1, -2
        )
    return total - np.swapaxes(total, -1, -2)


def largest_eigenvalue_up(tau: float, real: Array, imaginary: Array | None, gram_error: Array) -> Array | None:
    """Upper bounds of λ_max(G) for Hermitian G that differs from Ĝ = real + i·imaginary by ``gram_error``.

    ``gram_error`` bounds ‖G − (Ĝ + Ĝ*)/2‖. Factorises τI − Ĝ; ``None`` when that fails (τ too small). Lemma C2:
    λ_max ≤ τ + η + u·max|A_ii| + ε.
    """
    size = real.shape[-1]
    index = np.arange(size)
    shifted = -real
    shifted[..., index, index] += tau
    shifted_im = None if imaginary is None else -imaginary
    try:
        factor = np.linalg.cholesky(shifted if shifted_im is None else _complex(shifted, shifted_im))
    except np.linalg.LinAlgError:
        return None
    diagonal = np.abs(shifted[..., index, index]).max(axis=-1)
    eta = residual_up(shifted, shifted_im, factor)
    upper: Array = np.nextafter(tau + (eta + 2 * UNIT_ROUNDOFF * diagonal + gram_error), np.inf)
    upper = upper * up(1.0 + 4 * UNIT_ROUNDOFF)
    if not np.all(np.isfinite(upper)):
        raise ProofFailed("the residual of a factorisation is not finite")
    return upper


def _complex(real: Array, imaginary: Array) -> np.ndarray[Any, np.dtype[np.complex128]]:
    whole = np.empty(real.shape, np.complex128)
    whole.real, whole.imag = real, imaginary
    return whole
