"""Chains x → W₁ → σ₁ → W₂ → … → W_L, read off the verifier's own view of a graph.

Only what a multiplier certificate is proven for is eligible: linear layers with stored matrices, activations whose
chord slopes lie in a known interval neuron by neuron, and GroupSort, in one straight line. Anything else is not an
error: there is no chain, and the product of norms stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import Refused
from lipdeploy.ops import DOMAIN, OPERATORS
from lipdeploy.verify.graph import Call, Constant, Flow, Value
from lipdeploy.verify.operator_norm import Convolution
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules import RULES
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.windows import windows

Indices = np.ndarray[Any, np.dtype[np.int64]]
WIDEST = 4096  # entries of one activation: above it the proof would cost more than it is worth
LARGEST_MATRIX = 1 << 22  # entries of a convolution that is written out
MOST_WRITTEN = 1 << 25  # entries of all matrices that are not in the file
MOST_WEIGHTS = 1 << 28  # entries of all matrices, a shared one counted as often as it is used
LARGEST_TENSOR = 1 << 22  # entries of one sample at any node
DEEPEST = 256  # nodes in a row


@dataclass(frozen=True)
class Slopes:
    """An activation that acts entry by entry: (σ_k(s) − σ_k(t)) / (s − t) lies in [low_k, high_k]; shapes (n,)."""

    low: Array
    high: Array

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not np.all(self.low <= self.high):
            raise ValueError("slope intervals are two vectors of one length, low ≤ high")
        if not (np.all(np.isfinite(self.low)) and np.all(np.isfinite(self.high))):
            raise ValueError("slope intervals must be finite")

    @property
    def size(self) -> int:
        """Entries that the activation acts on."""
        return len(self.low)

    def after(self, inner: Slopes) -> Slopes:
        """The slopes of this activation applied after ``inner``: products of the intervals, rounded outward."""
        corners = np.stack([a * b for a in (self.low, self.high) for b in (inner.low, inner.high)])
        exact = self._is_one() | inner._is_one()
        low, high = corners.min(axis=0), corners.max(axis=0)
        return Slopes(
            np.where(exact, low, np.nextafter(low, -math.inf)), np.where(exact, high, np.nextafter(high, math.inf))
        )

    def _is_one(self) -> Any:
        return (self.low == 1.0) & (self.high == 1.0)


@dataclass(frozen=True)
class Sorting:
    """An activation that sorts the entries of each group (either order); ``groups`` (G, s ≥ 2) lists their indices."""

    groups: Indices

    def __post_init__(self) -> None:
        flat = np.sort(self.groups.reshape(-1))
        if self.groups.ndim != 2 or self.groups.shape[1] < 2 or not np.array_equal(flat, np.arange(flat.size)):
            raise ValueError("groups must list every index once, two or more to a group")

    @property
    def size(self) -> int:
        """Entries that the activation acts on."""
        return int(self.groups.size)


Activation = Slopes | Sorting


@dataclass(frozen=True)
class Chain:
    """y = W_L σ_{L−1}(… σ₁(W₁x + b₁) …) + b_L: ``weights[i]`` is (n_{i+1}, n_i) float64, exact; biases play no part."""

    weights: tuple[Array, ...]
    activations: tuple[Activation, ...]

    def __post_init__(self) -> None:
        if not self.weights or len(self.activations) != len(self.weights) - 1:
            raise ValueError("a chain has one activation between every two linear layers")
        for weight in self.weights:
            if weight.ndim != 2 or 0 in weight.shape or weight.dtype != np.float64 or not np.all(np.isfinite(weight)):
                raise ValueError("weights are finite float64 matrices")
        for before, activation, after in zip(self.weights, self.activations, self.weights[1:], strict=False):
            if not before.shape[0] == activation.size == after.shape[1]:
                raise ValueError("the sizes of the layers do not fit together")


class _Ineligible(Exception):
    """The graph is not a chain, or holds an operator that the certificate is not proven for."""


def chain_of(output: str, calls: Sequence[Call], values: Mapping[str, Value]) -> Chain | None:
    """The chain that computes ``output`` from the graph's input; ``None`` when the graph is not one."""
    producers = {name: call for call in calls for name in call.output_names}
    path: list[Call] = []
    name = output
    try:
        while name in producers:
            path.append(_bound(producers[name], values))
            name = _single_flow(path[-1]).name
            if len(path) > DEEPEST:
                return None
        start = values.get(name)
        if not isinstance(start, Flow) or not path:
            return None
        builder = _Builder(start.size)
        for call in reversed(path):
            builder.append(call, _flow(values, call.output_names[0]))
        return builder.chain()
    except (_Ineligible, Refused, ValueError, KeyError, IndexError, TypeError, MemoryError):
        return None


def _bound(call: Call, values: Mapping[str, Value]) -> Call:
    return call.with_inputs([values.get(name) if name else None for name in call.input_names])


def _flow(values: Mapping[str, Value], name: str) -> Flow:
    value = values.get(name)
    if not isinstance(value, Flow):
        raise _Ineligible
    return value


def _single_flow(call: Call) -> Flow:
    flows = call.flows()
    if len(flows) != 1 or sum(map(bool, call.output_names)) != 1:
        raise _Ineligible
    return flows[0]


class _Builder:
    """Collects layers from the input on; two activations in a row compose, or get an identity matrix between them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.weights: list[Array] = []
        self.activations: list[Activation] = []
        self.pending: Activation | None = None
        self.selected: Indices | None = None
        self.written = 0
        self.entries = 0

    def append(self, call: Call, result: Flow) -> None:
        """Take in one node whose output is ``result``."""
        found, rule = READERS.get((call.domain, call.op)), RULES.get((call.domain, call.op))
        source = _single_flow(call)
        if found is None or rule is None or set(call.attributes) - rule.attributes:
            raise _Ineligible
        if len(call.inputs) > rule.most_inputs or (result.size > WIDEST and self.weights):
            raise _Ineligible
        if max(source.size, result.size) > LARGEST_TENSOR:
            raise _Ineligible
        layer = found(call, source, result)
        if layer is None:
            if source.size != result.size:
                raise _Ineligible
        elif isinstance(layer, _Selection):
            self.selected = layer.indices if self.selected is None else self.selected[layer.indices]
        elif isinstance(layer, np.ndarray):
            if call.op == "Conv":
                self._affordable(layer.size)
            self._linear(layer)
        else:
            self._activation(layer)

    def _linear(self, weight: Array) -> None:
        self.entries += weight.size
        if self.entries > MOST_WEIGHTS:
            raise _Ineligible
        if self.selected is not None:
            # Entries move before the matrix meets them: its columns move instead, which rounds nothing.
            self._affordable(len(weight) * self._width())
            moved = np.zeros((len(weight), self._width()))
            moved[:, self.selected] = weight
            weight, self.selected = moved, None
        if self.weights:
            size = len(self.weights[-1])
            self.activations.append(self.pending or Slopes(np.ones(size), np.ones(size)))
        self.weights.append(np.ascontiguousarray(weight))
        self.pending = None

    def _width(self) -> int:
        """Entries before the selection that is waiting."""
        if self.pending is not None:
            return self.pending.size
        return len(self.weights[-1]) if self.weights else self.size

    def _activation(self, layer: Activation) -> None:
        if self.selected is not None:
            self._identity()
        if isinstance(layer, Slopes) and isinstance(self.pending, Slopes):
            self.pending = layer.after(self.pending)
            return
        if self.pending is not None or not self.weights:
            self._identity()
        self.pending = layer

    def _identity(self) -> None:
        """A matrix that changes nothing, for an activation that no linear layer follows or precedes."""
        size = self._width() if self.selected is None else len(self.selected)
        if size > WIDEST:
            raise _Ineligible
        self._affordable(size * size)
        self._linear(np.eye(size))

    def _affordable(self, entries: int) -> None:
        """Count a matrix that is not in the file, before it is made."""
        self.written += entries
        if self.written > MOST_WRITTEN:
            raise _Ineligible

    def chain(self) -> Chain:
        """The layers collected."""
        if self.pending is not None or self.selected is not None:
            self._identity()
        return Chain(tuple(self.weights), tuple(self.activations))


@dataclass(frozen=True)
class _Selection:
    """Output entry i is input entry ``indices[i]``; no input entry occurs twice."""

    indices: Indices


Layer = Array | Activation | _Selection | None
Reader = Callable[[Call, Flow, Flow], Layer]


def _same(call: Call, source: Flow, result: Flow) -> None:
    """Moves no entry relative to the others (row-major), or only shifts them all by constants."""
    if call.op in ("Add", "Sub", "Sum") and source.shape != result.shape:
        raise _Ineligible


def _subtraction(call: Call, source: Flow, result: Flow) -> Layer:
    _same(call, source, result)
    return None if isinstance(call.inputs[0], Flow) else _uniform(source, -1.0, -1.0)


def _gemm(call: Call, source: Flow, result: Flow) -> Array:
    weight = call.required_constant(1).float64()
    if len(source.shape) != 1 or call.integer("transA", 0) or call.real("alpha", 1.0) != 1.0 or weight.ndim != 2:
        raise _Ineligible
    return weight if call.integer("transB", 0) else weight.T


def _matmul(call: Call, source: Flow, result: Flow) -> Array:
    weight = call.required_constant(1).float64()
    if len(source.shape) != 1 or weight.ndim != 2 or not isinstance(call.inputs[0], Flow):
        raise _Ineligible
    return weight.T


def _conv(call: Call, source: Flow, result: Flow) -> Array:
    """A small convolution, written out: one block per group."""
    if source.size * result.size > LARGEST_MATRIX:
        raise _Ineligible
    kernel, groups = call.required_constant(1).float64(), call.integer("group", 1)
    window = windows(call, source.shape[1:], kernel.shape[2:])
    parts = np.split(kernel, groups, axis=0)
    matrix = np.zeros((groups, result.size // groups, groups, source.size // groups))
    for index, part in enumerate(parts):
        operator = Convolution(part, window.inputs, window.pads, window.strides, window.dilations, 1, window.outputs)
        matrix[index, :, index] = operator._matrix(part)
    return matrix.reshape(result.size, source.size)


def _gather(call: Call, source: Flow, result: Flow) -> Layer:
    axis = call.axis("axis", 0, len(source.shape) + 1)
    indices = np.take(np.arange(source.size).reshape(source.shape), call.required_constant(1).array, axis=axis - 1)
    return _selection(indices.reshape(-1))


def _transpose(call: Call, source: Flow, result: Flow) -> Layer:
    perm = call.integers("perm", tuple(reversed(range(len(source.shape) + 1))))
    entries = np.arange(source.size).reshape(source.shape)
    return _selection(entries.transpose([axis - 1 for axis in perm[1:]]).reshape(-1))


def _selection(indices: Indices) -> _Selection:
    if len(np.unique(indices)) < len(indices):
        raise _Ineligible
    return _Selection(indices)


def _uniform(flow: Flow, low: float, high: float) -> Slopes:
    return Slopes(np.full(flow.size, low), np.full(flow.size, high))


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


def _smooth(call: Call, source: Flow, result: Flow) -> Slopes:
    return _uniform(source, *INTERVALS[call.op])


def _gelu(call: Call, source: Flow, result: Flow) -> Slopes:
    return _uniform(source, *GELU_INTERVALS[call.string("approximate", "none")])


def _elu(call: Call, source: Flow, result: Flow) -> Slopes:
    alpha = call.real("alpha", 1.0)
    if alpha < 0.0:
        raise _Ineligible
    return _uniform(source, 0.0, max(1.0, alpha))


def _leaky(call: Call, source: Flow, result: Flow) -> Slopes:
    alpha = call.real("alpha", 0.009999999776482582)
    return _uniform(source, min(alpha, 1.0), max(alpha, 1.0))


def _entries(constant: Constant, source: Flow, result: Flow) -> Array:
    """A constant operand, entry by entry of one sample; the operator may not replicate the data."""
    if result.shape != source.shape:
        raise _Ineligible
    return np.array(spread(constant, source.shape), dtype=np.float64).reshape(-1)


def _prelu(call: Call, source: Flow, result: Flow) -> Slopes:
    slope = _entries(call.required_constant(1), source, result)
    return Slopes(np.minimum(slope, 1.0), np.maximum(slope, 1.0))


def _scaling(call: Call, source: Flow, result: Flow) -> Slopes:
    constant = next(value for value in map(call.optional, range(2)) if isinstance(value, Constant))
    factor = _entries(constant, source, result)
    if call.op == "Mul":
        return Slopes(factor, factor)
    if not isinstance(call.inputs[0], Flow) or np.any(factor == 0.0):
        raise _Ineligible
    inverse = 1.0 / factor
    return Slopes(np.nextafter(inverse, -math.inf), np.nextafter(inverse, math.inf))


def _attributes(call: Call) -> dict[str, int | float]:
    specification = OPERATORS[call.op]
    given: dict[str, int | float] = {
        a.name: call.integer(a.name) if a.kind == "int" else call.real(a.name)
        for a in specification.attributes
        if a.name in call.attributes
    }
    return specification.complete(given)


def _group_sort(call: Call, source: Flow, result: Flow) -> Layer:
    attributes = _attributes(call)
    axis = call.resolve_axis(int(attributes["axis"]), len(source.shape) + 1) - 1
    channels = source.shape[axis]
    size = int(attributes["group_size"]) or channels
    if axis < 0 or channels % size:
        raise _Ineligible
    if size == 1:
        return None
    indices = np.moveaxis(np.arange(source.size).reshape(source.shape), axis, -1)
    split = (channels // size, size) if attributes["layout"] == 0 else (size, channels // size)
    groups = indices.reshape(*indices.shape[:-1], *split)
    if attributes["layout"] != 0:
        groups = np.swapaxes(groups, -1, -2)
    return Sorting(np.ascontiguousarray(groups.reshape(-1, size)))


def _linear_spline(call: Call, source: Flow, result: Flow) -> Slopes:
    """The interval of each channel's stored segments; end slopes continue outside the knots."""
    attributes = _attributes(call)
    axis = call.resolve_axis(int(attributes["axis"]), len(source.shape) + 1) - 1
    coefficients = call.required_constant(1).float64()
    if axis < 0 or coefficients.ndim != 2 or coefficients.shape[1] < 2:
        raise _Ineligible
    if coefficients.shape[0] not in (1, source.shape[axis]):
        raise _Ineligible
    steps = np.diff(coefficients, axis=1)
    spacing = float(attributes["knot_spacing"])
    # One rounding in the difference and one in the quotient, each monotone: one step outward after each.
    low = np.nextafter(np.nextafter(steps.min(axis=1), -math.inf) / spacing, -math.inf)
    high = np.nextafter(np.nextafter(steps.max(axis=1), math.inf) / spacing, math.inf)
    shape = [1] * len(source.shape)
    shape[axis] = -1
    low, high = (np.broadcast_to(end.reshape(shape), source.shape).reshape(-1) for end in (low, high))
    return Slopes(np.array(low), np.array(high))


READERS: Mapping[tuple[str, str], Reader] = {
    **{("", op): _same for op in ("Add", "Sum", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast")},
    **{("", op): _smooth for op in INTERVALS},
    ("", "Sub"): _subtraction,
    ("", "Dropout"): _same,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Conv"): _conv,
    ("", "Gather"): _gather,
    ("", "Transpose"): _transpose,
    ("", "Gelu"): _gelu,
    ("", "Elu"): _elu,
    ("", "LeakyRelu"): _leaky,
    ("", "PRelu"): _prelu,
    ("", "Mul"): _scaling,
    ("", "Div"): _scaling,
    (DOMAIN, "GroupSort"): _group_sort,
    (DOMAIN, "LinearSpline"): _linear_spline,
}
