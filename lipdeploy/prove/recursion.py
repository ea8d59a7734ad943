"""The bound ρ(T) that multipliers T would prove, and its gradient (untrusted: ``verify.lmi`` decides).

For inverse multipliers T = diag(τ) the bound is ρ(T) = λ_max(Y_L), where Y₁ = W₁W₁ᵀ and, with σ = P + R∘(bends)∘Q,
Y' = L(Y + YQᵀK⁻¹QY)Lᵀ + FTFᵀ, K = T − QYQᵀ ≻ 0, L = W'P, F = W'R. As a function of 1/τ the matrix Y_L is operator
convex (a Schur complement of something affine), so ρ has no bad local minimum.

Layers without bends are multiplied into their neighbours first, and the recursion runs over whichever is smaller of
v = Wh and h itself: the same numbers in exact arithmetic, for less work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting, parts_of
from lipdeploy.verify.lmi import multiplier_count

Array = np.ndarray[Any, np.dtype[np.float64]]
Owners = np.ndarray[Any, np.dtype[np.int64]]
TINY = 1e-300
#: Closed forms after the product of norms, the most promising first: the shape of τ in a layer, and the least margin
#: above the smallest feasible multiple. ``even`` with the margin |m|/r of slopes in [m − r, m + r] is ECLipsE-Fast
#: (Xu and Sivaranjani, NeurIPS 2024), one τ for a layer; ``balanced`` has one for each neuron, as AOL's closed form.
CLOSED_FORMS = (("balanced", 0.3), ("even", 1e-6), ("balanced", 0.05), ("balanced", 1.0), ("even", 0.3), ("even", 1.0))


@dataclass(frozen=True)
class Layer:
    """One step of the recursion: z' = Lz + Fe with |e| ≤ |Qz|, in groups of e that share a multiplier."""

    through: Array  # L
    bend: Array  # F
    rows: Array | None  # Q; None: the identity
    owners: Owners  # the multiplier of each entry of e
    margins: Array  # 1 + |m|/r of each multiplier, 1 for sorting

    @property
    def count(self) -> int:
        """Multipliers."""
        return len(self.margins)

    def per_multiplier(self, entries: Array) -> Array:
        """Sums over the entries that share a multiplier."""
        return np.bincount(self.owners, weights=entries, minlength=self.count).astype(np.float64, copy=False)

    def driven(self, matrix: Array) -> Array:
        """Q·matrix."""
        return matrix if self.rows is None else self.rows @ matrix


@dataclass(frozen=True)
class Step:
    """One evaluated layer: Y', K⁻¹, G = LYQᵀK⁻¹, A = L + GQ and −log det(T⁻¹K)."""

    reach: Array
    inverse: Array
    back: Array
    whole: Array
    barrier: float


@dataclass(frozen=True)
class Value:
    """An evaluated point: log of the p-norm of Y_L's eigenvalues plus barriers, ρ itself, gradient in log τ."""

    smooth: float
    rho: float
    gradient: Array


class Problem:
    """ρ(T) and its gradient for one chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.start, self.layers = compressed(chain)
        self.counts = [multiplier_count(activation) for activation in chain.activations]
        self.size = sum(self.counts)

    def split(self, joined: Array) -> tuple[Array, ...]:
        """One vector per activation of the chain."""
        return tuple(np.split(joined, np.cumsum(self.counts)[:-1])) if self.counts else ()

    def _taus(self, joined: Array) -> Iterator[Array]:
        """The multiplier of every entry of e, layer by layer."""
        start = 0
        for layer in self.layers:
            yield joined[start : start + layer.count][layer.owners]
            start += layer.count

    def closed_forms(self, deadline: float = np.inf) -> Array:
        """log τ of the best closed form that is tried before ``deadline`` (of ``time.perf_counter``); at least one."""
        best, least = None, np.inf
        for form in (None, *CLOSED_FORMS):
            logs = np.log(self.product_form(1e-6) if form is None else self.greedy(*form))
            value = self.value(logs, 512.0, 0.0, gradient=False)
            if value is not None and (best is None or value.rho < least):
                best, least = logs, value.rho
            if best is not None and time.perf_counter() > deadline:
                break
        if best is None:
            raise ArithmeticError("no starting point is feasible in floating point")
        return best

    def product_form(self, margin: float) -> Array:
        """The multipliers that prove the product of the norms: every Y is replaced by the multiple of I above it."""
        reach, chosen = 1.0, []
        for weight, activation in zip(self.chain.weights, self.chain.activations, strict=False):
            short = weight if len(weight) <= weight.shape[1] else weight.T
            reach *= float(np.linalg.eigvalsh(short @ short.T)[-1])
            steepest = 1.0
            for part, _ in parts_of(activation):
                margins, lengths = _margins(part)
                chosen.append(np.maximum(reach * np.maximum(1.0 + margin, margins) * lengths, TINY))
                if isinstance(part, Slopes):
                    steepest = max(steepest, float(np.maximum(np.abs(part.low), np.abs(part.high)).max()))
            reach *= steepest**2 * (1.0 + margin)  # at least what the step makes of τ above its best
        return np.concatenate(chosen) if chosen else np.ones(0)

    def greedy(self, shape: str, margin: float) -> Array:
        """Layer by layer, the smallest feasible multiple of all-ones or of diag(QYQᵀ), times 1 + margin or more."""
        reach, chosen = self.start, []
        for layer in self.layers:
            square = layer.driven(layer.driven(reach).T)
            diagonal = np.maximum(np.diag(square), 1e-12 * np.trace(square) / max(len(square), 1) + TINY)
            form = np.zeros(layer.count)
            np.maximum.at(form, layer.owners, diagonal)
            form = form if shape == "balanced" else np.ones_like(form)
            spread = 1.0 / np.sqrt(form[layer.owners])
            top = np.linalg.eigvalsh(square * np.outer(spread, spread))[-1]
            chosen.append(np.maximum(np.maximum(1.0 + margin, layer.margins) * max(top, TINY) * form, TINY))
            step = evaluated(layer, reach, chosen[-1][layer.owners])
            if step is None:
                return np.ones(self.size)
            reach = step.reach
        return np.concatenate(chosen) if chosen else np.ones(0)

    def value(self, logs: Array, sharpness: float, barrier: float, *, gradient: bool = True) -> Value | None:
        """The smoothed objective at log τ; ``None`` outside the feasible set."""
        reach = self.start
        steps: list[Step] = []
        taus = list(self._taus(np.exp(logs)))
        for layer, tau in zip(self.layers, taus, strict=True):
            step = evaluated(layer, reach, tau)
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
            return Value(smooth, top, np.zeros(0))
        shares = ratios ** (sharpness - 1.0) / (total * top)
        return Value(smooth, top, self._gradient((vectors * shares) @ vectors.T, steps, taus, barrier))

    def _gradient(self, adjoint: Array, steps: Sequence[Step], taus: Sequence[Array], barrier: float) -> Array:
        """Reverse mode. With G = LYQᵀK⁻¹ and A = L + GQ: dY' = A dY Aᵀ + F dT Fᵀ − G dT Gᵀ."""
        parts = []
        for layer, step, tau in zip(self.layers[::-1], steps[::-1], taus[::-1], strict=True):
            slope = np.einsum("ij,ij->j", layer.bend, adjoint @ layer.bend)
            slope -= np.einsum("ij,ij->j", step.back, adjoint @ step.back)
            slope -= barrier * (np.diag(step.inverse) - 1.0 / tau)
            parts.append(layer.per_multiplier(tau * slope))
            adjoint = step.whole.T @ (adjoint @ step.whole)
            pushed = step.inverse if layer.rows is None else layer.rows.T @ step.inverse @ layer.rows
            adjoint += barrier * pushed
        return np.concatenate(parts[::-1]) if parts else np.zeros(0)


def evaluated(layer: Layer, reach: Array, tau: Array) -> Step | None:
    """One step of the recursion, or ``None`` where K is not positive definite."""
    driven = layer.driven(reach)
    corner = np.diag(tau) - layer.driven(driven.T)
    try:
        factor = np.linalg.cholesky(corner)
        inverse: Array = np.linalg.inv(corner).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    image = layer.through @ reach
    back = (image if layer.rows is None else image @ layer.rows.T) @ inverse
    whole = layer.through + (back if layer.rows is None else back @ layer.rows)
    after = whole @ image.T + (layer.bend * tau) @ layer.bend.T
    barrier = float(np.log(tau).sum() - 2.0 * np.log(np.diag(factor)).sum())
    symmetric: Array = 0.5 * (after + after.T)
    return Step(symmetric, inverse, back, whole, barrier)


def compressed(chain: Chain) -> tuple[Array, list[Layer]]:
    """(Y of the first state, layers): the chain with its linear layers multiplied out."""
    first = chain.weights[0]
    carry: Array | None = first  # the tensor before the next activation is carry·z; None: it is z
    start: Array = np.eye(first.shape[1]) if len(first) > first.shape[1] else first @ first.T
    carry = first if len(first) > first.shape[1] else None
    layers: list[Layer] = []
    for index, (activation, weight) in enumerate(zip(chain.activations, chain.weights[1:], strict=True)):
        middle, bend, rows, owners, margins = _maps(activation)
        if not len(margins):
            carry = weight @ (middle if carry is None else middle @ carry)
            continue
        expands = len(weight) > weight.shape[1] and index + 1 < len(chain.activations)
        outer = np.eye(len(middle)) if expands else weight
        through = outer @ (middle if carry is None else middle @ carry)
        whole = np.eye(len(middle)) if rows is None else rows
        driving = rows if carry is None else whole @ carry
        layers.append(Layer(through, outer @ bend, driving, owners, margins))
        carry = weight if expands else None
    if carry is not None and layers:
        last = layers[-1]
        layers[-1] = Layer(carry @ last.through, carry @ last.bend, last.rows, last.owners, last.margins)
    elif carry is not None:
        start = carry @ start @ carry.T
    return start, layers


def _maps(activation: Activation) -> tuple[Array, Array, Array | None, Owners, Array]:
    """(P, R, Q, owner of each bend, margin of each multiplier) with σ = P + R∘(bends)∘Q; Q ``None``: the identity."""
    size = activation.size
    middle, multipliers = np.zeros((size, size)), 0
    parts: list[tuple[Array, Array, Owners, Array]] = []
    for part, entries in parts_of(activation):
        block = np.eye(size)[entries]
        if isinstance(part, Slopes):
            centre, radius = (part.low + part.high) / 2.0, (part.high - part.low) / 2.0
            bends = part.low != part.high
            middle[entries, entries] = np.diag(centre)
            rows, bend = block[bends], (block[bends] * radius[bends, None]).T
            owners = np.arange(len(rows))
        else:
            sums, bend, rows, owners = _sorting_maps(part, block)
            middle[entries, entries] = sums
        margins = _margins(part)[0]
        parts.append((bend, rows, owners + multipliers, margins))
        multipliers += len(margins)
    bend = np.concatenate([part[0] for part in parts], axis=1)
    rows, owners, margins = (np.concatenate([part[which] for part in parts]) for which in (1, 2, 3))
    identity = rows.shape == (size, size) and np.array_equal(rows, np.eye(size))
    return middle, bend, None if identity else rows, owners.astype(np.int64), margins


def _margins(part: Slopes | Sorting) -> tuple[Array, Array]:
    """(1 + |m|/r for slopes in [m − r, m + r], 1 for groups; ‖Qv‖²/‖v‖² at most) of each multiplier."""
    if isinstance(part, Slopes):
        bends = part.low != part.high
        centre, radius = ((part.low + part.high) / 2.0)[bends], ((part.high - part.low) / 2.0)[bends]
        return 1.0 + np.abs(centre) / np.maximum(radius, TINY), np.ones(len(radius))
    group = part.groups.shape[1]
    return np.ones(len(part.groups)), np.full(len(part.groups), 2.0 if group == 2 else float(group**2))


def _sorting_maps(part: Sorting, block: Array) -> tuple[Array, Array, Array, Owners]:
    """(means, R, Q, owners): a sorted pair bends by its difference, a larger group by its centred entries."""
    groups, group = part.groups, part.groups.shape[1]
    unit = np.eye(part.size)[groups]  # (G, s, n)
    means = np.zeros((part.size, part.size))
    means[groups[:, :, None], groups[:, None, :]] = 1.0 / group
    if group == 2:
        difference = (unit[:, 1] - unit[:, 0]) @ block
        return means, difference.T / 2.0, -difference, np.arange(len(groups))
    centred = (group * unit - unit.sum(axis=1, keepdims=True)).reshape(-1, part.size)
    rows = centred @ block
    return means, rows.T / group**2, rows, np.repeat(np.arange(len(groups)), group)
