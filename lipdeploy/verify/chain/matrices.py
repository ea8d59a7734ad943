"""Readers of what is a matrix: layers, convolutions, means and sums."""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.chain.builder import Ineligible, Signal
from lipdeploy.verify.chain.model import Indices
from lipdeploy.verify.chain.node import Node, grouped, reduced_axes, tiles_of
from lipdeploy.verify.chain.slopes import quotient, slopes
from lipdeploy.verify.graph import Flow
from lipdeploy.verify.operator_norm import Convolution
from lipdeploy.verify.rules.windows import windows

LARGEST_MATRIX = 1 << 22  # entries of a convolution that is written out


def gemm(node: Node) -> Signal:
    """y = x·W + c for rows x; alpha must be 1, the bias plays no part."""
    call, weight = node.call, node.call.required_constant(1).float64()
    if len(node.source.shape) != 1 or call.integer("transA", 0) or call.real("alpha", 1.0) != 1.0 or weight.ndim != 2:
        raise Ineligible
    return node.builder.linear(node.source.name, weight if call.integer("transB", 0) else weight.T)


def matmul(node: Node) -> Signal:
    """x·W for rows x."""
    weight = node.call.required_constant(1).float64()
    if len(node.source.shape) != 1 or weight.ndim != 2 or not isinstance(node.call.inputs[0], Flow):
        raise Ineligible
    return node.builder.linear(node.source.name, weight.T)


def convolution(node: Node) -> Signal:
    """A small convolution, written out: one block per group."""
    call, source, result = node.call, node.source, node.result
    if source.size * result.size > LARGEST_MATRIX:
        raise Ineligible
    kernel, groups = call.required_constant(1).float64(), call.integer("group", 1)
    window = windows(call, source.shape[1:], kernel.shape[2:])
    parts = np.split(kernel, groups, axis=0)
    matrix = np.zeros((groups, result.size // groups, groups, source.size // groups))
    for index, part in enumerate(parts):
        operator = Convolution(part, window.inputs, window.pads, window.strides, window.dilations, 1, window.outputs)
        matrix[index, :, index] = operator._matrix(part)
    return node.builder.linear(source.name, matrix.reshape(result.size, source.size), stored=False)


def mean(node: Node) -> Signal:
    """ReduceMean and GlobalAveragePool: sums, then a division by their number."""
    source, result = node.source, node.result
    if node.call.op == "GlobalAveragePool":
        axes: set[int] = set(range(2, len(source.shape) + 1))
    else:
        axes = reduced_axes(node.call, source)
    groups = grouped(source, axes)
    if len(groups) != result.size:
        raise Ineligible
    return _averages(node, groups)


def _averages(node: Node, groups: Indices) -> Signal:
    if len(groups) * node.source.size > LARGEST_MATRIX:
        raise Ineligible
    sums = np.zeros((len(groups), node.source.size))
    sums[np.arange(len(groups))[:, None], groups] = 1.0
    signal = node.builder.linear(node.source.name, sums, stored=False)
    return Signal(signal.rows, quotient(np.full(len(groups), float(groups.shape[1]))))


def average_pool(node: Node) -> Signal:
    """AveragePool with windows side by side."""
    return _averages(node, tiles_of(node))


def addition(node: Node) -> Signal:
    """A sum or difference of tensors, or a constant shift; nothing may be copied."""
    call, flows = node.call, node.call.flows()
    if any(flow.shape != node.result.shape for flow in flows):
        raise Ineligible
    negative = call.op == "Sub"
    if len(flows) == 1 and len(call.inputs) > 1:
        constant_first = not isinstance(call.inputs[0], Flow)
        return slopes(node, -1.0, -1.0) if negative and constant_first else node.builder.signals[flows[0].name]
    signs = [-1.0 if negative and index else 1.0 for index in range(len(flows))]
    return node.builder.total([(flow.name, sign) for flow, sign in zip(flows, signs, strict=True)])
