"""Upper bounds of sums over arrays, whatever order NumPy adds in.

A sum of k non-negative terms computed in any order errs by at most γ_{k−1} relative (Higham 2002, §4.2), so dividing
by 1 − γ_k turns it into an upper bound; each underflowing product adds at most the smallest normal number (this
covers flush-to-zero).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.rounding import add_up, div_up, down, gamma_up, mul_up, sqrt_up

Array = np.ndarray[Any, np.dtype[np.float64]]
TINY = 2.0**-1022


def inflate(computed: float, terms: int) -> float:
    """Upper bound of a sum of ``terms`` non-negative numbers, each rounded at most once, from its computed value."""
    return div_up(computed, down(1.0 - gamma_up(terms + 1)))


@functools.lru_cache(maxsize=256)  # exact rationals take longer than the sums of a small batch
def _shrink(terms: int) -> float:
    return down(1.0 - gamma_up(terms + 1))


def inflate_array(computed: Array, terms: int) -> Array:
    """``inflate``, entry by entry."""
    upper: Array = np.nextafter(computed / _shrink(terms), np.inf)
    return np.where(computed == 0.0, 0.0, upper)


def absolute_sums(matrix: Array, axis: int) -> Array:
    """Upper bounds of Σ|w| along one axis of a matrix."""
    return inflate_array(np.abs(matrix).sum(axis=axis), matrix.shape[axis])


def square_sums(matrix: Array, axis: int) -> Array:
    """Upper bounds of Σw² along one axis of a matrix."""
    terms = matrix.shape[axis]
    sums = np.einsum("ij,ij->i" if axis % 2 else "ij,ij->j", matrix, matrix)
    upper: Array = np.nextafter(np.nextafter(sums / _shrink(terms), np.inf) + terms * TINY, np.inf)
    if np.all(sums != 0.0):
        return upper
    return np.where(np.any(matrix != 0.0, axis=axis), upper, 0.0)


def square_sum(array: Array) -> float:
    """Upper bound of the sum of all squares."""
    if not array.size:
        return 0.0
    flat = array.reshape(-1)
    return add_up(inflate(float(np.dot(flat, flat)), flat.size), mul_up(float(flat.size), TINY))


def frobenius(array: Array) -> Bound:
    """Upper bound of the Frobenius norm."""
    return Bound(sqrt_up(square_sum(array)))


def largest(array: Array) -> float:
    """max |w|, exact; 0 for an empty array."""
    return float(np.max(np.abs(array), initial=0.0))
