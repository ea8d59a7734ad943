"""What each operator means for a chain: a matrix, an activation, a selection of entries, or nothing at all.

A reader sees a node that the rules have proven already, with its inputs, and asks the builder for the signal of each
output. Where it cannot say exactly what the node does, it raises ``Ineligible``; the product of norms stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipdeploy.ops import DOMAIN, OPERATORS
from lipdeploy.verify.chain.builder import Builder, Ineligible, Signal
from lipdeploy.verify.chain.model import Indices, Slopes, Sorting
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.operator_norm import Convolution
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.pooling import reduced
from lipdeploy.verify.rules.windows import windows

LARGEST_MATRIX = 1 << 22  # entries of a convolution that is written out


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


# Matrices.


def _gemm(node: Node) -> Signal:
    call, weight = node.call, node.call.required_constant(1).float64()
    if len(node.source.shape) != 1 or call.integer("transA", 0) or call.real("alpha", 1.0) != 1.0 or weight.ndim != 2:
        raise Ineligible
    return node.builder.linear(node.source.name, weight if call.integer("transB", 0) else weight.T)


def _matmul(node: Node) -> Signal:
    weight = node.call.required_constant(1).float64()
    if len(node.source.shape) != 1 or weight.ndim != 2 or not isinstance(node.call.inputs[0], Flow):
        raise Ineligible
    return node.builder.linear(node.source.name, weight.T)


def _conv(node: Node) -> Signal:
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


def _mean(node: Node) -> Signal:
    """ReduceMean and GlobalAveragePool: sums, then a division by their number."""
    source, result = node.source, node.result
    if node.call.op == "GlobalAveragePool":
        axes: set[int] = set(range(2, len(source.shape) + 1))
    else:
        axes = _reduced_axes(node.call, source)
    groups = _groups(source, axes)
    if len(groups) != result.size:
        raise Ineligible
    return _averages(node, groups)


def _averages(node: Node, groups: Indices) -> Signal:
    if len(groups) * node.source.size > LARGEST_MATRIX:
        raise Ineligible
    sums = np.zeros((len(groups), node.source.size))
    sums[np.arange(len(groups))[:, None], groups] = 1.0
    signal = node.builder.linear(node.source.name, sums, stored=False)
    return Signal(signal.rows, _quotient(np.full(len(groups), float(groups.shape[1]))))


def _average_pool(node: Node) -> Signal:
    """AveragePool with windows side by side."""
    return _averages(node, _tiles(node))


def _tiles(node: Node) -> Indices:
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
    inside = _numbers(source)[(slice(None), *(slice(n * k) for n, k in zip(counts, kernel, strict=True)))]
    split = [part for n, k in zip(counts, kernel, strict=True) for part in (n, k)]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    tiles = inside.reshape(source.shape[0], *split).transpose(order).reshape(-1, math.prod(kernel))
    if len(tiles) != result.size or (source.shape[0], *counts) != result.shape:
        raise Ineligible
    return np.ascontiguousarray(tiles)


def _addition(node: Node) -> Signal:
    call, flows = node.call, node.call.flows()
    if any(flow.shape != node.result.shape for flow in flows):
        raise Ineligible
    negative = call.op == "Sub"
    if len(flows) == 1 and len(call.inputs) > 1:
        constant_first = not isinstance(call.inputs[0], Flow)
        return _slopes(node, -1.0, -1.0) if negative and constant_first else node.builder.signals[flows[0].name]
    signs = [-1.0 if negative and index else 1.0 for index in range(len(flows))]
    return node.builder.total([(flow.name, sign) for flow, sign in zip(flows, signs, strict=True)])


# Entries that move.


def _same(node: Node) -> Signal:
    """Moves no entry relative to the others (row-major)."""
    return node.builder.signals[node.source.name]


def _gather(node: Node) -> Signal:
    source, call = node.source, node.call
    axis = call.axis("axis", 0, len(source.shape) + 1)
    indices = np.take(_numbers(source), call.required_constant(1).array, axis=axis - 1)
    return node.builder.select(source.name, indices.reshape(-1))


def _transpose(node: Node) -> Signal:
    perm = node.call.integers("perm", tuple(reversed(range(len(node.source.shape) + 1))))
    indices = _numbers(node.source).transpose([axis - 1 for axis in perm[1:]])
    return node.builder.select(node.source.name, indices.reshape(-1))


def _slice(node: Node) -> Signal:
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
    indices = _numbers(source)[tuple(cut)]
    if indices.shape != node.result.shape:
        raise Ineligible
    return node.builder.select(source.name, indices.reshape(-1))


def _split(node: Node) -> list[Signal]:
    source, call = node.source, node.call
    axis = call.axis("axis", 0, len(source.shape) + 1) - 1
    sizes = [result.shape[axis] if result else 0 for result in node.results]
    if sum(sizes) != source.shape[axis] or not all(sizes):
        raise Ineligible
    pieces = np.split(_numbers(source), np.cumsum(sizes)[:-1], axis=axis)
    return [node.builder.select(source.name, piece.reshape(-1)) for piece in pieces]


def _concat(node: Node) -> Signal:
    flows = node.call.flows()
    if len(flows) != len(node.call.inputs):
        raise Ineligible
    axis = node.call.axis("axis", None, len(node.result.shape) + 1) - 1
    starts = np.cumsum([0, *(flow.size for flow in flows)])
    numbers = [start + _numbers(flow) for start, flow in zip(starts, flows, strict=False)]
    arranged = np.concatenate(numbers, axis=axis).reshape(-1)
    joined = node.builder.concatenate([flow.name for flow in flows])
    if np.array_equal(arranged, np.arange(len(arranged))):
        return joined
    return node.builder.select(node.hold("joined", joined), arranged)


def _numbers(flow: Flow) -> Indices:
    """The number of each entry, in the flow's shape."""
    return np.arange(flow.size).reshape(flow.shape)


# Activations with slopes.

#: Chord slopes of activations, rounded outward (sharp_edges 8; tests/verify/test_chain.py recomputes them).
INTERVALS: Mapping[str, tuple[float, float]] = {
    "Relu": (0.0, 1.0),
    "Abs": (-1.0, 1.0),
    "Neg": (-1.0, -1.0),
    "Tanh": (0.0, 1.0),
    "Softplus": (0.0, 1.0),
    "Sigmoid": (0.0, 0.25),
    "Mish": (-0.112527, 1.088499),
}
GELU_INTERVALS = {"none": (-0.128905, 1.128905), "tanh": (-0.128994, 1.128994)}
SILU_INTERVAL = (-0.099840, 1.099840)


def _slopes(node: Node, low: float, high: float) -> Signal:
    size = node.source.size
    return node.builder.activate(node.source.name, Slopes(np.full(size, low), np.full(size, high)))


def _smooth(node: Node) -> Signal:
    return _slopes(node, *INTERVALS[node.call.op])


def _relu(node: Node) -> Signal:
    """Slopes in [0, 1]; but beside relu(−x), as in CReLU, it is relu(−x) + x, with no bend of its own."""
    name = node.source.name
    producer = node.call.producer(name)
    is_negative = producer is not None and (producer.domain, producer.op) == ("", "Neg")
    negative = producer.input_names[0] if producer is not None and is_negative else node.earlier("Neg", name)
    other = node.earlier("Relu", negative) if negative else None
    if other is None or other not in node.builder.signals or not node.builder.again(other):
        return _smooth(node)
    return node.builder.total([(other, 1.0), (name, 1.0)])


def _gelu(node: Node) -> Signal:
    return _slopes(node, *GELU_INTERVALS[node.call.string("approximate", "none")])


def _elu(node: Node) -> Signal:
    alpha = node.call.real("alpha", 1.0)
    if alpha < 0.0:
        raise Ineligible
    return _slopes(node, 0.0, max(1.0, alpha))


def _leaky(node: Node) -> Signal:
    alpha = node.call.real("alpha", 0.009999999776482582)
    return _slopes(node, min(alpha, 1.0), max(alpha, 1.0))


def _prelu(node: Node) -> Signal:
    slope = _entries(node, node.call.required_constant(1))
    return node.builder.activate(node.source.name, Slopes(np.minimum(slope, 1.0), np.maximum(slope, 1.0)))


def _product(node: Node) -> Signal:
    """A constant factor for each entry; or x·sigmoid(x)."""
    constant = next((value for value in map(node.call.optional, range(2)) if isinstance(value, Constant)), None)
    if constant is None:
        return _silu(node)
    factor = _entries(node, constant)
    return node.builder.activate(node.source.name, Slopes(factor, factor))


def _silu(node: Node) -> Signal:
    first, second = node.call.flows()
    for data, gate in ((first, second), (second, first)):
        sigmoid = node.call.producer(gate.name)
        if (
            sigmoid is not None
            and (sigmoid.domain, sigmoid.op) == ("", "Sigmoid")
            and sigmoid.input_names[0] == data.name
        ):
            low, high = (np.full(data.size, end) for end in SILU_INTERVAL)
            return node.builder.activate(data.name, Slopes(low, high))
    raise Ineligible


def _division(node: Node) -> Signal:
    if not isinstance(node.call.inputs[0], Flow):
        raise Ineligible
    return node.builder.activate(node.source.name, _quotient(_entries(node, node.call.required_constant(1))))


def _quotient(divisor: Array) -> Slopes:
    """Division by each entry of ``divisor``, bracketed where 1/d is not a float."""
    if np.any(divisor == 0.0):
        raise Ineligible
    inverse = 1.0 / divisor
    exact = np.frexp(np.abs(divisor))[0] == 0.5
    low, high = np.nextafter(inverse, -math.inf), np.nextafter(inverse, math.inf)
    return Slopes(np.where(exact, inverse, low), np.where(exact, inverse, high))


def _entries(node: Node, constant: Constant) -> Array:
    """A constant operand, entry by entry of one sample; the operator may not replicate the data."""
    if node.result.shape != node.source.shape:
        raise Ineligible
    return np.array(spread(constant, node.source.shape), dtype=np.float64).reshape(-1)


def _linear_spline(node: Node) -> Signal:
    """The interval of each channel's stored segments; end slopes continue outside the knots."""
    call, source, attributes = node.call, node.source, _attributes(node.call)
    axis = _channel_axis(node, attributes)
    coefficients = call.required_constant(1).float64()
    if coefficients.ndim != 2 or coefficients.shape[1] < 2 or coefficients.shape[0] not in (1, source.shape[axis]):
        raise Ineligible
    steps = np.diff(coefficients, axis=1)
    spacing = float(attributes["knot_spacing"])
    # One rounding in the difference and one in the quotient, each monotone: one step outward after each.
    low = np.nextafter(np.nextafter(steps.min(axis=1), -math.inf) / spacing, -math.inf)
    high = np.nextafter(np.nextafter(steps.max(axis=1), math.inf) / spacing, math.inf)
    shape = [1] * len(source.shape)
    shape[axis] = -1
    low, high = (np.broadcast_to(end.reshape(shape), source.shape).reshape(-1) for end in (low, high))
    return node.builder.activate(source.name, Slopes(np.array(low), np.array(high)))


def _attributes(call: Call) -> dict[str, int | float]:
    specification = OPERATORS[call.op]
    given: dict[str, int | float] = {
        a.name: call.integer(a.name) if a.kind == "int" else call.real(a.name)
        for a in specification.attributes
        if a.name in call.attributes
    }
    return specification.complete(given)


def _channel_axis(node: Node, attributes: Mapping[str, int | float]) -> int:
    """The channel axis of one sample."""
    axis = node.call.resolve_axis(int(attributes["axis"]), len(node.source.shape) + 1) - 1
    if axis < 0:
        raise Ineligible
    return axis


# Activations that sort, and reflections.


def _group_sort(node: Node) -> Signal:
    source, attributes = node.source, _attributes(node.call)
    axis = _channel_axis(node, attributes)
    size = int(attributes["group_size"]) or source.shape[axis]
    if source.shape[axis] % size:
        raise Ineligible
    if size == 1:
        return node.builder.signals[source.name]
    groups = _paired(source, axis, size, strided=attributes["layout"] != 0)
    return node.builder.activate(source.name, Sorting(groups))


def _paired(source: Flow, axis: int, size: int, *, strided: bool) -> Indices:
    """(groups, size): the entries of each group of channels, group by group along the axis at each position."""
    indices = np.moveaxis(_numbers(source), axis, -1)
    count = source.shape[axis] // size
    groups = indices.reshape(*indices.shape[:-1], *((size, count) if strided else (count, size)))
    return np.ascontiguousarray((np.swapaxes(groups, -1, -2) if strided else groups).reshape(-1, size))


def _householder(node: Node) -> Signal:
    """With u = s·a − c·b: (a − 2s·max(0, u), b + 2c·max(0, u)), a residual whose ReLU has one entry for each pair.

    Only u is bent. What is perpendicular to (s, −c) passes through unchanged, which is what the free I − vvᵀ terms of
    the multipliers of Pauli et al. (ICLR 2024) say; here no s² + c² = 1 is needed, the stored numbers are used.
    """
    source, attributes, builder = node.source, _attributes(node.call), node.builder
    axis = _channel_axis(node, attributes)
    sine, cosine = (node.call.required_constant(index).float64() for index in (1, 2))
    pairs = source.shape[axis] // 2
    if source.shape[axis] % 2 or sine.shape != (pairs,) or cosine.shape != (pairs,):
        raise Ineligible
    first, second = _paired(source, axis, 2, strided=attributes["layout"] != 0).T
    s, c = (np.tile(angle, len(first) // pairs) for angle in (sine, cosine))
    order = np.arange(len(first))
    inner, outer = np.zeros((len(first), source.size)), np.zeros((source.size, len(first)))
    inner[order, first], inner[order, second] = s, -c
    outer[first, order], outer[second, order] = -2.0 * s, 2.0 * c
    fold = builder.linear(source.name, inner, stored=False)
    beyond = node.hold("beyond", Signal(fold.rows, Slopes(np.zeros(len(first)), np.ones(len(first)))))
    reflected = builder.linear(beyond, outer, stored=False)
    return builder.total([(source.name, 1.0), (node.hold("reflected", reflected), 1.0)])


def _extreme(node: Node) -> Signal:
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


def _max_pool(node: Node) -> Signal:
    """The largest of each window, where the windows lie side by side: the last of each sorted group."""
    if any(result is not None for result in node.results[1:]):
        raise Ineligible
    tiles, builder = _tiles(node), node.builder
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
        axes = _reduced_axes(call, flows[0])
        groups = _groups(flows[0], axes)
        return (("extremes", flows[0].name, *sorted(axes)), groups) if groups.shape[1] > 1 else none
    return none


def _reduced_axes(call: Call, source: Flow) -> set[int]:
    """The axes that a reduction runs over, counted from the batch axis 0; what it leaves must have the rule's shape."""
    listed = call.constant(1)
    given = call.integers("axes", ()) if listed is None else listed.array.reshape(-1).tolist()
    axes = {call.resolve_axis(int(axis), len(source.shape) + 1) for axis in given}
    if not axes or 0 in axes or reduced(call)[1] != math.prod(source.shape[axis - 1] for axis in axes):
        raise Ineligible
    return axes


def _groups(source: Flow, axes: set[int]) -> Indices:
    """(groups, entries): the entries that a reduction over ``axes`` joins, in the order of its results."""
    kept = [axis for axis in range(len(source.shape)) if axis + 1 not in axes]
    moved = _numbers(source).transpose([*kept, *(axis - 1 for axis in sorted(axes))])
    return np.ascontiguousarray(moved.reshape(math.prod(source.shape[axis] for axis in kept), -1))


def _top(node: Node) -> list[Signal]:
    """The first k of each sorted group."""
    source, call = node.source, node.call
    axis = call.axis("axis", -1, len(source.shape) + 1) - 1
    if axis < 0 or not call.integer("sorted", 1) or any(result is not None for result in node.results[1:]):
        raise Ineligible
    grouped = np.moveaxis(_numbers(source), axis, -1)
    if grouped.shape[-1] > 1:
        signal = node.builder.activate(
            source.name, Sorting(np.ascontiguousarray(grouped.reshape(-1, grouped.shape[-1])))
        )
    else:
        signal = node.builder.signals[source.name]
    ordered = grouped[..., ::-1] if call.integer("largest", 1) else grouped
    chosen = np.moveaxis(ordered[..., : node.result.shape[axis]], -1, axis)
    return [node.builder.select(node.hold("sorted", signal), chosen.reshape(-1))]


READERS: Mapping[tuple[str, str], Reader] = {
    **{("", op): _same for op in ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout")},
    **{("", op): _addition for op in ("Add", "Sum", "Sub")},
    **{("", op): _smooth for op in INTERVALS},
    ("", "Relu"): _relu,
    **{("", op): _extreme for op in ("Max", "Min", "ReduceMax", "ReduceMin")},
    **{("", op): _mean for op in ("ReduceMean", "GlobalAveragePool")},
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Conv"): _conv,
    ("", "Gather"): _gather,
    ("", "Transpose"): _transpose,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Concat"): _concat,
    ("", "TopK"): _top,
    ("", "Gelu"): _gelu,
    ("", "Elu"): _elu,
    ("", "LeakyRelu"): _leaky,
    ("", "PRelu"): _prelu,
    ("", "Mul"): _product,
    ("", "Div"): _division,
    (DOMAIN, "GroupSort"): _group_sort,
    (DOMAIN, "Householder"): _householder,
    (DOMAIN, "LinearSpline"): _linear_spline,
}
