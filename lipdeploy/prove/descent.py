"""Minimises the bound over the multipliers: limited-memory BFGS on log τ, sharper and sharper, until nothing is gained.

Every point that is tried and factorises is feasible, so the search may stop at any time.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from lipdeploy.prove.recursion import Array, Problem, Value

HISTORY = 12
STEPS = 150  # per stage
LONGEST_STEP = 2.0  # in log τ
#: Stages of the search: sharpness of the smoothed eigenvalue, weight of all barriers together, and the gain (of log ρ)
#: in the last RECENT steps below which a stage has stalled. Only the last stage has to be accurate.
STAGES = ((8.0, 0.3, 3e-3), (32.0, 0.05, 1e-3), (128.0, 1e-2, 5e-4), (512.0, 2e-3, 3e-4), (2048.0, 3e-4, 1e-4))
RECENT = 10


class Search:
    """Limited-memory BFGS with backtracking; remembers the best feasible point."""

    def __init__(self, problem: Problem, start: Array) -> None:
        self.problem = problem
        self.best = start
        self.point = start
        value = problem.value(start, 512.0, 0.0, gradient=False)
        assert value is not None
        self.rho = value.rho
        self.evaluations = 0
        self.longest = 0.0  # seconds of the slowest evaluation so far

    def _evaluate(self, point: Array, sharpness: float, barrier: float) -> Value | None:
        started = time.perf_counter()
        self.evaluations += 1
        value = self.problem.value(point, sharpness, barrier)
        if value is not None and value.rho < self.rho:
            self.rho, self.best = value.rho, point
        self.longest = max(self.longest, time.perf_counter() - started)
        return value

    def _is_over(self, deadline: float) -> bool:
        """Whether one more evaluation, and a check, which costs about two, would end after the deadline."""
        return time.perf_counter() + 3.0 * self.longest > deadline

    def run(self, sharpness: float, barrier: float, stalled: float, deadline: float) -> None:
        """Minimise one stage's objective from where the last stage ended."""
        if not self.point.size or self._is_over(deadline):
            return
        value = self._evaluate(self.point, sharpness, barrier)
        pairs: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)
        recent: deque[float] = deque(maxlen=RECENT)
        for _ in range(STEPS):
            if value is None or (len(recent) == RECENT and recent[0] - value.smooth < stalled):
                return
            recent.append(value.smooth)
            direction = _two_loops(pairs, value.gradient)
            if direction @ value.gradient >= 0.0:
                pairs.clear()
                direction = -value.gradient
            longest = LONGEST_STEP if pairs else LONGEST_STEP / 20
            length = float(np.abs(direction).max())
            direction = direction * min(1.0 if pairs else np.inf, longest / max(length, 1e-300))
            accepted = self._line_search(value, direction, sharpness, barrier, deadline)
            if accepted is None:
                return
            step, following = accepted
            change = following.gradient - value.gradient
            if step @ change > 1e-12 * np.linalg.norm(step) * np.linalg.norm(change):
                pairs.append((step, change))
            self.point, value = self.point + step, following

    def _line_search(
        self, value: Value, direction: Array, sharpness: float, barrier: float, deadline: float
    ) -> tuple[Array, Value] | None:
        slope, length = float(direction @ value.gradient), 1.0
        for _ in range(20):
            if self._is_over(deadline):
                return None
            found = self._evaluate(self.point + length * direction, sharpness, barrier)
            if found is not None and found.smooth <= value.smooth + 1e-4 * length * slope:
                return length * direction, found
            length *= 0.4
        return None


def _two_loops(pairs: deque[tuple[Array, Array]], gradient: Array) -> Array:
    """−H·gradient for the limited-memory BFGS approximation H of the inverse Hessian (Nocedal 1980)."""
    direction = -gradient
    factors = []
    for step, change in reversed(pairs):
        factor = (step @ direction) / (step @ change)
        factors.append(factor)
        direction = direction - factor * change
    if pairs:
        step, change = pairs[-1]
        direction = direction * ((step @ change) / (change @ change))
    for (step, change), factor in zip(pairs, reversed(factors), strict=True):
        direction = direction + (factor - (change @ direction) / (step @ change)) * step
    return direction
