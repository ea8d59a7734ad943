"""Readers of what only moves entries."""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.chain.builder import Ineligible, Signal
from lipdeploy.verify.chain.node import Node, entry_numbers


def same(node: Node) -> Signal:
    """Moves no entry relative to the others (row-major)."""
    return node.builder.signals[node.source.name]


def gather(node: Node) -> Signal:
    """Entries by stored indices along one axis."""
    source, call = node.source, node.call
    axis = call.axis("axis", 0, len(source.shape) + 1)
    indices = np.take(entry_numbers(source), call.required_constant(1).array, axis=axis - 1)
    return node.builder.select(source.name, indices.reshape(-1))


def transpose(node: Node) -> Signal:
    """A permutation of the axes."""
    perm = node.call.integers("perm", tuple(reversed(range(len(node.source.shape) + 1))))
    indices = entry_numbers(node.source).transpose([axis - 1 for axis in perm[1:]])
    return node.builder.select(node.source.name, indices.reshape(-1))


def slice_(node: Node) -> Signal:
    """A box of entries, with positive steps."""
    source, call = node.source, node.call
    starts, ends = (call.required_constant(index).array.reshape(-1).tolist() for index in (1, 2))
    axes, steps = call.constant(3), call.constant(4)
    listed = list(range(len(starts))) if axes is None else axes.array.reshape(-1).tolist()
    strides = [1] * len(starts) if steps is None else steps.array.reshape(-1).tolist()
    cut = [slice(None)] * len(source.shape)
    for start, end, axis, step in zip(starts, ends, listed, strides, strict=True):
        if step < 1:
            raise Ineligible
        cut[call.resolve_axis(axis, len(source.shape) + 1) - 1] = slice(start, end, step)
    indices = entry_numbers(source)[tuple(cut)]
    if indices.shape != node.result.shape:
        raise Ineligible
    return node.builder.select(source.name, indices.reshape(-1))


def split(node: Node) -> list[Signal]:
    """Consecutive pieces along one axis."""
    source, call = node.source, node.call
    axis = call.axis("axis", 0, len(source.shape) + 1) - 1
    sizes = [result.shape[axis] if result else 0 for result in node.results]
    if sum(sizes) != source.shape[axis] or not all(sizes):
        raise Ineligible
    pieces = np.split(entry_numbers(source), np.cumsum(sizes)[:-1], axis=axis)
    return [node.builder.select(source.name, piece.reshape(-1)) for piece in pieces]


def concat(node: Node) -> Signal:
    """Pieces side by side along one axis."""
    flows = node.call.flows()
    if len(flows) != len(node.call.inputs):
        raise Ineligible
    axis = node.call.axis("axis", None, len(node.result.shape) + 1) - 1
    starts = np.cumsum([0, *(flow.size for flow in flows)])
    numbers = [start + entry_numbers(flow) for start, flow in zip(starts, flows, strict=False)]
    arranged = np.concatenate(numbers, axis=axis).reshape(-1)
    joined = node.builder.concatenate([flow.name for flow in flows])
    if np.array_equal(arranged, np.arange(len(arranged))):
        return joined
    return node.builder.select(node.hold("joined", joined), arranged)
