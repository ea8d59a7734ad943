"""Slopes of activations, recomputed with mpmath: the rule is never below the largest slope, nor much above it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.verify.models import bound, codes, judge, run, single

Function = Callable[[Any], Any]


def gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


SMOOTH: dict[str, Function] = {
    "Tanh": mpmath.tanh,
    "Sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "Softplus": lambda x: mpmath.log(1 + mpmath.exp(x)),
    "Softsign": lambda x: x / (1 + abs(x)),
    "Erf": mpmath.erf,
    "Sin": mpmath.sin,
    "Cos": mpmath.cos,
    "Atan": mpmath.atan,
    "Asinh": mpmath.asinh,
    "Mish": lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x))),
    "HardSwish": lambda x: x * max(mpmath.mpf(0), min(mpmath.mpf(1), x / 6 + mpmath.mpf(1) / 2)),
}


def largest_slope(function: Function) -> Any:
    """max |φ'| over [−30, 30] to about 25 digits: a grid, then golden-section search around its best points."""
    with mpmath.workdps(40):
        slope = lambda x: abs(mpmath.diff(function, x, h=mpmath.mpf("1e-12")))
        grid = [mpmath.mpf(i) / 16 + mpmath.mpf("1e-6") for i in range(-480, 481)]
        values = [slope(x) for x in grid]
        best = max(range(len(grid)), key=values.__getitem__)
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        golden = (mpmath.sqrt(5) - 1) / 2
        for _ in range(60):
            a, b = high - golden * (high - low), low + golden * (high - low)
            low, high = (low, b) if slope(a) > slope(b) else (a, high)
        return max(slope((low + high) / 2), *values)


@pytest.mark.parametrize("operator", sorted(SMOOTH))
def test_smooth_activations(operator: str) -> None:
    truth = largest_slope(SMOOTH[operator])
    for norm in ("l2", "linf", "l1"):
        proven = bound(single(operator, (3,)), norm)
        assert proven >= truth * (1 - mpmath.mpf("1e-11")), float(truth)
        assert proven <= truth * (1 + mpmath.mpf("1e-3")), float(truth)


@pytest.mark.parametrize(
    ("form", "function"), [("none", lambda x: x * mpmath.ncdf(x)), ("tanh", gelu_tanh)], ids=["exact", "tanh"]
)
def test_gelu(form: str, function: Function) -> None:
    truth = largest_slope(function)
    assert truth <= bound(single("Gelu", (3,), approximate=form)) <= truth * (1 + mpmath.mpf("1e-5"))


def test_gelu_default_is_the_exact_form() -> None:
    assert bound(single("Gelu", (3,))) == bound(single("Gelu", (3,), approximate="none"))
    assert "LIP002" in codes(single("Gelu", (3,), approximate="cubic"))


def test_silu_from_its_parts() -> None:
    truth = largest_slope(lambda x: x / (1 + mpmath.exp(-x)))
    proven = bound("g (float[N, 2] x) => (float[N, 2] y) { s = Sigmoid(x) y = Mul(x, s) }")
    assert truth <= proven <= truth * (1 + mpmath.mpf("1e-5"))


def test_a_gate_by_another_tensor_is_not_silu() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { n = Neg(x) s = Sigmoid(n) y = Mul(x, s) }"
    assert "LIP004" in codes(text)


PIECEWISE: list[tuple[str, dict[str, Any], float]] = [
    ("Relu", {}, 1.0),
    ("Abs", {}, 1.0),
    ("Neg", {}, 1.0),
    ("LeakyRelu", {"alpha": 0.125}, 1.0),
    ("LeakyRelu", {"alpha": 3.0}, 3.0),
    ("LeakyRelu", {"alpha": -3.0}, 3.0),
    ("Elu", {}, 1.0),
    ("Elu", {"alpha": 2.5}, 2.5),
    ("Elu", {"alpha": -2.5}, 2.5),
    ("Celu", {"alpha": 2.5}, 1.0),
    ("Celu", {"alpha": 0.25}, 1.0),
    ("Selu", {}, 1.0507009873554804934 * 1.6732632423543772848),
    ("HardSigmoid", {"alpha": 2.0, "beta": 0.25}, 2.0),
    ("HardSigmoid", {"alpha": -2.0}, 2.0),
    ("HardSigmoid", {"alpha": 0.0}, 0.0),
    ("Identity", {}, 1.0),
]


@pytest.mark.parametrize(("operator", "attributes", "slope"), PIECEWISE)
def test_piecewise_activations(operator: str, attributes: dict[str, Any], slope: float) -> None:
    model = single(operator, (2,), **attributes)
    assert bound(model) == pytest.approx(slope, rel=1e-6)
    x = np.linspace(-6, 6, 3001, dtype=np.float32).reshape(-1, 1).repeat(2, axis=1)
    y = run(model, x)[:, 0].astype(np.float64)
    assert bound(model) >= np.abs(np.diff(y) / np.diff(x[:, 0].astype(np.float64))).max() * (1 - 2e-3)


def test_prelu_takes_the_steepest_stored_slope() -> None:
    slopes = np.array([[0.5], [-4.0], [1.0]], np.float32)
    assert bound(single("PRelu", (3, 5), {"a": slopes})) == 4.0
    assert judge(single("PRelu", (3, 1), {"a": np.ones((3, 5), np.float32)})).status == "refused"


def test_softmax_is_a_half_in_every_norm() -> None:
    for norm in ("l2", "linf", "l1"):
        assert bound(single("Softmax", (4,)), norm) == 0.5
    model = single("Softmax", (2,))
    x = np.array([[1e-3, -1e-3], [-1e-3, 1e-3]], np.float32)
    y = run(model, x).astype(np.float64)
    assert np.linalg.norm(y[0] - y[1]) / np.linalg.norm(x[0] - x[1]) == pytest.approx(0.5, rel=1e-3)
    assert "LIP005" in codes(single("Softmax", (4,), axis=0))


JUMPS = ["Sign", "Round", "Floor", "Ceil", "ThresholdedRelu", "Shrink", "Exp", "Log", "Sqrt", "Reciprocal", "Hardmax"]


@pytest.mark.parametrize("operator", JUMPS)
def test_operators_without_a_constant_are_refused_by_name(operator: str) -> None:
    verdict = judge(single(operator, (3,)))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code == "LIP010"
    assert operator in str(verdict.refusals[0])


@pytest.mark.parametrize("operator", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_a_comparison_is_answered_by_what_to_write_instead(operator: str) -> None:
    """Nobody writes these nodes: they come of torch.where, and of torch's softplus and softshrink."""
    text = f"""g (float[N, 3] x) => (float[N, 3] y) {{
        zero = Constant<value = float {{0.0}}>() one = Constant<value = float {{1.0}}>()
        no = {operator}(x, one) y = Where(no, zero, x) }}"""
    (refusal,) = judge(text).refusals
    assert (refusal.code, refusal.op) == ("LIP010", operator)
    for word in ("max, min, clamp or abs", "lipdeploy.nn.LinearSpline", "nn.Softplus"):
        assert word in refusal.hint


def test_clip_is_a_projection() -> None:
    low, high = np.float32(-1.0).reshape(()), np.float32(2.0).reshape(())
    assert bound(single("Clip", (3,), {"a": low, "b": high})) == 1.0
    assert bound(single("Clip", (3,), {"a": None, "b": high})) == 1.0


def test_clip_by_an_activation_is_refused() -> None:
    text = "g (float[N, 1] x, float[N, 1] z) => (float[N, 1] y) { y = Clip(x, z) }"
    assert codes(text) == ["LIP004"]
