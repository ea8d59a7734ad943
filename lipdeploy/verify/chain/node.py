"""What every reader sees: one node of the graph, and which entries of its tensors belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipdeploy.ops import OPERATORS
from lipdeploy.verify.chain.builder import Builder, Ineligible, Signal
from lipdeploy.verify.chain.model import Indices
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.rules.pooling import reduced


@dataclass(frozen=True)
class Node:
    """One node to read: its call with inputs, its outputs (None: not needed), and the state of the reading.

    ``hold`` keeps a signal of the reader's own alive until the reader returns; ``earlier(op, name)`` is the output of a
    standard node of that kind with that one input, among those that were read.
    """

    call: Call
    results: tuple[Flow | None, ...]
    builder: Builder
    hold: Callable[[Hashable, Signal], Hashable]
    earlier: Callable[[str, str], str | None]

    @property
    def source(self) -> Flow:
        """The only activation that goes in."""
        flows = self.call.flows()
        if len(flows) != 1:
            raise Ineligible
        return flows[0]

    @property
    def result(self) -> Flow:
        """The first output."""
        result = self.results[0]
        if result is None:
            raise Ineligible
        return result


Reader = Callable[[Node], Signal | Sequence[Signal]]


def entry_numbers(flow: Flow) -> Indices:
    """The number of each entry, in the flow's shape."""
    return np.arange(flow.size).reshape(flow.shape)


def attributes_of(call: Call) -> dict[str, int | float]:
    """All attributes of a lipdeploy operator, those left out with their defaults."""
    specification = OPERATORS[call.op]
    given: dict[str, int | float] = {
        a.name: call.integer(a.name) if a.kind == "int" else call.real(a.name)
        for a in specification.attributes
        if a.name in call.attributes
    }
    return specification.complete(given)


def channel_axis(node: Node, attributes: Mapping[str, int | float]) -> int:
    """The channel axis of one sample."""
    axis = node.call.resolve_axis(int(attributes["axis"]), len(node.source.shape) + 1) - 1
    if axis < 0:
        raise Ineligible
    return axis


def reduced_axes(call: Call, source: Flow) -> set[int]:
    """The axes that a reduction runs over, counted from the batch axis 0; what it leaves must have the rule's shape."""
    listed = call.constant(1)
    given = call.integers("axes", ()) if listed is None else listed.array.reshape(-1).tolist()
    axes = {call.resolve_axis(int(axis), len(source.shape) + 1) for axis in given}
    if not axes or 0 in axes or reduced(call)[1] != math.prod(source.shape[axis - 1] for axis in axes):
        raise Ineligible
    return axes


def grouped(source: Flow, axes: set[int]) -> Indices:
    """(groups, entries): the entries that a reduction over ``axes`` joins, in the order of its results."""
    kept = [axis for axis in range(len(source.shape)) if axis + 1 not in axes]
    moved = entry_numbers(source).transpose([*kept, *(axis - 1 for axis in sorted(axes))])
    return np.ascontiguousarray(moved.reshape(math.prod(source.shape[axis] for axis in kept), -1))


def tiles_of(node: Node) -> Indices:
    """(outputs, entries) of the windows of a pooling that do not overlap and are not padded."""
    call, source, result = node.call, node.source, node.result
    axes = len(source.shape) - 1
    kernel = call.integers("kernel_shape")
    plain = {"strides": kernel, "pads": (0,) * 2 * axes, "dilations": (1,) * axes}
    defaults = {"strides": (1,) * axes, "pads": (0,) * 2 * axes, "dilations": (1,) * axes}
    if len(kernel) != axes or any(call.integers(name, defaults[name]) != plain[name] for name in plain):
        raise Ineligible
    if call.integer("ceil_mode", 0) or call.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Ineligible
    counts = [size // k for size, k in zip(source.shape[1:], kernel, strict=True)]
    inside = entry_numbers(source)[(slice(None), *(slice(n * k) for n, k in zip(counts, kernel, strict=True)))]
    split = [part for n, k in zip(counts, kernel, strict=True) for part in (n, k)]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    tiles = inside.reshape(source.shape[0], *split).transpose(order).reshape(-1, math.prod(kernel))
    if len(tiles) != result.size or (source.shape[0], *counts) != result.shape:
        raise Ineligible
    return np.ascontiguousarray(tiles)


def paired(source: Flow, axis: int, size: int, *, strided: bool) -> Indices:
    """(groups, size): the entries of each group of channels, group by group along the axis at each position."""
    indices = np.moveaxis(entry_numbers(source), axis, -1)
    count = source.shape[axis] // size
    groups = indices.reshape(*indices.shape[:-1], *((size, count) if strided else (count, size)))
    return np.ascontiguousarray((np.swapaxes(groups, -1, -2) if strided else groups).reshape(-1, size))
