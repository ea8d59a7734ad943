"""Weights in fewer bits at run time: both programs, all modes, and the graph that ONNX Runtime really executes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy import CertifiedSession
from lipdeploy.errors import IntegrityError
from lipdeploy.ops import attach_functions
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.optimised import check_optimised
from lipdeploy.runtime.program import float64_function
from lipdeploy.runtime.session import MODES
from lipdeploy.verify.radius import input_norm_up

LEVELS = onnxruntime.GraphOptimizationLevel
INPUTS, HIDDEN, CLASSES = 12, 20, 4
FORMATS = ("float16", "bfloat16", "int8", "int8 with zero points", "uint8", "int4 in blocks")


class Net:
    """x·W₁ + b₁, Relu, ·W₂, each weight stored in one format; ``real`` are the exact weights in float64."""

    def __init__(self, form: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.bias = rng.standard_normal(HIDDEN).astype(np.float32)
        shapes = ((INPUTS, HIDDEN), (HIDDEN, CLASSES))
        self.real = [self.weight(f"W{k}", form, shape, rng) for k, shape in enumerate(shapes)]

    def weight(self, name: str, form: str, shape: tuple[int, int], rng: Any) -> np.ndarray:
        if form in ("float16", "bfloat16"):
            narrow = rng.standard_normal(shape).astype(np.float16 if form == "float16" else ml_dtypes.bfloat16)
            self.tensors.append(numpy_helper.from_array(narrow, f"{name}.stored"))
            self.nodes.append(helper.make_node("Cast", [f"{name}.stored"], [name], to=TensorProto.FLOAT))
            return narrow.astype(float)
        low, high = {"int4": (-8, 8), "uint8": (0, 256)}.get(form.split()[0], (-128, 128))
        q = rng.integers(low, high, shape)
        block = 4 if "blocks" in form else 0
        size = (-(-shape[0] // block), shape[1]) if block else (shape[1],)
        scale = (rng.random(size) * 0.02 + 0.001).astype(np.float32)  # few of their products are float32 numbers
        zero = rng.integers(low, high, size) if "zero" in form or form == "uint8" else np.zeros(size, int)
        kind = {"int4": TensorProto.INT4, "uint8": TensorProto.UINT8}.get(form.split()[0], TensorProto.INT8)
        for label, values in (("q", q), ("z", zero)):
            self.tensors.append(helper.make_tensor(f"{name}.{label}", kind, values.shape, values.ravel().tolist()))
        self.tensors.append(numpy_helper.from_array(scale, f"{name}.s"))
        given = {"axis": 0, "block_size": block} if block else {"axis": 1}
        inputs = [f"{name}.q", f"{name}.s", f"{name}.z"]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], **given))
        rows = [np.repeat(values, block, axis=0)[: shape[0]] if block else values for values in (zero, scale)]
        return (q - rows[0]) * rows[1].astype(float)

    @property
    def model(self) -> onnx.ModelProto:
        layers = [
            helper.make_node("Gemm", ["x", "W0", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "W1"], ["y"]),
        ]
        graph = helper.make_graph(
            [*self.nodes, *layers],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", INPUTS])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
            [*self.tensors, numpy_helper.from_array(self.bias, "b")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def truth(self, x: np.ndarray) -> np.ndarray:
        wide = [weight.astype(np.longdouble) for weight in self.real]
        hidden = np.maximum(x.astype(np.longdouble) @ wide[0] + self.bias.astype(np.longdouble), 0)
        return hidden @ wide[1]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["f32", "f64"])
def test_measured_errors_stay_below_the_constants(form, mode):
    for seed in range(3):
        net = Net(form, seed)
        session = CertifiedSession(net.model.SerializeToString(), certify=mode)
        error = session.verdict.numeric_error[mode]
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal((400, INPUTS)) * 10.0 ** rng.uniform(-4, 4, (400, 1))).astype(np.float32)
        norms = input_norm_up(x.astype(float), "l2")
        apart = np.abs(session.predict(x).logits.astype(np.longdouble) - net.truth(x)).max(axis=1)
        assert np.all(apart <= error.c0 + error.c1 * norms)
        if mode == "f64":  # the exact weights: float32's rounding of a product would already be 1e-8 of x
            assert np.all(apart <= 1e-12 * (1 + norms))


@pytest.mark.parametrize("form", FORMATS)
def test_every_mode_answers_at_the_highest_level(form):
    net = Net(form, 3)
    x = np.random.default_rng(0).standard_normal((50, INPUTS)).astype(np.float32)
    truth = net.truth(x).astype(float)
    top = np.sort(truth, axis=1)
    for mode in MODES:
        session = CertifiedSession(net.model.SerializeToString(), certify=mode)
        assert set(session.optimisation.values()) == {"ORT_ENABLE_ALL"}
        answers = session.predict(x)
        np.testing.assert_array_equal(answers.label, truth.argmax(axis=1))
        assert answers.certified.sum() > 40
        largest = (top[:, -1] - top[:, -2]) / (np.sqrt(2) * 0.2 * session.lipschitz_bound)
        assert np.all(answers.radius < largest)
        if mode == "adaptive":
            assert (answers.program == "f32").sum() > 25


@pytest.mark.parametrize("form", FORMATS)
def test_the_float64_program_holds_the_exact_weights(form):
    net = Net(form, 5)
    stored = [numpy_helper.to_array(tensor) for tensor in double_model(net.model).graph.initializer]
    for weight in net.real:
        assert any(value.shape == weight.shape and np.array_equal(value, weight) for value in stored)
    x = np.random.default_rng(1).standard_normal((4, INPUTS))
    np.testing.assert_allclose(float64_function(net.model)(x), net.truth(x).astype(float), rtol=1e-12, atol=1e-12)


def executed(model, level, folder):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "executed.onnx")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "executed.onnx")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_ALL])
def test_weights_folded_by_the_runtime_are_compared_to_the_bit(form, level, tmp_path):
    model = Net(form, 7).model
    found = executed(model, level, tmp_path)
    assert {node.op_type for node in found.graph.node}.isdisjoint({"Cast", "DequantizeLinear"})
    check_optimised(model, found, "program")
    for index, tensor in enumerate(found.graph.initializer):
        if len(tensor.dims) < 2:
            continue
        changed = onnx.ModelProto()
        changed.CopyFrom(found)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[1] = np.nextafter(values.flat[1], np.float32(9))
        changed.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, tensor.name))
        with pytest.raises(IntegrityError):
            check_optimised(model, changed, "program")


def test_the_exact_product_is_not_what_the_float32_program_holds(tmp_path):
    """A runtime that folded in higher precision would run other weights than its rounding rule says."""
    model = Net("int8", 7).model
    found = executed(model, LEVELS.ORT_ENABLE_BASIC, tmp_path)
    weights = [t for t in found.graph.initializer if tuple(t.dims) == (INPUTS, HIDDEN)]
    assert numpy_helper.to_array(weights[0]).dtype == np.float32
    assert not np.array_equal(numpy_helper.to_array(weights[0]).astype(float), Net("int8", 7).real[0])


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_table_behind_a_cast_is_probed_too(kind):
    """The start-up test hands the operators their own constants, wherever those come from."""
    rng = np.random.default_rng(3)
    text = """<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>
      g (float[N, 4] x) => (float[N, 4] y) {
        c = Cast<to = 1>(t)
        y = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 0.5, axis = 1>(x, c) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((4, 5)).astype(kind), "t"))
    attach_functions(model, {TensorProto.FLOAT})
    session = CertifiedSession(model.SerializeToString())
    x = rng.standard_normal((9, 4)).astype(np.float32)
    np.testing.assert_allclose(session.predict(x).logits, session.run(None, {"x": x})[0], rtol=0, atol=1e-5)
