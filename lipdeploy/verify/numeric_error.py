"""How far a float program can be from the real-valued network: e(x) ≤ c0 + c1·‖x‖, for every x with ‖x‖ ≤ x_max.

Norm-only forward analysis (docs/mathematics.md, F1): with m ≥ ‖x̂‖ the size of a node's computed input and e its
error, the output errs by at most ‖op‖·e + γ_k(‖|op|‖·(m + e) + ‖offset‖) + underflow. Valid for any order of
summation, fused or not, any batch size and number of threads. One law for all nodes; rules only describe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lipdeploy.verify.bound import ZERO, Bound
from lipdeploy.verify.graph import Flow
from lipdeploy.verify.norms import Gains, Norm, constant_norm
from lipdeploy.verify.rounding import down, gamma_up
from lipdeploy.verify.step import Rounding, Step, merge
from lipdeploy.verify.verdict import ErrorBound


@dataclass(frozen=True)
class Precision:
    """A floating-point format: unit roundoff, smallest normal number, half of the largest finite number."""

    mode: str
    unit: float
    tiny: float
    half_max: float


PRECISIONS = (
    Precision("f32", 2.0**-24, 2.0**-126, 2.0**126),
    Precision("f64", 2.0**-53, 2.0**-1022, 2.0**1022),
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


def exact_input(norms: Iterable[Norm]) -> ErrorState:
    """The program receives its input exactly."""
    return ErrorState({norm: NOTHING for norm in norms}, math.inf)


def propagate(
    step: Step, flows: Sequence[Flow], states: Sequence[ErrorState | None], precision: Precision, norms: Sequence[Norm]
) -> ErrorState | None:
    """Error after the step; ``None`` once some rounding on the way is unknown."""
    known = [state for state in states if state is not None]
    if step.rounding is None or len(known) < len(states):
        return None
    rounding = step.rounding
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
    gamma = Bound(gamma_up(rounding.terms, precision.unit))
    offset = rounding.offset.get(norm, ZERO) * gamma
    underflow = constant_norm(norm, Bound(rounding.underflow) * Bound(precision.tiny), entries)
    return size.scaled(gamma) + Affine(offset + underflow, ZERO)


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
