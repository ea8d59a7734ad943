"""Weights stored in fewer bits: float16, bfloat16, or int8 with one scale per output channel.

The program goes on computing in float32. A Cast or a DequantizeLinear in front of a layer widens its weights exactly:
the scales of int8 have 17 bits, so that a product with seven more fits into float32. What is proven and what runs are
therefore the same numbers, in every runtime, and no error constant grows.

Only operands of linear layers are stored so. The tables of lipdeploy's operators and the constants of preprocessing are
few, and a rounded knot changes a slope by much more than its own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lipdeploy.errors import InputError
from lipdeploy.export.graph import Array, attributes
from lipdeploy.verify.dequantize import dequantised

SIXTEEN_BITS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
FORMATS = (*SIXTEEN_BITS, "int8")
LINEAR = ("Gemm", "MatMul", "Conv", "ConvTranspose")
#: Largest ‖W − Ŵ‖/‖W‖ (Frobenius) that rounding explains: four unit roundoffs. More is lost below the smallest number.
LARGEST_LOSS = {"float16": 2.0**-9, "bfloat16": 2.0**-6, "int8": 0.25}
SCALE_BITS = 17  # and 7 of |q| ≤ 127 make the 24 of float32
LARGEST_INTEGER = 127
SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True)
class Stored:
    """What storing changed: the format, how many tensors, and how many weights that were not zero now are."""

    form: str
    tensors: int
    became_zero: int


@dataclass(frozen=True)
class _Use:
    """A float32 constant as an operand of a linear layer; ``axis`` counts its output channels (``None``: one)."""

    tensor: str
    layer: str
    axis: int | None
    bias: bool


def store(model: onnx.ModelProto, form: str) -> tuple[onnx.ModelProto, Stored]:
    """A copy of ``model`` whose linear layers read their weights from tensors of ``form``.

    Biases go along in float16 and bfloat16, and stay float32 beside int8. Raises ``InputError``, naming the layer, when
    a weight is too large for the format or a layer falls below its smallest numbers.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    uses = [use for use in _uses(made.graph) if form != "int8" or not use.bias]
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    if not uses:
        raise InputError(
            f"the network has no linear layer whose weights could be stored in {form}", hint="export it in float32"
        )
    names, zeros, widening = _Names(made.graph), 0, dict[str, list[NodeProto]]()
    for use in uses:
        weight = numpy_helper.to_array(tensors[use.tensor])
        narrow, extra, kept = _narrow(use, weight, form)
        zeros += int(np.count_nonzero(weight) - np.count_nonzero(kept))
        tensors[use.tensor].CopyFrom(numpy_helper.from_array(narrow, use.tensor))
        widening[use.tensor] = [_widen(made.graph, use, extra, names)]
    _insert(made.graph, widening)
    return made, Stored(form, len(uses), zeros)


def _uses(graph: onnx.GraphProto) -> list[_Use]:
    """One use per tensor; one that is a weight somewhere and a bias elsewhere counts as a weight."""
    ranks = {t.name: len(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul" and not node.domain}
    weights, biases = dict[str, _Use](), dict[str, _Use]()
    for node in (node for node in graph.node if not node.domain):
        for position, name in enumerate(node.input):
            if name not in ranks:
                continue
            if node.op_type in LINEAR and position < 2:
                weights.setdefault(name, _Use(name, node.name, _output_axis(node, position, ranks[name]), bias=False))
            elif node.op_type in LINEAR or (node.op_type == "Add" and products.intersection(node.input)):
                biases.setdefault(name, _Use(name, node.name, None, bias=True))
    return [*weights.values(), *(use for name, use in biases.items() if name not in weights)]


def _output_axis(node: NodeProto, position: int, rank: int) -> int | None:
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1  # (in, out/group, …): one scale for the same channel of every group
    return None if rank < 2 else rank - 1 if position == 1 else rank - 2


def _narrow(use: _Use, weight: Array, form: str) -> tuple[Array, Array | None, Array]:
    """(what is stored, its scales, what it means in float64)."""
    if form == "int8":
        narrow, scale = quantised(weight, use.axis)
        kept = dequantised(narrow, scale, axis=use.axis or 0)
        extra: Array | None = scale
    else:
        with np.errstate(over="ignore"):
            narrow = weight.astype(helper.tensor_dtype_to_np_dtype(SIXTEEN_BITS[form]))
        kept, extra = narrow.astype(np.float64), None
    _check(use, weight, kept, form)
    return narrow, extra, kept


def quantised(weight: Array, axis: int | None) -> tuple[Array, Array]:
    """(int8 values −127 … 127, float32 scales of at most 17 bits): one scale per index of ``axis``, or one for all."""
    wide = weight.astype(np.float64)
    others = tuple(k for k in range(weight.ndim) if k != axis)
    largest = np.abs(wide).max(axis=others, initial=0.0) / LARGEST_INTEGER
    fraction, exponent = np.frexp(np.where(largest == 0.0, 1.0, np.maximum(largest, SMALLEST_SCALE)))
    scale = np.ldexp(np.ceil(np.ldexp(fraction, SCALE_BITS)), exponent - SCALE_BITS).astype(np.float32)
    shape = [-1 if k == axis else 1 for k in range(weight.ndim)]
    return np.rint(wide / scale.astype(np.float64).reshape(shape)).astype(np.int8), np.asarray(scale)


def _check(use: _Use, weight: Array, kept: Array, form: str) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(kept.astype(np.float32))
    if not np.all(finite):
        largest = float(np.abs(weight).max())
        raise InputError(
            f"layer '{use.layer}': '{use.tensor}' holds {largest:.6g}, which is too large for {form}",
            hint="store it as bfloat16 (--dtype bfloat16), or keep float32",
        )
    if use.bias:
        return
    whole = float(np.linalg.norm(weight.astype(np.float64)))
    loss = 0.0 if whole == 0.0 else float(np.linalg.norm(weight.astype(np.float64) - kept)) / whole
    if not loss <= LARGEST_LOSS[form]:
        raise InputError(
            f"layer '{use.layer}': {form} keeps too little of '{use.tensor}' ({loss:.1%} of its length is lost), "
            "its weights are too small or too unequal",
            hint="store it as bfloat16 (--dtype bfloat16), or keep float32",
        )


class _Names:
    """Names that nothing in a graph has yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        self.taken |= {name for node in graph.node for name in (node.name, *node.output)}

    def fresh(self, stem: str) -> str:
        name, count = stem, 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        self.taken.add(name)
        return name


def _widen(graph: onnx.GraphProto, use: _Use, scale: Array | None, names: _Names) -> NodeProto:
    """The node that makes float32 numbers of a stored tensor; its scales become a constant beside it."""
    output = names.fresh(f"{use.tensor}/float32")
    if scale is None:
        name = names.fresh(f"{use.tensor}/Cast")
        return helper.make_node("Cast", [use.tensor], [output], name, to=TensorProto.FLOAT)
    scales = names.fresh(f"{use.tensor}.scale")
    graph.initializer.append(numpy_helper.from_array(scale, scales))
    name = names.fresh(f"{use.tensor}/DequantizeLinear")
    node = helper.make_node("DequantizeLinear", [use.tensor, scales], [output], name)
    if scale.ndim:
        node.attribute.append(helper.make_attribute("axis", use.axis or 0))
    return node


def _insert(graph: onnx.GraphProto, widening: Mapping[str, Sequence[NodeProto]]) -> None:
    """Every widening node right before the first that reads its tensor, and all readers behind it."""
    waiting, nodes = dict(widening), list[NodeProto]()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in widening:
                nodes += waiting.pop(name, [])
                node.input[position] = widening[name][-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
