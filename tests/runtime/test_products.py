"""The float64 program through the operator library's own products: same values as the standard operators, checked."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipdeploy import CertifiedSession
from lipdeploy.errors import IntegrityError, Refused
from lipdeploy.runtime import engine, products, session
from lipdeploy.runtime.double import double_model, elements_per_row
from lipdeploy.runtime.executed import check_executed
from lipdeploy.runtime.library import ENVIRONMENT_VARIABLE, find_library
from lipdeploy.runtime.providers import choose

RANDOM = np.random.default_rng(23)
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


@pytest.fixture(autouse=True)
def _library(ops_library, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(ops_library))


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def wide(array):
    return torch.tensor(array, dtype=torch.float64)


def own_operators(program):
    return [node.op_type for node in program.graph.node if node.domain == products.DOMAIN]


def run(program, x):
    """Through the engine, so that the executed graph is compared with the one that was built."""
    opened = engine.Engine(choose(None), 1, find_library()).open(program, "float64 program")
    return opened.run(None, {opened.get_inputs()[0].name: x.astype(np.float64)})[0]


def close(found, expected):
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-13 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions(one_node, rank, group):
    x, kernel = normal(3, 4, *(9, 8, 7)[:rank]), (3, 2, 2)[:rank]
    weight, bias = normal(6, 4 // group, *kernel), normal(6)
    for stride, dilation, pad in itertools.product((1, 2), (1, 2), (0, 1)):
        program = double_model(
            one_node(
                "Conv", x.shape[1:], {"w": weight, "b": bias}, strides=[stride] * rank, dilations=[dilation] * rank,
                pads=[pad] * 2 * rank, group=group,
            ),
            own=True,
        )  # fmt: skip
        assert own_operators(program) == ["Conv"]
        expected = CONVOLUTIONS[rank - 1](
            wide(x), wide(weight), wide(bias), stride=stride, dilation=dilation, groups=group, padding=pad
        )
        close(run(program, x), expected.numpy())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolutions(one_node, rank, group):
    x, kernel = normal(3, 4, *(5, 4, 3)[:rank]), (3, 2, 2)[:rank]
    weight, bias = normal(4, 6 // group, *kernel), normal(6)
    for stride, dilation, pad in itertools.product((1, 2, 3), (1, 2), (0, 1)):
        extra = min(stride, 2) - 1
        program = double_model(
            one_node(
                "ConvTranspose", x.shape[1:], {"w": weight, "b": bias}, strides=[stride] * rank, group=group,
                dilations=[dilation] * rank, pads=[pad] * 2 * rank, output_padding=[extra] * rank,
            ),
            own=True,
        )  # fmt: skip
        assert own_operators(program) == ["Conv"]
        expected = TRANSPOSED[rank - 1](
            wide(x), wide(weight), wide(bias), stride=stride, dilation=dilation, groups=group, padding=pad,
            output_padding=extra,
        )  # fmt: skip
        close(run(program, x), expected.numpy())


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(one_node, mode):
    x, weight = normal(2, 2, 7, 8), normal(3, 2, 3, 2)
    model = one_node("Conv", x.shape[1:], {"w": weight}, auto_pad=mode, strides=[2, 2])
    found = run(double_model(model, own=True), x)
    close(found, run(double_model(model), x))


def as_product(weight, transposed=1, bias=None, **factors):
    """A Gemm over 7 inputs, with the bias as given."""
    inputs = ["x", "w"] + (["b"] if bias is not None else [])
    node = helper.make_node("Gemm", inputs, ["y"], transB=transposed, **factors)
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("x", "y")]
    sizes[0].type.tensor_type.shape.dim[1].dim_value = 7
    stored = {"w": weight} if bias is None else {"w": weight, "b": bias}
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph([node], "g", sizes[:1], sizes[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (33,), (1, 33), (1, 1)])
def test_gemm(transposed, bias):
    x, weight = normal(5, 7), normal(33, 7)
    offset = None if bias is None else normal(*bias)
    program = double_model(as_product(weight if transposed else weight.T.copy(), transposed, offset), own=True)
    assert own_operators(program) == ["Gemm"]
    expected = x.astype(float) @ weight.T.astype(float)
    close(run(program, x), expected if offset is None else expected + offset)


@pytest.mark.parametrize("factors", [dict(alpha=0.5), dict(beta=2.0)])
def test_gemm_with_factors_stays_with_onnx_runtime(factors):
    weight, offset, x = normal(33, 7), normal(33), normal(5, 7)
    program = double_model(as_product(weight, 1, offset, **factors), own=True)
    assert own_operators(program) == []
    product = factors.get("alpha", 1.0) * (x.astype(float) @ weight.T.astype(float))
    close(run(program, x), product + factors.get("beta", 1.0) * offset.astype(float))


def test_a_bias_per_row_and_a_computed_weight_stay_with_onnx_runtime(parse):
    rows = parse("g (float[2,3] x) => (float[2,4] y) { y = Gemm(x, w, b) }", w=normal(3, 4), b=normal(2, 4))
    computed = parse("g (float[N,3] x) => (float[N,4] y) { w = Transpose(v)\n y = MatMul(x, w) }", v=normal(4, 3))
    left = parse("g (float[3,N] x) => (float[4,N] y) { y = MatMul(w, x) }", w=normal(4, 3))
    for model in (rows, computed, left):
        assert own_operators(double_model(model, own=True)) == []


def test_matmul_of_rows_with_more_axes(parse):
    model = parse("g (float[N,5,7] x) => (float[N,5,9] y) { y = MatMul(x, w) }", w=normal(7, 9))
    x = normal(3, 5, 7)
    program = double_model(model, own=True)
    assert own_operators(program) == ["Gemm"]
    close(run(program, x), x.astype(float) @ numpy_helper.to_array(model.graph.initializer[0]).astype(float))


def test_weights_stay_float32_where_that_is_exact(one_node, parse):
    narrow = double_model(one_node("Conv", (2, 6, 6), {"w": normal(3, 2, 3, 3)}), own=True)
    assert [t.data_type for t in narrow.graph.initializer if len(t.dims) == 4] == [TensorProto.FLOAT]
    stored = np.float64([[0.1, 2.0], [1e300, 3.0]])
    model = parse("g (double[N,2] x) => (double[N,2] y) { y = MatMul(x, w) }", w=stored)
    program = double_model(model, own=True)
    assert [t.data_type for t in program.graph.initializer if len(t.dims) == 3] == [TensorProto.DOUBLE]
    x = np.float64([[1.0, 2.0]])
    close(run(program, x), x @ stored)


def test_no_column_matrix_is_needed(one_node):
    program = double_model(one_node("Conv", (4, 8, 8), {"w": normal(5, 4, 3, 3)}, pads=[1] * 4), own=True)
    assert elements_per_row(program) <= 5 * 64


NETWORK = """g (float[N,2,8,8] x) => (float[N,10] y) {
    a = Conv<pads=[1,1,1,1]>(x, k1, b1)
    b = lipdeploy.GroupSort<group_size=2>(a)
    c = Conv<strides=[2,2]>(b, k2)
    d = Relu(c)
    e = Flatten(d)
    y = Gemm<transB=1>(e, w, b2)
}"""


@pytest.fixture
def network(parse):
    scale = np.float32(0.2)
    return parse(
        NETWORK, k1=scale * normal(6, 2, 3, 3), b1=normal(6), k2=scale * normal(8, 6, 2, 2), w=scale * normal(10, 128),
        b2=normal(10),
    )  # fmt: skip


def test_shapes_behind_our_products_are_known(network):
    program = double_model(network, own=True)
    assert own_operators(program) == ["Conv", "Conv", "Gemm"]
    onnx.checker.check_model(program)
    assert elements_per_row(program) == 6 * 64


def test_a_session_uses_them_and_agrees_with_the_standard_operators(network, monkeypatch):
    data, x = network.SerializeToString(), normal(33, 2, 8, 8)
    own = CertifiedSession(data, threads=1)
    built = []
    monkeypatch.setattr(session, "find_library", lambda: dataclasses.replace(find_library(), double_products=False))
    monkeypatch.setattr(session, "double_model", lambda *given: built.append(double_model(*given)) or built[-1])
    standard = CertifiedSession(data, threads=1)
    assert [own_operators(program) for program in built] == [[]]
    error = own.verdict.numeric_error["f64"]
    norms = np.linalg.norm(x.reshape(33, -1).astype(float), axis=1)
    apart = np.abs(own.predict(x).logits - standard.predict(x).logits).max(axis=1)
    assert np.all(apart <= 2 * (error.c0 + error.c1 * norms))
    assert apart.max() < 1e-13
    np.testing.assert_array_equal(own.predict(x).label, standard.predict(x).label)


def test_a_wrong_product_is_noticed_at_the_start(network, monkeypatch):
    def wrong(weight):
        packed = honest(weight)
        packed[0] += 1e-6
        return packed

    honest = products.panels
    monkeypatch.setattr(products, "panels", wrong)
    with pytest.raises(IntegrityError, match=r"on a probe the float64 products of .* differ by"):
        CertifiedSession(network.SerializeToString())


def test_the_executed_graph_is_held_against_ours(network):
    program = double_model(network, own=True)
    changed = onnx.ModelProto.FromString(program.SerializeToString())
    node = next(node for node in changed.graph.node if node.domain == products.DOMAIN)
    next(a for a in node.attribute if a.name == "pads").ints[0] = 0
    with pytest.raises(IntegrityError, match="executes Conv for 'a', which was not verified"):
        check_executed(program, changed, "program")
    tampered = onnx.ModelProto.FromString(program.SerializeToString())
    tensor = next(t for t in tampered.graph.initializer if len(t.dims) == 3)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0] = np.nextafter(values[0, 0, 0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(IntegrityError, match="changed constant"):
        check_executed(program, tampered, "program")


def test_another_provider_gets_standard_operators(ops_library):
    library = find_library()
    assert engine.Engine(choose(None), 1, library).double_products
    assert not engine.Engine((("CUDAExecutionProvider", {}), *choose(None)), 1, library).double_products
    assert not engine.Engine(choose(None), 1, dataclasses.replace(library, double_products=False)).double_products
    assert not engine.Engine(choose(None), 1, None).double_products


def test_a_file_that_contains_them_is_refused(network):
    program = double_model(network, own=True)
    with pytest.raises(Refused):
        CertifiedSession(program.SerializeToString())


def test_they_load_without_any_optimisation_level_changing_them(network, tmp_path, ops_library):
    program, path = double_model(network, own=True), tmp_path / "executed.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(str(ops_library))
    onnxruntime.InferenceSession(program.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert own_operators(onnx.load(path)) == ["Conv", "Conv", "Gemm"]
