"""Householder's NumPy meaning against the published two-branch form, the pinned formula, and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lipdeploy.ops import OPERATORS
from tests.ops.cases import REFLECT_CASES, TYPES, ReflectCase, bits, reflect_angles, reflect_input, values

householder = OPERATORS["Householder"].evaluate
Array = np.ndarray[Any, Any]


def pairs_of(case: ReflectCase) -> list[tuple[int, int]]:
    """The definition aloud: which two channels form pair i."""
    if case.layout == 1:
        return [(i, i + case.pairs) for i in range(case.pairs)]
    return [(2 * i, 2 * i + 1) for i in range(case.pairs)]


def pinned(a: Any, b: Any, s: Any, c: Any, work: type) -> tuple[Any, Any]:
    """One rounding a line, on scalars."""
    a, b, s, c = work(a), work(b), work(s), work(c)
    with np.errstate(all="ignore"):
        far = a * s
        near = b * c
        beyond = far - near
        m = work(0) if beyond <= 0 else beyond
        twice = m + m
        down = s * twice
        up = c * twice
        return a - down, b + up


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", REFLECT_CASES, ids=str)
def test_follows_the_pinned_formula_bit_for_bit(case: ReflectCase, type_name: str) -> None:
    dtype = TYPES[type_name][0]
    work = np.float64 if type_name == "f64" else np.float32
    x, (sine, cosine) = reflect_input(case, dtype, special=True), reflect_angles(case, dtype)
    moved = np.moveaxis(x, case.axis, 0)
    want = np.empty_like(moved)
    for i, (first, second) in enumerate(pairs_of(case)):
        for place in np.ndindex(moved.shape[1:]):
            a, b = pinned(moved[first][place], moved[second][place], sine[i], cosine[i], work)
            want[(first, *place)], want[(second, *place)] = a.astype(dtype), b.astype(dtype)
    want[np.isnan(values(want))] = np.full(1, np.nan, dtype)[0]
    got = householder(x, sine, cosine, **case.attributes)
    np.testing.assert_array_equal(bits(np.moveaxis(got, case.axis, 0)), bits(want))


def test_is_the_published_activation() -> None:
    """Singla et al.: unchanged where a·sin(θ/2) ≤ b·cos(θ/2), else (a cos θ + b sin θ, a sin θ − b cos θ)."""
    rng = np.random.default_rng(0)
    theta, x = rng.uniform(-7, 7, 50), rng.standard_normal((200, 100))
    a, b = x[:, :50], x[:, 50:]
    kept = a * np.sin(theta / 2) <= b * np.cos(theta / 2)
    want = np.concatenate(
        [
            np.where(kept, a, a * np.cos(theta) + b * np.sin(theta)),
            np.where(kept, b, a * np.sin(theta) - b * np.cos(theta)),
        ],
        axis=1,
    )
    np.testing.assert_allclose(householder(x, np.sin(theta / 2), np.cos(theta / 2)), want, atol=1e-14)


def test_a_quarter_turn_sorts() -> None:
    x = np.random.default_rng(0).standard_normal((50, 8))
    half = np.full(4, np.sqrt(0.5))
    for layout in (0, 1):
        want = OPERATORS["GroupSort"].evaluate(x, group_size=2, layout=layout)
        np.testing.assert_allclose(householder(x, half, half, layout=layout), want, atol=1e-15)


def exact(a: Fraction, b: Fraction, s: Fraction, c: Fraction) -> tuple[Fraction, Fraction]:
    m = max(Fraction(0), a * s - b * c)
    return a - 2 * s * m, b + 2 * c * m


@pytest.mark.parametrize("type_name", ["f32", "f64"])
def test_error_stays_within_the_documented_bound(type_name: str) -> None:
    dtype = TYPES[type_name][0]
    v = Fraction(1, 2**24 if type_name == "f32" else 2**53)
    tiny = Fraction(float(np.finfo(dtype).tiny))
    gamma = 4 * v / (1 - 4 * v)
    rng = np.random.default_rng(3)
    worst = Fraction(0)
    for _ in range(3000):
        half = rng.uniform(-4, 4)
        scale = rng.choice([1.0, 0.3, 5.0])
        s, c = dtype.type(scale * np.sin(half)), dtype.type(scale * np.cos(half))
        radius = 10.0 ** rng.uniform(-42 if type_name == "f32" else -312, 4)
        # on the line, and a little beside it
        along = half + rng.choice([0.0, 1e-7, -1e-7, rng.uniform(-4, 4)])
        x = np.array([[radius * np.cos(along), radius * np.sin(along)]]).astype(dtype)
        got = householder(x, np.array([s]), np.array([c]))[0]
        a, b, sf, cf = (Fraction(float(value)) for value in (x[0, 0], x[0, 1], s, c))
        common = abs(a * sf) + abs(b * cf)
        floor = (4 + 8 * max(abs(sf), abs(cf))) * tiny
        for result, want, own, angle in zip(got, exact(a, b, sf, cf), (a, b), (sf, cf), strict=True):
            bound = gamma * (abs(own) + 2 * abs(angle) * common) + floor
            error = abs(Fraction(float(result)) - want)
            assert error <= bound
            worst = max(worst, error / bound)
    assert worst > Fraction(1, 20)  # the bound is not idle either


def test_sixteen_bits_round_once() -> None:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        case = ReflectCase((64, 32))
        x, (sine, cosine) = reflect_input(case, dtype, special=False), reflect_angles(case, dtype)
        wide = householder(x.astype(np.float32), sine.astype(np.float32), cosine.astype(np.float32))
        np.testing.assert_array_equal(bits(householder(x, sine, cosine)), bits(wide.astype(dtype)))


def test_shape_and_type_errors_say_what_was_found() -> None:
    x, half = np.zeros((2, 6), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match="5 channels do not form pairs"):
        householder(np.zeros((2, 5), np.float32), half, half)
    with pytest.raises(ValueError, match=r"cosine must have shape \(3,\), found \(2,\)"):
        householder(x, half, half[:2])
    with pytest.raises(ValueError, match="sine is float64, the input is float32"):
        householder(x, half.astype(np.float64), half)
    with pytest.raises(ValueError, match="axis 2 does not exist"):
        householder(x, half, half, axis=2)
