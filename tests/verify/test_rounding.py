"""Directed rounding against exact fractions: thousands of random cases at every scale, none on the wrong side."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from lipdeploy.verify.rounding import (
    add_up,
    decimal_down,
    decimal_up,
    div_up,
    down,
    fraction_down,
    fraction_up,
    gamma_up,
    hypot_up,
    mul_up,
    shortest_down,
    shortest_up,
    sqrt_up,
    up,
)

CASES = 10_000
MODERATE, EXTREME = (-300, 300), (-1074, 1023)


def numbers(seed: int, count: int, exponents: tuple[int, int] = MODERATE) -> list[float]:
    """Non-negative numbers of all sizes, zeros, ones and subnormals among them."""
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.uniform(0.5, 1.0, count), rng.integers(*exponents, count))
    special = np.array([0.0, 1.0, 5e-324, 2.0**-1022, 1.0 + 2.0**-52, 1.0 - 2.0**-53])
    chosen = rng.random(count) < 0.05
    return np.where(chosen, special[rng.integers(0, len(special), count)], values).tolist()


def above(result: float, exact: Fraction) -> bool:
    return result == math.inf or Fraction(result) >= exact


def test_sums_are_never_below_the_exact_sum() -> None:
    for a, b, c in zip(numbers(1, CASES), numbers(2, CASES), numbers(3, CASES), strict=True):
        exact = Fraction(a) + Fraction(b) + Fraction(c)
        result = add_up(a, b, c)
        assert above(result, exact)
        assert Fraction(result) <= exact * (1 + Fraction(2) ** -50)


@pytest.mark.parametrize("exponents", [MODERATE, EXTREME])
def test_products_are_never_below_the_exact_product(exponents: tuple[int, int]) -> None:
    for a, b in zip(numbers(4, CASES, exponents), numbers(5, CASES, exponents), strict=True):
        assert above(mul_up(a, b), Fraction(a) * Fraction(b))
    assert mul_up(1e-200, 1e-200) > 0.0, "an underflowing product is not zero"
    assert mul_up(1e200, 1e200) == math.inf


def test_zero_and_one_are_exact() -> None:
    assert mul_up(0.0, math.inf) == 0.0
    assert mul_up(1.0, 0.1) == 0.1
    assert add_up(0.0, 0.1) == 0.1
    assert (sqrt_up(0.0), sqrt_up(1.0), div_up(0.0, 3.0)) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("exponents", [MODERATE, EXTREME])
def test_quotients_are_never_below_the_exact_quotient(exponents: tuple[int, int]) -> None:
    for a, b in zip(numbers(6, CASES, exponents), numbers(7, CASES, exponents), strict=True):
        if b > 0.0:
            assert above(div_up(a, b), Fraction(a) / Fraction(b))


@pytest.mark.parametrize("exponents", [MODERATE, EXTREME])
def test_square_roots_are_never_below_the_exact_root(exponents: tuple[int, int]) -> None:
    for value in numbers(8, CASES, exponents):
        assert Fraction(sqrt_up(value)) ** 2 >= Fraction(value)


@pytest.mark.parametrize("exponents", [MODERATE, EXTREME])
def test_lengths_are_never_below_the_exact_length(exponents: tuple[int, int]) -> None:
    triples = zip(numbers(9, 3000, exponents), numbers(10, 3000, exponents), numbers(11, 3000, exponents), strict=True)
    for triple in triples:
        result = hypot_up(triple)
        assert result == math.inf or Fraction(result) ** 2 >= sum(Fraction(v) ** 2 for v in triple)


def test_length_of_one_number_is_exact() -> None:
    assert hypot_up([0.0, 0.3, 0.0]) == 0.3


def test_fractions_round_to_the_next_float() -> None:
    rng = np.random.default_rng(12)
    for top, bottom in rng.integers(1, 2**62, (CASES, 2)).tolist():
        exact = Fraction(top, bottom) * Fraction(2) ** int(rng.integers(-900, 900))
        high, low = fraction_up(exact), fraction_down(exact)
        assert Fraction(low) <= exact <= Fraction(high)
        assert high <= up(low)
    assert fraction_up(Fraction(0.1)) == 0.1 == fraction_down(Fraction(0.1))
    assert fraction_up(Fraction(10) ** 400) == math.inf
    assert fraction_up(-(Fraction(10) ** 400)) == -down(math.inf)
    assert fraction_down(Fraction(10) ** 400) == down(math.inf)
    assert fraction_up(Fraction(1, 10**400)) == 5e-324
    for small in (Fraction(1, 10**400), Fraction(0)):  # shares are printed
        assert str(fraction_down(small)) == "0.0"


@pytest.mark.parametrize("unit", [2.0**-53, 2.0**-24])
def test_gamma_is_above_its_definition(unit: float) -> None:
    for terms in (1, 2, 3, 10, 784, 4096, 10**6):
        exact = terms * Fraction(unit) / (1 - terms * Fraction(unit))
        assert exact <= Fraction(gamma_up(terms, unit)) <= exact * (1 + Fraction(2) ** -50)
    assert gamma_up(2**24, 2.0**-24) == math.inf, "no bound once k·u reaches 1"


@pytest.mark.parametrize("convert", [decimal_up, decimal_down])
def test_decimals_stay_on_their_side(convert: Callable[[float, int], str]) -> None:
    for value in [*numbers(13, 3000, (-1000, 1000)), 1e22, 123456789.0, 1.0, 0.1, 1.0000004]:
        for digits in (3, 7, 17):
            text = convert(value, digits)
            exact = Fraction(Decimal(text))
            assert exact >= Fraction(value) if convert is decimal_up else exact <= Fraction(value)
            assert abs(exact - Fraction(value)) <= Fraction(value) * Fraction(10) ** (1 - digits)


def test_bounds_print_upwards() -> None:
    assert decimal_up(1.00000412, 7) == "1.000005"


@pytest.mark.parametrize(
    ("value", "text"), [(100.0, "100"), (1000.0, "1000"), (0.5, "0.5"), (1e16, "10000000000000000"), (1e17, "1e+17")]
)
def test_what_people_read_has_no_needless_exponent(value: float, text: str) -> None:
    assert shortest_up(value) == text
    assert shortest_down(value) == text
