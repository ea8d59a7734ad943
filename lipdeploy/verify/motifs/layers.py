"""Linear layers as networks write them: one Gemm, MatMul, Conv or ConvTranspose with its shifts and channel factors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lipdeploy.verify.bound import ZERO, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.matching import Values, judged_inputs
from lipdeploy.verify.operator_norm import Convolution, spectral_norm_up
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, frobenius
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, mul_up, sqrt_up
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.windows import Windows, windows

#: More than all entries of a kernel can lose to underflow.
UNDERFLOW = Bound(2.0**-900)
SMALLEST = 2.0**-900  # products below it may have lost more than a rounding, which a later factor would blow up
LINEAR = ("Gemm", "MatMul", "Conv", "ConvTranspose")


@dataclass(frozen=True)
class Geometry:
    """How a convolution's windows lie; ``None`` for dense layers takes its place."""

    window: Windows
    groups: int

    def operator(self, kernel: Array) -> Convolution:
        """The convolution with this kernel, (outputs, inputs / groups, *taps)."""
        w = self.window
        return Convolution(kernel, w.inputs, w.pads, w.strides, w.dilations, self.groups, w.outputs)


@dataclass(frozen=True)
class Factor:
    """One number per channel, or one for all, each rounded at most ``roundings`` times."""

    numbers: Array
    roundings: int = 0


@dataclass(frozen=True)
class Layer:
    """x ↦ W·x + b from the tensor ``source``; b plays no part in distances.

    ``kernel`` is (outputs, inputs, *taps); if ``adjoint``, W is the transpose of what it says: (inputs, outputs, …).
    Every entry was rounded at most ``roundings`` times.
    """

    source: str
    kernel: Array
    geometry: Geometry | None
    adjoint: bool
    roundings: int = 0

    def scaled(self, factor: Factor, *, outputs: bool) -> Layer:
        """Output (or input) channel i times the factor's i-th number; one number stands for all."""
        axis = 0 if outputs != self.adjoint else 1
        shape = [1] * self.kernel.ndim
        shape[axis] = -1
        kernel = products(self.kernel, factor.numbers.reshape(shape))
        return replace(self, kernel=kernel, roundings=self.roundings + factor.roundings + 1)

    def norm_up(self) -> Bound:
        """‖W‖₂ of what was stored, before any rounding."""
        return operator_norm_up(self.kernel, self.geometry) + self.slack()

    def slack(self) -> Bound:
        """How far the roundings can have moved W in ℓ2."""
        return loose_up(self.kernel, self.roundings)


def products(first: Array, second: Array) -> Array:
    """first·second with one relative rounding each; NaN, which nothing is proven from, where that does not hold."""
    result = first * second
    lost = (np.abs(result) < SMALLEST) & (first != 0.0) & (second != 0.0)
    return np.where(lost, np.nan, result)


def operator_norm_up(kernel: Array, geometry: Geometry | None) -> Bound:
    """The proven norm of a dense matrix or a convolution."""
    return spectral_norm_up(kernel) if geometry is None else geometry.operator(kernel).spectral_norm_up()


def rough_norm_up(kernel: Array) -> Bound:
    """√(largest row sum · largest column sum) of |W| for a dense matrix or a convolution without groups' sharing."""
    if kernel.ndim == 2:
        rows, columns = (float(absolute_sums(kernel, axis).max(initial=0.0)) for axis in (1, 0))
        return min(frobenius(kernel), Bound(sqrt_up(mul_up(rows, columns))))
    rows = float(absolute_sums(kernel.reshape(len(kernel), -1), 1).max(initial=0.0))
    columns = float(absolute_sums(np.moveaxis(kernel, 1, 0).reshape(kernel.shape[1], -1), 1).max(initial=0.0))
    return Bound(sqrt_up(mul_up(rows, columns)))


def loose_up(kernel: Array, roundings: int) -> Bound:
    """Norm of what ``roundings`` roundings of every entry can have changed."""
    if not roundings:
        return ZERO
    return rough_norm_up(kernel) * Bound(mul_up(1.01 * UNIT_ROUNDOFF, float(roundings))) + UNDERFLOW


def read_layer(call: Call, name: str, values: Values, stop: str = "") -> Layer | None:
    """The layer that ends in ``name`` and starts at ``stop``, or at the first tensor that is no part of one."""
    node, after = behind(call, name, values)[1:]
    linear = None if node is None else _linear(node, values)
    if linear is None:
        return None
    source, _, before = behind(call, linear.source, values, stop)
    layer = replace(linear, source=source)
    for factor in after:
        layer = layer.scaled(factor, outputs=True)
    for factor in before:
        layer = layer.scaled(factor, outputs=False)
    return layer if np.all(np.isfinite(layer.kernel)) else None


def behind(call: Call, name: str, values: Values, stop: str = "") -> tuple[str, Call | None, list[Factor]]:
    """The tensor behind shifts and channel factors (at the latest ``stop``), its producer, and the factors."""
    found: list[Factor] = []
    while isinstance(values(name), Flow):
        node = call.producer(name)
        step = None if node is None or node.domain or name == stop else _shift_or_factor(node, values)
        if step is None:
            return name, node, found
        name, factor = step
        found += [] if factor is None else [factor]
    return name, None, found


def _shift_or_factor(node: Call, values: Values) -> tuple[str, Factor | None] | None:
    """(data, factor) of a node that adds or multiplies by a constant; ``None`` when it is another one."""
    result, data = values(node.output_names[0]), [n for n in node.input_names if isinstance(values(n), Flow)]
    if node.op not in ("Add", "Sub", "Mul", "Div", "Neg") or len(data) != 1 or not isinstance(result, Flow):
        return None
    source, first = values(data[0]), node.input_names[0] == data[0]
    if not isinstance(source, Flow) or source.shape != result.shape:
        return None
    if node.op == "Neg" or (node.op == "Sub" and not first):
        return data[0], Factor(np.array([-1.0]))
    if node.op in ("Add", "Sub"):
        return data[0], None
    constant = next((value for value in map(values, node.input_names) if isinstance(value, Constant)), None)
    numbers = None if constant is None else _channel_factors(constant, result.shape)
    if numbers is None or (node.op == "Div" and (not first or np.any(numbers == 0.0))):
        return None
    return data[0], Factor(numbers) if node.op == "Mul" else Factor(_inverse(numbers), 1)


def _inverse(numbers: Array) -> Array:
    """1/numbers, rounded once each; NaN where it may be subnormal."""
    return np.where(np.abs(numbers) > 1.0 / SMALLEST, np.nan, 1.0 / numbers)


def _channel_factors(constant: Constant, shape: tuple[int, ...]) -> Array | None:
    """One factor per channel (axis 1 of the batch); ``None`` when positions differ."""
    full = np.array(spread(constant, shape)).reshape(shape[0], -1)
    return np.ascontiguousarray(full[:, 0]) if np.array_equal(full, np.broadcast_to(full[:, :1], full.shape)) else None


def _linear(node: Call, values: Values) -> Layer | None:
    call = judged_inputs(node, node.op, values) if node.op in LINEAR else None
    if call is None or not isinstance(values(node.output_names[0]), Flow) or not isinstance(call.inputs[0], Flow):
        return None
    source, stored = call.flow(0), call.inputs[1]
    if not isinstance(stored, Constant):
        return None
    weight = stored.float64()
    if call.op in ("Gemm", "MatMul"):
        if len(source.shape) != 1 or weight.ndim != 2 or call.real("alpha", 1.0) != 1.0:
            return None
        transposed = call.op == "Gemm" and call.integer("transB", 0) == 1
        return Layer(source.name, weight if transposed else weight.T, None, adjoint=False)
    return _convolution(call, source, weight) if call.op == "Conv" else _transposed(call, source, weight, values)


def _convolution(call: Call, source: Flow, kernel: Array) -> Layer:
    geometry = Geometry(windows(call, source.shape[1:], kernel.shape[2:]), call.integer("group", 1))
    return Layer(source.name, kernel, geometry, adjoint=False)


def _transposed(call: Call, source: Flow, kernel: Array, values: Values) -> Layer | None:
    """The adjoint of the convolution from its output's image to its input's."""
    result = values(call.output_names[0])
    axes = len(source.shape) - 1
    if not isinstance(result, Flow) or call.string("auto_pad", "NOTSET") != "NOTSET":
        return None
    pads = call.integers("pads", (0,) * 2 * axes)
    window = Windows(
        result.shape[1:],
        source.shape[1:],
        tuple((pads[i], pads[i + axes]) for i in range(axes)),
        call.integers("strides", (1,) * axes),
        call.integers("dilations", (1,) * axes),
    )
    return Layer(source.name, kernel, Geometry(window, call.integer("group", 1)), adjoint=True)


def as_adjoint(layer: Layer) -> Layer:
    """The same map with its kernel written the other way round, where that is possible."""
    if layer.adjoint or layer.geometry is None:
        return layer if layer.adjoint else replace(layer, kernel=layer.kernel.T, adjoint=True)
    window, taps = layer.geometry.window, layer.kernel.shape[2:]
    if set(window.strides) != {1} or layer.geometry.groups != 1:
        return layer
    flipped = np.swapaxes(layer.kernel, 0, 1)[(slice(None), slice(None), *(slice(None, None, -1) for _ in taps))]
    pads = tuple(
        ((t - 1) * d - begin, (t - 1) * d - end)
        for t, d, (begin, end) in zip(taps, window.dilations, window.pads, strict=True)
    )
    turned = Windows(window.outputs, window.inputs, pads, window.strides, window.dilations)
    return replace(layer, kernel=np.ascontiguousarray(flipped), geometry=Geometry(turned, 1), adjoint=True)
