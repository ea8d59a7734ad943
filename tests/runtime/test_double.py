"""The float64 program against torch, SciPy and NumPy in float64."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnx
import pytest
import scipy.signal
import scipy.special
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipdeploy import CertifiedSession
from lipdeploy.errors import InputError, Refused
from lipdeploy.runtime.double import double_model, elements_per_row

RANDOM = np.random.default_rng(7)
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def close(found, expected):
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert np.abs(found - expected).max(initial=0.0) <= 1e-13 * scale


def computed(one_node, run_plain, op, x, weights=None, **attributes):
    model = double_model(one_node(op, x.shape[1:], weights, **attributes))
    onnx.checker.check_model(model, full_check=True)
    return run_plain(model, x.astype(np.float64))


def wide(array):
    return torch.tensor(array, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolutions_of_every_stride_dilation_and_padding(one_node, run_plain, rank, group):
    x, kernel = normal(3, 4, *(9, 8, 7)[:rank]), (3, 2, 2)[:rank]
    weight, bias = normal(8, 4 // group, *kernel), normal(8)
    paddings = ([0] * rank + [0] * rank, [1] * 2 * rank, [1, 0, 2][:rank] + [2, 1, 0][:rank])
    for stride, dilation, pads, biased in itertools.product((1, 2, 3), (1, 2), paddings, (False, True)):
        weights = {"w": weight, "b": bias} if biased else {"w": weight}
        found = computed(
            one_node, run_plain, "Conv", x, weights,
            strides=[stride] * rank, dilations=[dilation] * rank, pads=pads, group=group,
        )  # fmt: skip
        sides = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]
        padded = torch.nn.functional.pad(wide(x), sides)
        expected = CONVOLUTIONS[rank - 1](
            padded, wide(weight), wide(bias) if biased else None, stride=stride, dilation=dilation, groups=group
        )
        close(found, expected.numpy())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_transposed_convolutions(one_node, run_plain, rank, group):
    x, kernel = normal(3, 4, *(5, 4, 3)[:rank]), (3, 2, 2)[:rank]
    weight, bias = normal(4, 8 // group, *kernel), normal(8)
    for stride, dilation, pad in itertools.product((1, 2, 3), (1, 2), (0, 1)):
        extra = min(stride, 2) - 1
        found = computed(
            one_node, run_plain, "ConvTranspose", x, {"w": weight, "b": bias}, strides=[stride] * rank,
            dilations=[dilation] * rank, pads=[pad] * 2 * rank, output_padding=[extra] * rank, group=group,
        )  # fmt: skip
        expected = TRANSPOSED[rank - 1](
            wide(x), wide(weight), wide(bias), stride=stride, dilation=dilation, groups=group, padding=pad,
            output_padding=extra,
        )  # fmt: skip
        close(found, expected.numpy())


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad_means_what_onnx_runtime_means_by_it(one_node, run_plain, mode, stride, size):
    x, weight = normal(2, 2, size, size + 1), normal(3, 2, 3, 2)
    attributes = dict(auto_pad=mode, strides=[stride, stride])
    in_float32 = run_plain(one_node("Conv", x.shape[1:], {"w": weight}, **attributes), x)
    found = computed(one_node, run_plain, "Conv", x, {"w": weight}, **attributes)
    assert np.allclose(found, in_float32, atol=1e-5)


def test_a_convolution_is_scipys_correlation(one_node, run_plain):
    x, weight = normal(1, 1, 12, 11), normal(1, 1, 4, 3)
    expected = scipy.signal.correlate2d(x[0, 0].astype(float), weight[0, 0].astype(float), mode="valid")
    close(computed(one_node, run_plain, "Conv", x, {"w": weight})[0, 0], expected)


def test_a_convolution_with_small_integers_is_exact(one_node, run_plain):
    x = RANDOM.integers(-50, 50, (2, 3, 6, 6)).astype(np.float32)
    weight = (RANDOM.integers(-50, 50, (4, 3, 3, 3)) / 8).astype(np.float32)
    found = computed(one_node, run_plain, "Conv", x, {"w": weight}, pads=[1, 1, 1, 1])
    for n, m, i, j in itertools.product(range(2), range(4), (0, 3, 5), (0, 2, 5)):
        exact = sum(
            Fraction(float(weight[m, c, a, b])) * Fraction(float(x[n, c, i + a - 1, j + b - 1]))
            for c, a, b in itertools.product(range(3), range(3), range(3))
            if 0 <= i + a - 1 < 6 and 0 <= j + b - 1 < 6
        )
        assert Fraction(float(found[n, m, i, j])) == exact


def test_a_weight_computed_in_the_graph_may_feed_a_convolution(parse, run_plain):
    weight = normal(5, 2, 3, 3)
    model = parse(
        "g (float[N,2,6,6] x) => (float[N,5,4,4] y) { w = Transpose<perm=[3,2,0,1]>(stored)\n y = Conv(x, w) }",
        stored=weight.transpose(2, 3, 1, 0).copy(),
    )
    x = normal(2, 2, 6, 6)
    found = run_plain(double_model(model), x.astype(np.float64))
    close(found, torch.conv2d(wide(x), wide(weight)).numpy())


@pytest.mark.parametrize(
    "attributes",
    [
        dict(kernel_shape=[2, 2], strides=[2, 2]),
        dict(kernel_shape=[3, 2], strides=[1, 2]),
        dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 2]),
    ],
)
def test_average_pooling(one_node, run_plain, attributes):
    x = normal(2, 3, 8, 9)
    pads = attributes.get("pads", [0])[0]
    expected = torch.nn.functional.avg_pool2d(
        wide(x), attributes["kernel_shape"], attributes.get("strides", 1), pads,
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )  # fmt: skip
    close(computed(one_node, run_plain, "AveragePool", x, **attributes), expected.numpy())


def test_average_pooling_with_asymmetric_pads_counts_real_pixels_only(one_node, run_plain):
    x = normal(1, 2, 7)
    found = computed(one_node, run_plain, "AveragePool", x, kernel_shape=[3], pads=[2, 1], strides=[2])
    windows = [x[..., max(0, 2 * i - 2) : 2 * i + 1].astype(float).mean(axis=-1) for i in range(4)]
    close(found, np.stack(windows, axis=-1))


def test_average_pooling_with_overhanging_windows_is_refused_by_name(one_node):
    model = one_node("AveragePool", (3, 6), kernel_shape=[3], strides=[2], ceil_mode=1)
    with pytest.raises(Refused, match=r"LIP018 node 'the_AveragePool'.*ceil_mode"):
        double_model(model)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_pooling(one_node, run_plain, p):
    x = normal(2, 3, 6, 6)
    found = computed(one_node, run_plain, "LpPool", x, kernel_shape=[2, 2], strides=[2, 2], p=p)
    blocks = np.abs(x.astype(float)).reshape(2, 3, 3, 2, 3, 2) ** p
    close(found, blocks.sum(axis=(3, 5)) ** (1 / p))


def test_max_pooling_keeps_its_kernel(one_node, run_plain):
    x = normal(2, 3, 8, 8)
    found = computed(one_node, run_plain, "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    close(found, torch.nn.functional.max_pool2d(wide(x), 3, 2, 1).numpy())


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pooling(one_node, run_plain, op, opset):
    x = normal(3, 4, 5, 6)
    reduced = {
        "GlobalAveragePool": lambda a: a.mean(axis=(2, 3), keepdims=True),
        "GlobalMaxPool": lambda a: a.max(axis=(2, 3), keepdims=True),
        "GlobalLpPool": lambda a: np.sqrt((a**2).sum(axis=(2, 3), keepdims=True)),
    }[op]
    close(computed(one_node, run_plain, op, x, opset=opset), reduced(x.astype(np.float64)))


POINTWISE = {
    "LeakyRelu": (dict(alpha=0.3), lambda x: np.where(x < 0, float(np.float32(0.3)) * x, x)),
    "HardSigmoid": (dict(alpha=0.25, beta=0.375), lambda x: np.clip(0.25 * x + 0.375, 0, 1)),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "Abs": ({}, np.abs),
    "Tanh": ({}, np.tanh),
    "Sigmoid": ({}, scipy.special.expit),
}  # fmt: skip


@pytest.mark.parametrize("op", POINTWISE)
def test_pointwise_operators(one_node, run_plain, op):
    attributes, expected = POINTWISE[op]
    x = 3 * normal(5, 7)
    close(computed(one_node, run_plain, op, x, **attributes), expected(x.astype(np.float64)))


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.0, 2.0])
def test_leaky_relu_of_any_slope(one_node, run_plain, alpha):
    x = normal(4, 6)
    expected = torch.nn.functional.leaky_relu(wide(x), alpha).numpy()
    close(computed(one_node, run_plain, "LeakyRelu", x, alpha=alpha), expected)


def test_prelu_with_one_slope_per_channel(one_node, run_plain):
    x, slopes = normal(2, 3, 4, 4), normal(3, 1, 1)
    expected = torch.nn.functional.prelu(wide(x), wide(slopes.reshape(-1))).numpy()
    close(computed(one_node, run_plain, "PRelu", x, {"slope": slopes}), expected)


def test_constants_are_widened_exactly_wherever_they_stand(parse, run_plain):
    model = parse(
        """g (float[N,2] x) => (float[N,2] y) {
            c = Constant<value_float=0.1>()
            d = Constant<value = float[2] {0.2, 0.3}>()
            a = Mul(x, c)
            b = Add(a, d)
            y = Gemm<alpha=0.7, transB=1>(b, w)
        }""",
        w=np.float32([[0.1, 0.2], [0.3, 0.4]]),
    )
    x = np.float64([[1.0, -2.0]])
    single = lambda number: float(np.float32(number))
    inner = x * single(0.1) + np.array([single(0.2), single(0.3)])
    weight = np.float32([[0.1, 0.2], [0.3, 0.4]]).astype(np.float64)
    close(run_plain(double_model(model), x), single(0.7) * (inner @ weight.T))


def test_every_float_tensor_of_the_program_is_float64(parse):
    model = parse(
        """g (uint8[N,1,6,6] x) => (float[N,3] y) {
            f = Cast<to=1>(x)
            h = Cast<to=10>(f)
            c = Conv<pads=[1,1,1,1]>(h, w, b)
            p = GlobalAveragePool(c)
            y = Flatten(p)
        }""",
        w=normal(3, 1, 3, 3).astype(np.float16), b=normal(3).astype(np.float16),
    )  # fmt: skip
    program = onnx.shape_inference.infer_shapes(double_model(model), strict_mode=True)
    types = {value.type.tensor_type.elem_type for value in (*program.graph.value_info, *program.graph.output)}
    assert types == {TensorProto.DOUBLE}
    assert program.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_a_cast_that_rounds_a_constant_is_refused(parse):
    model = parse("g (float[N,2] x) => (float[N,2] y) { c = Cast<to=1>(w)\n y = Mul(x, c) }", w=np.float64([0.1, 0.25]))
    with pytest.raises(Refused, match=r"LIP018.*rounds a constant"):
        double_model(model)
    exact = parse("g (float[N,2] x) => (float[N,2] y) { c = Cast<to=1>(w)\n y = Mul(x, c) }", w=np.float64([0.5, 0.25]))
    double_model(exact)


@pytest.mark.parametrize("op", ["Sin", "Atan", "Asinh", "InstanceNormalization"])
def test_operators_without_float64_program_are_refused_by_name(one_node, op):
    weights = {"s": normal(3), "b": normal(3)} if op == "InstanceNormalization" else {}
    with pytest.raises(Refused, match=rf"LIP018 node 'the_{op}' \({op}\)") as refusal:
        double_model(one_node(op, (3, 4), weights))
    assert "certify='f32'" in refusal.value.hint


def test_only_what_the_chosen_output_needs_is_kept(parse, run_plain):
    model = parse(
        "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { a = Relu(x)\n y = Mul(a, w)\n z = Erf(v)\n v = Neg(x) }",
        w=np.float32([2, 3]),
    )
    program = double_model(model, "y")
    assert [node.op_type for node in program.graph.node] == ["Relu", "Mul"]
    assert [value.name for value in program.graph.output] == ["y"]
    with pytest.raises(InputError, match="no output 'q'; its outputs are: y, z"):
        double_model(model, "q")


def test_an_initialiser_that_is_also_an_input_cannot_be_overridden(parse):
    model = parse("g (float[N,2] x, float[2] w) => (float[N,2] y) { y = Mul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([2, 3]), "w"))
    assert [value.name for value in double_model(model).graph.input] == ["x"]


def test_a_subgraph_is_refused(parse):
    then = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "t", [], [
        helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])  # fmt: skip
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }", c=np.array(True))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], name="branch", then_branch=then, else_branch=then))
    with pytest.raises(Refused, match="LIP018 node 'branch'"):
        double_model(model)


def test_functions_of_others_are_replaced_by_their_bodies(parse, run_plain):
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Twice(x) }\n")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].domain = "mine"
    program = double_model(model)
    assert [node.op_type for node in program.graph.node] == ["Add"]
    close(run_plain(program, np.float64([[1.5, -2.0]])), np.float64([[3.0, -4.0]]))


def test_a_lying_value_info_changes_nothing(one_node, run_plain):
    x, weight = normal(2, 1, 6, 6), normal(1, 1, 3, 3)
    model = one_node("Conv", (1, 6, 6), {"w": weight}, pads=[1, 1, 1, 1])
    model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 5, 5]))
    found = run_plain(double_model(model), x.astype(np.float64))
    close(found, torch.conv2d(wide(x), wide(weight), padding=1).numpy())


def test_the_largest_tensor_of_a_row_is_the_column_matrix(one_node):
    program = double_model(one_node("Conv", (4, 8, 8), {"w": normal(5, 4, 3, 3)}, pads=[1, 1, 1, 1]))
    assert elements_per_row(program) == 4 * 9 * 64


def test_the_batch_stays_dynamic(one_node, run_plain):
    program = double_model(one_node("Conv", (4, 8, 8), {"w": normal(6, 2, 3, 3)}, group=2, strides=[2, 2]))
    for rows in (1, 2, 17):
        assert run_plain(program, np.zeros((rows, 4, 8, 8))).shape == (rows, 6, 3, 3)


@pytest.mark.parametrize("stored", ["FLOAT", "DOUBLE"])
def test_a_stored_float64_program_without_kernels_is_rewritten(parse, stored):
    """ONNX Runtime has no Conv and no Softplus in float64. The input may be float32 before a Cast."""
    kind, cast = ("float", "d = Cast<to=11>(x)") if stored == "FLOAT" else ("double", "d = Identity(x)")
    model = parse(
        f"""g ({kind}[N,2,6,6] x) => (double[N,3] y, double[N,4,4,4] other) {{
            {cast}
            c = Conv(d, k)
            s = Softplus(c)
            other = Relu(s)
            f = Flatten(s)
            y = Gemm<transB=1>(f, w)
        }}""",
        k=RANDOM.standard_normal((4, 2, 3, 3)) / 8,
        w=RANDOM.standard_normal((3, 64)) / 32,
    )
    x = RANDOM.standard_normal((5, 2, 6, 6)).astype(np.float32 if stored == "FLOAT" else np.float64)
    expected = ReferenceEvaluator(model).run(["y"], {"x": x})[0]
    for mode in ("f64", "adaptive", "network"):
        session = CertifiedSession(model.SerializeToString(), certify=mode, output_name="y")
        assert session.get_inputs()[0].type == f"tensor({kind})"
        prediction = session.predict(x)
        np.testing.assert_array_equal(prediction.label, expected.argmax(axis=1))
        assert (prediction.radius > 0.0).any()
        np.testing.assert_allclose(session.run(["y"], {"x": x})[0], expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(Refused, match="does not compute in float32"):
        CertifiedSession(model.SerializeToString(), certify="f32", output_name="y")
