"""Linear operators in a row as one matrix: never below the explicit operator, and tighter than the product.

Truth: the matrix of the whole graph from ONNX Runtime, unit vector by unit vector, float64 SVD.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.verify import Verdict
from lipdeploy.verify.check import walked
from lipdeploy.verify.collapse import Collapsed, collapsed
from lipdeploy.verify.graph import calls, opset_versions
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import carried_norms
from lipdeploy.verify.tensors import read_constant
from tests.verify.models import judge, matrix, model, operator_norm

NORMS = ("l2", "linf", "l1", "l2-linf", "l1-linf")


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 2


STORED = {
    "k": weight(0, 4, 3, 3, 3), "k2": weight(1, 5, 4, 2, 2), "kg": weight(2, 6, 1, 3, 3), "fc": weight(3, 5, 4 * 9),
    "fc2": weight(4, 7, 5), "m": weight(5, 5, 6), "c": weight(6, 3, 1, 1), "b": weight(7, 4), "row": weight(8, 5),
    "flat": np.array([0, -1], np.int64), "axes": np.array([2, 3], np.int64), "fcs": weight(9, 6, 4),
    "a1": weight(10, 12, 3), "a2": weight(11, 3, 12),
}  # fmt: skip

TAILS = {
    "conv, pool, gemm": (
        "u = Conv <pads=[1,1,1,1]> (x, k, b) v = AveragePool <kernel_shape=[2,2], strides=[2,2]> (u) w = Flatten (v)"
        " y = Gemm <transB=1> (w, fc, row)"
    ),
    "pool with pads": (
        "u = Conv <pads=[1,1,1,1]> (x, k)"
        " v = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (u)"
        " w = Reshape (v, flat) y = Gemm <transB=1> (w, fc)"
    ),
    "two convs": "u = Conv <pads=[1,0,0,2]> (x, k) y = Conv <strides=[2,2], dilations=[2,1]> (u, k2)",
    "groups": "u = Mul (x, c) y = Conv <group=3, pads=[1,1,1,1], strides=[2,1]> (u, kg)",
    "mean": "u = Conv (x, k) v = GlobalAveragePool (u) w = Flatten (v) y = Gemm <transB=1> (w, fcs)",
    "reduced": "u = Conv (x, k) w = ReduceMean <keepdims=0> (u, axes) y = Gemm <transB=1> (w, fcs)",
    "sum": "u = Conv (x, k) w = ReduceSum <keepdims=0> (u, axes) y = Gemm <transB=1> (w, fcs)",
    "turned": "u = Conv (x, k) v = Sub (b4, u) w = Transpose <perm=[0,2,3,1]> (v) y = MatMul (w, fcm)",
    "bottleneck": "w = Flatten (x) u = MatMul (w, wide) y = MatMul (u, back)",
    "divided": "v = Div (x, c) w = Conv (v, k) y = Div (w, b4)",
}
STORED |= {"b4": weight(12, 4, 1, 1), "fcm": weight(13, 4, 3), "wide": weight(14, 108, 4), "back": weight(15, 4, 108)}


def built(body: str) -> onnx.ModelProto:
    proto = model(f"g (float[N, 3, 6, 6] x) => (float y) {{ {body} }}")
    names = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in STORED.items() if name in names)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def product_of(verdict: Verdict) -> float:
    value = 1.0
    for node in verdict.nodes:
        value *= float(node.gain)
    return value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(TAILS))
def test_never_below_the_whole_operator(name: str, norm: str) -> None:
    proto = built(TAILS[name])
    verdict = judge(proto, norm)
    assert verdict.status == "verified", verdict.refusals
    assert verdict.lipschitz_bound is not None
    rows, _ = matrix(proto, (3, 6, 6))
    truth = operator_norm(rows, norm)  # ONNX Runtime's float32 sums err by about 1e-6
    assert truth * (1 - 1e-5) <= verdict.lipschitz_bound.value <= truth * (1 + 1e-5), name
    assert verdict.nodes[-1].bound_after == verdict.lipschitz_bound
    if norm == "l2":
        assert verdict.lipschitz_bound.value < product_of(verdict)
        assert any("one matrix from" in node.rule for node in verdict.nodes)


def exact_pair() -> tuple[np.ndarray, np.ndarray]:
    return STORED["wide"], STORED["back"]


def test_the_error_matrix_covers_exact_arithmetic() -> None:
    """Every entry of the collapsed matrix against rational arithmetic over the stored numbers."""
    proto = built("w = Flatten (x) u = MatMul (w, wide) y = MatMul (u, back)")
    found = _collapsed(proto)
    first, second = exact_pair()
    for i in range(0, 108, 9):
        for j in range(0, 108, 7):
            exact = sum(Fraction(float(first[i, t])) * Fraction(float(second[t, j])) for t in range(4))
            assert abs(Fraction(float(found.matrix[j, i])) - exact) <= Fraction(float(found.error[j, i]))
    assert found.error.max() < 1e-12


def _collapsed(proto: onnx.ModelProto) -> Collapsed:
    """The collapsed matrix of the last node, from the verifier's own walk."""
    walk = walked(proto, "l2")
    return walk.collapsed[walk.output]


@pytest.mark.parametrize("norm", NORMS)
def test_pairs_of_classes_use_the_whole_tail(norm: str) -> None:
    proto = built(TAILS["conv, pool, gemm"])
    verdict = judge(proto, norm)
    rows, _ = matrix(proto, (3, 6, 6))
    dual = {"l2": 2, "linf": 1, "l1": np.inf, "l2-linf": 2, "l1-linf": np.inf}[norm]
    assert verdict.pairwise is not None
    for i in range(5):
        for j in range(5):
            truth = float(np.linalg.norm(rows[i] - rows[j], dual))
            assert truth * (1 - 1e-5) <= verdict.pairwise[i, j] <= truth * (1 + 1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "u = Conv (x, k) r = Relu (u) v = GlobalAveragePool (r) w = Flatten (v) y = Gemm <transB=1> (w, fcs)",
        "u = Conv <pads=[1,1,1,1]> (x, k) v = MaxPool <kernel_shape=[2,2], strides=[2,2]> (u) w = Flatten (v)"
        " y = Gemm <transB=1> (w, fc)",
    ],
)
def test_an_activation_ends_the_row(body: str) -> None:
    """Near miss: collapsing across Relu or MaxPool would be false, and the parts alone must not say "one matrix"."""
    verdict = judge(built(body))
    first = next(i for i, node in enumerate(verdict.nodes) if node.op in ("Relu", "MaxPool"))
    assert verdict.lipschitz_bound is not None
    assert all("from u" not in node.rule and "from #0" not in node.rule for node in verdict.nodes[first:])


def test_cancelling_layers_are_seen() -> None:
    """B·A = 0 although ‖B‖‖A‖ = 1: the product is blind to it, the matrix is not."""
    proto = model("g (float[N, 2] x) => (float[N, 2] y) { u = MatMul (x, a) y = MatMul (u, b) }")
    for name, array in (("a", np.diag([1.0, 0.0])), ("b", np.diag([0.0, 1.0]))):
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    verdict = judge(proto)
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value < 1e-100
    assert product_of(verdict) == pytest.approx(1.0)


def test_other_readers_of_a_tensor_in_the_middle_keep_their_own_bound() -> None:
    proto = model(
        "g (float[N, 2] x) => (float[N, 2] y) { u = MatMul (x, a) v = MatMul (u, b) r = Relu (u) y = Add (v, r) }"
    )
    for name, array in (("a", np.diag([1.0, 0.0])), ("b", np.diag([0.0, 1.0]))):
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    verdict = judge(proto)
    assert verdict.lipschitz_bound is not None and 1.0 <= verdict.lipschitz_bound.value < 1.0001


def test_what_is_too_large_is_left_alone() -> None:
    proto = model("g (float[N, 2000] x) => (float y) { u = MatMul (x, a) y = MatMul (u, b) }")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (2000, 3)), ("b", (3, 2000))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    listed = calls(proto.graph, opset_versions(proto), carried_norms("l2"))
    values = {tensor.name: read_constant(tensor) for tensor in proto.graph.initializer}
    assert collapsed(listed[-1], values, frozenset(), Guide()) is None
    assert judge(proto).status == "verified"


def test_an_operator_that_its_own_rule_refuses_is_not_read() -> None:
    """Near miss: an attribute that nobody knows, on a node in the middle."""
    proto = built(TAILS["conv, pool, gemm"])
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("surprise", 1))
    assert judge(proto).status == "refused"


def test_a_tie_is_not_reported() -> None:
    """A factor of 1 before a matrix: both ways prove the same, and the report does not depend on the last digit."""
    proto = model("g (float[N, 6] x) => (float y) { u = Mul (x, one) y = MatMul (u, w) }")
    for name, array in (("one", np.ones(6, np.float32)), ("w", weight(0, 6, 5))):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert all("one matrix" not in node.rule for node in judge(proto).nodes)


def test_pairs_without_a_last_gemm() -> None:
    proto = built("u = Conv (x, k) v = GlobalAveragePool (u) y = Flatten (v)")
    verdict = judge(proto)
    rows, _ = matrix(proto, (3, 6, 6))
    assert verdict.pairwise is not None
    for i in range(4):
        for j in range(4):
            truth = float(np.linalg.norm(rows[i] - rows[j]))
            assert truth * (1 - 1e-5) <= verdict.pairwise[i, j] <= truth * (1 + 1e-5)
