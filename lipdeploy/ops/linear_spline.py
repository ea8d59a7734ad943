"""LinearSpline: a learned piecewise-linear function for each channel, given by its values at uniform knots.

Bohra, Campos, Gupta, Aziznejad, Unser 2020, "Learning activation functions in deep (spline) neural networks".
``coefficients`` has shape (channels, K) or (1, K), K ≥ 2: the values at t_k = lower + k·knot_spacing. Linear between
knots; the end slopes continue outside. Evaluation is pinned, every step rounded, no FMA (h = knot_spacing)::

    k = clamp(floor((x − lower)/h), 0, K−2)     clamped before it becomes an integer
    t = lower + k·h
    y = c_k + ((x − t)·(c_{k+1} − c_k))/h

``lower`` and h are float32 numbers, widened exactly for float64. float16 and bfloat16 compute in float32 and round
once at the end. NaN gives the canonical quiet NaN. ±Inf gives ±Inf times the sign of the end interval's rise, or the
end coefficient where the rise is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from lipdeploy.ops.emit import Emitter, enter, leave
from lipdeploy.ops.spec import AttributeValue, Operator, canonical_nan, integer, normal_axis, required_float

# Knot numbers up to here are exact in float32, so that k·h rounds once.
MOST_KNOTS = 1 << 24


def evaluate(
    x: np.ndarray[Any, Any],
    coefficients: np.ndarray[Any, Any],
    *,
    lower: float,
    knot_spacing: float,
    axis: int = 1,
) -> np.ndarray[Any, Any]:
    """Apply channel c's spline to every ``x[..., c, ...]``, c counted along ``axis``; shape and type of ``x``.

    Raises ValueError for coefficients of another type than ``x`` or a shape other than (channels, K) or (1, K), K ≥ 2.
    """
    axis = normal_axis(axis, x.ndim, "LinearSpline")
    _check_coefficients(coefficients, x.dtype, x.shape[axis])
    work = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y = _interpolate(
            x.astype(work), coefficients.astype(work), _widened(lower, work), _widened(knot_spacing, work), axis
        )
        y = y.astype(x.dtype)
    y[np.isnan(y)] = canonical_nan(x.dtype)
    return y


def _widened(attribute: float, work: np.dtype[Any]) -> Any:
    """The float32 number that a file stores, in the type that computes."""
    return work.type(np.float32(attribute))


def _check_coefficients(coefficients: np.ndarray[Any, Any], dtype: np.dtype[Any], channels: int) -> None:
    if coefficients.dtype != dtype:
        raise ValueError(f"LinearSpline: coefficients are {coefficients.dtype}, the input is {dtype}")
    if coefficients.ndim != 2 or coefficients.shape[0] not in (1, channels):
        raise ValueError(
            f"LinearSpline: coefficients must have shape ({channels}, K) or (1, K), found {coefficients.shape}"
        )
    if not 2 <= coefficients.shape[1] <= MOST_KNOTS:
        raise ValueError(f"LinearSpline: needs 2 to {MOST_KNOTS} knots, found {coefficients.shape[1]}")


def _interpolate(x: Any, coefficients: Any, lower: Any, h: Any, axis: int) -> np.ndarray[Any, Any]:
    position = np.floor((x - lower) / h)
    last = coefficients.shape[1] - 2
    k = np.minimum(np.maximum(np.where(np.isnan(position), 0, position), 0), last).astype(x.dtype)
    row = np.arange(coefficients.shape[0]).reshape(-1, *[1] * (x.ndim - 1 - axis))
    index = k.astype(np.int64)
    left, right = coefficients[row, index], coefficients[row, index + 1]
    rise = right - left
    offset = x - (lower + k * h)
    product = np.where((rise == 0) & np.isinf(offset), x.dtype.type(0), offset * rise)
    result: np.ndarray[Any, Any] = left + product / h
    return result


def build_body(
    uses: tuple[Mapping[str, AttributeValue], ...], element_types: frozenset[int], opset: int
) -> list[onnx.NodeProto]:
    """Nodes from ``X`` and ``coefficients`` to ``Y``: the pinned formula, step by step."""
    e = Emitter(opset)
    x, table = enter(e, "X", element_types), enter(e, "coefficients", element_types)
    lower = e.op("CastLike", e.attribute("lower", kind="float"), x)
    h = e.op("CastLike", e.attribute("knot_spacing", kind="float"), x)
    zero = e.op("CastLike", e.real(0.0), x)
    knots = e.op("Shape", "coefficients", start=1, end=2)
    k = _interval(e, x, lower, h, zero, knots)
    axes = {int(use["axis"]) for use in uses}
    index = e.op("Add", e.op("Cast", k, to=TensorProto.INT64), _row_starts(e, axes, knots))
    flat = e.op("Reshape", table, e.vector_of(-1))
    left = e.op("Gather", flat, index)
    rise = e.op("Sub", e.op("Gather", flat, e.op("Add", index, e.scalar(1))), left)
    offset = e.op("Sub", x, e.op("Add", lower, e.op("Mul", k, h)))
    # 0 instead of the product where the rise is 0, because Inf·0 would be NaN ...
    product = e.op("Where", e.op("Equal", rise, zero), zero, e.op("Mul", offset, rise))
    y = e.op("Add", left, e.op("Div", product, h))
    # ... and then a NaN in x must be put back.
    leave(e, e.op("Where", e.op("IsNaN", x), x, y), element_types)
    return e.nodes


def _interval(e: Emitter, x: str, lower: str, h: str, zero: str, knots: str) -> str:
    """Number of the interval, still floating: NaN goes to 0, so that the index below stays inside the table."""
    position = e.op("Floor", e.op("Div", e.op("Sub", x, lower), h))
    last = e.op("CastLike", e.op("Sub", knots, e.vector_of(2)), x)
    guarded = e.op("Where", e.op("IsNaN", position), zero, position)
    return e.op("Min", e.op("Max", guarded, zero), last)


def _row_starts(e: Emitter, axes: set[int], knots: str) -> str:
    """Where each channel's row starts in the flat table, shaped to broadcast along the channel axis of ``X``."""
    rows = e.op("Shape", "coefficients", start=0, end=1)
    to_scalar = e.op("Squeeze", rows)
    starts = e.op("Mul", e.op("Range", e.scalar(0), to_scalar, e.scalar(1)), knots)
    trailing = _trailing_axes(e, axes)
    ones = e.op("Expand", e.vector_of(1), trailing)
    return e.op("Reshape", starts, e.op("Concat", rows, ones, axis=0))


def _trailing_axes(e: Emitter, axes: set[int]) -> str:
    """How many axes follow the channel axis, as a vector of one element."""
    if len(axes) > 1:
        rank = e.op("Shape", e.op("Shape", "X"))
        given = e.vector(e.attribute("axis"))
        axis = e.op("Where", e.op("Less", given, e.vector_of(0)), e.op("Add", given, rank), given)
        return e.op("Sub", e.op("Sub", rank, axis), e.vector_of(1))
    (common,) = axes
    if common < 0:
        return e.vector_of(-common - 1)
    return e.op("Shape", e.op("Shape", "X", start=common + 1))


LINEAR_SPLINE = Operator(
    name="LinearSpline",
    attributes=(
        required_float("lower", lambda v: True, "a finite number"),
        required_float("knot_spacing", lambda v: v > 0, "a finite number > 0"),
        integer("axis", 1, lambda v: -64 <= v < 64, "an axis of the tensor"),
    ),
    inputs=("X", "coefficients"),
    evaluate=evaluate,
    build_body=build_body,
)
