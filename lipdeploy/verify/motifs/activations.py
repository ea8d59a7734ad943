"""Activations written with several nodes."""

from __future__ import annotations

import math

import numpy as np

from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import Norm, constant_norm, diagonal
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.elementwise import EXPONENTIAL, FEW, GATED, written_out
from lipdeploy.verify.rules.operators import spline_coefficients, steepest
from lipdeploy.verify.step import EXACT, Step

SILU = Bound(1.0998400)  # largest slope of x·sigmoid(x), rounded up
MISH = Bound(1.0884990)  # of x·tanh(softplus(x))
GELU = Bound(1.1289050)  # of x·(1 + erf(x/c))/2, whatever c > 0 is


def scaled_spline(call: Call, values: Values) -> Found | None:
    """Mul(1/α) ∘ LinearSpline ∘ Mul(α) with per-channel α: max_c |β_c|·slope_c·|α_c|, channel by channel."""
    outer = scaled_operand(call, values)
    spline = call.producer(outer[0]) if outer else None
    if outer is None or spline is None or (spline.domain, spline.op) != (DOMAIN, "LinearSpline"):
        return None
    inner_call = call.producer(spline.input_names[0])
    inner = scaled_operand(inner_call, values) if inner_call else None
    source = values(inner[0]) if inner else None
    middle = values(spline.input_names[0])
    stored = values(spline.input_names[1])
    if inner is None or not isinstance(source, Flow) or not isinstance(middle, Flow) or source.shape != middle.shape:
        return None
    output = output_of(call, values)
    if not isinstance(stored, Constant) or output is None or output.shape != source.shape:
        return None
    axis = spline.resolve_axis(spline.integer("axis", 1), len(source.shape) + 1)
    coefficients = spline_coefficients(spline.with_inputs((middle, stored)), source.shape[axis - 1])
    spacing = spline.real("knot_spacing")
    slopes = [Bound(steepest(row.reshape(1, -1), spacing)) for row in coefficients]
    before, after = (per_channel(factor, source.shape, axis) for factor in (inner[1], outer[1]))
    gains = [
        Bound(float(before[c])) * slopes[c % len(slopes)] * Bound(float(after[c]))
        for c in range(source.shape[axis - 1])
    ]
    return source, Step(source.shape, (diagonal(max(gains)),), "scaled spline, channel by channel", rounding=None)


def scaled_operand(call: Call, values: Values) -> tuple[str, Array] | None:
    """(activation's name, |constant|) of a Mul by a per-channel constant."""
    if call.op != "Mul" or len(call.input_names) != 2:
        return None
    for data, factor in (call.input_names, call.input_names[::-1]):
        flow, constant = values(data), values(factor)
        if isinstance(flow, Flow) and isinstance(constant, Constant):
            broadcast = len(constant.array.shape) <= len(flow.shape) + 1
            if broadcast and math.prod(constant.array.shape) <= flow.size:
                return data, np.abs(constant.float64())
    return None


def per_channel(factor: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Largest factor that each channel meets."""
    full = spread(Constant("", factor), shape)
    return np.asarray(np.moveaxis(full, axis - 1, 0).reshape(shape[axis - 1], -1).max(axis=1))


def silu(call: Call, values: Values) -> Found | None:
    """x·sigmoid(x): slopes in [−0.099840, 1.099840]."""
    if len(call.input_names) != 2:
        return None
    for data, gate in (call.input_names, call.input_names[::-1]):
        sigmoid = judged_inputs(call.producer(gate), "Sigmoid", values)
        source = values(data)
        judged = isinstance(values(gate), Flow)
        if sigmoid is not None and judged and sigmoid.input_names[0] == data and isinstance(source, Flow):
            offset = {norm: constant_norm(norm, ONE, source.size) for norm in Norm}
            rounding = written_out(EXPONENTIAL, FEW, offset)
            return source, Step(source.shape, (diagonal(SILU),), "largest slope", rounding=rounding)
    return None


def mish(call: Call, values: Values) -> Found | None:
    """x·tanh(softplus(x)): slopes in [−0.112527, 1.088499]."""
    for data, gate in _both_orders(call):
        tanh = judged_inputs(call.producer(gate), "Tanh", values)
        softplus = judged_inputs(call.producer(tanh.input_names[0]), "Softplus", values) if tanh else None
        if softplus is not None and softplus.input_names[0] == data and _proven(gate, tanh, values):
            return _elementwise(data, values, MISH, GATED)
    return None


def gelu(call: Call, values: Values) -> Found | None:
    """x·(1 + erf(x/c)) halved, c > 0: |slopes| ≤ 1.128905; the slope's largest value does not depend on c.

    Ends in the product, before or after the factor ½ (a power of two, so that halves and doubles are exact).
    """
    for data, gate in _both_orders(call):
        total = judged_inputs(call.producer(gate), "Add", values)
        erf = _with_constant(call, total, 1.0, values)
        inner = judged_inputs(call.producer(erf), "Erf", values) if erf else None
        scaled = call.producer(inner.input_names[0]) if inner else None
        if scaled is None or not isinstance(values(scaled.output_names[0]), Flow):
            continue
        divided = judged_inputs(scaled, scaled.op, values)
        if divided is None or divided.op not in ("Mul", "Div") or data not in divided.input_names:
            continue
        factor = next((value for value in divided.inputs if isinstance(value, Constant)), None)
        first = divided.input_names[0] == data
        if factor is None or factor.array.size != 1 or factor.array.ndim > 1 or (divided.op == "Div" and not first):
            continue
        if float(factor.float64().reshape(-1)[0]) > 0.0:
            return _elementwise(data, values, GELU * Bound(2.0), 32)
    return None


def softsign(call: Call, values: Values) -> Found | None:
    """x/(1 + |x|): slope 1/(1 + |x|)² ≤ 1."""
    if len(call.input_names) != 2 or call.attributes:
        return None
    data, below = call.input_names
    total = judged_inputs(call.producer(below), "Add", values)
    size = _with_constant(call, total, 1.0, values)
    absolute = judged_inputs(call.producer(size), "Abs", values) if size else None
    if absolute is None or absolute.input_names[0] != data or not isinstance(values(below), Flow):
        return None
    return _elementwise(data, values, ONE, 3)


def log_sigmoid(call: Call, values: Values) -> Found | None:
    """log(sigmoid(x)) = −softplus(−x): slopes in [0, 1]; −log 2 at 0."""
    sigmoid = judged_inputs(call.producer(call.input_names[0]), "Sigmoid", values)
    if sigmoid is None or call.attributes or not isinstance(values(call.input_names[0]), Flow):
        return None
    source = values(sigmoid.input_names[0])
    if not isinstance(source, Flow):
        return None
    at_zero = {norm: constant_norm(norm, Bound(0.6931471805599455), source.size) for norm in Norm}
    return source, Step(source.shape, (diagonal(ONE),), "largest slope", at_zero=at_zero, rounding=None)


def rectifier(call: Call, values: Values) -> Found | None:
    """Where(z ≤ 0, 0, z) and its three mirror images are max(z, 0) or min(z, 0), computed without rounding."""
    if len(call.input_names) != 3 or call.attributes:
        return None
    condition, first, second = call.input_names
    compared = call.producer(condition)
    if compared is None or compared.domain or compared.op not in COMPARISONS or compared.attributes:
        return None
    if len(compared.input_names) != 2 or not _is_zero(values(compared.input_names[1])):
        return None
    data = compared.input_names[0]
    other = {first: second, second: first}.get(data)
    source = values(data)
    if other is None or first == second or not isinstance(source, Flow) or not _is_zero(values(other)):
        return None
    return source, Step(source.shape, (diagonal(ONE),), "rectifier", rounding=EXACT)


COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


def _is_zero(value: object) -> bool:
    return isinstance(value, Constant) and value.array.size == 1 and value.array.ndim <= 1 and not value.array.any()


def _both_orders(call: Call) -> tuple[tuple[str, str], ...]:
    if len(call.input_names) != 2 or call.attributes:
        return ()
    first, second = call.input_names
    return (first, second), (second, first)


def _proven(gate: str, inner: Call | None, values: Values) -> bool:
    return inner is not None and all(isinstance(values(name), Flow) for name in (gate, inner.input_names[0]))


def _with_constant(call: Call, total: Call | None, number: float, values: Values) -> str | None:
    """The data operand of a proven sum of data and one number."""
    if total is None or len(total.inputs) != 2 or not isinstance(values(total.output_names[0]), Flow):
        return None
    constant = next((value for value in total.inputs if isinstance(value, Constant)), None)
    data = next((value for value in total.inputs if isinstance(value, Flow)), None)
    if constant is None or data is None or constant.array.size != 1 or constant.array.ndim > 1:
        return None
    return data.name if float(constant.float64().reshape(-1)[0]) == number else None


def _elementwise(data: str, values: Values, slope: Bound, terms: int) -> Found | None:
    """x·g(x) of one tensor, with a gate whose float64 form errs by less than γ_terms (Lemma F6)."""
    source = values(data)
    if not isinstance(source, Flow):
        return None
    return source, Step(source.shape, (diagonal(slope),), "largest slope", rounding=written_out(terms, ONE, {}))
