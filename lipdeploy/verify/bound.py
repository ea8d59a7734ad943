"""Two kinds of number that must never be confused: what was proven and what was estimated.

There is no conversion between them and no arithmetic across them: ``Bound`` comes out of a proof and rounds up
whenever it is computed with or printed; ``Estimate`` comes out of sampling or iteration and only informs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

from lipdeploy.verify import rounding


class Bound(float):
    """A proven upper bound: a binary64 number that is not below the exact value.

    Reads and compares as the float it is. Sums and products of bounds are bounds, rounded up; any other arithmetic
    gives a plain float, which nobody proved. Printed, it is rounded up: ``f"{bound}"`` (7 digits), ``f"{bound:.3f}"``.
    """

    __slots__ = ()

    def __new__(cls, value: float) -> Bound:
        """Raises ``ValueError`` for a NaN or a negative number."""
        if not value >= 0.0:
            raise ValueError(f"a bound is a non-negative number, got {value!r}")
        return super().__new__(cls, value)

    @property
    def value(self) -> float:
        """The number without its claim."""
        return float(self)

    @property
    def is_finite(self) -> bool:
        """Whether anything was proven at all."""
        return self.value != rounding.INFINITY

    @overload
    def __add__(self, other: Bound) -> Bound: ...
    @overload
    def __add__(self, other: float) -> float: ...
    def __add__(self, other: float) -> float:
        if isinstance(other, Bound):
            return Bound(rounding.add_up(self.value, other.value))
        return self.value + other

    @overload
    def __mul__(self, other: Bound) -> Bound: ...
    @overload
    def __mul__(self, other: float) -> float: ...
    def __mul__(self, other: float) -> float:
        if isinstance(other, Bound):
            return Bound(rounding.mul_up(self.value, other.value))
        return self.value * other

    def __repr__(self) -> str:
        return f"Bound({self.value!r})"

    def __format__(self, spec: str) -> str:
        return rounding.formatted_up(self.value, spec)

    def __str__(self) -> str:
        return format(self, "")


ZERO = Bound(0.0)
ONE = Bound(1.0)
UNBOUNDED = Bound(rounding.INFINITY)


def euclidean(bounds: Iterable[Bound]) -> Bound:
    """√(Σ bᵢ²), rounded up."""
    return Bound(rounding.hypot_up(bound.value for bound in bounds))


def total(bounds: Iterable[Bound]) -> Bound:
    """Σ bᵢ, rounded up."""
    return Bound(rounding.add_up(*(bound.value for bound in bounds)))


@dataclass(frozen=True, order=True)
class Estimate:
    """A number that nobody proved (a lower estimate of a Lipschitz constant, say)."""

    value: float

    def __format__(self, spec: str) -> str:
        digits = int(spec) if spec else 7
        return rounding.decimal_down(self.value, digits)

    def __str__(self) -> str:
        return format(self, "")
