"""Whether an output can change its sign: between which numbers every tensor stays, whatever the input is.

Two classes meet where a score changes sign. The output of a sigmoid never does: read as a score, it would put every
input into class 1, with a radius. So does a class' column of a softmax, a mean of sigmoids, a sum of positive features.
Ranges are found operator by operator; an operator without a rule here gives any number. They decide what counts as a
score, and no bound rests on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

from lipdeploy.verify.graph import Call, Constant, Value
from lipdeploy.verify.operator_norm.sums import Array

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
LARGEST_WEIGHT = 2**20  # above it only the signs of a weight are looked at

#: The range, whatever the input's is.
FIXED: Mapping[str, Range] = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
    "Sqrt": (0.0, math.inf),
    "ReduceL1": (0.0, math.inf),
    "ReduceL2": (0.0, math.inf),
    "ReduceSumSquare": (0.0, math.inf),
    "LpPool": (0.0, math.inf),
    "GlobalLpPool": (0.0, math.inf),
}
KEEPS_SIGN = frozenset(("Asinh", "Atan", "Celu", "Elu", "Erf", "Gelu", "HardSwish", "Mish", "Selu", "Softsign", "Tanh"))
IDENTITY_ABOVE_ZERO = frozenset(("LeakyRelu", "PRelu"))  # below it their slope may be negative
#: What comes out was among what went in …
PICKS = frozenset(
    ("DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "GroupSort", "Identity", "MaxPool", "ReduceMax")
)
LAYOUT = frozenset(("ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose"))
#: … or lies between it.
MOVES = PICKS | LAYOUT | {"Cast", "Dropout", "GlobalAveragePool", "ReduceMean", "Unsqueeze"}


def one_sided_by(output: str, calls: Sequence[Call], values: Mapping[str, Value]) -> str:
    """The operator from which ``output`` is never below 0, or never above; empty where it can change its sign."""
    ranges: dict[str, Range] = {}
    origins: dict[str, str] = {}
    for call in calls:
        given = [_known(name, ranges, values) for name in call.input_names]
        found = ANY if call.domain not in ("", "lipdeploy") else _range(call, given, values)
        before = [origins[name] for name in call.input_names if name in origins]
        for name in call.output_names:
            ranges[name] = found
            origins[name] = call.op if call.op in SOURCES or not before else before[0]
    low, high = ranges.get(output, ANY)
    return origins.get(output, "") if low >= 0.0 or high <= 0.0 else ""


def _known(name: str, ranges: Mapping[str, Range], values: Mapping[str, Value]) -> Range:
    stored = values.get(name)
    if isinstance(stored, Constant) and stored.array.size and stored.array.dtype.kind == "f":
        return float(stored.array.min()), float(stored.array.max())
    return ranges.get(name, ANY)


def _range(call: Call, given: Sequence[Range], values: Mapping[str, Value]) -> Range:
    if call.op in FIXED:
        return FIXED[call.op]
    if not given:
        return ANY
    if call.op in MOVES:
        return given[0]
    if call.op in KEEPS_SIGN:
        return _signs(given[0])
    if call.op in IDENTITY_ABOVE_ZERO:
        return given[0] if given[0][0] >= 0.0 else ANY
    if call.op in ("Gemm", "MatMul", "Conv"):
        return _linear(call, given, values)
    rule = RULES.get(call.op)
    return ANY if rule is None or len(given) < OPERANDS.get(call.op, 1) else rule(given)


def _hull(first: Range, second: Range) -> Range:
    return min(first[0], second[0]), max(first[1], second[1])


def _signs(given: Range) -> Range:
    return 0.0 if given[0] >= 0.0 else -math.inf, 0.0 if given[1] <= 0.0 else math.inf


def _sum(first: Range, second: Range) -> Range:
    return first[0] + second[0], first[1] + second[1]


def _negated(given: Range) -> Range:
    return -given[1], -given[0]


def _product(first: Range, second: Range) -> Range:
    ends = [0.0 if 0.0 in (a, b) else a * b for a in first for b in second]
    return min(ends), max(ends)


def _quotient(first: Range, second: Range) -> Range:
    if second[0] <= 0.0 <= second[1]:
        return ANY
    return _product(first, (1.0 / second[1], 1.0 / second[0]))


def _clip(given: Sequence[Range]) -> Range:
    low, high = ([*given, ANY, ANY][place] for place in (1, 2))
    return min(max(given[0][0], low[0]), high[1]), min(max(given[0][1], low[0]), high[1])


def _absolute(given: Range) -> Range:
    low, high = given
    return max(low, -high, 0.0), max(abs(low), abs(high))


def _logarithm(given: Range) -> Range:
    return ANY if given[1] <= 0.0 else (-math.inf, math.log(given[1]))


RULES: Mapping[str, Callable[[Sequence[Range]], Range]] = {
    "Neg": lambda given: _negated(given[0]),
    "Abs": lambda given: _absolute(given[0]),
    "Relu": lambda given: (max(given[0][0], 0.0), max(given[0][1], 0.0)),
    "Log": lambda given: _logarithm(given[0]),
    "Clip": _clip,
    "Add": lambda given: reduce(_sum, given),
    "Sum": lambda given: reduce(_sum, given),
    "Sub": lambda given: _sum(given[0], _negated(given[1])),
    "Mul": lambda given: _product(given[0], given[1]),
    "Div": lambda given: _quotient(given[0], given[1]),
    "Max": lambda given: (max(low for low, _ in given), max(high for _, high in given)),
    "Min": lambda given: (min(low for low, _ in given), min(high for _, high in given)),
    "Concat": lambda given: reduce(_hull, given),
    "Mean": lambda given: reduce(_hull, given),
    "Where": lambda given: _hull(given[1], given[2]),
    "ReduceSum": lambda given: _signs(given[0]),
    "AveragePool": lambda given: _hull(given[0], (0.0, 0.0)),  # a margin of zeros
    "Pad": lambda given: reduce(_hull, given[2:3], _hull(given[0], (0.0, 0.0))),
}
OPERANDS = {"Sub": 2, "Mul": 2, "Div": 2, "Where": 3}
#: Where a sign comes from, for people to read; the others pass it on.
SOURCES = frozenset(FIXED) | {"Abs", "Relu", "Log", "Clip", "Max", "Min"}


def _linear(call: Call, given: Sequence[Range], values: Mapping[str, Value]) -> Range:
    """Rows of a weight times numbers in a range; a Conv's margin adds zeros to the numbers."""
    weight = values.get(call.input_names[1]) if len(given) > 1 else None
    if not isinstance(weight, Constant) or given[0] == ANY:
        return ANY
    rows = _rows(call, weight.array)
    if rows is None:
        return ANY
    data = _hull(given[0], (0.0, 0.0)) if call.op == "Conv" else given[0]
    if rows.size > LARGEST_WEIGHT:
        ends = _product(_signs(data), (float(rows.min()), float(rows.max())))
        ends = _signs(ends)
    else:
        positive, negative = np.maximum(rows, 0.0).sum(axis=1), np.minimum(rows, 0.0).sum(axis=1)
        lows, highs = (_times(positive, a) + _times(negative, b) for a, b in (data, data[::-1]))
        ends = float(lows.min()), float(highs.max())
    alpha = call.real("alpha", 1.0) if call.op == "Gemm" else 1.0
    scaled = _product(ends, (alpha, alpha))
    if len(given) < 3 or not call.input_names[2]:
        return scaled
    beta = call.real("beta", 1.0) if call.op == "Gemm" else 1.0
    return _sum(scaled, _product(given[2], (beta, beta)))


def _times(sums: Array, end: float) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(sums == 0.0, 0.0, sums * end)


def _rows(call: Call, weight: Array) -> Array | None:
    """The weight as one row per output."""
    if call.op == "Conv":
        return weight.reshape(len(weight), -1) if weight.ndim > 2 else None
    if weight.ndim != 2 or (call.op == "Gemm" and call.integer("transA", 0)):
        return None
    return weight if call.op == "Gemm" and call.integer("transB", 0) else weight.T
