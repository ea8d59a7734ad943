"""Sorting and concatenated rectifiers written with standard operators."""

from __future__ import annotations

from lipdeploy.verify.bound import ONE
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import diagonal
from lipdeploy.verify.rules.pooling import reduced
from lipdeploy.verify.step import Step


def crelu(call: Call, values: Values) -> Found | None:
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


def sorted_pairs(call: Call, values: Values) -> Found | None:
    """Concat(ReduceMin(z), ReduceMax(z)) along an axis of size 2 sorts pairs: 1 in every norm."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    low, high = (
        next((bound for part in parts if (bound := judged_inputs(part, op, values))), None)
        for op in ("ReduceMin", "ReduceMax")
    )
    output = output_of(call, values)
    if low is None or high is None or output is None or low.input_names[0] != high.input_names[0]:
        return None
    source = low.flow(0)
    axis = call.axis("axis", None, len(source.shape) + 1)
    kept = tuple(1 if i + 1 == axis else n for i, n in enumerate(source.shape))
    if axis == 0 or source.shape[axis - 1] != 2 or any(reduced(part) != (kept, 2) for part in (low, high)):
        return None
    return source, Step(output.shape, (diagonal(ONE),), "sorting pairs")


def split_pairs(call: Call, values: Values) -> Found | None:
    """Concat of Max(a, b) and Min(a, b) for the two halves a, b of one tensor sorts pairs: 1 in every norm."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    high, low = (
        next((bound for part in parts if (bound := judged_inputs(part, op, values))), None) for op in ("Max", "Min")
    )
    output = output_of(call, values)
    if high is None or low is None or output is None or len(high.input_names) != 2:
        return None
    halves = [call.producer(name) for name in high.input_names]
    same = sorted(high.input_names) == sorted(low.input_names) and high.input_names[0] != high.input_names[1]
    split = judged_inputs(halves[0], "Split", values)
    if not same or split is None or halves[0] != halves[1] or len(split.output_names) != 2:
        return None
    first, second = (values(name) for name in split.output_names)
    if not isinstance(first, Flow) or not isinstance(second, Flow) or first.shape != second.shape:
        return None
    return split.flow(0), Step(output.shape, (diagonal(ONE),), "sorting pairs")
