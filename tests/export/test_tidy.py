"""Simplifications of a captured graph, each with a near miss that must stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.errors import InputError
from lipdeploy.export.graph import Graph
from lipdeploy.export.tidy import tidy


def parsed(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> net {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return onnx.shape_inference.infer_shapes(model)


def kinds(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def gather_text(before: str, after: str) -> str:
    return f"""(float[N,4,5] x) => (float[A,B,C] y) {{
        a = Transpose<perm={before}>(x) b = GatherND(a, order) y = Transpose<perm={after}>(b) }}"""


def test_a_channel_permutation_becomes_gather():
    order = np.array([[3], [1], [2], [0]])
    graph = tidy(parsed(gather_text("[1,0,2]", "[1,0,2]"), order=order))
    (node,) = graph.nodes
    assert node.op_type == "Gather" and node.attribute[0].i == 1
    np.testing.assert_array_equal(graph.constants[node.input[1]], order[:, 0])


@pytest.mark.parametrize(("before", "after"), [("[1,0,2]", "[0,1,2]"), ("[1,2,0]", "[1,0,2]"), ("[1,0,2]", "[2,1,0]")])
def test_any_other_transposes_stay(before, after):
    graph = tidy(parsed(gather_text(before, after), order=np.array([[3], [1]])))
    assert kinds(graph) == ["Transpose", "GatherND", "Transpose"]


def test_the_size_of_a_static_axis_is_a_constant():
    text = "(float[N,6] x) => (float[N,6] y) { s = Shape(x) k = Gather(s, one) y, i = TopK<axis=1>(x, k) }"
    graph = tidy(parsed(text, one=np.array([1])))
    assert kinds(graph) == ["TopK"]
    np.testing.assert_array_equal(graph.constants[graph.nodes[0].input[1]], [6])


def test_the_size_of_the_batch_is_not():
    text = "(float[N,6] x) => (float[A,B] y) { s = Shape(x) k = Gather(s, zero) y, i = TopK<axis=0>(x, k) }"
    assert kinds(tidy(parsed(text, zero=np.array([0])))) == ["Shape", "Gather", "TopK"]


def test_constant_arithmetic_is_folded():
    text = "(float[N,2] x) => (float[N,2] y) { c = Mul(a, b) d = Reshape(c, s) y = Relu(z) z = Add(x, d) }"
    text = text.replace("y = Relu(z) z = Add(x, d)", "z = Add(x, d) y = Relu(z)")
    a = np.array([2.0, 3.0], dtype=np.float32)
    graph = tidy(parsed(text, a=a, b=a, s=np.array([1, 2])))
    assert kinds(graph) == ["Add", "Relu"]
    np.testing.assert_array_equal(graph.constants[graph.nodes[0].input[1]], [[4.0, 9.0]])


def test_identities_go_and_unused_constants_too():
    text = "(float[N,2] x) => (float[N,2] y) { a = Identity(x) b = Relu(a) c = Dropout(b) d = Tanh(c) y = Identity(d) }"
    graph = tidy(parsed(text, unused=np.zeros(3)))
    assert kinds(graph) == ["Relu", "Tanh"]
    assert graph.constants == {} and graph.nodes[-1].output[0] == "output"


def test_dropout_in_training_mode_stays_for_the_verifier_to_refuse():
    text = "(float[N,2] x) => (float[N,2] y) { y = Dropout(x, r, t) }"
    graph = tidy(parsed(text, r=np.float32(0.5), t=np.array(True)))
    assert kinds(graph) == ["Dropout"]


def test_an_output_without_the_input_is_an_error():
    with pytest.raises(InputError, match="does not depend on its input"):
        tidy(parsed("(float[N,2] x) => (float[2] y) { y = Neg(c) }", c=np.ones(2, dtype=np.float32)))


def test_control_flow_names_the_construct():
    text = """(float[N,2] x, bool p) => (float[N,2] y) {
        y = If(p) <then_branch = a () => (float[N,2] t) { t = Relu(x) },
                   else_branch = b () => (float[N,2] e) { e = Neg(x) }> }"""
    with pytest.raises(InputError, match=r"data-dependent control flow \(If\)"):
        Graph(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> net {text}').graph)
