"""Sub-graphs whose meaning as a whole is better than the product of their parts.

A motif looks back from a node and, when the structure matches exactly, returns the tensor that the sub-graph starts
from and a step for the whole. It only adds a second, tighter proof: the node-by-node bound stays valid.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Constant, Flow, Unproven, Value
from lipdeploy.verify.norms import diagonal, per_norm
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import fraction_up
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.operators import spline_coefficients, steepest
from lipdeploy.verify.rules.pooling import reduced
from lipdeploy.verify.step import Step

SILU = Bound(1.0998400)  # largest slope of x·sigmoid(x), rounded up
Values = Callable[[str], "Value | None"]
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
    output = _output(call, values)
    if not isinstance(stored, Constant) or output is None or output.shape != source.shape:
        return None
    axis = spline.resolve_axis(spline.integer("axis", 1), len(source.shape) + 1)
    coefficients = spline_coefficients(spline.with_inputs((middle, stored)), source.shape[axis - 1])
    spacing = spline.real("knot_spacing")
    slopes = [Bound(steepest(row.reshape(1, -1), spacing)) for row in coefficients]
    before, after = (_per_channel(factor, source.shape, axis) for factor in (inner[1], outer[1]))
    gains = [
        Bound(float(before[c])) * slopes[c % len(slopes)] * Bound(float(after[c]))
        for c in range(source.shape[axis - 1])
    ]
    return source, Step(source.shape, (diagonal(max(gains)),), "scaled spline, channel by channel", rounding=None)


def _per_channel(factor: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Largest factor that each channel meets."""
    full = spread(Constant("", factor), shape)
    return np.asarray(np.moveaxis(full, axis - 1, 0).reshape(shape[axis - 1], -1).max(axis=1))


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


def _bound(call: Call | None, op: str, values: Values) -> Call | None:
    """The producing node with its inputs' values, when it is the standard operator ``op``."""
    if call is None or call.domain or call.op != op:
        return None
    bound = [values(name) if name else None for name in call.input_names]
    if any(isinstance(value, Unproven) for value in bound):
        return None
    return call.with_inputs(bound)


def _output(call: Call, values: Values) -> Flow | None:
    value = values(call.output_names[0])
    return value if isinstance(value, Flow) else None


def sorted_pairs(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """Concat(ReduceMin(z), ReduceMax(z)) along an axis of size 2 sorts pairs: 1 in every norm."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    low, high = (
        next((bound for part in parts if (bound := _bound(part, op, values))), None)
        for op in ("ReduceMin", "ReduceMax")
    )
    output = _output(call, values)
    if low is None or high is None or output is None or low.input_names[0] != high.input_names[0]:
        return None
    source = low.flow(0)
    axis = call.axis("axis", None, len(source.shape) + 1)
    kept = tuple(1 if i + 1 == axis else n for i, n in enumerate(source.shape))
    if axis == 0 or source.shape[axis - 1] != 2 or any(reduced(part) != (kept, 2) for part in (low, high)):
        return None
    return source, Step(output.shape, (diagonal(ONE),), "sorting pairs")


def split_pairs(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """Concat of Max(a, b) and Min(a, b) for the two halves a, b of one tensor sorts pairs: 1 in every norm."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    high, low = (next((bound for part in parts if (bound := _bound(part, op, values))), None) for op in ("Max", "Min"))
    output = _output(call, values)
    if high is None or low is None or output is None or len(high.input_names) != 2:
        return None
    halves = [call.producer(name) for name in high.input_names]
    same = sorted(high.input_names) == sorted(low.input_names) and high.input_names[0] != high.input_names[1]
    split = _bound(halves[0], "Split", values)
    if not same or split is None or halves[0] != halves[1] or len(split.output_names) != 2:
        return None
    first, second = (values(name) for name in split.output_names)
    if not isinstance(first, Flow) or not isinstance(second, Flow) or first.shape != second.shape:
        return None
    return split.flow(0), Step(output.shape, (diagonal(ONE),), "sorting pairs")


def silu(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """x·sigmoid(x): slopes in [−0.099840, 1.099840]."""
    if len(call.input_names) != 2:
        return None
    for data, gate in (call.input_names, call.input_names[::-1]):
        sigmoid = _bound(call.producer(gate), "Sigmoid", values)
        source = values(data)
        judged = isinstance(values(gate), Flow)
        if sigmoid is not None and judged and sigmoid.input_names[0] == data and isinstance(source, Flow):
            return source, Step(source.shape, (diagonal(SILU),), "largest slope", rounding=None)
    return None


def centering(call: Call, values: Values) -> tuple[Flow, Step] | None:
    """x − mean(x) is an orthogonal projection: 1 in ℓ2, 2(1 − 1/n) in ℓ1 and ℓ∞."""
    if len(call.input_names) != 2:
        return None
    mean = _bound(call.producer(call.input_names[1]), "ReduceMean", values)
    source, output = values(call.input_names[0]), _output(call, values)
    if mean is None or output is None or not isinstance(source, Flow) or mean.input_names[0] != call.input_names[0]:
        return None
    shape, count = reduced(mean)
    if len(shape) != len(source.shape) or output.shape != source.shape:
        return None
    outer = Bound(fraction_up(2 - Fraction(2, count))) if count > 1 else ZERO
    return source, Step(source.shape, (per_norm(outer, ONE, outer),), "centering", rounding=None)


MOTIFS: dict[tuple[str, str], tuple[Motif, ...]] = {
    ("", "Mul"): (scaled_spline, silu),
    ("", "Concat"): (crelu, sorted_pairs, split_pairs),
    ("", "Sub"): (centering,),
}
