"""A caller asks for a radius that is no float64 number, and the nearest one is below it.

3/10 became 0.29999999999999998890 and a row with exactly that radius was called certified at 3/10. The radius asked
for is rounded up wherever an exact number can be given: Python's numbers, and whole numbers on the wire.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from lipdeploy.errors import InputError
from lipdeploy.runtime.prediction import checked_epsilon
from lipdeploy.serve import oip


@pytest.mark.parametrize("asked", [Fraction(3, 10), Decimal("0.3"), 2**53 + 1, Fraction(1, 10), 1, 0.3])
def test_never_less_than_was_asked_for(asked: float) -> None:
    found = checked_epsilon(asked)
    assert Fraction(found) >= Fraction(asked)
    assert found <= float(asked) * (1 + 2**-51)


def test_a_whole_number_on_the_wire() -> None:
    assert oip.epsilon(2**53 + 1) == float(2**53 + 2)
    assert oip.epsilon(1) == 1.0


def test_too_large_to_be_a_number() -> None:
    with pytest.raises(InputError):
        checked_epsilon(10**400)
