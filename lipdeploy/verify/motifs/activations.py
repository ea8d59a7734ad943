"""Activations written with several nodes."""

from __future__ import annotations

import math

import numpy as np

from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import diagonal
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.operators import spline_coefficients, steepest
from lipdeploy.verify.step import Step

SILU = Bound(1.0998400)  # largest slope of x·sigmoid(x), rounded up


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
            return source, Step(source.shape, (diagonal(SILU),), "largest slope", rounding=None)
    return None
