"""Exact rewrites of operators that ONNX Runtime's CPU provider lacks in float64 (measured on 1.31.1).

Each rewrite computes the same real function with at most the roundings that the verifier's error rule counts for
the operator: a convolution stays one dot product of at most (inputs per group)·(taps) terms plus the bias, a mean
stays a sum and one division. Padding adds exact zeros only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from lipdeploy.runtime import products, smooth
from lipdeploy.runtime.rewriting import Rewriting, attributes_of, unsupported
from lipdeploy.runtime.windows import Windows, per_axis
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.rules.resize import interpolations
from lipdeploy.verify.rules.windows import windows as verified_windows


def conv(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Conv = Pad, one Slice per tap, Concat, one (grouped) MatMul, Add."""
    x, weight = node.input[0], node.input[1]
    groups = int(attributes_of(node).get("group", 1))
    out_channels, per_group, *kernel = graph.sizes(weight, node, first=0)
    channels, *sizes = graph.sizes(x, node)
    if channels != groups * per_group or out_channels % groups:
        raise unsupported(node, f"{channels} channels, group = {groups}, weight {graph.shapes[weight]}")
    windows = Windows.of(node, sizes, kernel)
    matrix = _conv_matrix(graph, weight, groups, out_channels, per_group, math.prod(kernel), node.output[0])
    _correlate(graph, node, x, matrix, groups, channels, out_channels, windows)


def conv_transpose(graph: Rewriting, node: onnx.NodeProto) -> None:
    """ConvTranspose = zeros between the pixels, then a Conv with the flipped kernel."""
    given, (x, weight) = attributes_of(node), node.input[:2]
    if given.get("output_shape") or given.get("auto_pad", "NOTSET") != "NOTSET":
        raise unsupported(node, "output_shape and auto_pad of ConvTranspose have no rewrite; use explicit pads")
    groups = int(given.get("group", 1))
    in_channels, per_group, *kernel = graph.sizes(weight, node, first=0)
    channels, *sizes = graph.sizes(x, node)
    if channels != in_channels or channels % groups:
        raise unsupported(node, f"{channels} channels, group = {groups}, weight {graph.shapes[weight]}")
    strides = per_axis(given, "strides", len(sizes), node)
    windows = _transposed_windows(given, node, sizes, kernel, strides)
    stuffed = _stuff_zeros(graph, x, channels, sizes, strides, node.output[0])
    if graph.own and products.conv_transpose(graph, node, stuffed, windows):
        return
    matrix = _transpose_matrix(graph, weight, groups, channels // groups, per_group, kernel, node)
    _correlate(graph, node, stuffed, matrix, groups, channels, groups * per_group, windows)


def _transposed_windows(
    given: dict[str, Any], node: onnx.NodeProto, sizes: list[int], kernel: list[int], strides: tuple[int, ...]
) -> Windows:
    """The unit-stride windows over the zero-stuffed input; their pads may be negative (a crop)."""
    rank = len(sizes)
    dilations = per_axis(given, "dilations", rank, node)
    pads, extra = given.get("pads") or (0,) * (2 * rank), given.get("output_padding") or (0,) * rank
    if min(pads) < 0:
        raise unsupported(node, f"pads = {pads}")
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    begin = tuple(r - p for r, p in zip(reach, pads[:rank], strict=True))
    # Zero-stuffing has already put stride - 1 zeros behind the last pixel.
    end = tuple(r - p + o - (s - 1) for r, p, o, s in zip(reach, pads[rank:], extra, strides, strict=True))
    stuffed = tuple(n * s for n, s in zip(sizes, strides, strict=True))
    windows = Windows(stuffed, tuple(kernel), (1,) * rank, dilations, begin, end)
    if min(windows.output) < 1:
        raise unsupported(node, f"the output would be empty: {windows.output}")
    return windows


def _correlate(
    graph: Rewriting,
    node: onnx.NodeProto,
    x: str,
    matrix: str,
    groups: int,
    channels: int,
    out_channels: int,
    windows: Windows,
) -> None:
    """Y[n, g, m, p] = Σ_k matrix[g, m, k] · columns[n, g, k, p] (+ bias), with k = (tap, channel of the group)."""
    stem, axis, lead = node.output[0], 2, [0]
    x = graph.pad(x, windows.begin, windows.end, stem=stem)
    if groups > 1:
        x = graph.reshape(x, [0, groups, channels // groups, *windows.padded], stem=stem)
        axis, lead = 3, [0, groups]
    taps = windows.taps(graph, x, axis, stem)
    columns = graph.emit("Concat", taps, stem=stem, axis=axis - 1) if len(taps) > 1 else taps[0]
    terms, places = len(taps) * (channels // groups), math.prod(windows.output)
    product = graph.emit("MatMul", [matrix, graph.reshape(columns, [*lead, terms, places], stem=stem)], stem=stem)
    bias = node.input[2] if len(node.input) > 2 else ""
    result = graph.reshape(product, [0, out_channels, *windows.output], None if bias else node.output[0], stem=stem)
    if bias:
        column = _bias_column(graph, bias, out_channels, len(windows.output), stem)
        graph.emit("Add", [result, column], node.output[0])


def _conv_matrix(
    graph: Rewriting, weight: str, groups: int, out_channels: int, per_group: int, taps: int, stem: str
) -> str:
    """(out, in/g, *kernel) → (g, out/g, taps · in/g), or without the first axis for one group."""
    split = [groups, out_channels // groups, per_group, taps]
    joined = [groups, out_channels // groups, taps * per_group][0 if groups > 1 else 1 :]
    value = graph.value(weight)
    if value is not None:
        return graph.constant(stem, value.reshape(split).transpose(0, 1, 3, 2).reshape(joined))
    parts = graph.reshape(weight, split, stem=stem)
    return graph.reshape(graph.emit("Transpose", [parts], stem=stem, perm=[0, 1, 3, 2]), joined, stem=stem)


def _transpose_matrix(
    graph: Rewriting, weight: str, groups: int, per_group: int, out: int, kernel: list[int], node: onnx.NodeProto
) -> str:
    """(in, out/g, *kernel) → flipped kernel as (g, out/g, taps · in/g)."""
    value = graph.value(weight)
    if value is None:
        raise unsupported(node, "the weight of ConvTranspose is not an initialiser")
    # Reversing the flat order of the taps flips every spatial axis.
    split = value.reshape(groups, per_group, out, math.prod(kernel))[..., ::-1]
    joined = [groups, out, math.prod(kernel) * per_group][0 if groups > 1 else 1 :]
    return graph.constant(node.output[0], split.transpose(0, 2, 3, 1).reshape(joined))


def _bias_column(graph: Rewriting, bias: str, channels: int, rank: int, stem: str) -> str:
    shape = [channels] + [1] * rank
    value = graph.value(bias)
    return graph.constant(stem, value.reshape(shape)) if value is not None else graph.reshape(bias, shape, stem=stem)


def _stuff_zeros(graph: Rewriting, x: str, channels: int, sizes: list[int], strides: tuple[int, ...], stem: str) -> str:
    """Put stride − 1 zeros after every pixel of every axis."""
    if all(stride == 1 for stride in strides):
        return x
    apart = [0, channels, *(part for size in sizes for part in (size, 1))]
    after = [part for stride in strides for part in (0, stride - 1)]
    spread = graph.pad(graph.reshape(x, apart, stem=stem), [0] * len(after), after, stem=stem)
    return graph.reshape(spread, [0, channels, *(n * s for n, s in zip(sizes, strides, strict=True))], stem=stem)


def average_pool(graph: Rewriting, node: onnx.NodeProto) -> None:
    """AveragePool = sum of the taps, divided once by the number of pixels in each window."""
    windows, sizes = _pool_windows(graph, node)
    total = _sum_of_taps(graph, node, node.input[0], windows)
    padding_counts = bool(attributes_of(node).get("count_include_pad", 0))
    count = np.array(math.prod(windows.kernel)) if padding_counts else _pixels(windows, sizes)
    graph.emit("Div", [total, graph.constant(node.output[0], count)], node.output[0])


def lp_pool(graph: Rewriting, node: onnx.NodeProto) -> None:
    """LpPool with p = 1 or 2: sum of |x| or of x², the root at the end."""
    windows, _ = _pool_windows(graph, node)
    x, p, stem = node.input[0], int(attributes_of(node).get("p", 2)), node.output[0]
    if p == 1:
        _sum_of_taps(graph, node, graph.emit("Abs", [x], stem=stem), windows, node.output[0])
    elif p == 2:
        squares = _sum_of_taps(graph, node, graph.emit("Mul", [x, x], stem=stem), windows)
        graph.emit("Sqrt", [squares], node.output[0])
    else:
        raise unsupported(node, f"p = {p}")


def _pool_windows(graph: Rewriting, node: onnx.NodeProto) -> tuple[Windows, tuple[int, ...]]:
    sizes = graph.sizes(node.input[0], node)[1:]
    windows = Windows.of(node, sizes, attributes_of(node)["kernel_shape"])
    if not windows.output == graph.sizes(node.output[0], node)[1:] == _verified_image(graph, node, sizes):
        raise unsupported(node, "with ceil_mode, windows hang over the edge or start in the padding")
    return windows, sizes


def _verified_image(graph: Rewriting, node: onnx.NodeProto, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What the verifier's rule makes of an image of these sizes: under a root, a proof names no sizes of its own."""
    given = attributes_of(node)
    ceil = bool(given.get("ceil_mode", 0))
    return verified_windows(_as_verified(graph, node), sizes, tuple(given["kernel_shape"]), ceil=ceil).outputs


def _sum_of_taps(graph: Rewriting, node: onnx.NodeProto, x: str, windows: Windows, output: str | None = None) -> str:
    padded = graph.pad(x, windows.begin, windows.end, stem=node.output[0])
    return graph.emit("Sum", windows.taps(graph, padded, 2, node.output[0]), output, stem=node.output[0])


def _pixels(windows: Windows, sizes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """How many real pixels (not padding) each window holds; shape = output sizes."""
    counts = np.ones((), dtype=np.float64)
    for k, s, d, low, n, out in zip(
        windows.kernel, windows.strides, windows.dilations, windows.begin, sizes, windows.output, strict=True
    ):
        places = np.arange(out)[:, None] * s + np.arange(k)[None, :] * d - low
        counts = np.multiply.outer(counts, ((places >= 0) & (places < n)).sum(axis=1))
    return counts


def global_pool(reduction: str) -> Callable[[Rewriting, onnx.NodeProto], None]:
    """GlobalAveragePool, GlobalMaxPool = a reduction over the spatial axes."""

    def rewrite(graph: Rewriting, node: onnx.NodeProto) -> None:
        graph.reduce(reduction, node.input[0], _image_axes(graph, node), node.output[0])

    return rewrite


def _image_axes(graph: Rewriting, node: onnx.NodeProto) -> range:
    rank = len(graph.shape(node.input[0], node))
    if rank < 3:
        raise unsupported(node, "there is no image, and a reduction without axes takes all of them, the batch too")
    return range(2, rank)


def global_lp_pool(graph: Rewriting, node: onnx.NodeProto) -> None:
    """GlobalLpPool with p = 1 or 2 = the sum of |x| over the spatial axes, or the root of that of x²."""
    p = int(attributes_of(node).get("p", 2))
    if p not in (1, 2):
        raise unsupported(node, f"p = {p}")
    axes, x, stem = _image_axes(graph, node), node.input[0], node.output[0]
    powers = graph.emit("Mul", [x, x], stem=stem) if p == 2 else graph.emit("Abs", [x], stem=stem)
    total = graph.reduce("ReduceSum", powers, axes, graph.fresh(stem) if p == 2 else stem)
    if p == 2:
        graph.emit("Sqrt", [total], stem)


def leaky_relu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """LeakyRelu = x where x ≥ 0, else alpha·x."""
    alpha = graph.constant(node.output[0], attributes_of(node).get("alpha", float(np.float32(0.01))))
    _where_negative(graph, node, graph.emit("Mul", [node.input[0], alpha], stem=node.output[0]))


def prelu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """PRelu = x where x ≥ 0, else slope·x (the slope broadcasts to x)."""
    _where_negative(graph, node, graph.emit("Mul", [node.input[0], node.input[1]], stem=node.output[0]))


def _where_negative(graph: Rewriting, node: onnx.NodeProto, other: str) -> None:
    negative = graph.emit("Less", [node.input[0], graph.constant(node.output[0], 0.0)], stem=node.output[0])
    graph.emit("Where", [negative, other, node.input[0]], node.output[0])


def mean(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Mean of several tensors = Sum, then one division."""
    total = graph.emit("Sum", list(node.input), stem=node.output[0])
    graph.emit("Div", [total, graph.constant(node.output[0], len(node.input))], node.output[0])


def hard_sigmoid(graph: Rewriting, node: onnx.NodeProto) -> None:
    """HardSigmoid = alpha·x + beta, clipped to [0, 1]."""
    given, stem = attributes_of(node), node.output[0]
    alpha = graph.constant(stem, given.get("alpha", float(np.float32(0.2))))
    beta = graph.constant(stem, given.get("beta", 0.5))
    line = graph.emit("Add", [graph.emit("Mul", [node.input[0], alpha], stem=stem), beta], stem=stem)
    graph.emit("Clip", [line, graph.constant(stem, 0.0), graph.constant(stem, 1.0)], node.output[0])


def softsign(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Softsign = x / (1 + |x|)."""
    x, stem = node.input[0], node.output[0]
    below = graph.emit("Add", [graph.emit("Abs", [x], stem=stem), graph.constant(stem, 1.0)], stem=stem)
    graph.emit("Div", [x, below], node.output[0])


def power(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Pow with the exponent 2 or ½: a product, a square root. Other powers are Lipschitz nowhere, and not verified."""
    exponent = graph.value(node.input[1])
    number = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    if number == 2.0:
        graph.emit("Mul", [node.input[0], node.input[0]], node.output[0])
    elif number == 0.5:
        graph.emit("Sqrt", [node.input[0]], node.output[0])
    else:
        raise unsupported(node, "only the exponents 2 and 1/2 are written out")


def reduce_l2(graph: Rewriting, node: onnx.NodeProto) -> None:
    """ReduceL2 = the root of a sum of squares."""
    given, x, stem = attributes_of(node), node.input[0], node.output[0]
    stored = graph.value(node.input[1]) if len(node.input) > 1 and node.input[1] else given.get("axes")
    axes = [] if stored is None else np.asarray(stored).reshape(-1).tolist()
    if not axes:
        raise unsupported(node, "its axes are not stored")
    squares = graph.emit("Mul", [x, x], stem=stem)
    total = graph.reduce("ReduceSum", squares, axes, graph.fresh(stem), int(given.get("keepdims", 1)))
    graph.emit("Sqrt", [total], node.output[0])


def shrink(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Shrink with bias = lambd: x ∓ λ outside [−λ, λ], else 0, which is x minus x clipped to [−λ, λ]."""
    stem, given = node.output[0], attributes_of(node)
    limit = given.get("lambd", 0.5)
    if given.get("bias", 0.0) != limit:
        raise unsupported(node, "bias is not lambd")
    ends = [graph.constant(stem, -limit), graph.constant(stem, limit)]
    graph.emit("Sub", [node.input[0], graph.emit("Clip", [node.input[0], *ends], stem=stem)], node.output[0])


def thresholded_relu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """ThresholdedRelu with alpha = 0 is Relu; it jumps otherwise, and is not verified."""
    if attributes_of(node).get("alpha", 1.0) != 0.0:
        raise unsupported(node, "alpha is not 0")
    graph.emit("Relu", [node.input[0]], node.output[0])


def resize(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Resize, nearest or linear: along each axis two Gathers, weighted by what the verifier's rule says, and a sum."""
    current, stem, rank = node.input[0], node.output[0], len(graph.shape(node.input[0], node))
    matrices = interpolations(_as_verified(graph, node))
    if not matrices:
        graph.emit("Identity", [current], node.output[0])
    for place, (axis, matrix) in enumerate(matrices.items(), start=1):
        output = node.output[0] if place == len(matrices) else None
        current = _interpolated(graph, current, axis + 1, rank, matrix, output, stem)


def _interpolated(
    graph: Rewriting, x: str, axis: int, rank: int, matrix: np.ndarray[Any, Any], output: str | None, stem: str
) -> str:
    """``matrix`` (out, in), with one or two entries in a row that are not zero, applied along one axis."""
    behind = [1] * (rank - 1 - axis)
    low = (matrix != 0.0).argmax(axis=1)
    high = matrix.shape[1] - 1 - (matrix[:, ::-1] != 0.0).argmax(axis=1)
    rows = np.arange(len(matrix))
    if np.all(matrix[rows, low] == 1.0) and np.array_equal(low, high):
        return graph.emit("Gather", [x, graph.integers(stem, low)], output, stem=stem, axis=axis)
    parts = []
    for pixel, weight in ((low, matrix[rows, low]), (high, np.where(low == high, 0.0, matrix[rows, high]))):
        taken = graph.emit("Gather", [x, graph.integers(stem, pixel)], stem=stem, axis=axis)
        parts.append(graph.emit("Mul", [taken, graph.constant(stem, weight.reshape(-1, *behind))], stem=stem))
    return graph.emit("Add", parts, output, stem=stem)


def _as_verified(graph: Rewriting, node: onnx.NodeProto) -> Call:
    """The node as the verifier's rule for it sees it."""
    inputs: list[Flow | Constant | None] = []
    for index, name in enumerate(node.input):
        value = graph.value(name) if name else None
        if index == 0:
            inputs.append(Flow(name, np.dtype(np.float64), graph.sizes(name, node), {}, {}))
        else:
            inputs.append(None if value is None else Constant(name, value))
        if index and name and value is None:
            raise unsupported(node, f"'{name}' is not stored")
    return Call(
        name=node.name,
        op=node.op_type,
        domain="",
        version=graph.opset,
        attributes={attribute.name: attribute for attribute in node.attribute},
        input_names=tuple(node.input),
        output_names=tuple(node.output),
        inputs=tuple(inputs),
        batch=graph.shape(node.input[0], node)[0],
    )


REWRITES: dict[str, Callable[[Rewriting, onnx.NodeProto], None]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_pool("ReduceMean"),
    "GlobalMaxPool": global_pool("ReduceMax"),
    "GlobalLpPool": global_lp_pool,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Mean": mean,
    "HardSigmoid": hard_sigmoid,
    "Softsign": softsign,
    "Tanh": smooth.tanh,
    "Sigmoid": smooth.sigmoid,
    "Softmax": smooth.softmax,
    "Softplus": smooth.softplus,
    "Mish": smooth.mish,
    "Elu": smooth.elu,
    "Selu": smooth.selu,
    "Celu": smooth.celu,
    "Erf": smooth.erf,
    "Gelu": smooth.gelu,
    "HardSwish": smooth.hard_swish,
    "Pow": power,
    "ReduceL2": reduce_l2,
    "Resize": resize,
    "Shrink": shrink,
    "ThresholdedRelu": thresholded_relu,
}
