"""Sums, products with constants, maxima: operators with several operands that may broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.norms import Gains, Norm, PerNorm, constant_norm, replication
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, frobenius, largest
from lipdeploy.verify.rounding import div_up
from lipdeploy.verify.rules.broadcast import Side, common, partner
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import EXACT, Rounding, Step


def vector_norms(values: Array) -> PerNorm:
    """ℓ1, ℓ2 and ℓ∞ norms of all entries, rounded up. Copies that broadcasting makes are counted, not written out."""
    copied = [stride == 0 and size > 1 for stride, size in zip(values.strides, values.shape, strict=True)]
    copies = math.prod(size for size, repeats in zip(values.shape, copied, strict=True) if repeats)
    row = values[tuple(slice(0, 1) if repeats else slice(None) for repeats in copied)].reshape(1, -1)
    norms = {Norm.L1: Bound(float(absolute_sums(row, 1)[0])), Norm.L2: frobenius(row), Norm.LINF: Bound(largest(row))}
    return norms if copies == 1 else repeated(norms, copies)


def repeated(norms: PerNorm, copies: int) -> dict[Norm, Bound]:
    """Norms of a vector whose every entry occurs ``copies`` times."""
    return {norm: bound if norm is Norm.LINF else constant_norm(norm, bound, copies) for norm, bound in norms.items()}


def spread(constant: Constant, shape: tuple[int, ...]) -> Array:
    """A constant operand as it meets one sample of the output."""
    values = constant.float64()
    if values.ndim > len(shape):
        values = values.reshape(values.shape[1:])
    return np.broadcast_to(values, shape)


def scaled(gains: Gains, factor: Bound) -> Gains:
    """Every gain times ``factor``."""
    return {pair: gain * factor for pair, gain in gains.items()}


@rule("Add", "Sub", "Sum", inputs=64)
def addition(call: Call) -> Step:
    """‖Δ(a ± b)‖ ≤ ‖Δa‖ + ‖Δb‖; a constant summand moves nothing. Data that broadcasts is copied: √m, 1, m."""
    flows = call.flows()
    constants = [value for value in map(call.optional, range(len(call.inputs))) if isinstance(value, Constant)]
    if not flows or (constants and len(flows) > 1):
        raise call.refuse("LIP002", "mixes several activations with constants; add the constant by itself")
    if constants and len(constants) > 1:
        raise call.refuse("LIP002", "adds several constants at once")
    terms = max(1, len(call.inputs) - 1)
    if constants:
        side = partner(call, flows[0], constants[0])
        offset = vector_norms(spread(constants[0], side.shape))
        rounding = Rounding(terms=terms, offset=offset, underflow=1.0, peak=(ONE, offset[Norm.LINF]))
        return Step(side.shape, (replication(side.copies),), "constant shift", at_zero=offset, rounding=rounding)
    sides = common(call, flows)
    gains = tuple(replication(side.copies) for side in sides)
    return Step(sides[0].shape, gains, "sum", rounding=Rounding(terms=terms, underflow=float(terms), stored=terms))


@rule("Mul", inputs=2)
def multiplication(call: Call) -> Step:
    """A constant diagonal: max |c|. A product of two activations is not globally Lipschitz."""
    return _diagonal(call, _single_constant(call), "max |c|")


@rule("Div", inputs=2)
def division(call: Call) -> Step:
    """Division by a constant: 1 / min |c|."""
    if isinstance(call.optional(1), Constant):
        return _diagonal(call, call.required_constant(1), "1 / min |c|")
    raise call.refuse("LIP010", "divides by an activation")


def _single_constant(call: Call) -> Constant:
    constants = [value for value in map(call.optional, range(2)) if isinstance(value, Constant)]
    if not constants:
        raise call.refuse("LIP004", "multiplies two activations")
    return constants[0]


def _diagonal(call: Call, constant: Constant, name: str) -> Step:
    side = partner(call, call.flows()[0], constant)
    values = constant.float64()
    if call.op == "Div":
        smallest = float(np.abs(values).min(initial=np.inf))
        if smallest == 0.0:
            raise call.refuse("LIP003", "divides by a stored zero")
        factor = Bound(div_up(1.0, smallest))
    else:
        factor = Bound(largest(values))
    rounding = Rounding(terms=1, underflow=1.0, peak=(max(factor, ONE), ZERO))
    return Step(side.shape, (scaled(replication(side.copies), factor),), name, rounding=rounding)


def _aligned(call: Call, flows: tuple[Flow, ...], constants: Sequence[Constant]) -> list[Side]:
    """The data operands next to each other and to constants, which may be larger than they are."""
    shape = flows[0].shape
    for constant in constants:
        shape = partner(call, replace(flows[0], shape=shape), constant).shape
    return common(call, (*flows, replace(flows[0], shape=shape)))[:-1]


@rule("Max", "Min", inputs=64)
def extremum(call: Call) -> Step:
    """|max(a, b) − max(a', b')| ≤ max(|a − a'|, |b − b'|), so the operands' norms stack: √Σ², max, Σ."""
    flows = call.flows()
    constants = [value for value in map(call.optional, range(len(call.inputs))) if isinstance(value, Constant)]
    sides = _aligned(call, flows, constants)
    shape = sides[0].shape
    at_zero: dict[Norm, Bound] = {}
    for constant in constants:
        for norm, bound in vector_norms(spread(constant, shape)).items():
            at_zero[norm] = at_zero.get(norm, ZERO) + bound
    gains = tuple(replication(side.copies) for side in sides)
    return Step(shape, gains, "componentwise extremum", join="stack", at_zero=at_zero, rounding=EXACT)


@rule("Where", inputs=3)
def where(call: Call) -> Step:
    """A stored mask takes every entry from one operand, so the operands' norms stack: √Σ², max, Σ."""
    condition = call.optional(0)
    if not isinstance(condition, Constant):
        raise call.refuse("LIP010", "chooses by a condition that depends on the input: the result may jump")
    if condition.array.dtype != np.bool_:
        raise call.refuse("LIP013", "the condition is not boolean")
    flows = call.flows()
    stored = [value for value in map(call.optional, (1, 2)) if isinstance(value, Constant)]
    sides = _aligned(call, flows, [condition, *stored])
    at_zero: dict[Norm, Bound] = {}
    for constant in stored:
        at_zero = dict(vector_norms(spread(constant, sides[0].shape)))
    gains = tuple(replication(side.copies) for side in sides)
    return Step(sides[0].shape, gains, "selection by a mask", join="stack", at_zero=at_zero, rounding=EXACT)


@rule("Mean", inputs=64)
def mean(call: Call) -> Step:
    """(Σ aᵢ)/n: every operand counts 1/n."""
    flows = call.flows()
    if len(flows) < len(call.inputs):
        raise call.refuse("LIP002", "averages activations with constants")
    sides, count = common(call, flows), len(flows)
    share = Bound(div_up(1.0, float(count)))
    gains = tuple(scaled(replication(side.copies), share) for side in sides)
    peak = (ONE, ZERO)  # one operand after the other is added: at most their sum
    rounding = Rounding(terms=count + 1, underflow=float(count + 1), peak=peak, stored=count)
    return Step(sides[0].shape, gains, "mean", rounding=rounding)
