"""Sub-graphs whose meaning as a whole is better than the product of their parts.

A motif looks back from a node and, when the structure matches exactly, returns the tensor that the sub-graph starts
from and a step for the whole. It only adds a second, tighter proof: the node-by-node bound stays valid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.norms import diagonal
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.operators import spline_coefficients, steepest
from lipdeploy.verify.step import Step

Values = Callable[[str], object]
Motif = Callable[[Call, Values], "tuple[Flow, Step] | None"]


def recognise(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """The first motif that ends in this node."""
    for motif in MOTIFS.get((call.domain, call.op), ()):
        found = motif(call, values)
        if found is not None:
            return found
    return None


def _operand(call: Call, values: Values) -> tuple[str, Array] | None:
    """(activation's name, |constant|) of a Mul by a per-channel constant."""
    if call.op != "Mul" or len(call.input_names) != 2:
        return None
    for data, factor in (call.input_names, call.input_names[::-1]):
        flow, constant = values(data), values(factor)
        if isinstance(flow, Flow) and isinstance(constant, Constant):
            broadcast = len(constant.array.shape) <= len(flow.shape) + 1
            if broadcast and np.prod(constant.array.shape) <= flow.size:
                return data, np.abs(constant.float64())
    return None


def scaled_spline(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """Mul(1/α) ∘ LinearSpline ∘ Mul(α) with per-channel α: max_c |β_c|·slope_c·|α_c|, channel by channel."""
    outer = _operand(call, values)
    spline = call.producer(outer[0]) if outer else None
    if outer is None or spline is None or (spline.domain, spline.op) != (DOMAIN, "LinearSpline"):
        return None
    inner_call = call.producer(spline.input_names[0])
    inner = _operand(inner_call, values) if inner_call else None
    source = values(inner[0]) if inner else None
    middle = values(spline.input_names[0])
    stored = values(spline.input_names[1])
    if inner is None or not isinstance(source, Flow) or not isinstance(middle, Flow) or source.shape != middle.shape:
        return None
    if not isinstance(stored, Constant):
        return None
    axis = spline.resolve_axis(spline.integer("axis", 1), len(source.shape) + 1)
    coefficients = spline_coefficients(spline.with_inputs((middle, stored)), source.shape[axis - 1])
    spacing = spline.real("knot_spacing")
    slopes = [Bound(steepest(row.reshape(1, -1), spacing)) for row in coefficients]
    before, after = (_per_channel(factor, source.shape, axis) for factor in (inner[1], outer[1]))
    gains = [
        Bound(float(before[c])) * slopes[c % len(slopes)] * Bound(float(after[c])) for c in range(source.shape[axis - 1])
    ]
    return source, Step(source.shape, (diagonal(max(gains)),), "scaled spline, channel by channel")


def _per_channel(factor: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Largest factor that each channel meets."""
    full = spread(Constant("", factor), shape)
    return np.moveaxis(full, axis - 1, 0).reshape(shape[axis - 1], -1).max(axis=1)


def crelu(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """Concat(Relu(x), Relu(−x)): the two parts have disjoint support changes, so 1 in ℓ1, ℓ2 and ℓ∞."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    if any(part is None or part.op != "Relu" or part.domain for part in parts):
        return None
    roots = [part.input_names[0] for part in parts if part is not None]
    for plain, negated in (roots, roots[::-1]):
        negation = call.producer(negated)
        if negation is not None and negation.op == "Neg" and not negation.domain and negation.input_names[0] == plain:
            source = values(plain)
            output = values(call.output_names[0])
            if isinstance(source, Flow) and isinstance(output, Flow):
                return source, Step(output.shape, (diagonal(ONE),), "CReLU")
    return None


MOTIFS: dict[tuple[str, str], tuple[Motif, ...]] = {
    ("", "Mul"): (scaled_spline,),
    ("", "Concat"): (crelu,),
}
