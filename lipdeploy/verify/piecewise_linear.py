"""Continuous piecewise-linear functions of one real variable, in exact rationals."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

Line = tuple[Fraction, Fraction]  # slope and intercept


@dataclass(frozen=True)
class PiecewiseLinear:
    """φ(t) = lines[k] between breaks[k − 1] and breaks[k]; the breaks ascend, and neighbouring lines meet there."""

    breaks: tuple[Fraction, ...]
    lines: tuple[Line, ...]

    @property
    def bits(self) -> int:
        """Of the longest number in the lines."""
        return max(max(abs(n.numerator), n.denominator).bit_length() for line in self.lines for n in line)

    @property
    def steepest(self) -> Fraction:
        """The least Lipschitz constant: the largest |slope|."""
        return max(abs(slope) for slope, _ in self.lines)

    def __call__(self, t: Fraction) -> Fraction:
        """φ(t)."""
        slope, intercept = self.lines[bisect_left(self.breaks, t)]
        return slope * t + intercept

    def __add__(self, other: PiecewiseLinear) -> PiecewiseLinear:
        breaks = tuple(sorted({*self.breaks, *other.breaks}))
        lines = zip(self._on(breaks), other._on(breaks), strict=True)
        return _simplified(breaks, [(a + c, b + d) for (a, b), (c, d) in lines])

    def scaled(self, factor: Fraction) -> PiecewiseLinear:
        """factor·φ."""
        return _simplified(self.breaks, [(factor * a, factor * b) for a, b in self.lines])

    def positive_part(self) -> PiecewiseLinear:
        """max(φ, 0): with a break wherever a line crosses 0 inside its interval, every line keeps one sign."""
        ends = pairwise((None, *self.breaks, None))
        crossings = [
            -b / a
            for (a, b), (low, high) in zip(self.lines, ends, strict=True)
            if a and (low is None or low < -b / a) and (high is None or -b / a < high)
        ]
        breaks = tuple(sorted({*self.breaks, *crossings}))
        inner = _inside(breaks)
        lines = zip(self._on(breaks), inner, strict=True)
        return _simplified(breaks, [(a, b) if a * t + b > 0 else _ZERO for (a, b), t in lines])

    def maximum(self, other: PiecewiseLinear) -> PiecewiseLinear:
        """max(φ, ψ) = ψ + max(φ − ψ, 0)."""
        return other + (self + other.scaled(Fraction(-1))).positive_part()

    def minimum(self, other: PiecewiseLinear) -> PiecewiseLinear:
        """min(φ, ψ) = −max(−φ, −ψ)."""
        minus = Fraction(-1)
        return self.scaled(minus).maximum(other.scaled(minus)).scaled(minus)

    def _on(self, breaks: tuple[Fraction, ...]) -> list[Line]:
        """The line on each interval between ``breaks``, which contain this function's own."""
        return [*(self.lines[bisect_left(self.breaks, end)] for end in breaks), self.lines[-1]]


_ZERO: Line = (Fraction(0), Fraction(0))
IDENTITY = PiecewiseLinear((), ((Fraction(1), Fraction(0)),))


def constant(value: Fraction) -> PiecewiseLinear:
    """The same everywhere."""
    return PiecewiseLinear((), ((Fraction(0), value),))


def _inside(breaks: tuple[Fraction, ...]) -> list[Fraction]:
    """One point inside each interval."""
    if not breaks:
        return [Fraction(0)]
    middles = [(low + high) / 2 for low, high in pairwise(breaks)]
    return [breaks[0] - 1, *middles, breaks[-1] + 1]


def _simplified(breaks: tuple[Fraction, ...], lines: list[Line]) -> PiecewiseLinear:
    """Without breaks at which nothing changes."""
    kept = [k for k in range(len(breaks)) if lines[k] != lines[k + 1]]
    return PiecewiseLinear(tuple(breaks[k] for k in kept), (*(lines[k] for k in kept), lines[-1]))
