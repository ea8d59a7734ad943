"""Several parts of one graph, each with a multiplier certificate: products along it, sums where branches meet."""

from __future__ import annotations

import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find
from lipdeploy.verify import Verdict, verify
from lipdeploy.verify.bound import Bound
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import Certified
from tests.verify.models import best_ratio, double_runner, model

RULE = "diagonal multipliers"
#: A dense part, Clip, a sorting part, Clip, two residual blocks and a head: what no reader knows lies in between.
PARTS = (
    "v = Gemm<transB = 1>({x}, A) h = Relu(v) {y} = Gemm<transB = 1>(h, B)",
    "w = Gemm<transB = 1>({x}, C) g = lipdeploy.GroupSort(w) {y} = Gemm<transB = 1>(g, D)",
    "f = Gemm<transB = 1>({x}, E) r = Relu(f) s = Gemm<transB = 1>(r, F) z = Add({x}, s) {y} = Gemm<transB = 1>(z, H)",
)
SHAPES = {"A": (16, 6), "B": (8, 16), "C": (16, 8), "D": (8, 16), "E": (12, 8), "F": (8, 12), "H": (3, 8)}
LAST = {"p": 8, "q": 8, "y": 3}


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: (w / np.linalg.norm(w, 2)).astype(np.float32) for name, w in drawn.items()}


def network(body: str, features: int = 6, stored: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    proto = model(f"g (float[N, {features}] x) => (float y) {{ {body} }}", imports={"lipdeploy": 1})
    stored = weights() if stored is None else stored
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in stored.items())
    attach_functions(proto, {onnx.TensorProto.FLOAT})
    return proto


def three() -> onnx.ModelProto:
    one, two, last = (p.format(x=x, y=y) for p, x, y in zip(PARTS, ("x", "p1", "q1"), ("p", "q", "y"), strict=True))
    return network(f"{one} p1 = Clip(p) {two} q1 = Clip(q) {last}")


def judged(proto: onnx.ModelProto, seconds: float = 3.0) -> tuple[Verdict, Verdict]:
    """(the product, with what a search found)."""
    data = proto.SerializeToString()
    product, tight = verify(data), verify(data, method="best", hints=find(data, seconds=seconds))
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None, tight.refusals
    assert tight.lipschitz_bound.value >= best_ratio(double_runner(proto), (6,), rounds=8)
    return product, tight


def test_the_bounds_of_the_parts_multiply() -> None:
    """Each part by itself is the truth to compare with: the whole has the product of their certificates."""
    product, tight = judged(three())
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    rows = [node for node in tight.nodes if node.rule == RULE]
    assert [row.name for row in rows] == ["p", "q", "y"]
    alone = []
    for text, features in zip(PARTS, (6, 8, 8), strict=True):
        data = network(text.format(x="x", y="y"), features).SerializeToString()
        verdict = verify(data, method="best", hints=find(data, seconds=2.0))
        assert verdict.lipschitz_bound is not None
        alone.append(verdict.lipschitz_bound.value)
    assert tight.lipschitz_bound.value == pytest.approx(np.prod(alone), rel=2e-3)
    for row, expected in zip(rows, np.cumprod(alone), strict=True):
        assert row.gain.value == pytest.approx(expected, rel=2e-3)
        assert row.bound_after.value == pytest.approx(expected, rel=2e-3)
    assert tight.lipschitz_bound.value < 0.5 * product.lipschitz_bound.value
    assert rows[-1].bound_after == tight.lipschitz_bound
    assert tight.pairwise is not None and product.pairwise is not None
    assert np.all(tight.pairwise <= product.pairwise) and tight.pairwise.max() < 0.6 * product.pairwise.max()


def test_every_part_counts() -> None:
    """With the claims for one more part the bound is smaller; in whatever order they are given."""
    data = three().SerializeToString()
    hints = find(data, seconds=3.0)
    assert hints is not None and list(hints) == ["p", "q", "y"]
    bounds = []
    for names in ((), ("y",), ("q", "y"), ("p", "q", "y"), ("y", "q", "p")):
        verdict = verify(data, method="best", hints={name: hints[name] for name in names})
        assert verdict.lipschitz_bound is not None
        assert [node.name for node in verdict.nodes if node.rule == RULE] == sorted(names)
        bounds.append(verdict.lipschitz_bound.value)
    assert all(later < 0.95 * before for before, later in pairwise(bounds[:4]))
    assert bounds[3] == bounds[4]


def test_branches_that_meet_in_a_sum() -> None:
    """x + Clip(part(x)) and a second branch: |Δy| ≤ |Δx| + the certificate of each branch."""
    branch = "v{k} = Gemm<transB = 1>(x, A) h{k} = {kind}(v{k}) b{k} = Gemm<transB = 1>(h{k}, B) c{k} = Clip(b{k})"
    one = branch.format(k=1, kind="Relu")
    two = branch.format(k=2, kind="lipdeploy.GroupSort")
    stored = weights()
    stored["B"] = stored["B"][:6]
    proto = network(f"{one} {two} d = Add(c1, c2) y = Add(d, x)", stored=stored)
    product, tight = judged(proto)
    rows = {node.name: node for node in tight.nodes if node.rule == RULE}
    assert set(rows) == {"b1", "b2"} and product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    assert tight.lipschitz_bound.value == pytest.approx(1 + sum(row.gain.value for row in rows.values()), rel=1e-9)
    assert tight.lipschitz_bound.value < 0.9 * product.lipschitz_bound.value


def test_a_convolution_too_large_in_the_middle_of_two_parts() -> None:
    """A dense part, a convolution that is not written out, a dense part: the convolution counts with its own norm."""
    rng = np.random.default_rng(1)
    stored = {
        "A": rng.standard_normal((32, 6)), "B": rng.standard_normal((1024, 32)), "K": rng.standard_normal((8, 1, 3, 3)),
        "C": rng.standard_normal((24, 8)), "D": rng.standard_normal((4, 24)),
    }  # fmt: skip
    stored = {k: (w / np.sqrt(np.prod(w.shape[1:]))).astype(np.float32) for k, w in stored.items()}
    stored["image"], stored["flat"] = np.array([0, 1, 32, 32]), np.array([0, 8])
    proto = network(
        "a = Gemm<transB = 1>(x, A) b = Relu(a) c = Gemm<transB = 1>(b, B) i = Reshape(c, image) "
        "k = Conv<pads = [1, 1, 1, 1]>(i, K) m = GlobalMaxPool(k) f = Reshape(m, flat) "
        "g = Gemm<transB = 1>(f, C) h = Relu(g) y = Gemm<transB = 1>(h, D)",
        stored=stored,
    )
    product, tight = judged(proto, 4.0)
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    rows = [node.name for node in tight.nodes if node.rule == RULE]
    assert len(rows) == 2 and rows[-1] == "y"
    assert tight.lipschitz_bound.value < 0.8 * product.lipschitz_bound.value


def test_all_parts_are_stored_and_proven_again_without_a_search(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(three().SerializeToString())
    first = verify(path, method="best", hints=find(path, seconds=3.0))
    first.write_certificate(path.with_suffix(".cert.json"))
    again = verify(path, method="best")
    assert again.status == "verified" and again.lipschitz_bound == first.lipschitz_bound
    assert again.nodes == first.nodes
    assert verify(path).status == "verified"


def test_a_certificate_of_the_version_that_tightened_one_part(tmp_path: Path) -> None:
    """Written by lipdeploy before there were several parts: Clip, two ReLU layers, Softmax; one row for z."""
    for name in ("one_part.onnx", "one_part.cert.json"):
        shutil.copy(Path(__file__).parent / "stored" / name, tmp_path / name)
    verdict = verify(tmp_path / "one_part.onnx", method="best")
    assert verdict.status == "verified" and [n.name for n in verdict.nodes if n.rule == RULE] == ["z"]
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value == pytest.approx(0.1845273, rel=1e-6)


def test_the_budget_is_shared() -> None:
    """Three parts do not search three times as long."""
    data = three().SerializeToString()
    started = time.perf_counter()
    assert find(data, seconds=0.0) is not None
    least = time.perf_counter() - started
    started = time.perf_counter()
    find(data, seconds=1.0)
    assert time.perf_counter() - started < 1.0 + 3 * least + 0.5


BEHIND = {
    "crelu and two matrices": "n = Neg(c) r = Relu(c) t = Relu(n) u = Concat<axis = 1>(r, t) "
    "d = Gemm<transB = 1>(u, W) e = Gemm<transB = 1>(d, C) y = Clip(e)",
    "a motif whose end has no rule": "o = Constant<value = int64[1] {1}>() n = Mul(c, c) "
    "r = ReduceSum(n, o) y = Sqrt(r)",
    "two outputs, one unproven": "u, t = Split<axis = 1, num_outputs = 2>(c) r = Exp(t) y = Relu(u)",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_is_composed_again_is_what_was_composed(behind: str) -> None:
    """With a certificate that does not help, every row is repeated: motifs, and rows of matrices, too."""
    body = f"a = Gemm<transB = 1>(x, A) h = Relu(a) b = Gemm<transB = 1>(h, B) c = Clip(b) {behind}"
    stored = weights()
    stored["W"] = np.random.default_rng(4).standard_normal((8, 16)).astype(np.float32)
    walk = walked(network(body, stored=stored), "l2")
    first, chain = walk.proof(), walk.segments()[0]
    assert chain.output == "b" and any("one matrix" in node.rule for node in first.nodes) == ("Concat" in behind)
    useless = Certified(Bound(1e9), np.zeros((8, 8)))
    assert set(walk.tighten([chain], lambda chain: useless)) == {"b"}
    second = walk.proof()
    assert second.nodes == first.nodes and second.bound == first.bound
    assert second.numeric_error == first.numeric_error
    assert np.array_equal(second.pairwise, first.pairwise)  # type: ignore[arg-type]
