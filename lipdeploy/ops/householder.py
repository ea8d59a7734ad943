"""Householder: a learned reflection for each pair of channels, where the pair lies on the far side of a line.

Singla, Singla, Feizi 2021, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100", in its continuous form.
Along ``axis`` the channels form pairs (a, b): ``layout`` 1 (strided) pairs channel i with i + C/2, ``layout`` 0
(adjacent) pairs 2i with 2i + 1. ``sine`` and ``cosine``, of shape (C/2,), hold s = sin(θ/2) and c = cos(θ/2) of each
pair. Evaluation is pinned, every step rounded, no FMA::

    m = max(0, a·s − b·c)
    (a, b) → (a − s·(m + m), b + c·(m + m))

θ = π/2 sorts the pair, smaller value first. float16 and bfloat16 compute in float32 and round once at the end. A NaN
among the two makes both the canonical quiet NaN; ±Inf goes through the formula: NaN for Inf − Inf and for Inf·0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from lipdeploy.ops.emit import Emitter, enter, leave
from lipdeploy.ops.spec import AttributeValue, Operator, canonical_nan, integer, normal_axis


def evaluate(
    x: np.ndarray[Any, Any],
    sine: np.ndarray[Any, Any],
    cosine: np.ndarray[Any, Any],
    *,
    axis: int = 1,
    layout: int = 1,
) -> np.ndarray[Any, Any]:
    """Reflect each pair of ``x``, any shape with an even number of channels; the result has its shape and type.

    ``sine`` and ``cosine`` have the type of ``x`` and shape (channels/2,). Raises ValueError for anything else.
    """
    axis = normal_axis(axis, x.ndim, "Householder")
    channels = x.shape[axis]
    _check_angles(sine, cosine, x.dtype, channels)
    work = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    pairs = channels // 2
    split = (2, pairs) if layout == 1 else (pairs, 2)
    halves = axis if layout == 1 else axis + 1
    grouped = x.astype(work).reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
    a, b = np.moveaxis(grouped, halves, 0)
    factor = [angle.astype(work).reshape(-1, *[1] * (x.ndim - 1 - axis)) for angle in (sine, cosine)]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        result = np.stack(_reflect(a, b, *factor), axis=halves).reshape(x.shape).astype(x.dtype)
    result[np.isnan(result)] = canonical_nan(x.dtype)
    return result


def _check_angles(
    sine: np.ndarray[Any, Any], cosine: np.ndarray[Any, Any], dtype: np.dtype[Any], channels: int
) -> None:
    if channels % 2:
        raise ValueError(f"Householder: {channels} channels do not form pairs")
    for name, angle in (("sine", sine), ("cosine", cosine)):
        if angle.dtype != dtype:
            raise ValueError(f"Householder: {name} is {angle.dtype}, the input is {dtype}")
        if angle.shape != (channels // 2,):
            raise ValueError(f"Householder: {name} must have shape ({channels // 2},), found {angle.shape}")


def _reflect(a: Any, b: Any, s: Any, c: Any) -> tuple[Any, Any]:
    beyond = a * s - b * c
    m = np.where(beyond <= 0, a.dtype.type(0), beyond)  # a NaN stays
    twice = m + m
    return a - s * twice, b + c * twice


def build_body(
    uses: tuple[Mapping[str, AttributeValue], ...], element_types: frozenset[int], opset: int
) -> list[onnx.NodeProto]:
    """Nodes from ``X``, ``sine`` and ``cosine`` to ``Y``: the pairs side by side, the pinned formula, back."""
    e = Emitter(opset)
    x, sine, cosine = (enter(e, name, element_types) for name in ("X", "sine", "cosine"))
    if len(uses) > 1:
        y = _generic(e, x, sine, cosine)
    elif uses[0]["layout"] == 1:
        y = _strided(e, x, sine, cosine, int(uses[0]["axis"]))
    else:
        y = _adjacent(e, x, sine, cosine, int(uses[0]["axis"]))
    leave(e, y, element_types)
    return e.nodes


def _strided(e: Emitter, x: str, sine: str, cosine: str, axis: int) -> str:
    """Halves of the axis. Their sizes are written, because Split would cut an axis of another size unevenly."""
    pairs = e.op("Shape", "sine")
    a, b = e.several("Split", [x, e.op("Concat", pairs, pairs, axis=0)], 2, axis=axis)
    shape = e.op("Concat", pairs, *_ones(e, axis), axis=0)
    return _formula(e, a, b, e.op("Reshape", sine, shape), e.op("Reshape", cosine, shape), axis)


def _adjacent(e: Emitter, x: str, sine: str, cosine: str, axis: int) -> str:
    """The axis as (pairs, 2), split along the 2."""
    pairs = e.op("Shape", "sine")
    after = [] if axis == -1 else [e.op("Shape", x, start=axis + 1)]
    paired = e.op("Concat", e.op("Shape", x, start=0, end=axis), pairs, e.vector_of(2), *after, axis=0)
    along = axis + 1 if axis >= 0 else axis
    grouped = e.op("Reshape", x, paired, allowzero=1)
    a, b = e.several("Split", [grouped, e.vector_of(1, 1)], 2, axis=along)
    shape = e.op("Concat", pairs, e.vector_of(1), *_ones(e, axis), axis=0)
    y = _formula(e, a, b, e.op("Reshape", sine, shape), e.op("Reshape", cosine, shape), along)
    return e.op("Reshape", y, e.op("Shape", x), allowzero=1)


def _generic(e: Emitter, x: str, sine: str, cosine: str) -> str:
    """Attributes read at run time: the channels come to the end, pairs are gathered and scattered by their numbers."""
    shape = e.op("Shape", x)
    axis = e.vector(e.attribute("axis"))
    zero, one, two = e.vector_of(0), e.vector_of(1), e.vector_of(2)
    axis = e.op("Where", e.op("Less", axis, zero), e.op("Add", axis, e.op("Shape", shape)), axis)
    next_axis = e.op("Add", axis, one)
    before = e.product(e.op("Slice", shape, zero, axis))
    after = e.product(e.op("Slice", shape, next_axis, e.op("Shape", shape)))
    pairs = e.op("Shape", "sine")
    viewed = e.op("Reshape", x, e.op("Concat", before, e.op("Mul", pairs, two), after, axis=0), allowzero=1)
    # Strided pairs are (i, i + pairs), adjacent ones (2i, 2i + 1).
    strided = e.op("Equal", e.vector(e.attribute("layout")), one)
    count = e.op("Squeeze", pairs)
    numbers = e.op("Range", e.scalar(0), count, e.scalar(1))
    first = e.op("Where", strided, numbers, e.op("Mul", numbers, two))
    second = e.op("Add", first, e.op("Where", strided, pairs, one))
    row = e.op("Concat", pairs, one, axis=0)
    a, b = (e.op("Gather", viewed, places, axis=1) for places in (first, second))
    y = _formula(e, a, b, e.op("Reshape", sine, row), e.op("Reshape", cosine, row), 1)
    # Place j of the result comes from j (strided), or from j/2 among the first or the second halves.
    places = e.op("Range", e.scalar(0), e.op("Mul", count, e.scalar(2)), e.scalar(1))
    half = e.op("Div", places, two)
    odd = e.op("Sub", places, e.op("Mul", half, two))
    source = e.op("Where", strided, places, e.op("Add", half, e.op("Mul", odd, pairs)))
    return e.op("Reshape", e.op("Gather", y, source, axis=1), shape, allowzero=1)


def _formula(e: Emitter, a: str, b: str, s: str, c: str, axis: int) -> str:
    beyond = e.op("Sub", e.op("Mul", a, s), e.op("Mul", b, c))
    zero = e.op("CastLike", e.real(0.0), a)
    # What Max makes of a NaN, ONNX leaves open; a comparison with one is false.
    m = e.op("Where", e.op("LessOrEqual", beyond, zero), zero, beyond)
    twice = e.op("Add", m, m)
    reflected = e.op("Sub", a, e.op("Mul", s, twice)), e.op("Add", b, e.op("Mul", c, twice))
    return e.op("Concat", *reflected, axis=axis)


def _ones(e: Emitter, axis: int) -> list[str]:
    """As many ones as axes follow the channel axis of ``X``: with them, one number for each pair broadcasts."""
    if axis < 0:
        return [e.vector_of(1)] * (-axis - 1)
    return [e.op("Expand", e.vector_of(1), e.op("Shape", e.op("Shape", "X", start=axis + 1)))]


HOUSEHOLDER = Operator(
    name="Householder",
    attributes=(
        integer("axis", 1, lambda v: -64 <= v < 64, "an axis of the tensor"),
        integer("layout", 1, lambda v: v in (0, 1), "0 (adjacent) or 1 (strided)"),
    ),
    inputs=("X", "sine", "cosine"),
    evaluate=evaluate,
    build_body=build_body,
)
