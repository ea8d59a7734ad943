"""Searching for the multipliers of a Lipschitz certificate (untrusted: ``verify.lmi`` decides what they prove).

For inverse multipliers T = diag(τ) the bound is ρ(T) = λ_max(Y_L), where Y₁ = W₁W₁ᵀ and, with σ = P + R∘(bends)∘Q,
Y' = L(Y + YQᵀK⁻¹QY)Lᵀ + FTFᵀ, K = T − QYQᵀ ≻ 0, L = W'P, F = W'R. As a function of 1/τ the matrix Y_L is operator
convex (a Schur complement of something affine), so ρ has no bad local minimum. The search starts from closed forms
(layer by layer, in the manner of ECLipsE-Fast) and improves all layers together by a quasi-Newton method on log τ
with exact gradients; every point that is tried and factorises is feasible, so it may stop at any time.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting
from lipdeploy.verify.check import prove
from lipdeploy.verify.lmi import certify, multiplier_count
from lipdeploy.verify.source import Source, read_source

Array = np.ndarray[Any, np.dtype[np.float64]]
HISTORY = 12
STEPS = 150  # per stage
TOLERANCE = 2e-5  # five steps in a row that gain less end a stage
LONGEST_STEP = 2.0  # in log τ
#: Stages of the search: sharpness of the smoothed eigenvalue, and weight of all barriers together.
STAGES = ((8.0, 0.3), (32.0, 0.05), (128.0, 1e-2), (512.0, 2e-3), (2048.0, 3e-4))
LIFTS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
FIRST_FACTORS = (1.0 + 1e-6, 1.05, 1.3, 2.0, 4.0)


@dataclass(frozen=True)
class Found:
    """Multipliers (one float64 vector τ per activation), the squared constant they should prove, and how they came."""

    multipliers: tuple[Array, ...]
    rho: float
    iterations: int
    seconds: float


def find(
    model: str | os.PathLike[str] | bytes | Source, output_name: str | None = None, seconds: float = 20.0
) -> tuple[Array, ...] | None:
    """Hints for ``verify(model, method="best", hints=...)``: one vector per activation of a chain network, in order.

    ``None`` when the graph is no chain (``verify.chain``), or so badly scaled that nothing is feasible in binary64.
    Raises what reading and verifying the model raise.
    """
    source = model if isinstance(model, Source) else read_source(model)
    chain = prove(source.proto, "l2", output_name, with_chain=True).chain
    try:
        return None if chain is None else find_multipliers(chain, seconds).multipliers
    except (ArithmeticError, np.linalg.LinAlgError):
        return None


@dataclass(frozen=True)
class _Layer:
    """One step of the recursion: v' = Lv + Fe with |e| ≤ |Qv|; ``repeat`` entries of e share a multiplier."""

    through: Array  # L
    bend: Array  # F
    rows: Array  # Q, dense
    identity: bool  # Q = I
    repeat: int


def find_multipliers(chain: Chain, seconds: float = 20.0) -> Found:
    """The best multipliers found within a time budget; at least the closed forms are always finished.

    Raises ``ArithmeticError`` or ``LinAlgError`` when the weights are too badly scaled for binary64.
    """
    started = time.perf_counter()
    deadline = started + seconds
    problem = _Problem(chain)
    with np.errstate(all="ignore"):
        best = problem.closed_forms(FIRST_FACTORS)
        search = _Search(problem, best)
        stages = [best]
        for sharpness, barrier in STAGES:
            search.run(sharpness, barrier / max(sum(problem.counts), 1), deadline)
            stages.append(search.best)
    multipliers = _provable(chain, problem, stages, search.rho)
    return Found(multipliers, search.rho, search.evaluations, time.perf_counter() - started)


def _provable(chain: Chain, problem: _Problem, stages: Sequence[Array], rho: float) -> tuple[Array, ...]:
    """The multipliers of which the checker proves most.

    At the very edge, or where a multiplier is tiny because its neuron never bends, rounding hides that K is positive:
    then multipliers a little larger, relative to those of the product of norms, lose little.
    """
    safe = [np.log(problem.greedy(factor, "ball")) for factor in (1.001, 1.3)]
    lifted = [np.maximum(stages[-1], safe[0] + np.log(lift)) + lift for lift in LIFTS]
    best, least = problem.split(np.exp(stages[-1])), np.inf
    for option in (stages[-1], *lifted, *stages[-2::-1], *safe):
        candidate = problem.split(np.exp(option))
        certified = certify(chain, candidate)
        if certified is not None and certified.bound.value < least:
            best, least = candidate, certified.bound.value
        if least <= rho**0.5 * (1.0 + 1e-8):
            break
    return best


@dataclass(frozen=True)
class _Step:
    """One evaluated layer: Y', K⁻¹, QYLᵀ and −log det(T⁻¹K)."""

    reach: Array
    inverse: Array
    side: Array
    barrier: float


@dataclass(frozen=True)
class _Value:
    """An evaluated point: log of the p-norm of Y_L's eigenvalues plus barriers, ρ itself, gradient in log τ."""

    smooth: float
    rho: float
    gradient: Array


class _Problem:
    """ρ(T) and its gradient for one chain."""

    def __init__(self, chain: Chain) -> None:
        first = chain.weights[0]
        self.start: Array = first @ first.T
        self.layers = [_layer(a, w) for a, w in zip(chain.activations, chain.weights[1:], strict=True)]
        self.counts = [multiplier_count(activation) for activation in chain.activations]

    def split(self, joined: Array) -> tuple[Array, ...]:
        """One vector per activation."""
        return tuple(np.split(joined, np.cumsum(self.counts)[:-1])) if self.counts else ()

    def closed_forms(self, factors: Sequence[float]) -> Array:
        """log τ of the best of a few constants times the smallest feasible multiple of a simple choice, per layer."""
        candidates: list[tuple[float, Array]] = []
        for factor in factors:
            for choice in ("reach", "balanced", "ball"):
                logs = np.log(self.greedy(factor, choice))
                value = self.value(logs, 512.0, 0.0, gradient=False)
                if value is not None:
                    candidates.append((value.rho, logs))
        if not candidates:
            raise ArithmeticError("no starting point is feasible in floating point")
        return min(candidates, key=lambda pair: pair[0])[1]

    def greedy(self, factor: float, choice: str) -> Array:
        """Layer by layer, the smallest feasible multiple of all-ones or of diag(QYQᵀ), times ``factor``.

        ``ball`` replaces each Y by λ_max(Y)·I first: with a factor near 1 this is the product of the norms.
        """
        reach, chosen = self.start, []
        for layer, count in zip(self.layers, self.counts, strict=True):
            if choice == "ball":
                reach = float(np.linalg.eigvalsh(reach)[-1]) * np.eye(len(reach))
            square = layer.rows @ reach @ layer.rows.T
            shape = np.maximum(np.diag(square), 1e-12 * np.trace(square) / max(len(square), 1) + 1e-300)
            shape = shape.reshape(count, -1).max(axis=1) if count else shape
            shape = shape if choice == "balanced" else np.ones_like(shape)
            spread = 1.0 / np.sqrt(np.repeat(shape, layer.repeat))
            top = np.linalg.eigvalsh(square * np.outer(spread, spread))[-1] if count else 1.0
            chosen.append(np.maximum(factor * max(top, 1e-300) * shape, 1e-300))
            step = self._step(layer, reach, np.repeat(chosen[-1], layer.repeat))
            if step is None:
                return np.ones(sum(self.counts))
            reach = step.reach
        return np.concatenate(chosen) if chosen else np.ones(0)

    @staticmethod
    def _step(layer: _Layer, reach: Array, tau: Array) -> _Step | None:
        """One step of the recursion, or ``None`` where K is not positive definite."""
        driven = reach if layer.identity else layer.rows @ reach
        square = driven if layer.identity else driven @ layer.rows.T
        corner = np.diag(tau) - square
        try:
            factor = np.linalg.cholesky(corner)
            inverse: Array = np.linalg.inv(corner).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return None
        side = driven @ layer.through.T
        after = layer.through @ reach @ layer.through.T + side.T @ inverse @ side
        after = after + (layer.bend * tau) @ layer.bend.T
        barrier = float(np.log(tau).sum() - 2.0 * np.log(np.diag(factor)).sum())
        symmetric: Array = 0.5 * (after + after.T)
        return _Step(symmetric, inverse, side, barrier)

    def value(self, logs: Array, sharpness: float, barrier: float, *, gradient: bool = True) -> _Value | None:
        """The smoothed objective at log τ; ``None`` outside the feasible set."""
        reach = self.start
        steps: list[_Step] = []
        taus = [np.repeat(np.exp(t), y.repeat) for t, y in zip(self.split(logs), self.layers, strict=True)]
        for layer, tau in zip(self.layers, taus, strict=True):
            step = self._step(layer, reach, tau)
            if step is None:
                return None
            steps.append(step)
            reach = step.reach
        if not np.all(np.isfinite(reach)):
            return None
        eigenvalues, vectors = np.linalg.eigh(reach)
        top = float(eigenvalues[-1])
        if not np.isfinite(top) or top <= 0.0:
            return None
        ratios = np.maximum(eigenvalues / top, 0.0)
        total = float((ratios**sharpness).sum())
        smooth = float(np.log(top) + np.log(total) / sharpness) + barrier * sum(step.barrier for step in steps)
        if not gradient:
            return _Value(smooth, top, np.zeros(0))
        shares = ratios ** (sharpness - 1.0) / (total * top)
        return _Value(smooth, top, self._gradient((vectors * shares) @ vectors.T, steps, taus, barrier))

    def _gradient(self, adjoint: Array, steps: Sequence[_Step], taus: Sequence[Array], barrier: float) -> Array:
        """Reverse mode. With G = LYQᵀK⁻¹ and A = L + GQ: dY' = A dY Aᵀ + F dT Fᵀ − G dT Gᵀ."""
        parts = []
        for layer, step, tau in zip(self.layers[::-1], steps[::-1], taus[::-1], strict=True):
            back = step.side.T @ step.inverse
            slope = np.einsum("ij,ij->j", layer.bend, adjoint @ layer.bend)
            slope -= np.einsum("ij,ij->j", back, adjoint @ back)
            slope -= barrier * (np.diag(step.inverse) - 1.0 / tau)
            parts.append((tau * slope).reshape(-1, layer.repeat).sum(axis=1))
            whole = layer.through + (back if layer.identity else back @ layer.rows)
            adjoint = whole.T @ (adjoint @ whole)
            pushed = step.inverse if layer.identity else layer.rows.T @ step.inverse @ layer.rows
            adjoint += barrier * pushed
        return np.concatenate(parts[::-1]) if parts else np.zeros(0)


class _Search:
    """Limited-memory BFGS with backtracking; remembers the best feasible point."""

    def __init__(self, problem: _Problem, start: Array) -> None:
        self.problem = problem
        self.best = start
        self.point = start
        value = problem.value(start, 512.0, 0.0, gradient=False)
        assert value is not None
        self.rho = value.rho
        self.evaluations = 0

    def _evaluate(self, point: Array, sharpness: float, barrier: float) -> _Value | None:
        self.evaluations += 1
        value = self.problem.value(point, sharpness, barrier)
        if value is not None and value.rho < self.rho:
            self.rho, self.best = value.rho, point
        return value

    def run(self, sharpness: float, barrier: float, deadline: float) -> None:
        """Minimise one stage's objective from where the last stage ended."""
        value = self._evaluate(self.point, sharpness, barrier)
        pairs: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)
        flat = 0
        for _ in range(STEPS):
            if value is None or not self.point.size or time.perf_counter() > deadline or flat >= 5:
                return
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
            flat = flat + 1 if value.smooth - following.smooth < TOLERANCE else 0
            self.point, value = self.point + step, following

    def _line_search(
        self, value: _Value, direction: Array, sharpness: float, barrier: float, deadline: float
    ) -> tuple[Array, _Value] | None:
        slope, length = float(direction @ value.gradient), 1.0
        for _ in range(20):
            found = self._evaluate(self.point + length * direction, sharpness, barrier)
            if found is not None and found.smooth <= value.smooth + 1e-4 * length * slope:
                return length * direction, found
            if time.perf_counter() > deadline:
                return None
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


def _layer(activation: Activation, weight: Array) -> _Layer:
    size = activation.size
    if isinstance(activation, Slopes):
        middle, radius = (activation.low + activation.high) / 2.0, (activation.high - activation.low) / 2.0
        bends = radius > 0.0
        rows = np.eye(size)[bends]
        return _Layer(weight * middle, weight[:, bends] * radius[bends], rows, bool(bends.all()), 1)
    return _sorting_layer(activation, weight)


def _sorting_layer(activation: Sorting, weight: Array) -> _Layer:
    groups, group = activation.groups, activation.groups.shape[1]
    columns = weight[:, groups]
    through = np.zeros_like(weight)
    through[:, groups] = columns.mean(axis=2, keepdims=True)
    unit = np.eye(activation.size)[groups]  # (G, s, n)
    if group == 2:
        return _Layer(through, (columns[:, :, 1] - columns[:, :, 0]) / 2.0, unit[:, 0] - unit[:, 1], False, 1)
    rows = (group * unit - unit.sum(axis=1, keepdims=True)).reshape(-1, activation.size)
    bend = (columns - columns.mean(axis=2, keepdims=True)) / group
    return _Layer(through, bend.reshape(len(weight), -1), rows, False, group)
