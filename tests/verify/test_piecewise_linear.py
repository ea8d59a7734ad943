"""Piecewise-linear activations in several nodes: the steepest slope that is found, and none where entries meet."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from lipdeploy.verify import verify
from lipdeploy.verify.piecewise_linear import IDENTITY, PiecewiseLinear, constant
from tests.verify.test_motifs import bound, model

GRID = np.arange(-8.0, 8.0, 2.0**-7)  # every break below is a multiple of 2⁻⁷
NUMBERS = {
    name: np.array(value, np.float32)
    for name, value in {"half": 0.5, "one": 1, "two": 2, "low": -1.5, "high": 1.25, "slope": 0.125, "minus": -3}.items()
}
NUMBERS |= {
    "swap": np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]], np.float32),
    "channels": np.array([-1, 0.5, 1], np.float32),
    "third": np.array(1 / 3, np.float32),
    "three": np.array(-3, np.int8),
}
FORMS = {
    "PReLU in two parts": "r = Relu(x) n = Neg(x) s = Relu(n) t = Mul(s, slope) y = Sub(r, t)",
    "leaky by a maximum": "m = Mul(slope, x) y = Max(x, m)",
    "hinges": "r = Relu(x) d = Sub(x, one) e = Relu(d) f = Mul(e, two) y = Sub(r, f)",
    "hat": "r = Relu(x) d = Sub(x, one) e = Relu(d) f = Mul(e, two) g = Sub(x, two) h = Relu(g) y = Sum(r, f, h)",
    "what a clip leaves": "c = Clip(x, low, high) d = Sub(x, c) e = Mul(d, minus) y = Add(c, e)",
    "ends the wrong way round": "c = Clip(x, high, low) y = Add(x, c)",
    "one end": "c = Clip(x, , high) d = Clip(x, low) e = Mul(d, two) y = Sub(c, e)",
    "between two lines": "a = Mul(x, two) b = Div(x, minus) c = Add(b, one) y = Min(a, c)",
    "leaky twice": "a = LeakyRelu<alpha = -2.0>(x) b = Sub(a, half) c = PRelu(b, slope) y = Add(c, x)",
    "folded": "a = Abs(x) b = Sub(a, one) c = Abs(b) d = Sub(c, half) e = Abs(d) y = Add(e, a)",
    "through an identity": "i = Identity(x) a = Abs(i) n = Neg(a) y = Sub(n, x)",
}  # fmt: skip


def graph(body: str, shape: str = "N,3") -> str:
    lines = body.replace(") ", ")\n")
    return f"g (float[{shape}] x) => (float[{shape}] y) {{\n{lines}\n}}"


def used(body: str) -> dict[str, np.ndarray]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in NUMBERS.items() if name in words}


def evaluated(body: str, points: np.ndarray) -> np.ndarray:
    text = graph(body).replace("float[", "double[")
    proto = onnx.load_from_string(model(text, **{k: v.astype(np.float64) for k, v in used(body).items()}))
    return ReferenceEvaluator(proto).run(None, {"x": np.repeat(points[:, None], 3, axis=1)})[0][:, 0]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_the_bound_is_the_steepest_slope(body: str, norm: str) -> None:
    steepest = np.abs(np.diff(evaluated(body, GRID)) / np.diff(GRID)).max()
    proven = bound(graph(body), norm, **used(body))
    assert steepest * (1 - 1e-12) <= proven <= steepest * (1 + 1e-6)


NEAR = {
    "entries that meet others": ("t = Transpose<perm = [0, 2, 1]>(x) r = Relu(t) y = Sub(r, x)", "N,3,3", 2.0),
    "another tensor": ("a = MatMul(x, swap) r = Relu(a) y = Sub(r, x)", "N,3", 2.0),
    "a number for each channel": ("m = Mul(x, channels) r = Relu(m) y = Sub(r, x)", "N,3", 2.0),
    "a constant that rounds on its way": (
        "c = DequantizeLinear(three, third) m = Mul(x, c) r = Relu(m) y = Sub(r, x)",
        "N,3",
        1.0,
    ),
}


@pytest.mark.parametrize(("body", "shape", "least"), NEAR.values(), ids=NEAR)
def test_near_misses_are_bounded_by_other_means(body: str, shape: str, least: float) -> None:
    verdict = verify(model(graph(body, shape), **used(body)), norm="linf")
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value >= least
    assert verdict.nodes[-1].rule != "piecewise linear"


def test_infinite_ends_are_left_to_the_rules() -> None:
    body = "c = Clip(x, low, above) d = Sub(x, c) y = Add(c, d)"
    verdict = verify(model(graph(body), low=NUMBERS["low"], above=np.array(np.inf, np.float32)))
    assert all(node.rule != "piecewise linear" for node in verdict.nodes)


def test_a_long_sum_is_left_to_the_rules() -> None:
    """Forty hinges have more lines than are looked at; the proof ends as ever."""
    names = [f"h{k}" for k in range(40)]
    lines = [f"d{k} = Sub(x, b{k}) h{k} = Relu(d{k})" for k in range(40)]
    body = " ".join(lines) + f" y = Sum({', '.join(names)})"
    constants = {f"b{k}": np.array(k / 8, np.float32) for k in range(40)}
    assert 40 <= bound(graph(body), **constants) <= 40.01


rationals = st.fractions(-4, 4, max_denominator=9)
functions = st.recursive(
    st.just(IDENTITY) | rationals.map(constant),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0].maximum(pair[1])),
        st.tuples(inner, inner).map(lambda pair: pair[0].minimum(pair[1])),
        st.tuples(inner, rationals).map(lambda pair: pair[0].scaled(pair[1])),
        inner.map(PiecewiseLinear.positive_part),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(functions, functions, rationals, rationals)
def test_operations_agree_at_every_point(f: PiecewiseLinear, g: PiecewiseLinear, factor: Fraction, t: Fraction) -> None:
    for point in (t, *f.breaks, *g.breaks):
        assert (f + g)(point) == f(point) + g(point)
        assert f.maximum(g)(point) == max(f(point), g(point))
        assert f.minimum(g)(point) == min(f(point), g(point))
        assert f.scaled(factor)(point) == factor * f(point)
        assert f.positive_part()(point) == max(f(point), 0)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(functions, rationals, rationals)
def test_neighbouring_lines_meet_and_no_chord_is_steeper(f: PiecewiseLinear, s: Fraction, t: Fraction) -> None:
    assert len(f.lines) == len(f.breaks) + 1 and list(f.breaks) == sorted(set(f.breaks))
    for (a, b), (c, d), end in zip(f.lines, f.lines[1:], f.breaks, strict=False):
        assert a * end + b == c * end + d
    assert abs(f(s) - f(t)) <= f.steepest * abs(s - t)
