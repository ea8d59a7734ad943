"""Weights stored as small integers: the numbers that DequantizeLinear makes of them, and what a program rounds there.

The real network's weight is (q − zero)·scale exactly (docs/mathematics.md, F9). A float32 program rounds that product
once; it is a whole multiple of the spacing of ``scale``, so it never underflows, and the rounding is relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipdeploy.verify.graph import Constant, Numbers, Value
from lipdeploy.verify.step import Step

#: Integers whose product with a float32 number binary64 holds: at most 24 + 24 bits.
LARGEST = 1 << 24
INTEGERS = frozenset(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16, np.int32))
#: Operators that round floats to a grid.
QUANTISES = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv"})
#: Operators in which one more rounding of a constant is one more factor (1 + δ) on a term that their rule bounds.
FACTORED = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose", "Add", "Sub", "Mul", "Div"})


def dequantised(
    values: Numbers, scale: Numbers, zero: Numbers | None = None, *, axis: int = 1, block: int = 0
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(values − zero)·scale, exactly, as binary64 holds it.

    ``values`` are integers of at most 24 bits; ``scale`` and ``zero`` are one number, one per index of ``axis``, or,
    with ``block`` > 0, one per ``block`` indices of it. Raises ``ValueError`` where they do not fit.
    """
    if values.dtype not in INTEGERS:
        raise ValueError(f"{values.dtype} is no type of quantised weights")
    if not scale.size or not np.all(scale.astype(np.float64) > 0.0):
        raise ValueError("a scale is not positive")
    if zero is not None and (zero.shape != scale.shape or zero.dtype != values.dtype):
        raise ValueError(f"zero points {zero.dtype}{list(zero.shape)} are not {values.dtype}{list(scale.shape)}")
    if values.dtype == np.int32 and (np.abs(values.astype(np.int64)).max(initial=0) > LARGEST or _shifted(zero)):
        raise ValueError("int32 weights have zero points or more than 24 bits")
    product: np.ndarray[Any, np.dtype[np.float64]] = values.astype(np.float64)
    if zero is not None:
        product -= _spread(zero.astype(np.float64), values, axis, block)
    product *= _spread(scale.astype(np.float64), values, axis, block)
    return product


def _shifted(zero: Numbers | None) -> bool:
    return zero is not None and bool(zero.any())


def _spread(numbers: Numbers, values: Numbers, axis: int, block: int) -> Numbers:
    """Scales or zero points as they meet ``values``."""
    if numbers.ndim == 0 or numbers.shape == (1,):
        if block:
            raise ValueError("one scale cannot be one per block")
        return numbers.reshape(())
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis {axis} is outside a tensor of rank {values.ndim}")
    axis %= values.ndim
    size = values.shape[axis]
    if not block:
        if numbers.shape != (size,):
            raise ValueError(f"{list(numbers.shape)} scales for {size} indices of axis {axis}")
        return numbers.reshape([size if k == axis else 1 for k in range(values.ndim)])
    wanted = tuple(-(-n // block) if k == axis else n for k, n in enumerate(values.shape))
    if block < 0 or numbers.shape != wanted:
        raise ValueError(f"{list(numbers.shape)} scales for blocks of {block}, not {list(wanted)}")
    return np.repeat(numbers, block, axis=axis)[tuple(slice(n) for n in values.shape)]


def constant_of(name: str, product: np.ndarray[Any, np.dtype[np.float64]], kind: np.dtype[Any]) -> Constant:
    """The constant that a program of element type ``kind`` computes.

    The exact numbers in binary64 with one rounding, or the numbers in ``kind`` where it holds them all. Raises
    ``ValueError`` when they overflow, or when a type of fewer bits than float32 would round them.
    """
    with np.errstate(over="ignore"):
        narrow = product.astype(kind)
    wide = narrow.astype(np.float64)
    if not np.all(np.isfinite(wide)):
        raise ValueError(f"a weight is larger than {kind} can be")
    if np.array_equal(wide, product):
        return Constant(name, narrow)
    if kind != np.dtype(np.float32):
        raise ValueError(f"{kind} does not hold the weights exactly")
    return Constant(name, product, roundings=1)


def as_programmed(op: str, domain: str, inputs: Sequence[Value | None], step: Step) -> Step:
    """``step`` with the roundings of its constants; outside the operators that only multiply or add them, float32
    programs round in a way that is not known (binary64 holds the exact numbers)."""
    count = sum(value.roundings for value in inputs if isinstance(value, Constant))
    if not count or step.rounding is None:
        return step
    if not domain and op in FACTORED and step.rounding.terms:
        return replace(step, rounding=replace(step.rounding, terms=step.rounding.terms + count))
    return in_binary64_only(step)


def in_binary64_only(step: Step) -> Step:
    """``step`` with an error that is known for the float64 program and for no other."""
    if step.rounding is None or (step.rounding.only and "f64" not in step.rounding.only):
        return replace(step, rounding=None)
    return replace(step, rounding=replace(step.rounding, only=("f64",)))
