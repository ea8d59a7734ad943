"""A lower estimate of a network's Lipschitz constant: the steepest pair of points that a search finds.

The search takes finite differences only, so it works on any program that maps float64 rows to float64 rows. At a
point it measures the Jacobian column by column, or, where the inputs are too many for that, along random directions
besides the best one so far; it turns the slopes into the steepest direction for the norm pair, and then really
evaluates that pair. What it returns was observed; nothing was proven.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.bound import Estimate

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]

ORDERS: dict[str, tuple[float, float]] = {
    "l2": (2, 2),
    "linf": (math.inf, math.inf),
    "l1": (1, 1),
    "l2-linf": (2, math.inf),
    "l1-linf": (1, math.inf),
}
DIRECTIONS = 64  # directions measured at a time when there are too many inputs for whole Jacobians
ROWS_PER_RUN = 256
NOISE = 64.0  # rounding allowance, in units in the last place of the outputs


@dataclass
class _Search:
    """The program with its input shape and norms, and what may still be spent."""

    run: Run
    shape: tuple[int, ...]
    orders: tuple[float, float]
    step: float
    evaluations: int
    deadline: float
    best: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.evaluations <= 0 or time.monotonic() > self.deadline

    def values(self, rows: Array) -> tuple[Array, float]:
        """Outputs of flattened rows, flattened (rows, outputs), and the unit roundoff of their type."""
        self.evaluations -= len(rows)
        parts = []
        for start in range(0, len(rows), ROWS_PER_RUN):
            part = rows[start : start + ROWS_PER_RUN].reshape(-1, *self.shape)
            parts.append(np.asarray(self.run(part)).reshape(len(part), -1))
        unit = 2.0**-53 if parts[0].dtype == np.float64 else 2.0**-24
        return np.concatenate(parts).astype(np.float64), unit

    def try_direction(self, x: Array, direction: Array) -> bool:
        """Evaluate the pair x ± h·d; remember its ratio, less what rounding may have added, when it is the best."""
        p, q = self.orders
        pair = np.stack([x + self.step * direction, x - self.step * direction])
        outputs, unit = self.values(pair)
        with np.errstate(all="ignore"):
            noise = NOISE * unit * (np.linalg.norm(outputs[0], q) + np.linalg.norm(outputs[1], q))
            rise = np.linalg.norm(outputs[0] - outputs[1], q) - noise
            ratio = float(rise / np.linalg.norm(pair[0] - pair[1], p))
        better = math.isfinite(ratio) and ratio > self.best
        self.best = ratio if better else self.best
        return better

    def slopes(self, x: Array, directions: Array) -> Array:
        """Derivatives along the rows of ``directions``: (directions, outputs)."""
        ahead, _ = self.values(x + self.step * directions)
        behind, _ = self.values(x - self.step * directions)
        with np.errstate(all="ignore"):
            return np.nan_to_num((ahead - behind) / (2.0 * self.step), posinf=0.0, neginf=0.0)


def lower_estimate(
    run: Run,
    input_shape: Sequence[int],
    norm: str = "l2",
    *,
    samples: int = 8,
    seed: int = 0,
    points: Array | None = None,
    step: float = 1e-4,
    evaluations: int = 20_000,
    seconds: float | None = None,
) -> Estimate:
    """The largest ratio ‖f(x) − f(y)‖_q / ‖x − y‖_p that the search observes.

    ``run`` maps float64 arrays (batch, *input_shape) to outputs (batch, ...). The rows of ``points`` (if given) and
    ``samples`` random points are tried, then ``samples`` more around the best, until ``evaluations`` rows were run
    or ``seconds`` have passed. ``step`` is the half-length of the finite differences: raise it to 1e-2 for a program
    that computes in float32. Deterministic for a ``seed`` when ``seconds`` is ``None``.

    Raises ``InputError`` for an unknown norm or a non-positive number of samples.
    """
    if norm not in ORDERS:
        raise InputError(f"unknown norm '{norm}'", hint=f"one of {', '.join(ORDERS)}")
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    search = _Search(run, tuple(input_shape), ORDERS[norm], step, evaluations, deadline)
    _search(search, samples, np.random.default_rng(seed), points)
    return Estimate(search.best)


def _search(search: _Search, samples: int, random: np.random.Generator, points: Array | None) -> None:
    size = math.prod(search.shape)
    starts = [] if points is None else list(np.asarray(points, dtype=np.float64).reshape(-1, size))
    starts += list(random.standard_normal((samples, size)))
    where = starts[0]
    for trial in range(len(starts) + samples):
        if search.is_over:
            return
        near = trial - len(starts)
        x = starts[trial] if near < 0 else where + 2.0 ** (-near % 6) * random.standard_normal(size)
        if _ascend(search, x, random):
            where = x


def _ascend(search: _Search, x: Array, random: np.random.Generator) -> bool:
    """Try the steepest directions at ``x``; whether one was better than all before."""
    if 2 * x.size > search.evaluations and 2 * x.size > 2 * DIRECTIONS:
        return _ascend_in_subspaces(search, x, random)
    columns = np.concatenate([search.slopes(x, block) for block in _unit_vectors(x.size)])
    return any([search.try_direction(x, direction) for direction in _directions(columns, search.orders)])


def _unit_vectors(size: int) -> Iterator[Array]:
    for start in range(0, size, ROWS_PER_RUN):
        count = min(ROWS_PER_RUN, size - start)
        yield np.eye(count, size, start)


def _directions(columns: Array, orders: tuple[float, float]) -> list[Array]:
    """Steepest unit directions of the linear map whose (input, output) matrix is ``columns``.

    ∞ → ∞: signs of the output with the largest ℓ1 sum; 1 → anything: the steepest coordinate; 2 → ∞: the output with
    the largest ℓ2 sum; 2 → 2: the first singular vector.
    """
    p, q = orders
    if not columns.any():
        return [np.ones(len(columns))]
    if p == math.inf:
        return [np.where(columns[:, int(np.abs(columns).sum(axis=0).argmax())] < 0.0, -1.0, 1.0)]
    if p == 1:
        gains = np.linalg.norm(columns, q, axis=1)
        return [np.eye(len(columns))[int(gains.argmax())]]
    if q == math.inf:
        row = columns[:, int(np.linalg.norm(columns, axis=0).argmax())]
        return [row / np.linalg.norm(row)]
    return [_first_singular_vector(columns)]


def _first_singular_vector(columns: Array) -> Array:
    """Of the smaller Gram matrix: (inputs, outputs) is usually tall."""
    if len(columns) <= columns.shape[1]:
        vector: Array = np.linalg.eigh(columns @ columns.T)[1][:, -1]
        return vector
    vector = columns @ np.linalg.eigh(columns.T @ columns)[1][:, -1]
    return np.asarray(vector / np.linalg.norm(vector))


def _ascend_in_subspaces(search: _Search, x: Array, random: np.random.Generator) -> bool:
    """Improve one direction over random subspaces that contain it, until the budget is spent.

    The steepest combination is exact for 2 → 2 and 2 → ∞; for an ℓ∞ input norm its signs are tried, for ℓ1 the
    steepest of a random choice of coordinates.
    """
    found, direction = False, random.standard_normal(x.size)
    p, q = search.orders
    while not search.is_over:
        basis = _subspace(search, direction, random)
        (weights,) = _directions(search.slopes(x, basis), (2, q) if p == math.inf else (p, q))
        candidate = weights @ basis
        if p == math.inf:
            candidate = np.where(candidate < 0.0, -1.0, 1.0)
        if search.try_direction(x, candidate):
            found, direction = True, candidate
    return found


def _subspace(search: _Search, direction: Array, random: np.random.Generator) -> Array:
    """Rows: orthonormal directions, the first along ``direction``; coordinates where the input norm is ℓ1."""
    if search.orders[0] == 1:
        chosen = random.choice(direction.size, DIRECTIONS, replace=False)
        basis = np.zeros((DIRECTIONS, direction.size))
        basis[np.arange(DIRECTIONS), chosen] = 1.0
        return basis
    drawn = np.vstack([direction, random.standard_normal((DIRECTIONS - 1, direction.size))])
    return np.linalg.qr(drawn.T)[0].T
