"""Two kinds of number that must never be confused: what was proven and what was estimated.

There is no conversion between them and no arithmetic across them: ``Bound`` comes out of a proof and rounds up
whenever it is computed with or printed; ``Estimate`` comes out of sampling or iteration and only informs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lipdeploy.verify import rounding


@dataclass(frozen=True, order=True)
class Bound:
    """A proven upper bound, as a binary64 number that is not below the exact value."""

    value: float

    def __post_init__(self) -> None:
        if not self.value >= 0.0:
            raise ValueError(f"a bound is a non-negative number, got {self.value!r}")

    @property
    def is_finite(self) -> bool:
        """Whether anything was proven at all."""
        return self.value != rounding.INFINITY

    def __float__(self) -> float:
        return self.value

    def __add__(self, other: Bound) -> Bound:
        return Bound(rounding.add_up(self.value, other.value))

    def __mul__(self, other: Bound) -> Bound:
        return Bound(rounding.mul_up(self.value, other.value))

    def hex(self) -> str:
        """C99 hexadecimal form: loses nothing."""
        return self.value.hex()

    def __format__(self, spec: str) -> str:
        digits = int(spec) if spec else 7
        return rounding.decimal_up(self.value, digits)

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
