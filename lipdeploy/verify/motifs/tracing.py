"""Where the entries of a tensor come from: each as an order statistic of some entries of an earlier tensor.

Reshape, Transpose, Slice, Split, Gather, Concat and their kind move entries; Max, Min, ReduceMax, ReduceMin and TopK
make order statistics of them. Nothing is assumed about what a node means beyond what its rule has already checked:
only nodes with a proven output are followed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.matching import Values, judged_inputs
from lipdeploy.verify.rules.pooling import reduction_axes
from lipdeploy.verify.rules.structure import padded_positions, pads_per_axis, slices, split_sizes

Indices = np.ndarray[Any, np.dtype[np.int64]]
MOST_ENTRIES = 1 << 23  # of a table of group members
MOST_NODES = 64  # between a node and a cut
MOST_CUTS = 8
NODE_COST = 2000  # entries that are read back in the time that a node of one entry takes
NOBODY = -1


@dataclass(frozen=True)
class Statistics:
    """Entry i is the ``ranks[i]``-th smallest (from 0) of the base's entries ``members[i]``.

    ``members`` is (entries, largest group), rows sorted, filled up with ``NOBODY`` in front; ``sizes`` (entries,)
    counts the members of each row.
    """

    members: Indices
    ranks: Indices
    sizes: Indices

    def taken(self, entries: Indices) -> Statistics:
        """The statistics of a tensor whose entry i is this one's ``entries[i]``."""
        return Statistics(self.members[entries], self.ranks[entries], self.sizes[entries])

    @property
    def single(self) -> bool:
        """Whether every entry is an entry of the base itself."""
        return bool(self.members.shape[1] == 1)


@dataclass(frozen=True)
class Cut:
    """An earlier tensor that all of a node's data comes through, and the tensors on the way, each after its inputs."""

    name: str
    between: tuple[str, ...]


def cuts(call: Call, values: Values, operators: frozenset[str]) -> Iterator[Cut]:
    """The nearest ``MOST_CUTS`` tensors that this node's data comes through by nodes of these operators, nearest first.

    The latest tensor of a front is replaced by its sources again and again; whenever one is left, it is a cut.
    """
    names = {name for name in call.input_names if isinstance(values(name), Flow)}
    front = [(-_place(call, name), name) for name in names]
    heapq.heapify(front)
    passed: list[str] = []
    found = 0
    while front and len(passed) < MOST_NODES and found < MOST_CUTS:
        if len(front) == 1:
            found += 1
            yield Cut(front[0][1], tuple(reversed(passed)))
        _, latest = heapq.heappop(front)
        sources = _sources(call.producer(latest), values, operators)
        if not sources:
            return
        passed.append(latest)
        for name in sources:
            if name not in names:
                names.add(name)
                heapq.heappush(front, (-_place(call, name), name))


def bases(call: Call, values: Values) -> Iterator[Cut]:
    """The cuts whose tracing the verification can still afford."""
    for cut in cuts(call, values, frozenset(FOLLOWED)):
        if not call.guide.effort.look(reading_cost(cut, call, values)):
            return
        yield cut


def reading_cost(cut: Cut, call: Call, values: Values) -> float:
    """Entries of the tensors between a node and a cut, both included; a node costs something, however small."""
    flows = [values(name) for name in (*cut.between, cut.name, *call.output_names[:1])]
    return float(sum(NODE_COST + flow.size for flow in flows if isinstance(flow, Flow)))


def _place(call: Call, name: str) -> int:
    node = call.producer(name)
    return -1 if node is None else node.place


def _sources(node: Call | None, values: Values, followed: frozenset[str]) -> list[str]:
    """The data inputs of a followed node."""
    if node is None or node.domain or node.op not in followed:
        return []
    return [name for name in node.input_names if isinstance(values(name), Flow)]


class Trace:
    """Statistics of tensors over one cut, the base."""

    def __init__(self, call: Call, base: Cut, values: Values) -> None:
        self.call, self.base, self.values = call, base.name, values
        self.known: dict[str, Statistics | None] = {}
        for name in base.between:  # in this order nothing recurses
            if self.of(name) is None:
                return

    def of(self, name: str) -> Statistics | None:
        """The statistics of a tensor; ``None`` when it is not made of order statistics of the base."""
        if name not in self.known:
            self.known[name] = self._follow(name)
        return self.known[name]

    def joined(self, call: Call) -> Statistics | None:
        """The statistics of the first output of ``call``, which is bound to its inputs' values."""
        result = self.values(call.output_names[0])
        return self._made(call, call.output_names[0], result) if isinstance(result, Flow) else None

    def _follow(self, name: str) -> Statistics | None:
        flow = self.values(name)
        if not isinstance(flow, Flow):
            return None
        if name == self.base:
            return _itself(flow.size)
        node = self.call.producer(name)
        bound = judged_inputs(node, node.op, self.values) if node is not None else None
        return None if bound is None or bound.op not in FOLLOWED else self._made(bound, name, flow)

    def _made(self, call: Call, name: str, result: Flow) -> Statistics | None:
        sources = [source for source in call.input_names if isinstance(self.values(source), Flow)]
        parts = [self.of(source) for source in sources]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        flows = [flow for flow in map(self.values, sources) if isinstance(flow, Flow)]
        numbered, offset = [], 0
        for flow in flows:
            numbered.append(offset + np.arange(flow.size).reshape(flow.shape))
            offset += flow.size
        every = _stacked(known)
        made = FOLLOWED[call.op](call, numbered, name, result)
        if made is None or every is None:
            return None
        if isinstance(made, np.ndarray):
            return every.taken(made.reshape(-1)) if made.shape == result.shape else None
        return _ranked(every, made)


def _itself(size: int) -> Statistics | None:
    if size > MOST_ENTRIES:
        return None
    return Statistics(np.arange(size).reshape(-1, 1), np.zeros(size, np.int64), np.ones(size, np.int64))


def _stacked(parts: list[Statistics]) -> Statistics | None:
    width = max(part.members.shape[1] for part in parts)
    if sum(len(part.members) for part in parts) * width > MOST_ENTRIES:
        return None
    members = [
        np.pad(part.members, ((0, 0), (width - part.members.shape[1], 0)), constant_values=NOBODY) for part in parts
    ]
    return Statistics(
        np.concatenate(members), np.concatenate([p.ranks for p in parts]), np.concatenate([p.sizes for p in parts])
    )


@dataclass(frozen=True)
class _Order:
    """Output i is the ``ranks[i]``-th smallest of the ``groups[i]``; ``groups`` is (outputs, size)."""

    groups: Indices
    ranks: Indices


def _ranked(every: Statistics, order: _Order) -> Statistics | None:
    """Order statistics of order statistics: of entries themselves, or a maximum of maxima, a minimum of minima."""
    count, size = order.groups.shape
    width = every.members.shape[1]
    if count * size * width > MOST_ENTRIES:
        return None
    ranks, sizes = every.ranks[order.groups], every.sizes[order.groups]
    highest = np.all(ranks == sizes - 1) and np.all(order.ranks == size - 1)
    lowest = np.all(ranks == 0) and np.all(order.ranks == 0)
    if not (every.single or highest or lowest):
        return None
    members = np.sort(every.members[order.groups].reshape(count, size * width), axis=1)
    if np.any((np.diff(members, axis=1) == 0) & (members[:, 1:] != NOBODY)):
        return None  # an entry meets itself
    total = np.count_nonzero(members != NOBODY, axis=1)
    return Statistics(members, order.ranks if every.single else total - 1 if highest else np.zeros_like(total), total)


# One function per operator: where the output's entries come from, as numbers of the inputs' entries.

Follower = Callable[[Call, list[Indices], str, Flow], Any]


def _same(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    return data[0].reshape(result.shape)


def _transpose(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    perm = call.integers("perm", tuple(reversed(range(data[0].ndim + 1))))
    return data[0].transpose([axis - 1 for axis in perm[1:]])


def _slice(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    return data[0][tuple(slices(call, data[0].shape))]


def _split(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    axis = call.axis("axis", 0, data[0].ndim + 1) - 1
    sizes = split_sizes(call, data[0].shape[axis])
    index = call.output_names.index(name)
    start = sum(sizes[:index])
    return np.take(data[0], range(start, start + sizes[index]), axis=axis)


def _gather(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    axis = call.axis("axis", 0, data[0].ndim + 1) - 1
    return np.take(data[0], call.required_constant(1).array.astype(np.int64), axis=axis)


def _concat(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    return np.concatenate(data, axis=call.axis("axis", None, data[0].ndim + 1) - 1)


def _pad(call: Call, data: list[Indices], name: str, result: Flow) -> Indices | None:
    mode = call.string("mode", "constant")
    if mode == "constant":
        return None
    moved = data[0]
    for axis, (begin, end) in enumerate(pads_per_axis(call, moved.ndim + 1)):
        moved = np.take(moved, padded_positions(call, moved.shape[axis], begin, end, mode), axis=axis)
    return moved


def _depth_to_space(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    block, (channels, height, width) = call.integer("blocksize"), data[0].shape
    if call.string("mode", "DCR") == "CRD":
        apart = data[0].reshape(channels // block**2, block, block, height, width).transpose(0, 3, 1, 4, 2)
    else:
        apart = data[0].reshape(block, block, channels // block**2, height, width).transpose(2, 3, 0, 4, 1)
    return apart.reshape(result.shape)


def _space_to_depth(call: Call, data: list[Indices], name: str, result: Flow) -> Indices:
    block, (channels, height, width) = call.integer("blocksize"), data[0].shape
    apart = data[0].reshape(channels, height // block, block, width // block, block).transpose(2, 4, 0, 1, 3)
    return apart.reshape(result.shape)


def _extremum(call: Call, data: list[Indices], name: str, result: Flow) -> _Order | None:
    if len(data) != len([n for n in call.input_names if n]):
        return None  # a constant operand
    groups = np.stack([np.broadcast_to(part, result.shape).reshape(-1) for part in data], axis=1)
    return _Order(groups, np.full(len(groups), len(data) - 1 if call.op == "Max" else 0))


def _reduced(call: Call, data: list[Indices], name: str, result: Flow) -> _Order:
    axes = sorted(axis - 1 for axis in reduction_axes(call, data[0].ndim + 1))
    kept = [axis for axis in range(data[0].ndim) if axis not in axes]
    groups = data[0].transpose(*kept, *axes).reshape(result.size, -1)
    return _Order(groups, np.full(len(groups), groups.shape[1] - 1 if call.op == "ReduceMax" else 0))


def _top_k(call: Call, data: list[Indices], name: str, result: Flow) -> _Order | None:
    if name != call.output_names[0]:
        return None
    axis = call.axis("axis", -1, data[0].ndim + 1) - 1
    rows = np.moveaxis(data[0], axis, -1)
    size, count = rows.shape[-1], result.shape[axis]
    if result.size * size > MOST_ENTRIES:
        return None
    ranks = size - 1 - np.arange(count) if call.integer("largest", 1) else np.arange(count)
    order = np.moveaxis(np.arange(result.size).reshape(result.shape), axis, -1).reshape(-1)
    groups, sorted_ranks = np.empty((result.size, size), np.int64), np.empty(result.size, np.int64)
    groups[order] = np.repeat(rows.reshape(-1, size), count, axis=0)
    sorted_ranks[order] = np.tile(ranks, rows.size // size)
    return _Order(groups, sorted_ranks)


FOLLOWED: dict[str, Follower] = {
    **{op: _same for op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")},
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Max": _extremum,
    "Min": _extremum,
    "ReduceMax": _reduced,
    "ReduceMin": _reduced,
    "TopK": _top_k,
}


def multiplicity(statistics: Statistics) -> int | None:
    """How often the same order statistic of the same group occurs at most; ``None`` when different groups overlap.

    Lemma S6: the order statistics of disjoint groups, each once, are a sorted copy of the base, which moves no further
    than the base in any p-norm. A tensor that shows each at most r times moves at most r^(1/p) times as far.
    """
    members, rows = statistics.members, np.arange(len(statistics.members))
    highest = members[:, -1]
    first = np.full(int(highest.max(initial=0)) + 1, NOBODY)
    first[highest[::-1]] = rows[::-1]
    group = first[highest]  # the first row with the same last member …
    if not np.array_equal(members[group], members):
        return None  # … which must be the same group
    groups = members[group == rows]
    if np.bincount(groups[groups != NOBODY]).max(initial=0) > 1:
        return None
    return int(np.bincount(group * members.shape[1] + statistics.ranks).max(initial=1))
