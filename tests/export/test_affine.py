"""Folding of affine steps: graphs in ONNX text, truth in float64 and in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lipdeploy.export.affine import expand_batch_norms, fold_affine
from lipdeploy.export.graph import Graph


def parsed(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20, "lipdeploy": 1]> net {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
    return onnx.shape_inference.infer_shapes(model)


def folded(model: onnx.ModelProto) -> Graph:
    graph = Graph(onnx.ModelProto.FromString(model.SerializeToString()).graph)
    fold_affine(graph)
    expand_batch_norms(graph)
    graph.prune()
    return graph


def run(graph: Graph, model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    rebuilt = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "folded",
            model.graph.input,
            model.graph.output,
            [numpy_helper.from_array(np.asarray(value), name) for name, value in graph.constants.items()],
        ),
        opset_imports=model.opset_import,
    )
    return ReferenceEvaluator(rebuilt).run(None, {"x": x})[0]


def kinds(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


RANDOM = np.random.default_rng(5)
W = RANDOM.normal(size=(3, 4))
CONV = RANDOM.normal(size=(3, 4, 2, 2))
C = RANDOM.normal(size=3)
GEMM = "(float[N,4] x) => (float[N,3] y) {{ h = Gemm<transB=1>(x, w) {} }}"

FOLDS = {
    "Mul": (GEMM.format("y = Mul(h, c)"), ["Gemm"]),
    "Mul, constant first": (GEMM.format("y = Mul(c, h)"), ["Gemm"]),
    "Div": (GEMM.format("y = Div(h, c)"), ["Gemm"]),
    "Add": (GEMM.format("y = Add(h, c)"), ["Gemm"]),
    "Sub": (GEMM.format("y = Sub(h, c)"), ["Gemm"]),
    "Sub from a constant": (GEMM.format("y = Sub(c, h)"), ["Gemm"]),
    "a chain": (GEMM.format("a = Mul(h, c) b = Sub(a, c) y = Div(b, c)"), ["Gemm"]),
}
STAYS = {
    "division by the value": (GEMM.format("y = Div(c, h)"), ["Gemm", "Div"]),
    "another reader": (GEMM.format("a = Mul(h, c) y = Add(a, h)"), ["Gemm", "Mul", "Add"]),
    "a product of two values": (GEMM.format("y = Mul(h, h)"), ["Gemm", "Mul"]),
    "an output in the middle": (
        "(float[N,4] x) => (float[N,3] y, float[N,3] h) { h = Gemm<transB=1>(x, w) y = Mul(h, c) }",
        ["Gemm", "Mul"],
    ),
    "alpha": (
        "(float[N,4] x) => (float[N,3] y) { h = Gemm<transB=1, alpha=2.0>(x, w) y = Mul(h, c) }",
        ["Gemm", "Mul"],
    ),
}


@pytest.mark.parametrize("name", [*FOLDS, *STAYS])
def test_folding_keeps_the_function(name):
    text, expected = {**FOLDS, **STAYS}[name]
    model = parsed(text, w=W, c=C)
    graph = folded(model)
    assert kinds(graph) == expected
    x = RANDOM.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(graph, model, x), ReferenceEvaluator(model).run(None, {"x": x})[0], rtol=2e-4)


def test_a_constant_that_varies_over_positions_stays():
    text = "(float[N,4,8,8] x) => (float[N,3,7,7] y) { h = Conv(x, w) y = Mul(h, c) }"
    assert kinds(folded(parsed(text, w=CONV, c=RANDOM.normal(size=(1, 3, 7, 7))))) == ["Conv", "Mul"]


def test_the_scale_of_a_spline_stays_beside_it():
    """The verifier judges Mul, LinearSpline, Mul as one activation (lipdeploy.nn)."""
    text = """(float[N,4] x) => (float[N,3] y) {
        h = Gemm<transB=1>(x, w) a = Mul(h, c)
        b = lipdeploy.LinearSpline<lower=-1.0, knot_spacing=1.0, axis=1>(a, k) y = Mul(b, c) }"""
    graph = folded(parsed(text, w=W, c=C, k=RANDOM.normal(size=(3, 3))))
    assert kinds(graph) == ["Gemm", "Mul", "LinearSpline", "Mul"]


def test_a_weight_that_two_nodes_read_is_split():
    text = """(float[N,4] x) => (float[N,3] y) {
        a = Gemm<transB=1>(x, w) b = Gemm<transB=1>(x, w) d = Mul(b, c) y = Add(a, d) }"""
    model = parsed(text, w=W, c=C)
    graph = folded(model)
    assert kinds(graph) == ["Gemm", "Gemm", "Add"]
    np.testing.assert_array_equal(graph.constants["w"], W.astype(np.float32))
    x = RANDOM.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(graph, model, x), ReferenceEvaluator(model).run(None, {"x": x})[0], rtol=1e-4)


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Mul", "Add", "Sub"]), st.floats(0.25, 4, width=32)), min_size=1, max_size=5
    )
)
def test_many_steps_round_once(steps):
    """Weight and bias after folding are within one rounding of the exact rational result."""
    body = "".join(f"h{k + 1} = {op}(h{k}, c{k}) " for k, (op, _) in enumerate(steps))
    text = f"(float[N,1] x) => (float[N,1] h{len(steps)}) {{ h0 = Gemm<transB=1>(x, w, b) {body} }}"
    constants = {f"c{k}": np.float32(value) for k, (_, value) in enumerate(steps)}
    weight, bias = np.float32(1.1), np.float32(-0.7)
    graph = folded(parsed(text, w=[[weight]], b=[bias], **constants))
    exact_weight, exact_bias = Fraction(float(weight)), Fraction(float(bias))
    for op, value in steps:
        c = Fraction(value)
        exact_weight = exact_weight * c if op == "Mul" else exact_weight
        exact_bias = {"Mul": exact_bias * c, "Add": exact_bias + c, "Sub": exact_bias - c}[op]
    (gemm,) = graph.nodes
    for name, exact in ((gemm.input[1], exact_weight), (gemm.input[2], exact_bias)):
        stored = Fraction(float(graph.constants[name].reshape(())))
        # half a float32 ulp, and the float64 steps below it
        scale = max(abs(exact), Fraction(1, 2**20) * sum(Fraction(value) for _, value in steps))
        assert abs(stored - exact) <= scale * Fraction(1, 2**24) * (1 + Fraction(1, 2**20))


def test_batch_norm_is_folded_in_float64():
    text = "(float[N,4,8,8] x) => (float[N,3,7,7] y) { h = Conv(x, w) y = BatchNormalization(h, g, b, m, v) }"
    gamma, beta, mean = (RANDOM.normal(size=3).astype(np.float32) for _ in range(3))
    variance = RANDOM.uniform(0.1, 2, size=3).astype(np.float32)
    graph = folded(parsed(text, w=CONV, g=gamma, b=beta, m=mean, v=variance))
    (conv,) = graph.nodes
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(np.float32(1e-5)))
    wide = CONV.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(
        graph.constants[conv.input[1]], (wide * scale[:, None, None, None]).astype(np.float32)
    )
    np.testing.assert_array_equal(graph.constants[conv.input[2]], (beta - mean * scale).astype(np.float32))
