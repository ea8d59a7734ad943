"""The liar builds something that looks like a known 1-Lipschitz block and is not.

CReLU, pair sorting and centering are judged as wholes, with a better constant than their parts. A block that differs in
one place (another input, a scale inside, a partial reduction) must get the constant of its parts.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import best_ratio, bound, double_runner, model

GOOD = {
    "crelu": "{ n = Neg(x) a = Relu(x) b = Relu(n) y = Concat<axis = 1>(a, b) }",
    "max and min": (
        "{ a, b = Split<axis = 1, num_outputs = 2>(x) h = Max(a, b) l = Min(a, b) y = Concat<axis = 1>(h, l) }"
    ),
    "pairs": """<int64[3] s = {0, -1, 2}, int64[1] two = {2}, int64[2] flat = {0, -1}> { r = Reshape(x, s) h =
      ReduceMax(r, two)
      l = ReduceMin(r, two) c = Concat<axis = 2>(l, h) y = Reshape(c, flat) }""",
    "centering": "<int64[1] a = {1}> { m = ReduceMean(x, a) y = Sub(x, m) }",
}
BAD = {
    "crelu of two inputs": "{ n = Neg(z) a = Relu(x) b = Relu(n) y = Concat<axis = 1>(a, b) }",
    "crelu without the minus": "{ a = Relu(x) b = Relu(x) y = Concat<axis = 1>(a, b) }",
    "crelu with a scale": "<float c = {-3}> { n = Mul(x, c) a = Relu(x) b = Relu(n) y = Concat<axis = 1>(a, b) }",
    "max of one half with itself": (
        "{ a, b = Split<axis = 1, num_outputs = 2>(x) h = Max(a, a) l = Min(a, a) y = Concat<axis = 1>(h, l) "
        "}"
    ),
    "max twice": (
        "{ a, b = Split<axis = 1, num_outputs = 2>(x) h = Max(a, b) l = Max(a, b) y = Concat<axis = 1>(h, l) "
        "}"
    ),
    "min of others": """{ a, b = Split<axis = 1, num_outputs = 2>(x) c, d = Split<axis = 1, num_outputs = 2>(z)
      h = Max(a, b)
      l = Min(c, d) y = Concat<axis = 1>(h, l) }""",
    "overlapping halves": """<int64[1] zero = {0}, int64[1] one = {1}, int64[1] three = {3}, int64[1] four =
      {4}, int64[1] ax = {1}>
      { a = Slice(x, zero, three, ax) b = Slice(x, one, four, ax) h = Max(a, b) l = Min(a, b) y = Concat<axis =
      1>(h, l) }""",
    "three of three": """<int64[1] zero = {0}, int64[1] three = {3}, int64[1] ax = {1}> { s = Slice(x, zero, three, ax)
      h = ReduceMax(s, ax) l = ReduceMin(s, ax) y = Concat<axis = 1>(l, h, s) }""",
    "maximum twice": "<int64[1] ax = {1}> { h = ReduceMax(x, ax) l = ReduceMax(x, ax) y = Concat<axis = 1>(l, h) }",
    "mean added": "<int64[1] a = {1}> { m = ReduceMean(x, a) y = Add(x, m) }",
    "mean of another": "<int64[1] a = {1}> { m = ReduceMean(z, a) y = Sub(x, m) }",
    "the sum instead of the mean": "<int64[1] a = {1}> { m = ReduceSum(x, a) y = Sub(x, m) }",
    "mean minus x twice": "<int64[1] a = {1}> { m = ReduceMean(x, a) d = Sub(m, x) y = Sub(d, x) }",
}  # fmt: skip


@pytest.mark.parametrize("graph", GOOD.values(), ids=GOOD.keys())
def test_the_real_blocks_are_recognised(graph: str) -> None:
    assert bound(model(f"g (float[N, 4] x) => (float[N, K] y) {graph}")) == 1.0


@pytest.mark.parametrize("graph", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_imitations_are_not(graph: str, norm: str) -> None:
    proto = model(f"g (float[N, 8] xz) => (float[N, K] y) {graph}")
    split = model("g (float[N, 8] xz) => (float[N, 4] x) <int64[2] h4 = {4, 4}> { x, z = Split<axis = 1>(xz, h4) }")
    proto.graph.node.insert(0, split.graph.node[0])
    proto.graph.initializer.extend(split.graph.initializer)
    seen = best_ratio(double_runner(proto), (8,), norm, samples=200)
    proven = bound(proto, norm)
    assert proven >= seen * (1 - 1e-9)
    if norm == "l2" and "Relu(x) b = Relu(x)" in graph:
        assert proven >= 2**0.5


def test_a_scaled_spline_that_also_copies() -> None:
    """Mul(1/α) ∘ spline ∘ Mul(α) where the outer Mul broadcasts: √4 more than the block."""
    text = """g (float[N, 4, 1] x) => (float[N, 4, 4] y) <float[1, 4, 1] a = {1, 1, 1, 1}, float[1, 2] c = {0,
      1}, float[1, 4] b = {1, 1, 1, 1}>
      { i = Mul(x, a) s = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 1.0>(i, c) y = Mul(s, b) }"""
    assert bound(model(text, imports={"lipdeploy": 1})) >= 2.0


def test_a_scaled_spline_pairs_each_channel_with_its_own_slope() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y) <float[2] a = {4, 0.5}, float[2, 2] c = {0, 1, 0, 8},
      float[2] b = {0.5, 2}>
      { i = Mul(x, a) s = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 1.0>(i, c) y = Mul(b, s) }"""
    proto = model(text, imports={"lipdeploy": 1})
    assert bound(proto) == pytest.approx(8.0, rel=1e-9)  # channel 0: 4·1·0.5, channel 1: 0.5·8·2
    assert best_ratio(double_runner(proto), (2,)) <= bound(proto) * (1 + 1e-9)


def test_numbers_behind_the_motifs() -> None:
    """Centering in ℓ∞ is 2(1 − 1/n), reached at a sign vector."""
    proto = model(f"g (float[N, 4] x) => (float[N, 4] y) {GOOD['centering']}")
    x = np.array([[1.0, -1.0, -1.0, -1.0]])
    assert np.abs(double_runner(proto)(x)).max() == 1.5
    for norm in ("linf", "l1"):
        assert bound(proto, norm) == pytest.approx(1.5, rel=1e-9)
        assert bound(proto, norm) >= 1.5
