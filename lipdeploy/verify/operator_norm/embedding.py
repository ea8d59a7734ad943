"""Which torus and which twist to prove with: a search in float32 that nobody has to believe.

Any torus with room for the padding and any twist gives a valid bound (Lemma D1); they differ by per cents on small maps
and by nothing on large ones. The search estimates the largest symbol of each and proves nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipdeploy.verify.guide import Guide
from lipdeploy.verify.operator_norm.panels import SINGLE
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.operator_norm.symbol import CHUNK_ENTRIES, Grid, Indices, Symbol, guess

LEAST_WORK = 1.2e8  # complex multiply-adds that any search may take: a fraction of a second
SHARE = 0.015  # of the proof's multiply-adds, which are many times cheaper apiece: about as long as the proof
STEPS = 16
SMALL = 24  # longer tori gain nothing from one more row
REFINED = 3
COMPARED = 1024  # frequencies of two grids, each with each
LEAST_RANKED = 24
LEAST_SIZE = 24  # smaller symbols are cheaper to look at than to compare
BETTER = 1.0 - 1e-7


def chosen(symbol: Symbol, least: tuple[int, ...], guide: Guide) -> Grid:
    """The grid to prove with: the hint's if it has room, else the best of those that the search can afford."""
    hinted = _hinted(least, guide)
    grid = hinted or _searched(symbol, least)
    guide.found["torus"], guide.found["twist"] = list(grid.torus), list(grid.twist)
    return grid


def _hinted(least: tuple[int, ...], guide: Guide) -> Grid | None:
    torus, twist = guide.sizes("torus"), guide.sizes("twist")
    if torus is None or twist is None or not len(torus) == len(twist) == len(least) or max(twist) > 1:
        return None
    fits = all(n <= size <= n + 2 for size, n in zip(torus, least, strict=True))
    return Grid(torus, twist) if fits else None


def _searched(symbol: Symbol, least: tuple[int, ...]) -> Grid:
    grids = list(itertools.takewhile(_Purse(symbol, least).affords, _candidates(least)))
    best, lowest = Grid(least, (0,) * len(least)), math.inf
    seen: _Seen | None = None
    for grid in grids if len(grids) > 1 else ():
        value, found = _estimate(symbol, grid, seen)
        seen = seen or found
        if value < lowest * BETTER:
            best, lowest = grid, value
    return best


class _Purse:
    """What the search may cost: as long as the proof takes, about, and a little in any case."""

    def __init__(self, symbol: Symbol, least: tuple[int, ...]) -> None:
        self.symbol = symbol
        proof = 3.0 * math.prod(least) / 2 * symbol.groups * symbol.size**3
        self.left = max(LEAST_WORK, SHARE * proof)

    def affords(self, grid: Grid) -> bool:
        """Pay for one estimate, if it can be paid for."""
        self.left -= float(grid.size) * self.symbol.groups * self.symbol.size**2 * STEPS
        return self.left >= 0.0


def _candidates(least: tuple[int, ...]) -> Iterator[Grid]:
    """The smallest torus first, with every twist; small ones also with one and two more rows."""
    for extra in range(3 if max(least) <= SMALL else 1):
        for twist in itertools.product((0, 1), repeat=len(least)):
            yield Grid(tuple(n + extra for n in least), twist)


@dataclass(frozen=True)
class _Seen:
    """What the first grid showed: its frequencies, in turns per axis, and a guess of λ_max at each."""

    turns: Array
    ranks: Array

    def promising(self, turns: Array) -> Indices:
        """The third of other frequencies that lie nearest to where λ_max was large: a symbol changes slowly."""
        apart = np.zeros((len(turns), len(self.turns)))
        mirrored = np.zeros_like(apart)
        for new, old in zip(turns.T, self.turns.T, strict=True):
            for distance, sign in ((apart, 1.0), (mirrored, -1.0)):
                gap = (new[:, None] - sign * old[None, :]) % 1.0
                distance += np.minimum(gap, 1.0 - gap) ** 2
        near = min(2 ** turns.shape[1], len(self.turns))
        nearest = np.argpartition(np.minimum(apart, mirrored), near - 1, axis=1)[:, :near]
        expected = self.ranks[nearest].mean(axis=1)
        return np.asarray(np.argsort(expected)[-max(LEAST_RANKED, len(turns) // 3) :])


def _estimate(symbol: Symbol, grid: Grid, seen: _Seen | None = None) -> tuple[float, _Seen]:
    """About the largest λ_max(K̂K̂*) over the grid: ranked in float32, the first few solved in float64."""
    points = grid.points()
    turns = points / (2.0 * np.array(grid.torus))
    if seen is not None and symbol.size >= LEAST_SIZE and len(points) <= COMPARED:
        points = points[seen.promising(turns)]
    step = max(1, CHUNK_ENTRIES // (symbol.groups * symbol.size**2))
    ranks = np.concatenate(
        [_ranks(symbol, points[start : start + step], grid.torus) for start in range(0, len(points), step)]
    )
    top = np.argsort(ranks)[-REFINED:]
    return guess(symbol.matrices(points[top], grid.torus)), _Seen(turns, ranks)


def _ranks(symbol: Symbol, points: Indices, torus: tuple[int, ...]) -> Array:
    """λ_max at each frequency after a few steps of Lanczos' method, in complex64; shape (frequencies,)."""
    if symbol.size == 1:
        return np.asarray(symbol.grams(points, torus)[0].reshape(len(points), -1).max(axis=1))
    stack = symbol.matrices(points, torus, SINGLE)
    return np.asarray(_lanczos(stack, STEPS).reshape(len(points), -1).max(axis=1))


def _lanczos(stack: np.ndarray, steps: int) -> Array:
    count, size = stack.shape[:2]
    vector = np.random.default_rng(0).standard_normal((1, size, 1)).astype(np.float32) * np.ones(
        (count, 1, 1), np.complex64
    )
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    steps = min(steps, size)
    previous, beta = np.zeros_like(vector), np.zeros((count, 1, 1), np.float32)
    tridiagonal = np.zeros((count, steps, steps))
    for step in range(steps):
        image = stack @ vector - beta * previous
        alpha = np.sum(vector.conj() * image, axis=1, keepdims=True).real
        image -= alpha * vector
        beta = np.linalg.norm(image, axis=1, keepdims=True)
        tridiagonal[:, step, step] = alpha[:, 0, 0]
        if step + 1 < steps:
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta[:, 0, 0]
        previous, vector = vector, image / np.maximum(beta, np.float32(1e-30))
    return np.asarray(np.linalg.eigvalsh(np.nan_to_num(tridiagonal))[:, -1])
