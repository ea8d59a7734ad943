"""The squares of several tensors add up under one root, in every norm.

√(a² + b²) with b = −a is √2·|a|: its entries move further than the farthest of a and b. A rule that stacks the two like
pieces laid side by side takes their maximum in ℓ∞, and says 1. The last layer reads that bound for the differences of
its scores, so in plain ℓ2, with the deployed guarantee, x = 2 was certified within 1.8, and x = 0.5 has another class.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import ModelProto

from lipdeploy.runtime import CertifiedSession
from tests.verify.models import bound, double_runner, judge, model

NORMS = ("l2", "linf", "l1", "l2-linf", "l1-linf")
SOURCES = {2: "b = Neg(x) p = Mul(x, x) q = Mul(b, b) s = Add(p, q)"}
SOURCES[3] = f"{SOURCES[2].replace('s = Add', 'o = Add')} c = Abs(x) r = Mul(c, c) s = Add(o, r)"
HEAD = "w = Constant<value = float[1,2] {1.0, 0.0}>() k = Constant<value = float[2] {0.0, 1.0}>() y = Gemm(h, w, k)"


def root(count: int, end: str = "y = Sqrt(s)", outputs: int = 1) -> ModelProto:
    return model(f"g (float[N,1] x) => (float[N,{outputs}] y) {{ {SOURCES[count]} {end} }}")


@pytest.mark.parametrize("count", SOURCES)
@pytest.mark.parametrize("norm", NORMS)
def test_they_add_up_in_every_norm(count: int, norm: str) -> None:
    proto, run = root(count), double_runner(root(count))
    truth = (run(np.array([[3.0]])) - run(np.array([[1.0]]))).item() / 2.0
    assert truth == pytest.approx(math.sqrt(count), rel=1e-12)
    assert truth * (1.0 - 1e-12) <= bound(proto, norm) <= truth * count


@pytest.mark.parametrize("mode", ["f64", "adaptive", "network"])
def test_no_other_class_inside_the_radius(mode: str) -> None:
    """The scores are (√2·|x|, 1): from x = 2 the other class begins at 1/√2."""
    session = CertifiedSession(root(2, f"h = Sqrt(s) {HEAD}", 2).SerializeToString(), certify=mode)
    prediction = session.predict(np.float32([[2.0]]))
    assert prediction.label[0] == 0
    assert prediction.radius[0] <= 2.0 - 1.0 / math.sqrt(2.0)
    assert session.predict(np.float32([[0.5]])).label[0] == 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_moduli_of_a_pair_of_filters(norm: str) -> None:
    """√((a·x)² + (b·x)²): pairs of points along the steepest direction are never further apart than is claimed."""
    random = np.random.default_rng(3)
    a = random.standard_normal(6)
    b = 0.9 * a + 0.1 * random.standard_normal(6)
    numbers = {name: ", ".join(map(str, row.astype(np.float32))) for name, row in {"a": a, "b": b}.items()}
    proto = model(f"""g (float[N,6] x) => (float[N,1] y) {{
        a = Constant<value = float[6,1] {{{numbers["a"]}}}>() b = Constant<value = float[6,1] {{{numbers["b"]}}}>()
        u = MatMul(x, a) v = MatMul(x, b) p = Mul(u, u) q = Mul(v, v) s = Add(p, q) y = Sqrt(s) }}""")
    steep = {"l2": a + b, "l1": np.eye(6)[np.argmax(np.abs(a + b))], "linf": np.sign(a + b)}[norm.split("-")[0]]
    length = {"l2": 2, "l1": 1, "linf": np.inf}[norm.split("-")[0]]
    low, high = (double_runner(proto)(factor * steep[None]).item() for factor in (1.0, 2.0))
    assert (high - low) / np.linalg.norm(steep, length) <= bound(proto, norm) * (1.0 + 1e-9)


def test_class_pairs_are_not_below_the_truth() -> None:
    pairwise = judge(root(2, f"h = Sqrt(s) {HEAD}", 2)).pairwise
    assert pairwise is not None
    assert pairwise[0, 1] >= math.sqrt(2.0)
