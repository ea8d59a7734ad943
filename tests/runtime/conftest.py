"""Small models for the runtime's tests: ONNX text with weights beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
OPSET = 20
IR = 10


def _weights(weights: dict[str, Any]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]


@pytest.fixture(scope="session")
def parse() -> Callable[..., onnx.ModelProto]:
    """parse(text, **weights): a model from the text of its graph."""

    def build(text: str, opset: int = OPSET, **weights: Any) -> onnx.ModelProto:
        header = f'<ir_version: {IR}, opset_import: ["": {opset}, "lipdeploy": 1]>\n'
        model = onnx.parser.parse_model(header + text)
        model.graph.initializer.extend(_weights(weights))
        return model

    return build


@pytest.fixture(scope="session")
def one_node() -> Callable[..., onnx.ModelProto]:
    """one_node(op, shape, weights, **attributes): float32 x (N, *shape) → op → y."""

    def build(
        op: str, shape: tuple[int, ...], weights: dict[str, Any] | None = None, opset: int = OPSET, **attributes: Any
    ) -> onnx.ModelProto:
        weights = weights or {}
        node = helper.make_node(op, ["x", *weights], ["y"], name=f"the_{op}", **attributes)
        sizes = ["N", *shape]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *(f"y{i}" for i in range(len(shape)))])
        graph = helper.make_graph([node], "graph", [x], [y], _weights(weights))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR)

    return build


@pytest.fixture(scope="session")
def run_plain() -> Callable[..., Array]:
    """run_plain(model, x): what ONNX Runtime computes, without optimisation."""

    def run(model: onnx.ModelProto, x: Array) -> Array:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
        return result

    return run
