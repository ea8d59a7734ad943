"""Readers of what sorts, in every spelling, and of pairwise reflections."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from lipdeploy.verify.chain.builder import Ineligible, Signal
from lipdeploy.verify.chain.model import Indices, Slopes, Sorting
from lipdeploy.verify.chain.node import (
    Node,
    attributes_of,
    channel_axis,
    entry_numbers,
    grouped,
    paired,
    reduced_axes,
    tiles_of,
)
from lipdeploy.verify.graph import Call


def group_sort(node: Node) -> Signal:
    """One sort for each group of channels at each position."""
    source, attributes = node.source, attributes_of(node.call)
    axis = channel_axis(node, attributes)
    size = int(attributes["group_size"]) or source.shape[axis]
    if source.shape[axis] % size:
        raise Ineligible
    if size == 1:
        return node.builder.signals[source.name]
    groups = paired(source, axis, size, strided=attributes["layout"] != 0)
    return node.builder.activate(source.name, Sorting(groups))


def householder(node: Node) -> Signal:
    """With u = s·a − c·b: (a − 2s·max(0, u), b + 2c·max(0, u)), a residual whose ReLU has one entry for each pair.

    Only u is bent. What is perpendicular to (s, −c) passes through unchanged, which is what the free I − vvᵀ terms of
    the multipliers of Pauli et al. (ICLR 2024) say; here no s² + c² = 1 is needed, the stored numbers are used.
    """
    source, attributes, builder = node.source, attributes_of(node.call), node.builder
    axis = channel_axis(node, attributes)
    sine, cosine = (node.call.required_constant(index).float64() for index in (1, 2))
    pairs = source.shape[axis] // 2
    if source.shape[axis] % 2 or sine.shape != (pairs,) or cosine.shape != (pairs,):
        raise Ineligible
    first, second = paired(source, axis, 2, strided=attributes["layout"] != 0).T
    s, c = (np.tile(angle, len(first) // pairs) for angle in (sine, cosine))
    order = np.arange(len(first))
    inner, outer = np.zeros((len(first), source.size)), np.zeros((source.size, len(first)))
    inner[order, first], inner[order, second] = s, -c
    outer[first, order], outer[second, order] = -2.0 * s, 2.0 * c
    fold = builder.linear(source.name, inner, stored=False)
    beyond = node.hold("beyond", Signal(fold.rows, Slopes(np.zeros(len(first)), np.ones(len(first)))))
    reflected = builder.linear(beyond, outer, stored=False)
    return builder.total([(source.name, 1.0), (node.hold("reflected", reflected), 1.0)])


def extreme(node: Node) -> Signal:
    """One end of each sorted group; the other end, read elsewhere, shares the sort."""
    key, groups = extremes(node.call)
    builder = node.builder
    if key is None:
        return _only_choice(node)
    if key not in builder.signals:
        if node.call.op in ("Max", "Min"):
            joined = node.hold("joined", builder.concatenate([flow.name for flow in node.call.flows()]))
            builder.signals[key] = builder.activate(joined, Sorting(groups))
        else:
            builder.signals[key] = builder.activate(node.source.name, Sorting(groups))
    low = node.call.op in ("Min", "ReduceMin")
    return builder.select(key, groups[:, 0 if low else -1])


def _only_choice(node: Node) -> Signal:
    """The largest or smallest of one entry."""
    flows = node.call.flows()
    mixed = node.call.op in ("Max", "Min") and len(flows) < len(node.call.inputs)
    if mixed or len({flow.name for flow in flows}) > 1:
        raise Ineligible
    if flows[0].size != node.result.size:
        raise Ineligible
    return node.builder.signals[flows[0].name]


def max_pool(node: Node) -> Signal:
    """The largest of each window, where the windows lie side by side: the last of each sorted group."""
    if any(result is not None for result in node.results[1:]):
        raise Ineligible
    tiles, builder = tiles_of(node), node.builder
    if tiles.shape[1] == 1:
        return builder.select(node.source.name, tiles[:, 0])
    entries = node.hold("tiles", builder.select(node.source.name, tiles.reshape(-1)))
    groups = np.arange(tiles.size).reshape(tiles.shape)
    return builder.select(node.hold("sorted", builder.activate(entries, Sorting(groups))), groups[:, -1])


def extremes(call: Call) -> tuple[Hashable | None, Indices]:
    """A key that Max and Min, or ReduceMax and ReduceMin, of the same entries share; and the entries of each group.

    ``None`` for other nodes. Max and Min: of two tensors of one shape, their entries one after the other.
    """
    none: tuple[None, Indices] = (None, np.zeros((0, 2), np.int64))
    if call.domain:
        return none
    flows = call.flows() if call.op in ("Max", "Min", "ReduceMax", "ReduceMin") else ()
    if call.op in ("Max", "Min") and len(flows) == len(call.inputs) == 2:
        first, second = sorted(flows, key=lambda flow: flow.name)
        if first.shape != second.shape or first.name == second.name:
            return none
        return ("extremes", first.name, second.name), np.arange(2 * first.size).reshape(2, -1).T.copy()
    if call.op in ("ReduceMax", "ReduceMin") and len(flows) == 1:
        axes = reduced_axes(call, flows[0])
        groups = grouped(flows[0], axes)
        return (("extremes", flows[0].name, *sorted(axes)), groups) if groups.shape[1] > 1 else none
    return none


def top_k(node: Node) -> list[Signal]:
    """The first k of each sorted group."""
    source, call = node.source, node.call
    axis = call.axis("axis", -1, len(source.shape) + 1) - 1
    if axis < 0 or not call.integer("sorted", 1) or any(result is not None for result in node.results[1:]):
        raise Ineligible
    grouped = np.moveaxis(entry_numbers(source), axis, -1)
    if grouped.shape[-1] > 1:
        signal = node.builder.activate(
            source.name, Sorting(np.ascontiguousarray(grouped.reshape(-1, grouped.shape[-1])))
        )
    else:
        signal = node.builder.signals[source.name]
    ordered = grouped[..., ::-1] if call.integer("largest", 1) else grouped
    chosen = np.moveaxis(ordered[..., : node.result.shape[axis]], -1, axis)
    return [node.builder.select(node.hold("sorted", signal), chosen.reshape(-1))]
