"""cos and sin of 2πj/N, rounded once from 160-bit integers: no trust in a mathematical library is needed."""

from __future__ import annotations

from functools import cache

import numpy as np

from lipdeploy.verify.operator_norm.sums import Array

BITS = 160
ONE = 1 << BITS

#: |table − exact| for one axis: half a unit in the last place of numbers ≤ 1, plus the integers' own error.
TABLE_ERROR = 2.0**-53


@cache
def unit_circle(count: int) -> tuple[Array, Array]:
    """(cos, sin) of 2πj/count for j = 0 … count − 1, each within ``TABLE_ERROR``."""
    points = [_point(j, count) for j in range(count)]
    return np.array([c for c, _ in points]), np.array([s for _, s in points])


def _point(j: int, count: int) -> tuple[float, float]:
    """Rotate by quarter turns (exact) into |angle| ≤ π/4, then sum Taylor's series in integers."""
    quarter = (8 * j + count) // (2 * count)
    angle = 2 * _pi() * (4 * j - quarter * count) // (4 * count)
    cos, sin = _taylor(angle)
    for _ in range(quarter % 4):
        cos, sin = -sin, cos
    return cos / ONE, sin / ONE


def _taylor(angle: int) -> tuple[int, int]:
    cos, sin, term = ONE, 0, ONE
    for k in range(1, 48):
        term = term * angle // (ONE * k)
        if k % 2:
            sin += term if k % 4 == 1 else -term
        else:
            cos += term if k % 4 == 0 else -term
    return cos, sin


@cache
def _pi() -> int:
    """Machin: π = 16·arctan(1/5) − 4·arctan(1/239)."""
    return 16 * _arctan_inverse(5) - 4 * _arctan_inverse(239)


def _arctan_inverse(n: int) -> int:
    term, total, k = ONE // n, ONE // n, 1
    while term:
        term //= -n * n
        k += 2
        total += term // k
    return total
