"""Turns a graph of linear maps and activations into layers, without rounding a single weight.

At any time there is a *state* z, the output of the last activation, and every tensor that is still needed is a
``Signal``: rows of a matrix times z, and perhaps an activation of them that has not become a layer yet. When an
operator needs more than that (a matrix after a matrix, an activation after a sort), everything alive *settles*: it
is stacked as the next layer v = Wz, z' = σ(v), where what only waits passes through σ unchanged. So a residual
x + W₂σ(W₁x) is two layers, [I; W₁] and [I, W₂]; nothing is multiplied, added inexactly or approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.chain.model import Activation, Chain, Indices, Slopes, Sorting, identity, stacked
from lipdeploy.verify.operator_norm.sums import Array

WIDEST = 4096  # entries of one state: above it the proof would cost more than it is worth
MOST_WRITTEN = 1 << 25  # entries of all matrices that are not in the file
MOST_WEIGHTS = 1 << 28  # entries of all matrices, a shared one counted as often as it is used


class Ineligible(Exception):
    """The certificate is not proven for this part of the graph, or would cost too much."""


@dataclass(frozen=True)
class Signal:
    """pending(rows·z), up to a constant: ``rows`` (n, len(z)), or the one entry of z that each entry is, (n,)."""

    rows: Array | Indices
    pending: Slopes | Sorting | None = None

    @property
    def size(self) -> int:
        """Entries per sample."""
        return len(self.rows)

    @property
    def is_plain(self) -> bool:
        """Whether it only selects entries of the state."""
        return self.rows.ndim == 1 and self.pending is None


class Builder:
    """Collects layers from the input on. ``alive`` tells which tensors are needed from now on, ``again`` after now."""

    def __init__(
        self,
        sizes: Sequence[tuple[Hashable, int]],
        alive: Callable[[Hashable], bool],
        again: Callable[[Hashable], bool],
    ) -> None:
        self.size = sum(size for _, size in sizes)
        self.weights: list[Array] = []
        self.activations: list[Activation] = []
        self.signals: dict[Hashable, Signal] = {}
        self.alive, self.again = alive, again
        self.written = 0
        self.entries = 0
        start = 0
        for name, size in sizes:
            self.signals[name] = Signal(np.arange(start, start + size))
            start += size

    # What readers ask for. Each returns the signal of a new tensor.

    def linear(self, name: Hashable, weight: Array, *, stored: bool = True) -> Signal:
        """``weight`` (n, size of ``name``) times the tensor; ``stored`` says that the matrix is in the file."""
        if not stored:
            self._affordable(weight.size)
        entries = self.entries_of(name)
        if len(entries) == self.size and np.array_equal(entries, np.arange(self.size)):
            return Signal(weight)
        self._affordable(len(weight) * self.size)
        moved = np.zeros((len(weight), self.size))
        moved[:, entries] = weight  # the entries are distinct, so nothing is added
        return Signal(moved)

    def activate(self, name: Hashable, activation: Slopes | Sorting) -> Signal:
        """The activation of a tensor; slopes after slopes compose."""
        self._settle_shared(name)
        signal = self.signals[name]
        if isinstance(activation, Slopes) and isinstance(signal.pending, Slopes):
            return Signal(signal.rows, activation.after(signal.pending))
        if signal.pending is not None:
            self.settle()
        return Signal(self.signals[name].rows, activation)

    def select(self, name: Hashable, indices: Indices) -> Signal:
        """Entry i of the result is entry ``indices[i]`` of the tensor."""
        self._settle_shared(name)
        if isinstance(self.signals[name].pending, Sorting):
            self.settle()
        signal = self.signals[name]
        if signal.rows.ndim == 2:
            self._affordable(len(indices) * self.size)
        pending = signal.pending
        if isinstance(pending, Slopes):
            pending = Slopes(pending.low[indices], pending.high[indices])
        return Signal(cast("Array", signal.rows)[indices], pending)

    def total(self, terms: Sequence[tuple[Hashable, float]]) -> Signal:
        """Σ ± tensors (factors 1 or −1), only where no entry of the matrix rounds."""
        for _ in range(2):
            matrices = [self._matrix(self.signals[name]) for name, _ in terms]
            if not any(matrix is None for matrix in matrices):
                exact = _exact_sum([m * f for m, (_, f) in zip(matrices, terms, strict=True) if m is not None])
                if exact is not None:
                    return Signal(exact)
            self.settle()
        raise Ineligible

    def concatenate(self, names: Sequence[Hashable]) -> Signal:
        """The tensors' entries one after the other."""
        twice = len(set(names)) < len(names)  # one activation, not two that happen to be equal
        if any(isinstance(p, Sorting) or (twice and p) for p in (self.signals[name].pending for name in names)):
            self.settle()
        signals = [self.signals[name] for name in names]
        plain = all(signal.rows.ndim == 1 for signal in signals)
        if not plain:
            self._affordable(sum(signal.size for signal in signals) * self.size)
        rows = np.concatenate([cast("Array", s.rows) if plain else self._dense(s.rows) for s in signals])
        pendings = [signal.pending for signal in signals]
        if all(pending is None for pending in pendings):
            return Signal(rows)
        slopes = [p if isinstance(p, Slopes) else identity(s.size) for p, s in zip(pendings, signals, strict=True)]
        return Signal(rows, Slopes(np.concatenate([s.low for s in slopes]), np.concatenate([s.high for s in slopes])))

    def entries_of(self, name: Hashable) -> Indices:
        """The entries of the state that the tensor consists of, no two the same; settles if it must."""
        signal = self.signals[name]
        if not signal.is_plain or len(np.unique(signal.rows)) < signal.size:
            if signal.is_plain:
                self._affordable(signal.size * self.size)
                self.signals[name] = Signal(self._dense(signal.rows))  # a repeated entry becomes several
            self.settle()
        return self.signals[name].rows.astype(np.int64, copy=False)

    # Layers.

    def settle(self) -> None:
        """Make everything alive entries of a new state: one more matrix and one more activation."""
        self.signals = {name: signal for name, signal in self.signals.items() if self.alive(name)}
        plain = [signal.rows for signal in self.signals.values() if signal.is_plain]
        others = list({id(s): s for s in self.signals.values() if not s.is_plain}.values())
        if not others:
            return
        kept = np.unique(np.concatenate([np.zeros(0, np.int64), *plain])).astype(np.int64, copy=False)
        self._layer([Signal(kept), *others])
        position = np.zeros(self.size, np.int64)
        position[kept] = np.arange(len(kept))
        places, start = {}, len(kept)
        for signal in others:
            places[id(signal)] = np.arange(start, start + signal.size)
            start += signal.size
        for name, signal in self.signals.items():
            self.signals[name] = Signal(position[signal.rows] if signal.is_plain else places[id(signal)])
        self.size = start

    def _settle_shared(self, name: Hashable) -> None:
        """What bends and is needed elsewhere too becomes entries of the state: one neuron, not two that are equal."""
        signal = self.signals[name]
        if not isinstance(signal.pending, Slopes) or np.array_equal(signal.pending.low, signal.pending.high):
            return
        if self.again(name) or any(s is signal and n != name and self.alive(n) for n, s in self.signals.items()):
            self.settle()

    def _layer(self, signals: Sequence[Signal]) -> None:
        rows = sum(signal.size for signal in signals)
        if rows > WIDEST:
            raise Ineligible
        present = [signal for signal in signals if signal.size]
        if len(present) > 1 or present[0].rows.ndim == 1:
            self._affordable(rows * self.size)
        self._count(rows * self.size)
        matrices = [self._dense(signal.rows) for signal in present]
        self.weights.append(np.ascontiguousarray(matrices[0] if len(matrices) == 1 else np.concatenate(matrices)))
        self.activations.append(stacked([signal.pending or identity(signal.size) for signal in present]))

    def chain(self, output: str, front: Bound = ONE, source: str | None = None) -> Chain:
        """The layers collected, up to the tensor ``output``."""
        if self.signals[output].pending is not None:
            self.settle()
        signal = self.signals[output]
        if signal.rows.ndim == 1:
            self._affordable(signal.size * self.size)
        self._count(signal.size * self.size)
        last = np.ascontiguousarray(self._dense(signal.rows))
        return Chain((*self.weights, last), tuple(self.activations), front, output, source)

    def _matrix(self, signal: Signal) -> Array | None:
        """The signal as one matrix, where that is exact; ``None``: it has to settle first."""
        pending = signal.pending
        if isinstance(pending, Sorting):
            return None
        if pending is None:
            return self._counted(signal)
        if signal.rows.ndim == 2 or np.any(pending.low != pending.high):
            return None
        return self._counted(replace(signal, pending=None)) * pending.low[:, None]  # one entry of 1 in each row

    def _counted(self, signal: Signal) -> Array:
        self._affordable(signal.size * self.size)
        return self._dense(signal.rows)

    def _dense(self, rows: Array | Indices) -> Array:
        if rows.ndim == 2:
            return rows.astype(np.float64, copy=False)
        dense = np.zeros((len(rows), self.size))
        dense[np.arange(len(rows)), rows] = 1.0
        return dense

    def _affordable(self, entries: int) -> None:
        """Count a matrix that is not in the file, before it is made."""
        self.written += entries
        if self.written > MOST_WRITTEN:
            raise Ineligible

    def _count(self, entries: int) -> None:
        self.entries += entries
        if self.entries > MOST_WEIGHTS:
            raise Ineligible


def _exact_sum(matrices: Sequence[Array]) -> Array | None:
    """The sum where no addition rounds (the error of an addition is itself a float: Knuth's two-sum)."""
    total = matrices[0]
    for matrix in matrices[1:]:
        result = total + matrix
        taken = result - total
        error = (total - (result - taken)) + (matrix - taken)
        if np.any(error != 0.0) or not np.all(np.isfinite(result)):
            return None
        total = result
    return total
