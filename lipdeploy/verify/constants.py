"""Evaluates the parts of a graph that do not depend on the input, where that is possible without rounding.

Shape arithmetic may involve the unknown batch size; it is carried as ``BATCH`` in arrays of dtype object.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from lipdeploy.verify.graph import BATCH, Call, Constant, Flow, Numbers, read_constant


def evaluate(call: Call) -> Constant | None:
    """The value of a node that is constant (or describes a shape); ``None`` when it depends on the input.

    Raises ``Refused`` (LIP017) when it is constant but its evaluation would round or is not known here.
    """
    if call.op == "Shape" and not call.domain:
        return _named(call, _shape(call))
    values = [call.optional(index) for index in range(len(call.inputs))]
    if any(isinstance(value, Flow) for value in values):
        return None
    function = EXACT.get(call.op) if not call.domain else None
    if function is None or len(call.output_names) != 1:
        raise call.refuse("LIP017", "computes a constant inside the graph, which the verifier does not evaluate")
    arrays = [value.array if isinstance(value, Constant) else None for value in values]
    try:
        return _named(call, function(call, *arrays))
    except (ValueError, IndexError, TypeError) as error:
        raise call.refuse("LIP013", f"its constant inputs do not fit: {error}") from error


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
    numbers = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in numbers:
        raise call.refuse("LIP021", f"constants of the form '{attribute.name}' are not supported")
    array = np.array(helper.get_attribute_value(attribute), dtype=numbers[attribute.name])
    if not np.all(np.isfinite(array)):
        raise call.refuse("LIP003", "the constant is NaN or infinite")
    return array


def _cast(call: Call, array: Numbers) -> Numbers:
    target = helper.tensor_dtype_to_np_dtype(call.integer("to"))
    if array.dtype == object:
        if target != np.dtype(np.int64):
            raise call.refuse("LIP017", "converts a shape to a type other than int64")
        return array
    converted = array.astype(target)
    if not np.array_equal(converted.astype(np.float64), array.astype(np.float64)):
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


def _slice(
    call: Call,
    array: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:
    if steps is not None and np.any(steps < 1):
        raise call.refuse("LIP017", "slices a constant backwards")
    index: list[slice] = [slice(None)] * array.ndim
    for i, axis in enumerate(np.arange(starts.size) if axes is None else axes.reshape(-1)):
        step = 1 if steps is None else int(steps.reshape(-1)[i])
        index[int(axis)] = slice(int(starts.reshape(-1)[i]), int(ends.reshape(-1)[i]), step)
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


EXACT: dict[str, Callable[..., Numbers]] = {
    "Constant": _constant,
    "Identity": lambda call, array: array,
    "Cast": _cast,
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
}
