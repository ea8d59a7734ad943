"""LinearSpline's NumPy meaning against np.interp, against the formula step by step, and against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor, inf, isinf, isnan

import ml_dtypes
import numpy as np
import pytest

from lipdeploy.ops import OPERATORS
from tests.ops.cases import SPLINE_CASES, TYPES, SplineCase, bits, spline_coefficients, spline_input, values

linear_spline = OPERATORS["LinearSpline"].evaluate


def row_of(case: SplineCase, table: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    return table[0 if case.shared else index[case.axis]]


@pytest.mark.parametrize("case", SPLINE_CASES, ids=str)
def test_interpolates_as_np_interp_does(case: SplineCase) -> None:
    x = spline_input(case, np.dtype(np.float64), special=False)
    table = spline_coefficients(case, x.dtype)
    a = case.attributes
    knots = a["lower"] + np.arange(case.knots) * a["knot_spacing"]
    x = np.clip(x, knots[0], knots[-1])
    y = linear_spline(x, table, **a)
    for index in np.ndindex(x.shape):
        want = np.interp(x[index], knots, row_of(case, table, index))
        assert y[index] == pytest.approx(want, rel=1e-9, abs=1e-9)


def pinned(x: float, row: np.ndarray, lower: float, h: float, work: type) -> float:
    """Design section 2, one rounding a line, on scalars."""
    x, lower, h = work(x), work(lower), work(h)
    with np.errstate(all="ignore"):
        q = (x - lower) / h
        last = len(row) - 2
        k = 0 if isnan(q) or q == -inf else last if q == inf else min(max(floor(q), 0), last)
        kh = work(k) * h
        t = lower + kh
        left, right = work(row[k]), work(row[k + 1])
        rise = right - left
        offset = x - t
        if rise == 0 and isinf(offset):
            return left
        product = offset * rise
        return left + product / h


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SPLINE_CASES, ids=str)
def test_follows_the_pinned_formula_bit_for_bit(case: SplineCase, type_name: str) -> None:
    dtype = TYPES[type_name][0]
    work = np.float64 if type_name == "f64" else np.float32
    x = spline_input(case, dtype, special=True)
    table = spline_coefficients(case, dtype)
    y = linear_spline(x, table, **case.attributes)
    a = case.attributes
    want = np.empty_like(x)
    for index in np.ndindex(x.shape):
        want[index] = pinned(x[index], row_of(case, table, index), a["lower"], a["knot_spacing"], work)
    want[np.isnan(values(want))] = np.full(1, np.nan, dtype)[0]
    np.testing.assert_array_equal(bits(y), bits(want))


def test_attributes_are_float32_numbers_in_float64_too() -> None:
    x, table = np.linspace(-1, 1, 50)[None], np.random.default_rng(0).standard_normal((1, 21))
    plain = linear_spline(x, table, lower=-1.0, knot_spacing=0.1)
    stored = linear_spline(x, table, lower=-1.0, knot_spacing=float(np.float32(0.1)))
    np.testing.assert_array_equal(plain, stored)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("rise", "want"), [(1.0, np.inf), (-2.0, -np.inf), (0.0, 0.5)])
def test_infinity_follows_the_end_slope(sign: int, rise: float, want: float) -> None:
    ends = [0.5, 0.5 + rise]
    coefficients = np.array([[*ends, 3.0, *ends] if sign > 0 else [*ends[::-1], 3.0, *ends[::-1]]])
    y = linear_spline(np.array([[sign * np.inf]]), coefficients, lower=-1.0, knot_spacing=0.5)
    assert y[0, 0] == want


def test_shape_and_type_errors_say_what_was_found() -> None:
    x = np.zeros((2, 4), np.float32)
    a = {"lower": 0.0, "knot_spacing": 1.0}
    with pytest.raises(ValueError, match=r"must have shape \(4, K\) or \(1, K\), found \(3, 5\)"):
        linear_spline(x, np.zeros((3, 5), np.float32), **a)
    with pytest.raises(ValueError, match="knots, found 1"):
        linear_spline(x, np.zeros((4, 1), np.float32), **a)
    with pytest.raises(ValueError, match="coefficients are float64, the input is float32"):
        linear_spline(x, np.zeros((4, 5)), **a)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"lower": 0.0}, "attribute 'knot_spacing' is required"),
        ({"lower": 0.0, "knot_spacing": 0.0}, "must be a finite number > 0, found 0.0"),
        ({"lower": 0.0, "knot_spacing": 1e-50}, "must be a finite number > 0"),
        ({"lower": float("nan"), "knot_spacing": 1.0}, "must be a finite number, found nan"),
        ({"lower": 1e39, "knot_spacing": 1.0}, "must be a finite number, found 1e\\+39"),
    ],
)
def test_complete_refuses_bad_attributes(attributes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPERATORS["LinearSpline"].complete(attributes)


def test_complete_rounds_to_what_a_file_stores() -> None:
    assert OPERATORS["LinearSpline"].complete({"lower": -0.1, "knot_spacing": 0.1}) == {
        "lower": float(np.float32(-0.1)),
        "knot_spacing": float(np.float32(0.1)),
        "axis": 1,
    }


def exact(x: Fraction, row: list[Fraction], lower: Fraction, h: Fraction) -> Fraction:
    """The real-valued spline."""
    k = min(max(floor((x - lower) / h), 0), len(row) - 2)
    return row[k] + (x - (lower + k * h)) * (row[k + 1] - row[k]) / h


def gamma(n: int, v: Fraction) -> Fraction:
    return n * v / (1 - n * v)


ROUNDOFF = {"f32": (Fraction(1, 2**24), Fraction(1, 2**149)), "f64": (Fraction(1, 2**53), Fraction(1, 2**1074))}
RESULT = {
    "f16": (Fraction(1, 2**11), Fraction(1, 2**25), ml_dtypes.finfo(np.float16)),
    "bf16": (Fraction(1, 2**8), Fraction(1, 2**134), ml_dtypes.finfo(ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("seed", range(6))
def test_error_stays_below_the_documented_bound(seed: int, type_name: str) -> None:
    """|ŷ − s(x)| ≤ v·max|c| + A·(γ5(|x|+R) + γ6·R) + tiny·(1 + 1/h), plus the rounding of a 16-bit result.

    Inputs lie on and beside the knots, where the computed interval is often the neighbour's, and far outside.
    """
    rng = np.random.default_rng(seed)
    dtype = TYPES[type_name][0]
    v, tiny = ROUNDOFF["f64" if type_name == "f64" else "f32"]
    spacing = float(np.float32(10.0 ** rng.uniform(-4, 1)))
    lower = float(np.float32(rng.choice([0.0, -spacing * 25, rng.uniform(-100, 100)])))
    case = SplineCase((40, 5), 51, lower=lower, knot_spacing=spacing)
    x = spline_input(case, dtype, special=False, seed=seed)
    x = np.where(rng.random(x.shape) < 0.5, np.nextafter(x, dtype.type(np.inf)), x).astype(dtype)
    table = (spline_coefficients(case, dtype, seed=seed) * 10.0 ** rng.uniform(-2, 2)).astype(dtype)
    y = linear_spline(x, table, **case.attributes)
    h, low = Fraction(spacing), Fraction(lower)
    reach = abs(low) + (case.knots - 1) * h
    worst = Fraction(0)
    for index in np.ndindex(x.shape):
        row = [Fraction(float(c)) for c in table[index[1]]]
        point = Fraction(float(x[index]))
        slope = max(abs(b - a) for a, b in pairwise(row)) / h
        bound = v * max(map(abs, row)) + tiny * (1 + 1 / h)
        bound += slope * (gamma(5, v) * (abs(point) + reach) + gamma(6, v) * reach)
        truth = exact(point, row, low, h)
        if type_name in RESULT:
            unit, smallest, _ = RESULT[type_name]
            bound += unit * (abs(truth) + bound) + smallest
        worst = max(worst, abs(Fraction(float(y[index])) - truth) / bound)
    assert 0 < worst <= 1
