"""What a multiplier certificate is about: layers of exact matrices and activations with known properties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.operator_norm.sums import Array

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Slopes:
    """An activation that acts entry by entry: (σ_k(s) − σ_k(t)) / (s − t) lies in [low_k, high_k]; shapes (n,)."""

    low: Array
    high: Array

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not np.all(self.low <= self.high):
            raise ValueError("slope intervals are two vectors of one length, low ≤ high")
        if not (np.all(np.isfinite(self.low)) and np.all(np.isfinite(self.high))):
            raise ValueError("slope intervals must be finite")

    @property
    def size(self) -> int:
        """Entries that the activation acts on."""
        return len(self.low)

    def after(self, inner: Slopes) -> Slopes:
        """The slopes of this activation applied after ``inner``: products of the intervals, rounded outward."""
        lows, highs = zip(
            *(_bracket(a, b) for a in (self.low, self.high) for b in (inner.low, inner.high)), strict=True
        )
        return Slopes(np.min(lows, axis=0), np.max(highs, axis=0))


def _bracket(first: Array, second: Array) -> tuple[Array, Array]:
    """(lower, upper) bound of the entries' products; they are the products where one factor is 0 or 1."""
    product = first * second
    exact = (first == 0.0) | (second == 0.0) | (first == 1.0) | (second == 1.0)
    low, high = np.nextafter(product, -math.inf), np.nextafter(product, math.inf)
    return np.where(exact, product, low), np.where(exact, product, high)


@dataclass(frozen=True)
class Sorting:
    """An activation that sorts the entries of each group (either order); ``groups`` (G, s ≥ 2) lists their indices."""

    groups: Indices

    def __post_init__(self) -> None:
        flat = np.sort(self.groups.reshape(-1))
        if self.groups.ndim != 2 or self.groups.shape[1] < 2 or not np.array_equal(flat, np.arange(flat.size)):
            raise ValueError("groups must list every index once, two or more to a group")

    @property
    def size(self) -> int:
        """Entries that the activation acts on."""
        return int(self.groups.size)


@dataclass(frozen=True)
class Stacked:
    """Several activations side by side, each on the entries after those of the one before."""

    parts: tuple[Slopes | Sorting, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, (Slopes, Sorting)) for part in self.parts):
            raise ValueError("stacked activations are one or more slopes and sortings")

    @property
    def size(self) -> int:
        """Entries that the activations act on."""
        return sum(part.size for part in self.parts)


Activation = Slopes | Sorting | Stacked


def identity(size: int) -> Slopes:
    """The activation that changes nothing."""
    return Slopes(np.ones(size), np.ones(size))


def parts_of(activation: Activation) -> Iterator[tuple[Slopes | Sorting, slice]]:
    """The simple activations that one is made of, and the entries that each acts on."""
    start = 0
    for part in activation.parts if isinstance(activation, Stacked) else (activation,):
        yield part, slice(start, start + part.size)
        start += part.size


def stacked(parts: Sequence[Slopes | Sorting]) -> Activation:
    """``parts`` side by side as the simplest activation."""
    merged: list[Slopes | Sorting] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Slopes) and isinstance(last, Slopes):
            merged[-1] = Slopes(np.concatenate([last.low, part.low]), np.concatenate([last.high, part.high]))
        elif part.size:
            merged.append(part)
    return merged[0] if len(merged) == 1 else Stacked(tuple(merged))


@dataclass(frozen=True)
class Chain:
    """y = W_L σ_{L−1}(… σ₁(W₁h + b₁) …) + b_L: ``weights[i]`` is (n_{i+1}, n_i) float64, exact; biases play no part.

    ``front`` is a proven constant of h: ‖Δh‖₂ ≤ front·‖Δx‖₂ for the network's input x; 1 where h is x (``whole``).
    ``output`` and ``source`` name y and h in the graph that the chain was read from; ``source`` is ``None`` for x.
    """

    weights: tuple[Array, ...]
    activations: tuple[Activation, ...]
    front: Bound = ONE
    output: str = ""
    source: str | None = None

    @property
    def whole(self) -> bool:
        """Whether h is the network's input."""
        return self.source is None

    def __post_init__(self) -> None:
        if not self.weights or len(self.activations) != len(self.weights) - 1:
            raise ValueError("a chain has one activation between every two linear layers")
        for weight in self.weights:
            if weight.ndim != 2 or 0 in weight.shape or weight.dtype != np.float64 or not np.all(np.isfinite(weight)):
                raise ValueError("weights are finite float64 matrices")
        for before, activation, after in zip(self.weights, self.activations, self.weights[1:], strict=False):
            if not before.shape[0] == activation.size == after.shape[1]:
                raise ValueError("the sizes of the layers do not fit together")
