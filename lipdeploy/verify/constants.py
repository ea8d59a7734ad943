"""Evaluates the parts of a graph that do not depend on the input, where that is possible without rounding.

Shape arithmetic may involve the unknown batch size; it is carried as ``BATCH`` in arrays of dtype object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from lipdeploy.verify.dequantize import QUANTISES, constant_of, dequantised
from lipdeploy.verify.form import check_form
from lipdeploy.verify.graph import BATCH, Call, Constant, Flow, Numbers
from lipdeploy.verify.limits import MOST_COUNTED, MOST_JOINED, check_listed
from lipdeploy.verify.tensors import read_constant

#: The types of numbers that a Constant writes out, by its attribute.
WRITTEN_OUT = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}
#: What constants are converted to: as an exact conversion, one number for every reader.
NUMBERS = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.BOOL,
        *(TensorProto.DataType.Value(f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)),
    )
)
LONGEST_STEP = 1 << 31  # of a Slice
MOST_ENTRIES = 1 << 24  # of a constant that a graph computes from a few numbers


def evaluate(call: Call) -> Constant | None:
    """The value of a node that is constant (or describes a shape); ``None`` when it depends on the input.

    Raises ``Refused`` (LIP017) when it is constant but its evaluation would round or is not known here.
    """
    if len(call.output_names) != 1:
        raise call.refuse("LIP017", f"computes {len(call.output_names)} constants at once")
    if call.op in ("Shape", "CastLike") and not call.domain:  # constant also where their input is not
        check_form(call)
        return _named(call, _shape(call)) if call.op == "Shape" else _cast_like(call)
    values = [call.optional(index) for index in range(len(call.inputs))]
    if any(isinstance(value, Flow) for value in values):
        return None
    function = EXACT.get(call.op) if not call.domain else None
    if function is None:
        message = "computes a constant inside the graph, which the verifier does not evaluate"
        raise call.refuse("LIP017", message, FOLD_FIRST if call.op in QUANTISES else "")
    check_form(call)
    arrays = [value.array if isinstance(value, Constant) else None for value in values]
    _refuse_large(call, [array for array in arrays if array is not None])
    roundings = sum(value.roundings for value in values if isinstance(value, Constant))
    if roundings and call.op not in MOVES:
        raise call.refuse("LIP017", "computes with dequantised weights that float32 has rounded")
    try:
        if call.op == "DequantizeLinear":
            return _dequantise(call, *arrays)
        return Constant(call.output_names[0], _of_whole_numbers(call, function(call, *arrays)), roundings)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise call.refuse("LIP013", f"its constant inputs do not fit: {error}") from error


def _of_whole_numbers(call: Call, array: Numbers) -> Numbers:
    """``array``, which as one of Python objects describes a shape: whole numbers and the number of samples."""
    if array.dtype == object and not all(n is BATCH or isinstance(n, (int, np.integer)) for n in array.reshape(-1)):
        raise call.refuse("LIP017", "mixes sizes with other numbers")
    return array


def _refuse_large(call: Call, arrays: Sequence[Numbers]) -> None:
    """Refuse before anything large is made: nodes that double a constant thirty times fit into a kilobyte."""
    if call.op in COMPUTED:
        check_listed(call, (math.prod(np.broadcast_shapes(*(array.shape for array in arrays))),), MOST_COUNTED)
    elif call.op == "Gather" and len(arrays) == 2:
        rows = max(1, min(arrays[0].shape, default=1))
        check_listed(call, (arrays[0].size // rows * arrays[1].size,), MOST_JOINED)
    elif call.op == "Concat":
        shapes = any(array.dtype == object for array in arrays)
        check_listed(call, (sum(array.size for array in arrays),), MOST_COUNTED if shapes else MOST_JOINED)


def _named(call: Call, array: Numbers) -> Constant:
    return Constant(call.output_names[0], array)


def _shape(call: Call) -> Numbers:
    value = call.optional(0)
    if value is None:
        raise call.refuse("LIP013", "has no input")
    full = [BATCH, *value.shape] if isinstance(value, Flow) else list(value.array.shape)
    return np.array(full[slice(call.integer("start", 0), _end(call))], dtype=object)


def _end(call: Call) -> int | None:
    return call.integer("end") if "end" in call.attributes else None


def _constant(call: Call) -> Numbers:
    if len(call.attributes) != 1:
        raise call.refuse("LIP013", "must have exactly one attribute")
    attribute = next(iter(call.attributes.values()))
    if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
        stored = TensorProto()
        stored.CopyFrom(attribute.t)
        stored.name = call.name
        return read_constant(stored).array
    if attribute.name not in WRITTEN_OUT:
        raise call.refuse("LIP021", f"constants of the form '{attribute.name}' are not supported")
    dtype = helper.tensor_dtype_to_np_dtype(WRITTEN_OUT[attribute.name])
    array = np.array(helper.get_attribute_value(attribute), dtype=dtype)
    if not np.all(np.isfinite(array)):
        raise call.refuse("LIP003", "the constant is NaN or infinite")
    return array


def _cast(call: Call, array: Numbers) -> Numbers:
    if call.integer("to") not in NUMBERS:  # text, of which runtimes make numbers in their own ways
        raise call.refuse("LIP017", "converts a constant to a type that does not hold plain numbers")
    target = helper.tensor_dtype_to_np_dtype(call.integer("to"))
    if array.dtype == object:
        if target != np.dtype(np.int64):
            raise call.refuse("LIP017", "converts a shape to a type other than int64")
        return array
    return _converted(call, array, target)


def _cast_like(call: Call) -> Constant | None:
    """A constant in the type of the second input, which may depend on the graph's input."""
    stored, pattern = call.optional(0), call.optional(1)
    if not isinstance(stored, Constant) or pattern is None:
        return None
    if stored.roundings or (isinstance(pattern, Constant) and pattern.roundings):
        raise call.refuse("LIP017", "computes with dequantised weights that float32 has rounded")
    target = pattern.dtype if isinstance(pattern, Flow) else pattern.array.dtype
    if np.dtype(object) in (stored.array.dtype, target):
        raise call.refuse("LIP017", "converts a shape")
    return _named(call, _converted(call, stored.array, target))


def _dequantise(
    call: Call, values: Numbers | None = None, scale: Numbers | None = None, zero: Numbers | None = None
) -> Constant:
    """(q − zero)·scale of stored integers, exactly."""
    unknown = sorted(call.attributes.keys() - {"axis", "block_size", "output_dtype"})
    if unknown:
        raise call.refuse("LIP002", f"attribute '{unknown[0]}' is not understood")
    if values is None or scale is None or scale.dtype.name not in ("float32", "float16", "bfloat16"):
        raise call.refuse("LIP013", "needs stored integers and a scale of a float type")
    kind = call.integer("output_dtype", 0) or helper.np_dtype_to_tensor_dtype(scale.dtype)
    if kind != helper.np_dtype_to_tensor_dtype(scale.dtype):
        raise call.refuse("LIP002", "output_dtype is not the type of the scale")
    block = call.integer("block_size", 0)
    product = dequantised(values, scale, zero, axis=call.integer("axis", 1), block=block)
    return constant_of(call.output_names[0], product, scale.dtype)


def _converted(call: Call, array: Numbers, target: np.dtype[Any]) -> Numbers:
    converted = array.astype(target)
    wide = any(kind.kind in "iu" and kind.itemsize == 8 for kind in (array.dtype, target))
    as_numbers = object if wide else np.float64  # which does not hold all integers of 64 bits
    if not np.array_equal(converted.astype(as_numbers), array.astype(as_numbers)):
        raise call.refuse("LIP017", "converts a constant inexactly")
    return converted


def _gather(call: Call, array: Numbers, indices: Numbers) -> Numbers:
    return np.asarray(np.take(array, indices.astype(np.int64), axis=call.integer("axis", 0)), dtype=array.dtype)


def _concat(call: Call, *arrays: Numbers) -> Numbers:
    mixed = any(array.dtype == object for array in arrays)
    return np.concatenate([a.astype(object) if mixed else a for a in arrays], axis=call.integer("axis"))


def _unsqueeze(call: Call, array: Numbers, axes: Numbers) -> Numbers:
    return np.expand_dims(array, tuple(int(axis) for axis in axes.reshape(-1)))


def _squeeze(call: Call, array: Numbers, axes: Numbers | None = None) -> Numbers:
    return np.squeeze(array, None if axes is None else tuple(int(axis) for axis in axes.reshape(-1)))


def clamped_slice(start: int, end: int, step: int, size: int) -> slice:
    """A slice of an axis as ONNX means it, in Python's terms.

    A negative number counts from the end once. Going backwards ONNX clamps the start to 0 … size − 1 (Python would
    take nothing from a start below −size), and an end below −size goes to the very start, which Python spells None.
    Raises ``ValueError`` where runtimes disagree: for steps so long that 64 bits overflow, and for the largest integers
    as the end of a way back, which ONNX Runtime takes for the very start.
    """
    if abs(step) > LONGEST_STEP or (step < 0 and end >= LONGEST_STEP - 1):
        raise ValueError(f"runtimes disagree about an end of {end} in steps of {step}")
    if step < 0:
        return slice(max(start, -size), None if end < -size else end, step)
    return slice(start, end, step)


def _slice(
    call: Call,
    array: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:
    index: list[slice] = [slice(None)] * array.ndim
    listed = [int(axis) for axis in (np.arange(starts.size) if axes is None else axes.reshape(-1))]
    if len({axis % array.ndim for axis in listed}) < len(listed) or not starts.size == ends.size == len(listed):
        raise call.refuse("LIP013", "starts, ends and axes do not match, or an axis is sliced twice")
    for i, axis in enumerate(listed):
        step = 1 if steps is None else int(steps.reshape(-1)[i])
        size = array.shape[axis]
        index[axis] = clamped_slice(int(starts.reshape(-1)[i]), int(ends.reshape(-1)[i]), step, size)
    return array[tuple(index)]


def _reshape(call: Call, array: Numbers, target: Numbers) -> Numbers:
    if np.any(target == 0):
        raise call.refuse("LIP017", "reshapes a constant with a zero in the target")
    return array.reshape([int(n) for n in target.reshape(-1)])


def _transpose(call: Call, array: Numbers) -> Numbers:
    return np.transpose(array, call.integers("perm", tuple(reversed(range(array.ndim)))))


def _integer(operation: Callable[[int, int], int]) -> Callable[..., Numbers]:
    def apply(call: Call, first: Numbers, second: Numbers) -> Numbers:
        whole = all(isinstance(n, int) for array in (first, second) for n in array.reshape(-1).tolist())
        if not whole:
            raise call.refuse("LIP017", "computes with the batch size or with floats inside the graph")
        types = {np.dtype(np.int64) if array.dtype == object else array.dtype for array in (first, second)}
        result = np.frompyfunc(operation, 2, 1)(first.astype(object), second.astype(object))
        limits = np.iinfo(next(iter(types)))
        if len(types) > 1 or any(not limits.min <= n <= limits.max for n in np.ravel(result).tolist()):
            raise call.refuse("LIP017", "integer arithmetic that mixes types or wraps around")
        return np.asarray(result, dtype=limits.dtype)

    return apply


def _quotient(first: int, second: int) -> int:
    if first < 0 or second <= 0:
        raise ValueError("integer division of or by negative numbers")
    return first // second


def _comparison(operation: Callable[[Any, Any], Any]) -> Callable[..., Numbers]:
    def apply(call: Call, first: Numbers, second: Numbers) -> Numbers:
        if object in (first.dtype, second.dtype):
            raise call.refuse("LIP017", "compares the batch size or another size")
        if first.dtype != second.dtype:
            raise call.refuse("LIP013", "compares different types")
        return np.asarray(operation(first, second))

    return apply


def _choice(call: Call, condition: Numbers, first: Numbers, second: Numbers) -> Numbers:
    if condition.dtype != np.bool_ or object in (first.dtype, second.dtype) or first.dtype != second.dtype:
        raise call.refuse("LIP017", "chooses between constants of different types")
    return np.where(condition, first, second)


def _filled(call: Call, sizes: Numbers) -> Numbers:
    value = call.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else read_constant(value.t).array.reshape(-1)
    shape = [int(n) for n in sizes.reshape(-1)]
    if fill.size != 1 or math.prod(shape) > MOST_ENTRIES:
        raise call.refuse("LIP017", "fills a large constant")
    return np.full(shape, fill[0], fill.dtype)


def _expanded(call: Call, array: Numbers, sizes: Numbers) -> Numbers:
    shape = np.broadcast_shapes(array.shape, tuple(int(n) for n in sizes.reshape(-1)))
    if math.prod(shape) > MOST_ENTRIES:
        raise call.refuse("LIP017", "expands to a large constant")
    return np.array(np.broadcast_to(array, shape))


def _range(call: Call, start: Numbers, limit: Numbers, delta: Numbers) -> Numbers:
    bounds = [array.reshape(-1)[0] for array in (start, limit, delta)]
    if not all(isinstance(n, (int, np.integer)) for n in bounds) or int(bounds[2]) == 0:
        raise call.refuse("LIP017", "counts with floats or with the batch size")
    first, last, step = (int(n) for n in bounds)
    if len(range(first, last, step)) > MOST_ENTRIES:
        raise call.refuse("LIP017", "counts far")
    return np.arange(first, last, step, dtype=np.int64 if start.dtype == object else start.dtype)


FOLD_FIRST = "store the integers themselves, and DequantizeLinear in front of the operator that uses them"
#: Operators that only move entries, so that what a program has rounded stays as it is.
MOVES = frozenset({"Identity", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Reshape", "Transpose", "Expand"})
#: Evaluated entry by entry, in Python's integers or with broadcasting.
COMPUTED = frozenset({"Add", "Sub", "Mul", "Div", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Where"})
EXACT: dict[str, Callable[..., Numbers]] = {
    "Constant": _constant,
    "Identity": lambda call, array: array,
    "Cast": _cast,
    "DequantizeLinear": lambda call, *arrays: _dequantise(call, *arrays).array,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Add": _integer(lambda a, b: a + b),
    "Sub": _integer(lambda a, b: a - b),
    "Mul": _integer(lambda a, b: a * b),
    "Div": _integer(_quotient),
    "Less": _comparison(lambda a, b: a < b),
    "LessOrEqual": _comparison(lambda a, b: a <= b),
    "Greater": _comparison(lambda a, b: a > b),
    "GreaterOrEqual": _comparison(lambda a, b: a >= b),
    "Equal": _comparison(lambda a, b: a == b),
    "Where": _choice,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Range": _range,
}
