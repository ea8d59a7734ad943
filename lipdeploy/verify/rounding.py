"""Directed rounding for scalars: every ``*_up`` result is at least the exact value, every ``*_down`` at most.

One IEEE-754 operation in round-to-nearest errs by at most half the gap to a neighbour, so one ``nextafter``
after each operation is a proof (Lemma R1 in docs/mathematics.md). Assumption A1: binary64, round-to-nearest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

FORMAT = re.compile(r"\.?(?P<digits>\d*)(?P<kind>[efg]?)")
INFINITY = math.inf
UNIT_ROUNDOFF = 2.0**-53
DIGITS = 17  # tell every binary64 number from its neighbours
LARGEST_POWER, SMALLEST_POWER = 308, -400  # of ten, beyond which every number rounds alike


def up(value: float) -> float:
    """The next binary64 number above ``value``."""
    return math.nextafter(value, INFINITY)


def down(value: float) -> float:
    """The next binary64 number below ``value``."""
    return math.nextafter(value, -INFINITY)


def add_up(*terms: float) -> float:
    """Upper bound of a sum: each partial sum is stepped up where it fell short of the exact one (Knuth's TwoSum)."""
    total = 0.0
    for term in terms:
        rounded = total + term
        back = rounded - total
        short = (total - (rounded - back)) + (term - back)
        total = rounded if short <= 0.0 else up(rounded)
    return total


def mul_up(*factors: float) -> float:
    """Upper bound of a product of non-negative factors; 0 times anything is 0."""
    if 0.0 in factors:
        return 0.0
    product = 1.0
    for factor in factors:
        if factor == 1.0:
            continue
        rounded = product * factor
        exact = product == 1.0 and isinstance(factor, float)
        product = rounded if exact or _reaches(rounded, product, factor) else up(rounded)
    return product


def div_up(numerator: float, denominator: float) -> float:
    """Upper bound of a quotient with ``numerator`` ≥ 0 and ``denominator`` > 0."""
    rounded = numerator / denominator
    if not math.isfinite(rounded):
        return rounded
    if not (math.isfinite(numerator) and math.isfinite(denominator)):
        return up(rounded)
    return rounded if _at_most(numerator, rounded, denominator) else up(rounded)


def sqrt_up(value: float) -> float:
    """Upper bound of a square root."""
    rounded = math.sqrt(value)
    exact = math.isfinite(rounded) and Fraction(rounded) ** 2 >= Fraction(value)
    return rounded if exact else up(rounded)


def _reaches(rounded: float, first: float, second: float) -> bool:
    """Whether a computed product is not below the exact one; infinities and NaN are left as they are."""
    if not math.isfinite(rounded):
        return True
    if not (math.isfinite(first) and math.isfinite(second)):
        return False
    (a, b), (c, d), (e, f) = (value.as_integer_ratio() for value in (rounded, first, second))
    return a * d * f >= c * e * b


def _at_most(value: float, first: float, second: float) -> bool:
    """Whether value ≤ first·second, exactly; all finite."""
    (a, b), (c, d), (e, f) = (number.as_integer_ratio() for number in (value, first, second))
    return a * d * f <= c * e * b


def hypot_up(values: Iterable[float]) -> float:
    """Upper bound of the Euclidean length of non-negative ``values``; one non-zero value is exact."""
    present = [value for value in values if value != 0.0]
    if len(present) <= 1:
        return present[0] if present else 0.0
    largest = max(present)
    if not math.isfinite(largest):
        return INFINITY
    ratios = (div_up(value, largest) for value in present)
    return mul_up(largest, sqrt_up(add_up(*(mul_up(ratio, ratio) for ratio in ratios))))


def fraction_up(value: Fraction) -> float:
    """The smallest binary64 number that is not below ``value``."""
    try:
        nearest = float(value)
    except OverflowError:
        return INFINITY if value > 0 else -down(INFINITY)
    return nearest if not math.isinf(nearest) and Fraction(nearest) >= value else up(nearest)


def fraction_down(value: Fraction) -> float:
    """The largest binary64 number that is not above ``value``; 0 has no sign."""
    return 0.0 - fraction_up(-value)


def gamma_up(terms: int, unit_roundoff: float = UNIT_ROUNDOFF) -> float:
    """γ_k = k·u / (1 − k·u) rounded up (Higham 2002, Lemma 3.1); infinite when k·u ≥ 1."""
    product = Fraction(terms) * Fraction(unit_roundoff)
    return INFINITY if product >= 1 else fraction_up(product / (1 - product))


def decimal_up(value: float, digits: int) -> str:
    """``value`` with ``digits`` significant digits, never below it."""
    return _decimal(value, digits, ROUND_CEILING)


def decimal_down(value: float, digits: int) -> str:
    """``value`` with ``digits`` significant digits, never above it."""
    return _decimal(value, digits, ROUND_FLOOR)


def read_exactly(text: str) -> Fraction | None:
    """The number that ``text`` spells (``0.3``, ``1e-3``, ``8/255``), exactly; ``None`` for anything else.

    Numbers from 10^309 on are ``None``; those below 10^-400 are that, which rounds like them.
    """
    try:
        if "/" in text:
            return Fraction(text)
        number = Decimal(text)
        if not number.is_finite() or number.adjusted() > LARGEST_POWER:
            return None
        if number and number.adjusted() < SMALLEST_POWER:
            return (1 if number > 0 else -1) * Fraction(10) ** SMALLEST_POWER
        return Fraction(number)
    except (ArithmeticError, ValueError):
        return None


def shortest_down(value: float) -> str:
    """The shortest decimal that is not above ``value`` and becomes ``value`` when it is rounded up."""
    texts = (decimal_down(value, digits) for digits in range(1, DIGITS + 1))
    return next((text for text in texts if _spells(text, value, fraction_up)), decimal_down(value, DIGITS))


def shortest_up(value: float) -> str:
    """The shortest decimal that is not below ``value`` and becomes ``value`` when it is rounded down."""
    texts = (decimal_up(value, digits) for digits in range(1, DIGITS + 1))
    return next((text for text in texts if _spells(text, value, fraction_down)), decimal_up(value, DIGITS))


def _spells(text: str, value: float, read: Callable[[Fraction], float]) -> bool:
    exact = read_exactly(text)
    return exact is not None and read(exact) == value


def number_down(value: float) -> float:
    """``value``, or the number before it where the digits that ``repr`` prints are above ``value``."""
    if not math.isfinite(value) or Fraction(repr(value)) <= Fraction(value):
        return value
    return down(value)


def formatted_up(value: float, spec: str) -> str:
    """``format(value, spec)`` that never prints less than ``value``.

    ``spec`` is empty (7 significant digits), a number of significant digits, or ``.Nf``, ``.Ne``, ``.Ng``.
    """
    match = FORMAT.fullmatch(spec)
    if match is None:
        raise ValueError(f"a bound is printed with a format like '', '7', '.3f', '.3e' or '.7g', not {spec!r}")
    digits, kind = int(match["digits"] or 7), match["kind"] or "g"
    if not math.isfinite(value) or kind == "g":
        return decimal_up(value, max(digits, 1))
    if kind == "e":
        return f"{Context(prec=digits + 1, rounding=ROUND_CEILING).create_decimal(Decimal(value)):.{digits}e}"
    return f"{Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING, Context(prec=400)):f}"


def _decimal(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return repr(value)
    rounded = Context(prec=digits, rounding=rounding).create_decimal(Decimal(value))
    return f"{rounded:f}" if 0 <= rounded.adjusted() < DIGITS else f"{rounded:g}"  # 100, not 1e+2
