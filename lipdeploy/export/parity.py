"""The file against the torch module, on samples: a gate, not a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from lipdeploy.errors import IntegrityError, LipdeployError

Array = np.ndarray[Any, np.dtype[Any]]
#: Runs a model's bytes on named inputs; ``lipdeploy.cli`` passes one that uses ONNX Runtime.
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], Sequence[Array]]

#: Largest accepted difference, relative to the row's largest output. Both programs round; exact folding adds a little.
TOLERANCE = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-10}
#: Added to that: so many times what torch's own rounding does to the output, where that is known; else relative to 1.
ROUNDINGS = 64
#: Of the largest output: what numbers that were float64 and became float32 explain.
NARROWED = 1e-6
#: The same for weights stored in fewer bits, where the program is another network's: a gate against accidents only.
STORED_TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Parity:
    """How the file's outputs differ from torch's: absolute, in units in the last place, and in the class chosen.

    ``changed`` counts the rows of another class, ``changed_gap`` is the widest lead, in torch, of a class that the file
    did not choose, ``margin_change`` the largest difference of the lead of torch's class over the next.
    """

    max_abs: float
    max_ulp: int
    argmax_agreement: float | None
    samples: int
    changed_gap: float = 0.0
    changed: int = 0
    margin_change: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The ``parity`` object of ``lipdeploy/export-report/v1``."""
        return {"max_abs": self.max_abs, "max_ulp": self.max_ulp, "argmax_agreement": self.argmax_agreement}


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Sequence[Array]:
    """ONNX's reference evaluator: slow, in NumPy, and it runs the function bodies."""
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, dict(feeds))]
    except Exception as error:  # it is a reference, and it does not cover every case of every operator
        raise LipdeployError(
            f"ONNX's reference evaluator cannot run the exported model: {error}",
            hint="compare with ONNX Runtime instead: `lipdeploy export` does, and run= takes any runner",
        ) from error


def compare(expected: Sequence[Array], actual: Sequence[Array], judged: int = 0) -> Parity:
    """Differences between two lists of outputs of equal shapes; rows are samples, classes are of output ``judged``."""
    if [value.shape for value in expected] != [value.shape for value in actual]:
        shapes = f"{[value.shape for value in expected]} and {[value.shape for value in actual]}"
        raise IntegrityError(f"torch and ONNX disagree about the output's shape: {shapes}")
    scores = expected[judged], actual[judged]
    agreement = _argmax_agreement(*scores)
    samples = len(scores[0]) if scores[0].ndim else 0
    return Parity(
        max_abs=max((_max_abs(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0),
        max_ulp=max((_max_ulp(a, b) for a, b in zip(expected, actual, strict=True)), default=0),
        argmax_agreement=agreement,
        samples=samples,
        changed_gap=_changed_gap(*scores),
        changed=0 if agreement is None else round((1.0 - agreement) * samples),
        margin_change=None if agreement is None else _margin_change(*scores),
    )


def require(
    parity: Parity,
    expected: Sequence[Array],
    actual: Sequence[Array],
    tolerance: float | None,
    noise: Sequence[Array] | None = None,
) -> None:
    """Raise ``IntegrityError`` unless the outputs agree within the tolerance and choose the same classes.

    ``noise`` is how far torch's float32 outputs are from its float64 ones, for each row of each (``None``: not known).
    Each row of each output has a tolerance of its own: beside large numbers, small ones would not be compared at all.
    Classes that torch separates by less than twice the usual tolerance are a tie, which either program may break.
    """
    usual = _usual_of_all(expected, noise)
    for ours, theirs, rows in zip(expected, actual, usual, strict=True):
        allowed = rows if tolerance is None else np.full_like(rows, tolerance)
        found = _row_differences(ours, theirs)
        if not (found <= allowed).all():
            worst = int(np.argmax(found - allowed))
            raise IntegrityError(
                f"the exported model differs from the torch module by {found[worst]:.3g} "
                f"in sample {worst} of {parity.samples}; {allowed[worst]:.3g} is allowed",
                hint=_hint(ours, float(found[worst])),
            )
    if parity.changed_gap > 2 * max(float(np.max(rows, initial=0.0)) for rows in usual):
        raise IntegrityError(
            f"the exported model chooses another class than torch, where torch's lead is {parity.changed_gap:.3g}",
            hint="a layer behaves differently in evaluation mode; a larger tolerance does not excuse this",
        )


def _hint(ours: Array, difference: float) -> str:
    """What a difference of this size usually comes from, and what to do."""
    if ours.dtype == np.float64 and difference <= NARROWED * max(1.0, float(largest_in_rows(ours).max(initial=0.0))):
        return (
            "torch writes Python numbers (x * 0.1, those inside GELU, CELU, SELU and Hardswish too) and ONNX keeps "
            "attributes (LeakyReLU's slope) in float32; make yours float64 tensors in the network, export with "
            "dtype='float32' (--dtype float32), or pass tolerance=1e-6 (--tolerance 1e-6)"
        )
    return (
        "a layer behaves differently in evaluation mode, or its hook or adapter computes something else; "
        "pass tolerance= (--tolerance) if this is expected"
    )


def farthest_rows(expected: Sequence[Array], actual: Sequence[Array], noise: Sequence[Array], count: int) -> Array:
    """The rows of outputs with a row per sample that exceed the usual tolerance most, or come next to it."""
    usual = _usual_of_all(expected, noise)
    beyond = [_row_differences(a, b) - rows for a, b, rows in zip(expected, actual, usual, strict=True)]
    return np.sort(np.argsort(-np.max(beyond, axis=0), kind="stable")[:count])


def _usual_of_all(expected: Sequence[Array], noise: Sequence[Array] | None) -> list[Array]:
    return [_usual(value, None if noise is None else noise[k]) for k, value in enumerate(expected)]


def _usual(expected: Array, noise: Array | None) -> Array:
    """The tolerance of each row of an output."""
    largest = largest_in_rows(expected)
    relative = TOLERANCE.get(str(expected.dtype), 0.0)  # whole numbers are equal
    if noise is None:
        return np.full_like(largest, relative * max(1.0, float(largest.max(initial=0.0))))
    return np.asarray(relative * largest + ROUNDINGS * noise)


def largest_in_rows(values: Array) -> Array:
    """(rows,) float64: the largest finite absolute value in each; what has no axis is one row."""
    wide = np.abs(np.where(np.isfinite(values), values, 0.0).astype(np.float64))
    largest: Array = wide.reshape(len(wide) if wide.ndim else 1, -1).max(axis=1, initial=0.0)
    return largest


def _row_differences(expected: Array, actual: Array) -> Array:
    pairs = zip(expected, actual, strict=True) if expected.ndim else [(expected, actual)]
    return np.array([_max_abs(np.asarray(a), np.asarray(b)) for a, b in pairs], dtype=np.float64)


def require_stored(parity: Parity, expected: Sequence[Array], tolerance: float | None, storage: str) -> None:
    """The same for weights stored as ``storage``: they move logits, and so the classes of rows that were near a tie."""
    largest = max((float(np.max(np.abs(value), initial=0.0)) for value in expected), default=0.0)
    usual = STORED_TOLERANCE[storage] * max(1.0, largest)
    allowed = usual if tolerance is None else tolerance
    usual = max(usual, allowed)
    hint = f"pass tolerance= (--tolerance) if {storage} may cost this much, or keep float32"
    if not parity.max_abs <= allowed:
        raise IntegrityError(
            f"with its weights in {storage} the model differs from the torch module by {parity.max_abs:.3g} "
            f"on {parity.samples} samples; {allowed:.3g} is allowed",
            hint=hint,
        )
    if parity.changed_gap > 2 * usual:
        raise IntegrityError(
            f"with its weights in {storage} the model chooses another class than torch, "
            f"where torch's lead is {parity.changed_gap:.3g}",
            hint=hint,
        )


def _margin_change(expected: Array, actual: Array) -> float:
    """How far the lead of torch's class over the best other one moved, at most."""
    pair = [values.astype(np.float64) for values in (expected, actual)]
    if expected.shape[1] == 1:
        leads = [np.abs(pair[0][:, 0]), np.where(pair[0][:, 0] > 0, pair[1][:, 0], -pair[1][:, 0])]
    else:
        rows, best = np.arange(len(expected)), expected.argmax(axis=1)
        leads = []
        for values in pair:
            others = values.copy()
            others[rows, best] = -np.inf
            leads.append(values[rows, best] - others.max(axis=1))
    with np.errstate(invalid="ignore", over="ignore"):
        change = np.abs(leads[0] - leads[1])
    return float(np.max(np.where(np.isfinite(change), change, 0.0), initial=0.0))


def _max_abs(expected: Array, actual: Array) -> float:
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    same = (expected == actual) | np.isnan(expected)
    return float(np.max(np.where(same, 0.0, difference), initial=0.0))


def _max_ulp(expected: Array, actual: Array) -> int:
    if expected.dtype != actual.dtype or expected.dtype not in (np.float32, np.float64):
        return 0
    expected, actual = expected.reshape(-1), actual.reshape(-1)
    differ = ~((expected == actual) | (np.isnan(expected) & np.isnan(actual)))
    pairs = zip(_ordered(expected)[differ].tolist(), _ordered(actual)[differ].tolist(), strict=True)
    return max((abs(a - b) for a, b in pairs), default=0)  # Python integers, because int64 distances overflow


def _ordered(values: Array) -> Array:
    """Integers in the order of the floats, so that neighbours differ by one and −0 equals +0."""
    kind = np.int32 if values.dtype == np.float32 else np.int64
    bits: Array = np.ascontiguousarray(values).view(kind)
    return np.where(np.signbit(values), np.iinfo(kind).min - bits, bits)


def _argmax_agreement(expected: Array, actual: Array) -> float | None:
    if expected.ndim != 2 or not len(expected):
        return None
    if expected.shape[1] == 1:
        return float(np.mean((expected > 0) == (actual > 0)))
    return float(np.mean(expected.argmax(axis=1) == actual.argmax(axis=1)))


def _changed_gap(expected: Array, actual: Array) -> float:
    if expected.ndim != 2 or expected.shape[1] < 2:
        return 0.0
    rows = np.arange(len(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        lead = expected[rows, expected.argmax(axis=1)] - expected[rows, actual.argmax(axis=1)]
    return float(np.max(np.where(np.isnan(lead), 0.0, lead), initial=0.0))  # one row of infinities hides no other
