"""The table of cos and sin against 60-digit arithmetic."""

from __future__ import annotations

import mpmath
import pytest

from lipdeploy.verify.operator_norm.circle import TABLE_ERROR, unit_circle


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 100, 225, 1009])
def test_every_entry_is_within_the_stated_error(count: int) -> None:
    cos, sin = unit_circle(count)
    with mpmath.workdps(60):
        for j in range(count):
            angle = 2 * mpmath.pi * j / count
            assert abs(mpmath.mpf(float(cos[j])) - mpmath.cos(angle)) <= TABLE_ERROR
            assert abs(mpmath.mpf(float(sin[j])) - mpmath.sin(angle)) <= TABLE_ERROR


def test_quarter_turns_are_exact() -> None:
    cos, sin = unit_circle(4)
    assert cos.tolist() == [1.0, 0.0, -1.0, 0.0]
    assert sin.tolist() == [0.0, 1.0, 0.0, -1.0]
