"""How far a float program can be from the real-valued network: e(x) ≤ c0 + c1·‖x‖, for every x with ‖x‖ ≤ x_max.

Norm-only forward analysis (docs/mathematics.md, F1): with m ≥ ‖x̂‖ the size of a node's computed input and e its
error, the output errs by at most ‖op‖·e + γ_k(‖|op|‖·(m + e) + ‖offset‖) + underflow. Valid for any order of
summation, fused or not, any batch size and number of threads. One law for all nodes; rules only describe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lipdeploy.verify.bound import ZERO, Bound
from lipdeploy.verify.graph import Flow
from lipdeploy.verify.norms import Gains, Norm, constant_norm
from lipdeploy.verify.rounding import down, fraction_up, gamma_up
from lipdeploy.verify.step import Rounding, Step, merge
from lipdeploy.verify.verdict import ErrorBound


@dataclass(frozen=True)
class Precision:
    """A floating-point format: unit roundoff, smallest normal number, half of the largest finite number.

    ``factors`` and ``results`` are the relative roundings of both factors on their way into an operator that computes,
    and of what is stored after it; where there are any, ``unit`` is that of the float32 sums in between, which a tensor
    core truncates and aligns (twice the γ of eight more terms: Fasi, Higham, Mikaitis & Pranesh 2021).
    """

    mode: str
    unit: float
    tiny: float
    half_max: float
    factors: float = 0.0
    results: float = 0.0

    def relative(self, terms: int, stored: int = 1) -> float:
        """How far a computed sum of ``terms`` terms can be off, relative to the sum of their absolute values.

        ``stored`` results are written to memory on the way.
        """
        if not self.factors:
            return gamma_up(terms, self.unit)
        factors, results = 1 + Fraction(self.factors), 1 + Fraction(self.results)
        sums = gamma_up(terms + ALIGNMENT, self.unit)
        if not math.isfinite(sums):
            return sums
        return fraction_up(factors**2 * (1 + 2 * Fraction(sums)) * results**stored - 1)

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether every number of a constant is stored as it is: else the program is another network's."""
        if not self.results or array.dtype.kind in "iubO":
            return True
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
            if self.mode == "f16":
                narrow = narrow.astype(np.float16).astype(np.float32)
            else:
                narrow = (narrow.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return bool(np.array_equal(narrow.astype(np.float64), array.astype(np.float64)))


ALIGNMENT = 8  # more terms than there are, for the partial sums that a tensor core aligns before it adds them
#: ``f32`` and ``f64`` answer in the serving modes; the others say what a radius would cost there. TF32: float32 stored,
#: factors cut to 11 bits (the hardware may drop the rest, so 2⁻¹⁰ and not half of it). f16, bf16: all is stored so.
PRECISIONS = (
    Precision("f32", 2.0**-24, 2.0**-126, 2.0**126),
    Precision("f64", 2.0**-53, 2.0**-1022, 2.0**1022),
    Precision("tf32", 2.0**-24, 2.0**-126, 2.0**126, factors=2.0**-10),
    Precision("f16", 2.0**-24, 2.0**-14, 2.0**14, factors=2.0**-11, results=2.0**-11),
    Precision("bf16", 2.0**-24, 2.0**-126, 2.0**126, factors=2.0**-8, results=2.0**-8),
)


@dataclass(frozen=True)
class Affine:
    """constant + slope·t, an upper bound as a function of t = ‖x‖."""

    constant: Bound
    slope: Bound

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.constant + other.constant, self.slope + other.slope)

    def scaled(self, factor: Bound) -> Affine:
        """factor × this."""
        return Affine(self.constant * factor, self.slope * factor)


NOTHING = Affine(ZERO, ZERO)


@dataclass(frozen=True)
class ErrorState:
    """Error of one tensor in one program: per norm, and the ‖x‖ up to which nothing before it overflows."""

    errors: Mapping[Norm, Affine]
    x_max: float


def received_input(norms: Iterable[Norm], size: int, precision: Precision) -> ErrorState:
    """The program receives its ``size`` input values exactly, or stores them rounded (relative, or flushed to zero)."""
    if not precision.results:
        return ErrorState({norm: NOTHING for norm in norms}, math.inf)
    stored = {
        norm: Affine(constant_norm(norm, Bound(precision.tiny), size), Bound(precision.results)) for norm in norms
    }
    return ErrorState(stored, precision.half_max)


def propagate(
    step: Step, flows: Sequence[Flow], states: Sequence[ErrorState | None], precision: Precision, norms: Sequence[Norm]
) -> ErrorState | None:
    """Error after the step; ``None`` once some rounding on the way is unknown."""
    known = [state for state in states if state is not None]
    rounding = step.rounding
    if rounding is None or len(known) < len(states) or (rounding.only and precision.mode not in rounding.only):
        return None
    before = [_sizes(flow, state) for flow, state in zip(flows, known, strict=True)]
    absolute = step.gains if rounding.gains is None else rounding.gains
    carried = _joined(step, step.gains, [state.errors for state in known], norms)
    local = _joined(step, absolute, before, norms) if rounding.terms else {}
    size = math.prod(step.shape)
    errors = {
        norm: carried[norm] + _local(rounding, local.get(norm), norm, size, precision)
        for norm in carried
        if not rounding.terms or norm in local
    }
    if precision.factors and rounding.terms:
        flushed = _flushed(step, absolute, flows, before, precision, norms)
        errors = {norm: error + flushed[norm] for norm, error in errors.items() if norm in flushed}
    limits = [state.x_max for state in known]
    return ErrorState(_relax(errors), min([*limits, _domain(rounding, before, precision)]))


def output_error(state: ErrorState | None) -> ErrorBound | None:
    """The bound for each single output entry (ℓ∞ over the outputs)."""
    if state is None or Norm.LINF not in state.errors or not state.x_max > 0.0:
        return None
    error = state.errors[Norm.LINF]
    if not (error.constant.is_finite and error.slope.is_finite):
        return None
    return ErrorBound(error.constant.value, error.slope.value, state.x_max)


def _sizes(flow: Flow, state: ErrorState) -> dict[Norm, Affine]:
    """Bounds of ‖x̂‖: the real tensor's size plus its error."""
    return {
        norm: Affine(flow.at_zero[norm], flow.lipschitz[norm]) + state.errors[norm]
        for norm in state.errors
        if norm in flow.lipschitz
    }


def _joined(
    step: Step, gains: Sequence[Gains], inputs: Sequence[Mapping[Norm, Affine]], norms: Sequence[Norm]
) -> dict[Norm, Affine]:
    pieces = [_apply(gain, bounds, norms) for gain, bounds in zip(gains, inputs, strict=True)]
    shared = [norm for norm in norms if all(norm in piece for piece in pieces)]
    return {
        norm: Affine(
            merge(step.join, norm, [piece[norm].constant for piece in pieces]),
            merge(step.join, norm, [piece[norm].slope for piece in pieces]),
        )
        for norm in shared
    }


def _apply(gains: Gains, bounds: Mapping[Norm, Affine], norms: Sequence[Norm]) -> dict[Norm, Affine]:
    """One path per output norm: mixing the constant of one path with the slope of another would prove nothing."""
    result = {}
    for out in norms:
        paths = [bounds[q].scaled(gain) for (q, target), gain in gains.items() if target is out and q in bounds]
        if paths:
            result[out] = min(paths, key=_size_at_one)
    return result


def _size_at_one(affine: Affine) -> Bound:
    return affine.constant + affine.slope


def _relax(errors: dict[Norm, Affine]) -> dict[Norm, Affine]:
    """‖·‖∞ ≤ ‖·‖2 ≤ ‖·‖1: take the better of a norm's own path and a stronger norm's."""
    best: Affine | None = None
    for norm in (Norm.L1, Norm.L2, Norm.LINF):
        if norm in errors:
            best = errors[norm] if best is None else min(best, errors[norm], key=_size_at_one)
            errors[norm] = best
    return errors


def _local(rounding: Rounding, size: Affine | None, norm: Norm, entries: int, precision: Precision) -> Affine:
    if size is None:
        return NOTHING
    gamma = Bound(precision.relative(rounding.terms, rounding.stored))
    offset = rounding.offset.get(norm, ZERO) * gamma
    underflow = constant_norm(norm, Bound(rounding.underflow) * Bound(precision.tiny), entries)
    return size.scaled(gamma) + Affine(offset + underflow, ZERO)


def _flushed(
    step: Step,
    absolute: Sequence[Gains],
    flows: Sequence[Flow],
    before: Sequence[Mapping[Norm, Affine]],
    precision: Precision,
    norms: Sequence[Norm],
) -> dict[Norm, Affine]:
    """What is lost when numbers below the smallest normal one become zero on their way in or out.

    Values on their way in: |op| applied to them. Weights: each output loses at most tiny·‖x̂‖₁ ≤ tiny·n·‖x̂‖∞. Results:
    tiny each. All of it twice, because it is rounded on.
    """
    tiny, entries = Bound(2.0 * precision.tiny), math.prod(step.shape)
    values = [{norm: Affine(constant_norm(norm, tiny, flow.size), ZERO) for norm in norms} for flow in flows]
    lost = _joined(step, absolute, values, norms)
    weights = NOTHING
    for flow, sizes in zip(flows, before, strict=True):
        if Norm.LINF not in sizes:
            return {}
        weights = weights + sizes[Norm.LINF].scaled(tiny * Bound(float(flow.size)))
    every = weights + Affine(tiny, ZERO)
    return {norm: loss + every.scaled(constant_norm(norm, Bound(1.0), entries)) for norm, loss in lost.items()}


def _domain(rounding: Rounding, before: Sequence[Mapping[Norm, Affine]], precision: Precision) -> float:
    """The largest ‖x‖ for which no intermediate result exceeds half of the largest finite number."""
    gain, offset = rounding.peak
    peak = Affine(offset, ZERO)
    for sizes in before:
        if Norm.LINF not in sizes:
            return 0.0
        peak = peak + sizes[Norm.LINF].scaled(gain)
    room = down(precision.half_max - peak.constant.value)
    if not room > 0.0:
        return 0.0
    return math.inf if peak.slope.value == 0.0 else down(room / peak.slope.value)
