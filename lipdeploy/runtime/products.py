"""Matrix products and convolutions of the float64 program through the library's own operators.

ONNX Runtime's float64 Gemm is slow for small batches, and there is no float64 Conv. The operator library has both in
the domain ``lipdeploy.f64``, on weights that stay float32 (widening them is exact) and lie in the graph once, in the
layout that the kernels read. Sums have the terms of the standard operators, so the error rule is the same.

Each function here returns whether it took the node; one it leaves is translated into standard operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from lipdeploy.runtime.rewriting import Rewriting, attributes_of
from lipdeploy.runtime.windows import Windows

DOMAIN = "lipdeploy.f64"
VERSION = 1
PANEL = 32  # columns of a weight that lie side by side
VECTOR = 8  # numbers of one vector instruction
LARGEST_RANK = 3

Array = np.ndarray[Any, Any]


def gemm(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """Gemm with a constant weight and bias, and no factors."""
    given, weight = attributes_of(node), graph.value(node.input[1])
    plain = not given.get("transA", 0) and given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0
    if not plain or weight is None:
        return False
    return _product(graph, node, weight.T if given.get("transB", 0) else weight, node.input[2:])


def matmul(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """MatMul of rows with a constant matrix."""
    weight = graph.value(node.input[1])
    return weight is not None and _product(graph, node, weight, [])


def _product(graph: Rewriting, node: onnx.NodeProto, weight: Array, bias_names: Any) -> bool:
    """Y = X · weight + bias, with weight (depth, columns)."""
    rank = len(graph.shapes.get(node.input[0], ()))
    if weight.dtype != np.float64 or weight.ndim != 2 or not weight.size or rank < 2:
        return False
    bias = _bias(graph, bias_names, weight.shape[1])
    if bias is None:
        return False
    stem = node.output[0]
    stored = narrowed(panels(weight))
    inputs = [node.input[0], graph.constant(stem, stored, stored.dtype), graph.constant(stem, bias)]
    graph.emit("Gemm", inputs, stem, domain=DOMAIN)
    return True


def panels(weight: Array) -> Array:
    """(depth, columns) → (⌈columns / 32⌉, depth, 32), the last panel filled up with zeros.

    Fewer than 32 columns make one panel whose width is the next multiple of 8.
    """
    depth, columns = weight.shape
    width = PANEL if columns > PANEL else -(-columns // VECTOR) * VECTOR
    padded = np.zeros((depth, -(-columns // width) * width), dtype=weight.dtype)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(depth, -1, width).swapaxes(0, 1))


def narrowed(weight: Array) -> Array:
    """The same numbers as float32 where that holds every one of them."""
    with np.errstate(over="ignore"):
        narrow = weight.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), weight) else weight


def conv(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """Conv of one to three axes with a constant weight and bias."""
    weight = graph.value(node.input[1])
    if weight is None or weight.ndim < 3 or not weight.size:
        return False
    groups, (channels, *sizes) = int(attributes_of(node).get("group", 1)), graph.sizes(node.input[0], node)
    if channels != groups * weight.shape[1] or weight.shape[0] % groups:
        return False
    return _convolution(graph, node, node.input[0], weight, Windows.of(node, sizes, weight.shape[2:]))


def conv_transpose(graph: Rewriting, node: onnx.NodeProto, spread: str, windows: Windows) -> bool:
    """ConvTranspose, given its input with zeros between the pixels: a Conv with the flipped kernel."""
    weight = graph.value(node.input[1])
    if weight is None or not weight.size:
        return False
    groups, taps = int(attributes_of(node).get("group", 1)), math.prod(weight.shape[2:])
    # Reversing the flat order of the taps flips every spatial axis.
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)[..., ::-1].swapaxes(1, 2)
    flipped = split.reshape(groups * weight.shape[1], weight.shape[0] // groups, *weight.shape[2:])
    return _convolution(graph, node, spread, flipped, windows)


def _convolution(graph: Rewriting, node: onnx.NodeProto, x: str, weight: Array, windows: Windows) -> bool:
    bias = _bias(graph, node.input[2:], len(weight))
    if weight.dtype != np.float64 or bias is None or len(windows.kernel) > LARGEST_RANK:
        return False
    stem, pads, stored = node.output[0], (*windows.begin, *windows.end), narrowed(weight)
    if min(pads) < 0:  # a transposed convolution may crop
        x, pads = graph.pad(x, windows.begin, windows.end, stem=stem), (0,) * len(pads)
    inputs = [x, graph.constant(stem, stored, stored.dtype), graph.constant(stem, bias)]
    given: dict[str, Any] = {"group": int(attributes_of(node).get("group", 1)), "pads": pads}
    graph.emit("Conv", inputs, stem, domain=DOMAIN, strides=windows.strides, dilations=windows.dilations, **given)
    return True


def _bias(graph: Rewriting, names: Any, size: int) -> Array | None:
    """A constant bias as ``size`` numbers (zeros where there is none); ``None`` when it is not such a constant."""
    if not names or not names[0]:
        return np.zeros(size)
    value = graph.value(names[0])
    if value is None or value.dtype != np.float64 or value.shape not in ((), (1,), (size,), (1, 1), (1, size)):
        return None
    return np.broadcast_to(value.reshape(-1), (size,))


PRODUCTS: dict[str, Callable[[Rewriting, onnx.NodeProto], bool]] = {"Gemm": gemm, "MatMul": matmul, "Conv": conv}
