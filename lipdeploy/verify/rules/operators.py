"""The operators of the lipdeploy domain."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from lipdeploy.ops import DOMAIN, OPERATORS
from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.norms import Norm, constant_norm, diagonal
from lipdeploy.verify.operator_norm.sums import Array, largest
from lipdeploy.verify.rounding import add_up, div_up, fraction_up, mul_up
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import Rounding, Step, one_lipschitz


def _attributes(call: Call) -> dict[str, int | float]:
    specification = OPERATORS[call.op]
    given: dict[str, int | float] = {}
    for attribute in specification.attributes:
        if attribute.name in call.attributes:
            integer = attribute.kind == "int"
            given[attribute.name] = call.integer(attribute.name) if integer else call.real(attribute.name)
    try:
        return specification.complete(given)
    except ValueError as error:
        raise call.refuse("LIP002", str(error)) from error


def _channel_axis(call: Call, flow: Flow, axis: int | float) -> int:
    resolved = call.resolve_axis(int(axis), len(flow.shape) + 1)
    if resolved == 0:
        raise call.refuse("LIP005", "acts along the batch axis")
    return resolved


@rule("GroupSort", attributes=("group_size", "axis", "layout", "descending"), domain=DOMAIN)
def group_sort(call: Call) -> Step:
    """Sorting is 1-Lipschitz in every p-norm (rearrangement inequality); groups are disjoint. Nothing is rounded."""
    flow, attributes = call.flow(), _attributes(call)
    axis = _channel_axis(call, flow, attributes["axis"])
    size, group = flow.shape[axis - 1], int(attributes["group_size"])
    if group and size % group:
        raise call.refuse("LIP002", f"group_size {group} does not divide {size} channels")
    return one_lipschitz(flow.shape, "sorting")


@rule("LinearSpline", attributes=("lower", "knot_spacing", "axis"), inputs=2, domain=DOMAIN)
def linear_spline(call: Call) -> Step:
    """max |c_{k+1} − c_k| / knot_spacing over the stored numbers; end slopes continue outside the knots."""
    flow, attributes = call.flow(0), _attributes(call)
    axis = _channel_axis(call, flow, attributes["axis"])
    coefficients = spline_coefficients(call, flow.shape[axis - 1])
    lower, spacing = float(attributes["lower"]), float(attributes["knot_spacing"])
    slope = Bound(steepest(coefficients, spacing))
    return Step(
        flow.shape,
        (diagonal(slope),),
        "steepest segment",
        at_zero=_at_zero(coefficients, lower, spacing, slope, flow.size),
        rounding=_spline_rounding(coefficients, lower, spacing, slope, flow.size),
    )


def spline_coefficients(call: Call, channels: int) -> Array:
    """The (channels or 1, K) table of values at the knots."""
    coefficients = call.required_constant(1).float64()
    if coefficients.ndim != 2 or coefficients.shape[0] not in (1, channels) or coefficients.shape[1] < 2:
        raise call.refuse(
            "LIP013", f"coefficients of shape {list(coefficients.shape)} do not fit {channels} channels (C or 1, K ≥ 2)"
        )
    return coefficients


def steepest(coefficients: Array, spacing: float) -> float:
    """max |c_{k+1} − c_k| / spacing, exact up to one rounding upwards."""
    steps = np.abs(np.diff(coefficients, axis=1))
    if not np.all(np.isfinite(steps)):
        return math.inf
    near = np.argwhere(steps >= steps.max() * (1.0 - 1e-12))[:64]
    if len(near) == 64:
        return div_up(math.nextafter(float(steps.max()), math.inf), spacing)
    exact = (abs(Fraction(coefficients[c, k + 1]) - Fraction(coefficients[c, k])) for c, k in near)
    return fraction_up(max(exact) / Fraction(spacing))


def _at_zero(coefficients: Array, lower: float, spacing: float, slope: Bound, size: int) -> dict[Norm, Bound]:
    """|s(0)| ≤ |c_k| + slope·|t_k| for the knot t_k nearest to 0."""
    knot = min(max(round(-lower / spacing), 0), coefficients.shape[1] - 1)
    distance = fraction_up(abs(Fraction(lower) + knot * Fraction(spacing)))
    value = Bound(add_up(largest(coefficients[:, knot]), mul_up(slope.value, distance)))
    return {norm: constant_norm(norm, value, size) for norm in Norm}


def _spline_rounding(coefficients: Array, lower: float, spacing: float, slope: Bound, size: int) -> Rounding:
    """|ŷ − s(x̂)| ≤ γ₆(A|x̂| + max|c| + 2AR) + (1 + 1/h) underflow, R = |lower| + (K − 1)h (docs/mathematics.md, F3).

    A neighbouring interval may be selected near a knot; both pieces agree there, which the bound covers.
    """
    reach = add_up(abs(lower), mul_up(float(coefficients.shape[1] - 1), spacing))
    highest = largest(coefficients)
    offset = Bound(add_up(highest, mul_up(2.0, slope.value, reach)))
    inverse = div_up(1.0, spacing)
    growth = max(ONE, Bound(inverse), slope, Bound(2.0 * highest))
    peak_offset = Bound(add_up(mul_up(growth.value, reach), highest))
    return Rounding(
        terms=6,
        offset={norm: constant_norm(norm, offset, size) for norm in Norm},
        underflow=add_up(2.0, mul_up(2.0, inverse)),
        peak=(growth, peak_offset),
    )
