"""Networks whose activations are float16: proven, run, and answered for by float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy import CertifiedSession, verify
from lipdeploy.errors import IntegrityError, Refused
from lipdeploy.ops import attach_functions
from lipdeploy.runtime.optimised import check_optimised
from lipdeploy.verify.radius import input_norm_up

LEVELS = onnxruntime.GraphOptimizationLevel
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
INPUTS, HIDDEN, CLASSES = 12, 20, 4


class Net:
    """x·Wᵀ + b, sorted in pairs or ReLU, ·V, all of it float16; with ``io`` FLOAT between two Casts."""

    def __init__(self, io: int, activation: str, seed: int = 0, scale: float = 0.25) -> None:
        rng = np.random.default_rng(seed)
        shapes = {"W": (HIDDEN, INPUTS), "b": (HIDDEN,), "V": (HIDDEN, CLASSES)}
        self.weights = {name: (rng.standard_normal(s) * scale).astype(np.float16) for name, s in shapes.items()}
        inner = {FLOAT: ("x16", "y16"), HALF: ("x", "y")}[io]
        sort = {"op_type": "GroupSort", "domain": "lipdeploy", "group_size": 2}
        nodes = [
            helper.make_node("Gemm", [inner[0], "W", "b"], ["g"], transB=1),
            helper.make_node(inputs=["g"], outputs=["a"], **(sort if activation == "sort" else {"op_type": "Relu"})),
            helper.make_node("MatMul", ["a", "V"], [inner[1]]),
        ]
        if io == FLOAT:
            before, after = (
                helper.make_node("Cast", [a], [b], to=t) for a, b, t in (("x", "x16", 10), ("y16", "y", 1))
            )
            nodes = [before, *nodes, after]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", io, ["N", INPUTS])],
            [helper.make_tensor_value_info("y", io, ["N", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
        self.model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        if activation == "sort":
            attach_functions(self.model, {HALF})
        self.activation = activation

    def truth(self, x: np.ndarray) -> np.ndarray:
        wide = {name: value.astype(np.longdouble) for name, value in self.weights.items()}
        hidden = x.astype(np.longdouble) @ wide["W"].T + wide["b"]
        pairs = np.sort(hidden.reshape(len(x), -1, 2), axis=2).reshape(hidden.shape)
        return (pairs if self.activation == "sort" else np.maximum(hidden, 0)) @ wide["V"]


NETS = [(io, activation) for io in (HALF, FLOAT) for activation in ("sort", "relu")]


def rows(io: int, count: int, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, INPUTS))
    return x.astype(np.float16 if io == HALF else np.float32)


@pytest.mark.parametrize(("io", "activation"), NETS)
def test_the_bound_is_that_of_the_stored_numbers(io, activation):
    net = Net(io, activation)
    verdict = verify(net.model.SerializeToString())
    truth = np.prod([np.linalg.norm(net.weights[name].astype(float), 2) for name in ("W", "V")])
    assert truth * (1 - 1e-14) <= verdict.lipschitz_bound.value <= truth * (1 + 1e-9)
    known = {mode for mode, error in verdict.numeric_error.items() if error is not None}
    assert known == {"f64", "f16"}


@pytest.mark.parametrize(("io", "activation"), NETS)
@pytest.mark.parametrize("mode", ["f64", "adaptive", "network"])
def test_answers(io, activation, mode):
    net, x = Net(io, activation), rows(io, 60)
    session = CertifiedSession(net.model.SerializeToString(), certify=mode)
    answers, truth = session.predict(x), net.truth(x).astype(float)
    agree = answers.label == truth.argmax(axis=1)
    assert agree[answers.certified].all() and answers.certified.mean() > 0.9
    top = np.sort(truth, axis=1)
    assert np.all(answers.radius <= np.where(agree, (top[:, -1] - top[:, -2]) / 0.5, 0))
    if mode != "network":
        assert set(answers.program) == {"f64"}
        error = session.verdict.numeric_error["f64"]
        apart = np.abs(answers.logits - truth).max(axis=1)
        assert np.all(apart <= error.c0 + error.c1 * input_norm_up(x.astype(float), "l2"))


@pytest.mark.parametrize(("io", "activation"), NETS)
def test_the_float32_mode_is_refused(io, activation):
    with pytest.raises(Refused) as caught:
        CertifiedSession(Net(io, activation).model.SerializeToString(), certify="f32")
    assert caught.value.refusals[0].code == "LIP018"


def test_what_the_refusal_is_good_for():
    """The stored program errs by a thousand times what a float32 program of the same weights may."""
    net, x = Net(HALF, "relu"), rows(HALF, 300)
    session = CertifiedSession(net.model.SerializeToString())
    apart = np.abs(session.run(None, {"x": x})[0].astype(np.longdouble) - net.truth(x)).max(axis=1)
    norms = input_norm_up(x.astype(float), "l2")
    wide = onnx.ModelProto()
    wide.CopyFrom(net.model)
    for tensor in wide.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = FLOAT
    f32 = verify(wide.SerializeToString()).numeric_error["f32"]
    assert np.any(apart > f32.c0 + f32.c1 * norms)
    f16 = session.verdict.numeric_error["f16"]
    assert np.all(apart <= f16.c0 + f16.c1 * norms)


def test_one_cast_in_the_middle_is_enough():
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[N, 2] x) => (float[N, 2] y)
      { a = Cast<to = 10>(x) b = Cast<to = 1>(a) y = Relu(b) }"""
    error = verify(onnx.parser.parse_model(text).SerializeToString()).numeric_error
    assert error["f32"] is None and error["tf32"] is None and error["f64"] is not None


def executed(model, folder, level=LEVELS.ORT_ENABLE_BASIC):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "executed.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "executed.onnx")


def changed(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if how == "weight":
        tensor = next(t for t in made.graph.initializer if len(t.dims) == 2)
        value: Any = numpy_helper.to_array(tensor).copy()
        value.flat[0] = np.nextafter(value.flat[0], value.dtype.type(9))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    else:
        next(node for node in made.graph.node if node.op_type == "Relu").op_type = "Abs"
    return made


@pytest.mark.parametrize("io", [HALF, FLOAT])
@pytest.mark.parametrize("how", ["weight", "operator"])
def test_the_executed_graph_is_still_compared(io, how, tmp_path):
    net = Net(io, "relu")
    found = executed(net.model, tmp_path)
    check_optimised(net.model, found, "program")
    with pytest.raises(IntegrityError):
        check_optimised(net.model, changed(found, how), "program")


def test_casts_count_where_activations_are_float32(tmp_path):
    """A runtime that put float16 between float32 layers would run another program than the constants are about."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[N, 2] x) => (float[N, 2] y)
      { a = Relu(x) y = Abs(a) }"""
    model = onnx.parser.parse_model(text)
    rounded = onnx.parser.parse_model(text.replace("y = Abs(a)", "c = Cast<to = 10>(a) d = Cast<to = 1>(c) y = Abs(d)"))
    with pytest.raises(IntegrityError):
        check_optimised(model, rounded, "program")
    stored = onnx.parser.parse_model(text.replace("y = Abs(a)", "v = Cast<to = 1>(w) b = Mul(a, v) y = Abs(b)"))
    stored.graph.initializer.append(numpy_helper.from_array(np.float16([0.1, 3]), "w"))
    check_optimised(stored, executed(stored, tmp_path), "program")
    twice = onnx.ModelProto()
    twice.CopyFrom(stored)
    twice.graph.node[0].output[0] = "n"
    for node, ends in ((2, ("n", "m")), (3, ("m", "a"))):
        twice.graph.node.insert(node, helper.make_node("Cast", [ends[0]], [ends[1]], to=10 if node == 2 else 1))
    with pytest.raises(IntegrityError):
        check_optimised(stored, twice, "program")
