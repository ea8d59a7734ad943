"""The operators of the lipdeploy domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from lipdeploy.ops import DOMAIN, OPERATORS
from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.norms import Gains, Norm, constant_norm, diagonal, per_norm
from lipdeploy.verify.operator_norm.sums import Array, largest
from lipdeploy.verify.rounding import add_up, div_up, fraction_up, mul_up
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import EXACT, Rounding, Step, one_lipschitz

#: Above as many different pairs that may be the largest, their constant is rounded up roughly instead of exactly.
MOST_EXACT_PAIRS = 4096


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
    return one_lipschitz(flow.shape, "sorting", EXACT)


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
        stored=6,
    )


@rule("Householder", attributes=("axis", "layout"), inputs=3, domain=DOMAIN)
def householder(call: Call) -> Step:
    """The larger norm of the two linear pieces I and I − 2vvᵀ, v = (s, −c), over all pairs (docs/mathematics.md, S5).

    The pieces meet where a·s = b·c, so the map is continuous and no chord is stretched more than by one of them. It
    maps zero to zero.
    """
    flow, attributes = call.flow(0), _attributes(call)
    axis = _channel_axis(call, flow, attributes["axis"])
    pairs = _angles(call, flow.shape[axis - 1])
    if not len(pairs):
        return one_lipschitz(flow.shape, "reflections", EXACT)
    return Step(flow.shape, (reflection_gains(pairs),), "reflections", rounding=_reflection_rounding(pairs))


def _angles(call: Call, channels: int) -> Array:
    """(pairs, 2): the stored s and c of each pair, equal rows once."""
    angles = [call.required_constant(index).float64() for index in (1, 2)]
    if channels % 2:
        raise call.refuse("LIP002", f"{channels} channels do not form pairs")
    for name, angle in zip(("sine", "cosine"), angles, strict=True):
        if angle.shape != (channels // 2,):
            raise call.refuse("LIP013", f"{name} of shape {list(angle.shape)} does not fit {channels // 2} pairs")
    pairs = np.abs(np.stack(angles, axis=1))  # signs do not matter below
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def reflection_gains(pairs: Array) -> Gains:
    """max(1, |1 − 2(s² + c²)|) in ℓ2; in ℓ1 and ℓ∞ max(1, |1 − 2s²| + 2|sc|, |1 − 2c²| + 2|sc|).

    I − 2vvᵀ is symmetric, with eigenvalues 1 and 1 − 2(s² + c²), and its rows are its columns. Rows sum to at most √2
    times the ℓ2 norm, and to less for most angles. Exact rationals of the stored numbers, rounded up once.
    """
    s, c = pairs[:, 0], pairs[:, 1]
    with np.errstate(over="ignore", invalid="ignore"):
        squares, cross = s * s + c * c, 2.0 * s * c
        spectral = np.abs(1.0 - 2.0 * squares)
        rows = np.maximum(np.abs(1.0 - 2.0 * s * s), np.abs(1.0 - 2.0 * c * c)) + cross
    l2 = _largest_exactly(spectral, squares, pairs, _spectral)
    linf = _largest_exactly(rows, squares, pairs, _row_sum)
    return per_norm(linf, l2, linf)


def _spectral(s: Fraction, c: Fraction) -> Fraction:
    return abs(1 - 2 * (s * s + c * c))


def _row_sum(s: Fraction, c: Fraction) -> Fraction:
    return max(abs(1 - 2 * s * s), abs(1 - 2 * c * c)) + 2 * s * c


def _largest_exactly(
    rough: Array, squares: Array, pairs: Array, exactly: Callable[[Fraction, Fraction], Fraction]
) -> Bound:
    """The largest of 1 and exactly(s, c), where ``rough`` is the latter to within 2⁻⁴⁸·(1 + s² + c²).

    Pairs whose rough value could be the largest are looked at exactly; if they are many, the rough one is raised.
    """
    if not np.all(np.isfinite(rough)) or not np.all(np.isfinite(squares)):
        return Bound(math.inf)
    slack = 2.0**-47 * (1.0 + squares)
    threshold = float(np.max(rough - slack, initial=1.0))
    near = pairs[rough + slack >= threshold]
    if len(near) > MOST_EXACT_PAIRS:
        return Bound(math.nextafter(max(1.0, float(np.max(rough + 2.0 * slack))), math.inf))
    exact = (exactly(Fraction(float(s)), Fraction(float(c))) for s, c in near)
    return Bound(fraction_up(max([Fraction(1), *exact])))


def _reflection_rounding(pairs: Array) -> Rounding:
    """|ŷ − y| ≤ γ₄·(I + 2|v||v|ᵀ)|x̂| + underflow, entry by entry (docs/mathematics.md, F5)."""
    s, c = pairs[:, 0], pairs[:, 1]
    with np.errstate(over="ignore", invalid="ignore"):
        most, both = np.maximum(s, c), s + c
        rows = add_up(1.0, mul_up(2.0, _raised(most * both)))
        l2 = add_up(1.0, mul_up(2.0, _raised(s * s + c * c)))
    absolute = per_norm(Bound(rows), Bound(min(l2, rows)), Bound(rows))
    # a·s, b·c, their difference and the doubled m stay below 2(|s| + |c|)·‖x̂‖∞, the result below rows·‖x̂‖∞.
    growth = max(Bound(rows), Bound(mul_up(2.0, _raised(both))))
    return Rounding(
        terms=4,
        gains=(absolute,),
        underflow=add_up(4.0, mul_up(8.0, _raised(most))),
        peak=(growth, Bound(0.0)),
        stored=4,
    )


def _raised(values: Array) -> float:
    """Upper bound of non-negative numbers that were computed with at most four roundings each."""
    return add_up(mul_up(largest(values), 1.0 + 2.0**-49), 2.0**-1000)
