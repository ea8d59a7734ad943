"""Probes: products, normalisation, number types, precision, functions, control flow, batches."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from tools.soundness import modules
from tools.soundness.probe import LINEAR, Probe, graph, linear, refused, shown

X2 = "(float[N,2] x) => (float[N,K] y)"
X4 = "(float[N,4] x) => (float[N,K] y)"
IDENTITY2 = "float[2,2] W = {1, 0, 0, 1}"
STATISTICS = "float[2] g = {4, 1}, float[2] b = {0, 5}, float[2] m = {1, 2}, float[2] v = {3.75, 0.75}"


def conditional() -> onnx.ModelProto:
    """y = 100x when a constant says so, hidden in an If."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    hundred = helper.make_tensor("c", TensorProto.FLOAT, [], [100.0])
    then = helper.make_graph(
        [helper.make_node("Mul", ["x", "c"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 2])],
        [hundred],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 2])],
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=otherwise)
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return _model([node], [x], [y], [yes])


def loop() -> onnx.ModelProto:
    """x doubled ten times by a Loop."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["h", "h"], ["h2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h2", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    ten, yes = helper.make_tensor("n", TensorProto.INT64, [], [10]), helper.make_tensor("c", TensorProto.BOOL, [], [1])
    return _model([helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)], [x], [y], [ten, yes])


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    stored: list[TensorProto],
) -> onnx.ModelProto:
    body = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


HALF = np.float16(0.1)
TENTH = np.float32(0.1)

PROBES: tuple[Probe, ...] = (
    refused("x·x", f"{X2} {{ y = Mul(x, x) }}", "slope 2x", module=modules.square),
    refused("x²", f"{X2} <float two = {{2}}> {{ y = Pow(x, two) }}", "slope 2x"),
    refused("x·relu(x)", f"{X2} {{ r = Relu(x) y = Mul(x, r) }}", "slope 2x for x > 0"),
    refused("1/x", f"{X2} {{ y = Reciprocal(x) }}", "unbounded at 0"),
    refused("x/|x|", f"{X2} {{ a = Abs(x) y = Div(x, a) }}", "jumps at 0"),
    refused("√|x|", f"{X2} {{ a = Abs(x) y = Sqrt(a) }}", "infinite slope at 0"),
    refused("exp", f"{X2} {{ y = Exp(x) }}", "slope eˣ", module=modules.exponential),
    refused(
        "xxᵀ",
        "(float[N,2,1] x) => (float[N,2,2] y) { t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t) }",
        "a product of activations",
    ),
    refused(
        "attention",
        "(float[N,2,2] x) => (float[N,2,2] y) { t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t)"
        " p = Softmax<axis = 2>(s) y = MatMul(p, x) }",
        "dot-product attention is not globally Lipschitz (Kim et al. 2021)",
        module=modules.attention,
    ),
    linear(
        "x·mask",
        f"{X4} <float[4] m = {{1, 0, -3, 0.5}}> {{ y = Mul(x, m) }}",
        3.0,
        "the largest |entry|",
        module=modules.mask,
    ),
    linear("x/c", f"{X2} <float[2] c = {{0.25, -8}}> {{ y = Div(x, c) }}", 4.0, "1/0.25"),
    refused("x/0", f"{X2} <float[2] c = {{1, 0}}> {{ y = Div(x, c) }}", "division by a stored zero"),
    linear(
        "Gemm, alpha -2",
        f"{X2} <float[2,2] W = {{3, 0, 0, 1}}, float[2] b = {{7, 7}}>"
        " { y = Gemm<alpha = -2.0, beta = 9.0>(x, W, b) }",
        6.0,
        "2·3; the bias does not move",
    ),
    linear(
        "W·x from the left",
        "(float[N,2,3] x) => (float[N,2,3] y) <float[2,2] W = {0, 3, 4, 0}> { y = MatMul(W, x) }",
        4.0,
        "every column meets W",
    ),
    linear("row sum, linf", f"{X2} <float[2,2] W = {{1, 2, -3, 4}}> {{ y = MatMul(x, W) }}", 6.0,
           "xW: column (2, 4) of W", norm="linf"),
    linear("column sum, l1", f"{X2} <float[2,2] W = {{1, 2, -3, 4}}> {{ y = MatMul(x, W) }}", 7.0,
           "xW: row (−3, 4) of W", norm="l1"),
    linear("l2 to linf", f"{X2} <float[2,2] W = {{3, 0, 4, 1}}> {{ y = MatMul(x, W) }}", 5.0, "‖(3, 4)‖",
           norm="l2-linf"),
    linear("l1 to linf", f"{X2} <float[2,2] W = {{3, 0, 4, 1}}> {{ y = MatMul(x, W) }}", 4.0, "the largest entry",
           norm="l1-linf"),
    linear("l2 to linf, mixed chain", f"{X2} <float[2,2] W = {{3, 0, 4, 1}}, float[2,2] V = {{1, 1, 1, -1}}>"
           " { h = MatMul(x, W) y = MatMul(h, V) }", math.sqrt(34), "columns (3, 5) and (3, 3)", norm="l2-linf"),
    linear(
        "batch normalisation",
        f"(float[N,2,3] x) => (float[N,2,3] y) <{STATISTICS}>"
        " { y = BatchNormalization<epsilon = 0.25>(x, g, b, m, v) }",
        2.0,
        "4/√(3.75 + 0.25)",
        module=modules.batch_norm,
    ),
    refused(
        "batch normalisation in training",
        f"(float[N,2,3] x) => (float[N,2,3] y) <{STATISTICS}>"
        " { y, a, c = BatchNormalization<epsilon = 0.25, training_mode = 1>(x, g, b, m, v) }",
        "mixes the samples of a batch",
    ),
    shown(
        "layer normalisation",
        f"{X2} <float[2] s = {{1, 1}}> {{ y = LayerNormalization<epsilon = 1e-4>(x, s) }}",
        100.0,
        "(x − μ)/√(σ² + ε) has slope 1/√ε at σ = 0",
        ([[-1e-5, 1e-5]], [[1e-5, -1e-5]]),
        module=modules.layer_norm,
    ),
    shown(
        "instance normalisation",
        "(float[N,1,2] x) => (float[N,1,2] y) <float[1] s = {1}, float[1] b = {0}>"
        " { y = InstanceNormalization<epsilon = 1e-4>(x, s, b) }",
        100.0,
        "slope 1/√ε where the image is flat",
        ([[[-1e-5, 1e-5]]], [[[1e-5, -1e-5]]]),
    ),
    refused("x/‖x‖", f"{X2} {{ y = LpNormalization<axis = 1, p = 2>(x) }}", "jumps at 0", module=modules.unit),
    refused("dropout in training",
            f"{X2} <float r = {{0.5}}, bool t = {{1}}> {{ y = Dropout(x, r, t) }}", "random"),
    refused("noise", f"{X2} {{ n = RandomNormalLike(x) y = Add(x, n) }}", "random"),
    refused("truncation to integers", f"{X2} {{ i = Cast<to = 6>(x) y = Cast<to = 1>(i) }}", "jumps at integers",
            module=modules.truncated),
    refused(
        "quantised activations",
        f"{X2} <float s = {{0.1}}, uint8 z = {{0}}> {{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }}",
        "jumps at every level",
    ),
    refused(
        "wide integers",
        "(int64[N,2] x) => (float[N,2] y) { y = Cast<to = 1>(x) }",
        "int64 to float32 rounds: 2²⁴ + 1 and 2²⁴ + 2 are 2 apart afterwards",
    ),
    Probe(
        "bytes as input",
        graph("(uint8[N,2] x) => (float[N,2] y) <float c = {3}> { f = Cast<to = 1>(x) y = Mul(f, c) }"),
        3.0,
        "uint8 converts exactly",
        ([[1, 0]], [[2, 0]]),
    ),
    linear(
        "float16 weights",
        f"{X2} {{ w = Cast<to = 1>(h) y = Mul(x, w) }}",
        float(HALF),
        "the stored half is 0.0999755859375, not 0.1",
        weights={"h": np.array([HALF, HALF])},
    ),
    linear(
        "float32 Gram",
        "(float[N,100] x) => (float[N,K] y) { y = MatMul(x, W) }",
        100 * float(TENTH),
        "100×100 entries of the float32 next to 0.1; computed in float32 the norm comes out below",
        weights={"W": np.full((100, 100), TENTH)},
        module=lambda: modules.constant_matrix(100, float(TENTH)),
    ),
    linear(
        "product that underflows",
        "(double[N,2] x) => (double[N,K] y) <double s = {1e-200}, double b = {1e200}>"
        " { a = Mul(x, s) c = Mul(a, b) d = Mul(c, s) y = Mul(d, b) }",
        1e-200 * 1e200 * 1e-200 * 1e200,
        "10⁻²⁰⁰·10²⁰⁰ twice: the norms' product must not pass through 0",
    ),
    linear(
        "weights whose squares underflow",
        "(double[N,2] x) => (double[N,K] y) <double[2,2] W = {3e-200, 0, 4e-200, 0}> { y = MatMul(x, W) }",
        5e-200,
        "‖(3, 4)‖·10⁻²⁰⁰; the Gram matrix in float64 is 0",
    ),
    linear(
        "weights whose squares overflow",
        "(double[N,2] x) => (double[N,K] y) <double[2,2] W = {3e200, 0, 4e200, 0}> { y = MatMul(x, W) }",
        5e200,
        "‖(3, 4)‖·10²⁰⁰",
    ),
    refused("NaN weight", f"{X2} {{ y = Mul(x, c) }}", "NaN", weights={"c": np.array([1, np.nan], np.float32)}),
    refused("infinite weight", f"{X2} {{ y = Mul(x, c) }}", "∞", weights={"c": np.array([1, np.inf], np.float32)}),
    linear(
        "a function of 100x",
        f"{X2} {{ y = acme.Calm(x) }}",
        100.0,
        "its name says nothing, its body does",
        imports={"acme": 1},
        functions='<domain: "acme", opset_import: ["": 20]>\nCalm (x) => (y) '
        "{ c = Constant<value = float {100}>() y = Mul(x, c) }",
    ),
    refused(
        "a body under our operator's name",
        f"{X2} {{ y = lipdeploy.GroupSort<group_size = 2>(x) }}",
        "a runtime without the library would run the body: 100x",
        imports={"lipdeploy": 1},
        functions='<domain: "lipdeploy", opset_import: ["": 20]>\nGroupSort <group_size> (x) => (y) '
        "{ c = Constant<value = float {100}>() y = Mul(x, c) }",
    ),
    refused(
        "a body under a standard name",
        f"{X2} {{ y = Relu(x) }}",
        "which of the two runs depends on the runtime",
        functions='<domain: "ai.onnx", opset_import: ["": 20]>\nRelu (x) => (y) '
        "{ c = Constant<value = float {100}>() y = Mul(x, c) }",
    ),
    refused("an operator that nobody knows", f"{X2} {{ y = acme.OneLipschitz(x) }}", "unknown", imports={"acme": 1}),
    Probe("If", conditional, 100.0, "the constant condition chooses 100x", LINEAR),
    Probe("Loop", loop, 1024.0, "2¹⁰", LINEAR),
    refused(
        "reshape that mixes samples",
        f"{X2} <int64[2] s = {{-1, 4}}> {{ y = Reshape(x, s) }}",
        "two samples become one",
    ),
    refused("transpose of the batch", f"{X2} {{ t = Transpose<perm = [1, 0]>(x) y = Transpose<perm = [0, 1]>(t) }}",
            "samples and features change places"),
    refused("mean over the batch",
            f"{X2} <int64[1] a = {{0}}> {{ m = ReduceMean<keepdims = 1>(x, a) y = Sub(x, m) }}",
            "one sample's answer depends on another's"),
    refused("softmax over the batch", f"{X2} {{ y = Softmax<axis = 0>(x) }}", "one sample depends on another"),
    refused("product from the left with the batch", "(float[2,2] x) => (float[2,2] y) <float[2,2] W = {1, 9, 9, 1}>"
            " { y = MatMul(W, x) }", "mixes the two samples"),
    refused("weight that a caller can replace",
            f"(float[N,2] x, float[2,2] W) => (float[N,2] y) <{IDENTITY2}> {{ y = MatMul(x, W) }}",
            "an initialiser that is also an input is only a default"),
    linear("cumulative sum", "(float[N,3] x) => (float[N,3] y) <int64 a = {1}> { y = CumSum(x, a) }",
           1 / (2 * math.sin(math.pi / 14)), "lower triangle of ones of size 3", module=modules.cumulative),
    linear("Einsum", f'{X2} <float[2,2] V = {{3, 0, 0, 1}}> {{ y = Einsum<equation = "bi,ij->bj">(x, V) }}', 3.0,
           "it is xV"),
)  # fmt: skip
