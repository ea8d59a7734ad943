"""The liar chooses statistics for which a BatchNormalization's own factor g/√(var + ε) does not fit into float32.

ONNX Runtime folds that factor, and b − mean·factor, before it looks at the data. Where the factor lies below the
smallest normal number it has lost half of its digits, and large data make that visible; where it overflows, or
var + ε does, the answer is NaN or zero for every input. The error constants of the float32 program must cover the
first and cannot exist for the others.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from tests.verify.models import judge, run, single

SHIFT = 400


def batch_norm(g: float, b: float, mean: float, variance: float, epsilon: float):  # type: ignore[no-untyped-def]
    names = zip("gbmv", (g, b, mean, variance), strict=True)
    stored = {name: np.array([value], np.float32) for name, value in names}
    return single("BatchNormalization", (1,), stored, epsilon=epsilon), stored


def exact(stored, epsilon: float, x: float) -> Fraction:  # type: ignore[no-untyped-def]
    """g·(x − mean)/√(var + ε) + b to about 60 digits beyond the point, in whole numbers."""
    g, b, mean, variance = (Fraction(float(stored[name][0])) for name in "gbmv")
    total = (variance + Fraction(float(np.float32(epsilon)))) * (1 << 2 * SHIFT)
    root = Fraction(isqrt(total.numerator // total.denominator), 1 << SHIFT)
    return g * (Fraction(x) - mean) / root + b


@pytest.mark.parametrize(
    ("numbers", "x"),
    [
        ((1e-36, 0.0, 0.0, 1e14, 1e-30), 1e30),
        ((1e-36, 0.0, 0.0, 1e14, 1e-30), 7e35),
        ((1e-36, 0.0, 1e30, 1e14, 1e-30), 1.0),
        ((3e-40, 1e-44, 0.0, 1e6, 0.0), 1e34),
        ((1.5, 0.5, -2.0, 0.25, 1e-5), 3.0),
    ],
)
def test_the_error_covers_a_factor_that_lost_its_digits(numbers: tuple[float, ...], x: float) -> None:
    proto, stored = batch_norm(*numbers)
    verdict, point = judge(proto), float(np.float32(x))
    answer = run(proto, np.array([[x]], np.float32))[0, 0]
    off = abs(Fraction(float(answer)) - exact(stored, numbers[4], point))
    error = verdict.numeric_error["f32"]
    assert error is not None
    assert abs(point) <= error.x_max
    assert off <= Fraction(error.c0) + Fraction(error.c1) * abs(Fraction(point))


@pytest.mark.parametrize("numbers", [(1e30, 0.0, 0.0, 1e-40, 1e-44), (1.0, 0.0, 0.0, 3e38, 3e38)])
def test_no_error_constant_where_the_factor_overflows(numbers: tuple[float, ...]) -> None:
    proto, stored = batch_norm(*numbers)
    answer = float(run(proto, np.array([[1e-13]], np.float32))[0, 0])
    truth = float(exact(stored, numbers[4], 1e-13))
    assert not abs(answer - truth) <= 0.5 * abs(truth)  # NaN, or zero instead of a small number
    assert judge(proto).numeric_error["f32"] is None
