"""Folding of per-channel affine steps (BatchNorm, Scale, bias) into the linear operator before them.

Weights are multiplied in float64 and rounded once, however many steps are folded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from lipdeploy.export.graph import Array, Graph, attributes, like

LINEAR = ("Gemm", "Conv", "ConvTranspose", "MatMul")


@dataclass(frozen=True)
class Affine:
    """y = scale·x + shift; both float64, of shape () or (channels,)."""

    scale: Array
    shift: Array

    def then(self, later: Affine) -> Affine:
        """``later`` after ``self``."""
        return Affine(self.scale * later.scale, self.shift * later.scale + later.shift)


IDENTITY = Affine(np.float64(1), np.float64(0))  # type: ignore[arg-type]


def fold_affine(graph: Graph) -> None:
    """Fold every chain of affine steps that follows a linear operator with constant weights."""
    for node in list(graph.nodes):
        if node.op_type not in LINEAR or node.domain or node.input[1] not in graph.constants:
            continue
        if node.op_type == "Gemm" and not _is_plain_gemm(node):
            continue
        chain = _chain(graph, node)
        if node.op_type == "MatMul" and all(step.op_type == "Add" for step in chain[:2]) and len(chain) < 2:
            continue  # MatMul with its own bias is as short as it gets
        if chain:
            _fold(graph, node, chain)


def expand_batch_norms(graph: Graph) -> None:
    """What no linear operator precedes becomes Mul and Add per channel, rounded once each."""
    for node in list(graph.nodes):
        step = _batch_norm(graph, node)
        rank = graph.rank(node.input[0])
        if step is None or rank is None:
            continue
        dtype = graph.constants[node.input[1]].dtype
        shape = (1, -1, *[1] * (rank - 2))
        scale = graph.add_constant(f"{node.output[0]}_scale", step.scale.reshape(shape).astype(dtype))
        shift = graph.add_constant(f"{node.output[0]}_shift", step.shift.reshape(shape).astype(dtype))
        middle = f"{node.output[0]}_scaled"
        position = graph.nodes.index(node)
        graph.nodes[position : position + 1] = [
            like(node, "Mul", [node.input[0], scale], [middle]),
            like(node, "Add", [middle, shift], [node.output[0]]),
        ]


def _is_plain_gemm(node: NodeProto) -> bool:
    given = attributes(node)
    return given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)


def _chain(graph: Graph, linear: NodeProto) -> list[NodeProto]:
    chain: list[NodeProto] = []
    value = linear.output[0]
    rank, axis = _output_layout(graph, linear)
    channels = _channels(graph, linear)
    while rank is not None:
        step = graph.only_consumer(value)
        if step is None or _feeds_spline(graph, step) or _affine(graph, step, value, rank, axis, channels) is None:
            break
        chain.append(step)
        value = step.output[0]
    return chain


def _feeds_spline(graph: Graph, step: NodeProto) -> bool:
    """A spline's own scale is judged with the spline (Mul, LinearSpline, Mul) and must stay beside it."""
    return any(reader.op_type == "LinearSpline" for reader in graph.consumers(step.output[0]))


def _output_layout(graph: Graph, linear: NodeProto) -> tuple[int | None, int]:
    """(rank of the output, its channel axis)."""
    if linear.op_type == "MatMul":
        rank = graph.rank(linear.output[0])
        return (None if graph.constants[linear.input[1]].ndim != 2 else rank), (rank or 0) - 1
    return graph.constants[linear.input[1]].ndim, 1


def _channels(graph: Graph, linear: NodeProto) -> int:
    weight, given = graph.constants[linear.input[1]], attributes(linear)
    if linear.op_type == "ConvTranspose":
        return int(weight.shape[1] * given.get("group", 1))
    if linear.op_type == "Conv" or given.get("transB", 0):
        return int(weight.shape[0])
    return int(weight.shape[-1])


def _affine(graph: Graph, node: NodeProto, value: str, rank: int, axis: int, channels: int) -> Affine | None:
    """``node`` as an affine step of ``value``; None when it is anything else."""
    norm = _batch_norm(graph, node)
    if norm is not None:
        return norm if node.input[0] == value and axis == 1 else None
    if node.domain or node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    first = node.input[0] == value
    other = node.input[1] if first else node.input[0]
    if other not in graph.constants:
        return None
    constant = _per_channel(graph.constants[other], rank, axis, channels)
    return None if constant is None else _step(node.op_type, constant, first)


def _step(op_type: str, constant: Array, first: bool) -> Affine | None:
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if op_type == "Add":
        return Affine(one, constant)
    if op_type == "Mul":
        return Affine(constant, zero)
    if op_type == "Sub":
        return Affine(one, -constant) if first else Affine(-one, constant)
    return Affine(1 / constant, zero) if first and np.all(constant != 0) else None


def _per_channel(constant: Array, rank: int, axis: int, channels: int) -> Array | None:
    """``constant`` as float64 of shape () or (channels,), when it varies along the channel axis only."""
    if constant.dtype.kind != "f" or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for k, size in enumerate(shape) if k != axis) or shape[axis] not in (1, channels):
        return None
    wide = constant.astype(np.float64)
    return wide.reshape(()) if wide.size == 1 else wide.reshape(-1)


def _batch_norm(graph: Graph, node: NodeProto) -> Affine | None:
    if node.op_type not in ("BatchNorm", "BatchNormalization") or any(
        n not in graph.constants for n in node.input[1:5]
    ):
        return None
    given = attributes(node)
    if given.get("training_mode", 0) or len(node.output) > 1:
        return None
    epsilon = given.get("epsilon", 1e-5)
    epsilon = float.fromhex(epsilon.decode()) if isinstance(epsilon, bytes) else float(epsilon)
    weight, bias, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:5])
    scale = weight / np.sqrt(variance + epsilon)
    return Affine(scale, bias - mean * scale)


def _fold(graph: Graph, linear: NodeProto, chain: list[NodeProto]) -> None:
    rank, axis = _output_layout(graph, linear)
    channels = _channels(graph, linear)
    total, value = IDENTITY, linear.output[0]
    for step in chain:
        affine = _affine(graph, step, value, rank or 0, axis, channels)
        total = total.then(affine) if affine is not None else total
        value = step.output[0]
    _scale_weight(graph, linear, np.broadcast_to(total.scale, (channels,)))
    _set_bias(graph, linear, total, channels, chain)


def _scale_weight(graph: Graph, linear: NodeProto, scale: Array) -> None:
    weight, given = graph.constants[linear.input[1]], attributes(linear)
    wide = weight.astype(np.float64)
    if linear.op_type == "ConvTranspose":  # (in, out/group, …): output channel g·(out/group) + j
        groups = given.get("group", 1)
        per_group = scale.reshape(groups, 1, weight.shape[1])
        grouped = wide.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        wide = (grouped * per_group[..., None]).reshape(weight.shape)
    elif linear.op_type == "Conv" or given.get("transB", 0):
        wide = wide * scale.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        wide = wide * scale
    _store(graph, linear, 1, wide.astype(weight.dtype))


def _set_bias(graph: Graph, linear: NodeProto, total: Affine, channels: int, chain: list[NodeProto]) -> None:
    weight = graph.constants[linear.input[1]]
    has_bias = len(linear.input) > 2 and linear.input[2] != ""
    old = graph.constants[linear.input[2]].astype(np.float64) if has_bias else np.float64(0)
    bias = np.broadcast_to(old * total.scale + total.shift, (channels,)).astype(weight.dtype)
    needs_bias = has_bias or bool(np.any(bias))
    end = chain[-1].output[0]
    for step in chain:
        graph.nodes.remove(step)
    if linear.op_type == "MatMul" and needs_bias:
        name = _fresh_bias(graph, linear, bias)
        add = like(linear, "Add", [linear.output[0], name], [end])
        graph.nodes.insert(graph.nodes.index(linear) + 1, add)
        return
    linear.output[0] = end
    if has_bias:
        _store(graph, linear, 2, bias)
    elif needs_bias:
        del linear.input[2:]
        linear.input.append(_fresh_bias(graph, linear, bias))


def _fresh_bias(graph: Graph, linear: NodeProto, bias: Array) -> str:
    stem = linear.input[1].removesuffix("weight")
    return graph.add_constant(f"{stem}bias" if stem != linear.input[1] else f"{linear.output[0]}_bias", bias)


def _store(graph: Graph, node: NodeProto, position: int, value: Array) -> None:
    """Write a folded constant back, under its own name unless another node reads the old value."""
    name = node.input[position]
    if len(graph.consumers(name)) > 1:
        name = graph.add_constant(name, value)
        node.input[position] = name
    graph.constants[name] = value
