"""What is known about each row once it is certified, and the counts that follow. Shares are exact fractions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lipdeploy.verify.rounding import decimal_down, shortest_down

Array = np.ndarray[Any, Any]
PROGRAMS = ("f64", "f32")
CURVE_POINTS = 201
BINS = 40
SHOWN_QUANTILE = 0.999


@dataclass(frozen=True)
class Batch:
    """Answers for the rows ``start`` … ``start + len(label) − 1``; ``program`` is an index into ``PROGRAMS``."""

    start: int
    label: Array
    radius: Array
    program: Array


class Answers:
    """Label int64, radius float64 and program uint8 of every row, filled in batch by batch in any order."""

    def __init__(self, rows: int) -> None:
        self.done = np.zeros(rows, bool)
        self.label = np.full(rows, -1, np.int64)
        self.radius = np.zeros(rows, np.float64)
        self.program = np.zeros(rows, np.uint8)

    def __len__(self) -> int:
        """The number of rows, done or not."""
        return len(self.done)

    def add(self, batch: Batch) -> None:
        """Keep a batch's answers."""
        place = slice(batch.start, batch.start + len(batch.label))
        self.label[place], self.radius[place], self.program[place] = batch.label, batch.radius, batch.program
        self.done[place] = True

    def missing(self, size: int) -> list[range]:
        """Ranges of at most ``size`` rows that hold every row not done, ascending."""
        edges = np.flatnonzero(np.diff(np.concatenate([[True], self.done, [True]]).astype(np.int8)))
        gaps = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        return [range(start, min(start + size, stop)) for first, stop in gaps for start in range(first, stop, size)]


@dataclass(frozen=True)
class AtRadius:
    """What holds at one ``epsilon``, measured in ``norm``: counts of rows.

    ``correct``: the right class, certified; ``wrong``: another class, certified; ``abstained``: not certified.
    """

    epsilon: float
    norm: str
    correct: int
    wrong: int
    abstained: int

    @property
    def certified_accuracy(self) -> Fraction:
        """The share of rows that are certified and right."""
        return Fraction(self.correct, self.correct + self.wrong + self.abstained)


@dataclass(frozen=True)
class Results:
    """Labels, radii and truths of N rows; everything that is reported is a count over them."""

    truth: Array
    label: Array
    radius: Array
    program: Array

    def __len__(self) -> int:
        """N."""
        return len(self.truth)

    @property
    def right(self) -> Array:
        """Rows whose label is the true one."""
        answer: Array = self.label == self.truth
        return answer

    @property
    def accuracy(self) -> Fraction:
        """The share of right labels, certified or not."""
        return Fraction(int(self.right.sum()), len(self))

    @property
    def without_certificate(self) -> int:
        """Rows whose radius is 0."""
        return int((~(self.radius > 0.0)).sum())

    def answered_by(self, program: str) -> int:
        """Rows that this program answered."""
        return int((self.program == PROGRAMS.index(program)).sum())

    def at(self, epsilon: float, norm: str, radius: Array | None = None) -> AtRadius:
        """The counts at ``epsilon``; ``radius`` are the radii in ``norm`` where that is not the certificate's norm."""
        certified = certified_at(self.radius if radius is None else radius, epsilon)
        correct = int((certified & self.right).sum())
        return AtRadius(epsilon, norm, correct, int(certified.sum()) - correct, len(self) - int(certified.sum()))

    @property
    def scale(self) -> float:
        """How far the radius axis of a drawing reaches: nearly all finite radii lie below."""
        finite = self.radius[np.isfinite(self.radius)]
        reach = float(np.quantile(finite, SHOWN_QUANTILE)) if len(finite) else 0.0
        return reach if reach > 0.0 else 1.0

    def curve(self) -> tuple[Array, Array]:
        """Radii from 0 to ``scale``, and how many rows are right and certified there (at 0: with any radius)."""
        points = np.linspace(0.0, self.scale, CURVE_POINTS)
        ordered = np.sort(self.radius[self.right & (self.radius > 0.0)])
        return points, len(ordered) - np.searchsorted(ordered, points, side="left")

    def histogram(self) -> tuple[Array, Array, Array]:
        """Edges, right and wrong rows per bin, over radii > 0; the last bin also holds everything beyond it."""
        edges = np.linspace(0.0, self.scale, BINS + 1)
        inside = np.minimum(self.radius, self.scale)
        counts = [np.histogram(inside[(self.radius > 0.0) & which], edges)[0] for which in (self.right, ~self.right)]
        return edges, counts[0], counts[1]

    def quantile_down(self, share: Fraction) -> float:
        """The largest of the radii that at least 1 − ``share`` of the rows reach; nothing is interpolated."""
        return float(np.sort(self.radius)[min(int(share * len(self)), len(self) - 1)])

    def of_class(self, number: int) -> Results:
        """The rows whose true class is ``number``."""
        which = self.truth == number
        return Results(self.truth[which], self.label[which], self.radius[which], self.program[which])

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Row numbers: the largest radii first; and the smallest first."""
        order = np.argsort(self.radius, kind="stable")
        return order[::-1][:count].tolist(), order[:count].tolist()


def certified_at(radius: Array, epsilon: float) -> Array:
    """Rows certified at ``epsilon``: radius > 0 and ≥ ε."""
    certified: Array = (radius > 0.0) & (radius >= epsilon)
    return certified


def percent_down(share: Fraction, digits: int = 2) -> str:
    """A share as a percentage, never rounded up: 1999/2000 is 99.95."""
    scaled = int(share * 100 * 10**digits)
    return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}" if digits else str(scaled)


def shown(epsilon: float) -> str:
    """A radius that was asked for: as it was written, which was rounded up, or six digits that are not above it."""
    written = shortest_down(epsilon)
    return min(written, decimal_down(epsilon, 6), key=len)
