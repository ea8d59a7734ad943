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
REAL_FROM = 256  # smaller matrices are factorised by LAPACK in one call, and multiplied out
COMPLEX_FROM = 96
REAL_PANEL = 64
COMPLEX_PANEL = 32  # real and imaginary parts of whole panels fill a block
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
    index = np.arange(real.shape[-1])
    small = real.shape[-1] < (REAL_FROM if imaginary is None else COMPLEX_FROM)
    try:
        eta = _whole_residual_up(tau, real, imaginary) if small else _shifted_residual_up(tau, real, imaginary)
    except np.linalg.LinAlgError:
        return None
    diagonal = np.abs(tau - real[..., index, index]).max(axis=-1)
    upper: Array = np.nextafter(tau + (eta + 2 * UNIT_ROUNDOFF * diagonal + gram_error), np.inf)
    upper = upper * up(1.0 + 4 * UNIT_ROUNDOFF)
    if not np.all(np.isfinite(upper)):
        raise ProofFailed("the residual of a factorisation is not finite")
    return upper


def _whole_residual_up(tau: float, real: Array, imaginary: Array | None) -> Array:
    """``residual_up`` of τI − Ĝ and the factor that LAPACK finds."""
    index = np.arange(real.shape[-1])
    shifted = -real
    shifted[..., index, index] += tau
    shifted_im = None if imaginary is None else -imaginary
    factor = np.linalg.cholesky(shifted if shifted_im is None else _complex(shifted, shifted_im))
    return residual_up(shifted, shifted_im, factor)


def _shifted_residual_up(tau: float, real: Array, imaginary: Array | None) -> Array:
    """Upper bounds of ‖H − LL*‖ for a stack of A = fl(τ) I − Ĝ, H = (A + A*)/2, and a factor L made on the way.

    Panel by panel from the left: what earlier panels explain is taken off, a Cholesky factor of the corner and its
    inverse (untrusted) make the panel of L, and its own product is taken off too. What remains of each entry is the
    residual of ``residual_up``, summed in the same blocks, so the same bound of its rounding holds; entries above the
    diagonal count as the conjugates of those below, and how far A is from Hermitian is added.
    """
    size, parts = real.shape[-1], 1 if imaginary is None else 2
    panel = REAL_PANEL if imaginary is None else COMPLEX_PANEL
    factor = np.empty((*real.shape[:-1], parts * size))
    squares, factor_squares, unlike = (np.zeros(real.shape[:-2]) for _ in range(3))
    for start in range(0, size, panel):
        stop = min(start + panel, size)
        left = _panel(tau, real, imaginary, start, stop)
        below = factor[..., start:, :]
        for first in range(0, parts * start, BLOCK):
            columns = slice(first, min(first + BLOCK, parts * start))
            left -= below[..., columns] @ _adjoint(below[..., : stop - start, columns], parts, panel)
        own = slice(parts * start, parts * stop)
        below[..., own] = _next_panel(left, parts)
        left -= below[..., own] @ _adjoint(below[..., : stop - start, own], parts, stop - start)
        squares += 2.0 * _squares(left) - _squares(left[..., : stop - start, :])
        factor_squares += _squares(below[..., own])
        unlike += _asymmetry(real, start, stop, 1.0)
        if imaginary is not None:
            unlike += _asymmetry(imaginary, start, stop, -1.0)
    rounding = mul_up(SQRT2_UP, gamma_up(min(parts * size, BLOCK) + -(-parts * size // BLOCK) + 4))
    slack = up(1.0 + 4.0 * gamma_up(2 * size * size + 8))
    eta = (np.sqrt(squares) + np.sqrt(unlike)) * slack + rounding * factor_squares * slack
    result: Array = np.nextafter((eta + 8.0 * size * size * SQRT_TINY) * up(1.0 + 8 * UNIT_ROUNDOFF), np.inf)
    return result


def _panel(tau: float, real: Array, imaginary: Array | None, start: int, stop: int) -> Array:
    """Columns ``start`` to ``stop`` of τI − Ĝ from the diagonal down: the real parts, then the imaginary ones."""
    index = np.arange(stop - start)
    parts = [real[..., start:, start:stop]] + ([] if imaginary is None else [imaginary[..., start:, start:stop]])
    left: Array = -np.concatenate(parts, axis=-1)
    left[..., index, index] += tau
    return left


def _adjoint(rows: Array, parts: int, panel: int) -> Array:
    """(columns, rows·parts): what a row of L, real and imaginary parts panel by panel, meets to make one of LL*."""
    if parts == 1:
        return np.swapaxes(rows, -1, -2)
    pairs = rows.reshape(*rows.shape[:-1], -1, 2, panel)
    turned = np.empty_like(pairs)
    np.negative(pairs[..., 1, :], out=turned[..., 0, :])
    turned[..., 1, :] = pairs[..., 0, :]
    both = np.concatenate([rows, turned.reshape(rows.shape)], axis=-2)
    return np.swapaxes(both, -1, -2)


def _next_panel(left: Array, parts: int) -> Array:
    """The panel of L that explains ``left``, about; raises ``LinAlgError``."""
    width = left.shape[-1] // parts
    matrix = left if parts == 1 else _complex(left[..., :width], left[..., width:])
    corner = np.linalg.cholesky(matrix[..., :width, :])
    result = matrix @ np.swapaxes(np.linalg.inv(corner).conj(), -1, -2)
    result[..., :width, :] = corner
    return np.asarray(result) if parts == 1 else np.concatenate([result.real, result.imag], axis=-1)


def _asymmetry(matrix: Array, start: int, stop: int, sign: float) -> Array:
    """Σ|A_ij ∓ A_ji|² over the rows below a panel's corner: twice (‖A − A*‖ / 2)² in all, but for the corners."""
    difference = matrix[..., stop:, start:stop] - sign * np.swapaxes(matrix[..., start:stop, stop:], -1, -2)
    return _squares(difference)


def _complex(real: Array, imaginary: Array) -> np.ndarray[Any, np.dtype[np.complex128]]:
    whole = np.empty(real.shape, np.complex128)
    whole.real, whole.imag = real, imaginary
    return whole
