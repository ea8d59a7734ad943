"""Whatever ONNX Runtime changes in a graph is noticed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from lipdeploy.errors import IntegrityError
from lipdeploy.ops import attach_functions
from lipdeploy.runtime.executed import check_executed

LEVELS = onnxruntime.GraphOptimizationLevel
RANDOM = np.random.default_rng(3)


def executed(model, path, level=LEVELS.ORT_DISABLE_ALL):
    """The graph that ONNX Runtime runs at this optimisation level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.fixture
def conv_and_scale(parse):
    return parse(
        """g (float[N,2,6,6] x) => (float[N,3] y) {
            h = Conv(x, k)
            s = Mul(h, c)
            f = Flatten(s)
            y = Gemm<transB=1>(f, w, b)
        }""",
        k=RANDOM.standard_normal((4, 2, 3, 3)).astype(np.float32),
        c=RANDOM.standard_normal((4, 1, 1)).astype(np.float32),
        w=RANDOM.standard_normal((3, 64)).astype(np.float32),
        b=np.zeros(3, np.float32),
    )


FUNCTIONS = """g (float[N,4] x) => (float[N,4] y) {
    c = Constant<value_float=0.3>()
    a = Mul(x, c)
    s = lipdeploy.GroupSort<group_size=2>(a)
    t = lipdeploy.LinearSpline<lower=-1.0, knot_spacing=0.5>(s, k)
    h = HardSwish(t)
    m = Mish(h)
    y = Clip(m, low, high)
}"""


@pytest.fixture
def functions(parse):
    model = parse(
        FUNCTIONS, k=RANDOM.standard_normal((4, 5)).astype(np.float32), low=np.float32(-1), high=np.float32(1)
    )
    attach_functions(model, {onnx.TensorProto.FLOAT})
    return model


def test_without_optimisation_the_graph_is_the_verified_one(conv_and_scale, tmp_path):
    check_executed(conv_and_scale, executed(conv_and_scale, tmp_path / "e.onnx"), "program")


def test_functions_are_recognised_by_their_bodies(functions, tmp_path):
    graph = executed(functions, tmp_path / "e.onnx")
    assert "GroupSort" not in {node.op_type for node in graph.graph.node}
    check_executed(functions, graph, "program")


CASTS = """g (float[N,4] x) => (float[N,4] y) {
    i = Constant<value_int=3>()
    s = CastLike(i, x)
    y = Mul(x, s)
}"""


def test_constants_of_whole_numbers_and_casts_to_another_tensors_type(parse, tmp_path):
    model = parse(CASTS)
    graph = executed(model, tmp_path / "e.onnx")
    assert "Cast" in {node.op_type for node in graph.graph.node}
    check_executed(model, graph, "program")


@pytest.mark.parametrize("what", ["type", "number", "operator"])
def test_a_cast_in_place_of_a_cast_like_is_its_own(parse, tmp_path, what):
    model = parse(CASTS)
    graph = executed(model, tmp_path / "e.onnx")
    cast = next(node for node in graph.graph.node if node.op_type == "Cast")
    if what == "type":
        cast.attribute[0].i = onnx.TensorProto.FLOAT16
    elif what == "operator":
        cast.op_type = "BitCast"
    else:
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.int64(4), graph.graph.initializer[0].name))
    with pytest.raises(IntegrityError):
        check_executed(model, graph, "program")


def test_recomputed_weights_are_noticed(conv_and_scale, tmp_path):
    graph = executed(conv_and_scale, tmp_path / "e.onnx", LEVELS.ORT_ENABLE_BASIC)
    with pytest.raises(IntegrityError, match="program: ONNX Runtime computes with a changed constant"):
        check_executed(conv_and_scale, graph, "program")


def test_a_factor_moved_into_an_attribute_is_noticed(parse, tmp_path):
    model = parse(
        "g (float[N,2,4] x) => (float[N,2,4] y) { h = Mul(x, c)\n y = MatMul(h, w) }",
        c=np.float32(0.3), w=RANDOM.standard_normal((4, 4)).astype(np.float32),
    )  # fmt: skip
    graph = executed(model, tmp_path / "e.onnx", LEVELS.ORT_ENABLE_EXTENDED)
    with pytest.raises(IntegrityError):
        check_executed(model, graph, "program")


def edited(model, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy.graph)
    return copy


def replace_weight(graph):
    values = numpy_helper.to_array(graph.initializer[2]).copy()
    values[0, 0] = np.nextafter(values[0, 0], np.float32(9))
    graph.initializer[2].CopyFrom(numpy_helper.from_array(values, graph.initializer[2].name))


def transpose_square_weight(graph):
    values = numpy_helper.to_array(graph.initializer[0])
    graph.initializer[0].CopyFrom(numpy_helper.from_array(values.swapaxes(2, 3).copy(), "k"))


def swap_names(graph):
    graph.node[0].input[1], graph.node[1].input[1] = graph.node[1].input[1], graph.node[0].input[1]


def change_operator(graph):
    graph.node[1].op_type = "Add"


def add_node(graph):
    graph.node.append(helper.make_node("Neg", ["y"], ["z"]))


def drop_node(graph):
    del graph.node[1]
    graph.node[1].input[0] = "h"


def change_attribute(graph):
    graph.node[3].attribute.append(helper.make_attribute("alpha", 0.5))


def add_constant(graph):
    graph.initializer.append(numpy_helper.from_array(np.float32([1.0]), "new"))


@pytest.mark.parametrize(
    "change",
    [
        replace_weight,
        transpose_square_weight,
        swap_names,
        change_operator,
        add_node,
        drop_node,
        change_attribute,
        add_constant,
    ],
)
def test_every_edit_is_noticed(conv_and_scale, change):
    with pytest.raises(IntegrityError):
        check_executed(conv_and_scale, edited(conv_and_scale, change), "program")


def test_defaults_may_be_written_out(conv_and_scale):
    def write_out(graph):
        graph.node[3].attribute.append(helper.make_attribute("alpha", 1.0))

    check_executed(conv_and_scale, edited(conv_and_scale, write_out), "program")


def test_a_body_operator_may_not_replace_a_plain_one(functions, tmp_path):
    graph = executed(functions, tmp_path / "e.onnx")
    (plain,) = [node for node in graph.graph.node if node.output[0] == "a"]
    plain.op_type = "Sub"
    with pytest.raises(IntegrityError, match="executes Sub for 'a', which was not verified"):
        check_executed(functions, graph, "program")
