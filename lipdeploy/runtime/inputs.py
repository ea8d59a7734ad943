"""From what a caller gives to the tensor that the program receives, without moving any value.

The ball is around the tensor the program receives, so a conversion that rounds would move its centre: a float64
array is accepted for a float32 input only when float32 holds every one of its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.verdict import TensorSpec

Array = np.ndarray[Any, Any]


def feeds_for(given: Any, specs: Sequence[TensorSpec], *, finite: bool = True) -> dict[str, Array]:
    """The program's inputs by name: ``given`` is one array, or a mapping from input names to arrays.

    Raises ``InputError`` naming what was expected: unknown or missing names, shape, values that the input's type
    does not hold exactly, NaN, infinity, unequal batch sizes. ``finite=False`` leaves NaN and infinity to a caller who
    sees them in the norms (``check_finite`` names the place).
    """
    if not isinstance(given, Mapping):
        if not finite and len(specs) == 1 and _ready(given, specs[0]):
            return {specs[0].name: given}
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InputError(f"the model has several inputs: {names}", hint="pass a dictionary from names to arrays")
        given = {specs[0].name: given}
    expected = {spec.name for spec in specs}
    if set(given) != expected:
        raise InputError(f"inputs {sorted(map(str, given))} were given, the model has {sorted(expected)}")
    feeds = {spec.name: program_tensor(given[spec.name], spec, finite=finite) for spec in specs}
    if len({array.shape[0] for array in feeds.values()}) > 1:
        raise InputError(f"batch sizes differ: { ({name: array.shape[0] for name, array in feeds.items()}) }")
    return feeds


def flattened(feeds: Mapping[str, Array]) -> Array:
    """All inputs of each sample side by side, in float64 (exact): (batch, values)."""
    rows = [
        array.reshape(array.shape[0], -1).astype(np.float64, copy=False) for array in feeds.values() if array.shape[0]
    ]
    if len(rows) == 1:
        return rows[0]
    return np.concatenate(rows, axis=1) if rows else np.zeros((0, 0))


def widened(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Floating-point inputs in float64, which is exact; the others as they are."""
    return {name: array.astype(np.float64, copy=False) if _is_float(array) else array for name, array in feeds.items()}


def values_per_row(specs: Sequence[TensorSpec]) -> int:
    """How many values a sample has; 0 where that changes from call to call."""
    return sum(math.prod(size or 0 for size in spec.shape[1:]) for spec in specs)


def values_in_a_row(feeds: Mapping[str, Array]) -> int:
    """How many values a sample of this call has."""
    return sum(math.prod(array.shape[1:]) for array in feeds.values())


def probe_feeds(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Two rows of random numbers for every input (as many as the batch where it is fixed), the same every time."""
    random, feeds = np.random.default_rng(0), {}
    for spec in specs:
        shape = [2 if size is None else size for size in spec.shape]
        floats = spec.dtype.kind not in "biu"
        feeds[spec.name] = (random.standard_normal(shape) if floats else random.integers(0, 100, shape)).astype(
            spec.dtype
        )
    return feeds


def program_tensor(given: Any, spec: TensorSpec, *, finite: bool = True) -> Array:
    """``given`` in the element type of ``spec``, every value unchanged, contiguous."""
    if isinstance(given, np.ma.MaskedArray):
        raise InputError(f"input '{spec.name}': a masked array hides values", hint="fill it: x.filled(value)")
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a torch tensor that requires grad
        raise InputError(f"input '{spec.name}': not an array: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"input '{spec.name}': expected numbers, got an array of {array.dtype}")
    _check_shape(array, spec)
    if finite or array.dtype != spec.dtype:
        check_finite(array, spec)
    converted = _converted(array, spec)
    return np.ascontiguousarray(converted)


def _ready(given: Any, spec: TensorSpec) -> bool:
    """Whether an array can be handed over as it is."""
    if type(given) is not np.ndarray or not given.ndim or given.dtype != spec.dtype or not given.flags.c_contiguous:
        return False
    return given.shape[1:] == spec.shape[1:] and spec.shape[0] in (None, given.shape[0])


def _check_shape(array: Array, spec: TensorSpec) -> None:
    expected = "(" + ", ".join("batch" if size is None else str(size) for size in spec.shape) + ")"
    fits = array.ndim == len(spec.shape) and all(
        size is None or size == actual for size, actual in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        one_sample = array.shape == tuple(spec.shape[1:])
        hint = "add the batch axis: x[None]" if one_sample else f"reshape the input to {expected}"
        raise InputError(f"input '{spec.name}': expected shape {expected}, got {array.shape}", hint=hint)


def check_finite(array: Array, spec: TensorSpec) -> None:
    """Raise ``InputError`` naming the first NaN or infinity."""
    if array.dtype.kind in "biu":
        return
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(
            f"input '{spec.name}': {array[where]} at index {where}; every value must be finite",
            hint="remove or replace NaN and infinite values before predicting",
        )


def _converted(array: Array, spec: TensorSpec) -> Array:
    if array.dtype == spec.dtype:
        return array
    with np.errstate(all="ignore"):
        converted = array.astype(spec.dtype)
    changed = ~_kept(array, converted, spec.dtype)
    if changed.any():
        where = tuple(int(i) for i in np.argwhere(changed)[0])
        raise InputError(
            f"input '{spec.name}': expected {spec.dtype}, got {array.dtype}, and {array[where]} at index {where} "
            f"is not a {spec.dtype} number; the radius is around the exact input",
            hint=_how_to_convert(spec.dtype),
        )
    return converted


def _how_to_convert(dtype: np.dtype[Any]) -> str:
    if dtype.kind not in "iu":
        wider = ", or export with input_dtype='float64' (--input-dtype float64)" if dtype == np.float32 else ""
        return f"convert it yourself: x.astype('{dtype}'){wider}"
    limits = np.iinfo(dtype)
    return f"send whole numbers from {limits.min} to {limits.max}; the network scales them itself"


def _kept(array: Array, converted: Array, dtype: np.dtype[Any]) -> Array:
    """Where the conversion kept the value."""
    to_float, from_float = dtype.kind not in "biu", array.dtype.kind not in "biu"
    if from_float and to_float:
        same: Array = np.isfinite(converted) & (_widest(converted) == _widest(array))
        return same
    if array.dtype.kind == "b":
        return np.ones(array.shape, dtype=bool)
    if to_float:
        return _still_whole(array, converted)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if from_float:
        wide = _widest(array)
        whole: Array = (wide == np.trunc(wide)) & (wide >= float(low)) & (wide < float(high) + 1.0)
        return whole
    return _within(array, low, high)


def _still_whole(array: Array, converted: Array) -> Array:
    """Where floats are the integers that they came from; the way back is taken only where it cannot overflow."""
    limits, wide = np.iinfo(array.dtype), converted.astype(np.float64, copy=False)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + 1.0)
    same: Array = inside & (np.where(inside, wide, 0.0).astype(array.dtype) == array)
    return same


def _widest(array: Array) -> Array:
    """The same numbers in float64, or in long double where they are that."""
    return array.astype(np.promote_types(array.dtype, np.float64), copy=False)


def _within(array: Array, low: int, high: int) -> Array:
    """low ≤ array ≤ high for integer arrays, without overflow in the comparison."""
    info = np.iinfo(array.dtype)
    inside = np.ones(array.shape, dtype=bool)
    if info.min < low:
        inside &= array >= low
    if info.max > high:
        inside &= array <= high
    return inside


def _is_float(array: Array) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")
