"""Weights that a module computes in ``forward``: AOL's factor, a norm, an exponential of a learned scale.

torch's legacy exporter writes that arithmetic into the graph, where each runtime rounds it in its own way: refused, at
the node where it begins, with a hint. Each thing that the hint names makes a file that holds the numbers themselves.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipdeploy
from lipdeploy.verify import verify


class Layer(nn.Module):
    """A dense layer whose parameters are not its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def factor(self) -> Tensor:
        """AOL (Prach and Lampert, 2022): (Σ_j |WᵀW|_ij)^(−½), so that the layer is 1-Lipschitz."""
        return torch.abs(self.weight.T @ self.weight).sum(1) ** -0.5


class Folded(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.factor(), self.bias)


class OnTheInput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x * self.factor(), self.weight, self.bias)


class Normalised(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / self.weight.norm() * torch.exp(self.bias[0]), self.bias)


KINDS = (Folded, OnTheInput, Normalised)


def network(kind: type[Layer]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(5, 7), nn.ReLU(), kind(7, 3)).eval()


def truth(net: nn.Module) -> float:
    """The product of the layers' norms in float64, from the weights that torch computes."""
    with torch.no_grad():
        zero = torch.zeros(1, 5), torch.zeros(1, 7)
        maps = [
            (layer(torch.eye(z.shape[1])) - layer(z)).double().numpy() for layer, z in zip(net[::2], zero, strict=True)
        ]
    return float(np.prod([np.linalg.norm(m, 2) for m in maps]))


def legacy(net: nn.Module) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.randn(2, 5),), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_legacy_exporter_is_refused_where_the_arithmetic_begins(kind: type[Layer]) -> None:
    data = legacy(network(kind))
    operators = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert set(operators) & {"Sqrt", "Pow", "ReduceL2"}, operators  # the exporter has not learned to fold
    verdict = verify(data)
    assert verdict.status == "refused"
    assert {(refusal.code, refusal.op) for refusal in verdict.refusals} <= {
        ("LIP017", "MatMul"), ("LIP017", "ReduceL2"), ("LIP017", "Exp"),
    }  # fmt: skip
    for word in ("lipdeploy export", "dynamo=True", "optimized_model_filepath", "ORT_ENABLE_BASIC"):
        assert word in verdict.refusals[0].hint


@pytest.mark.parametrize("kind", KINDS)
def test_lipdeploy_export_stores_the_numbers(kind: type[Layer], tmp_path: Path) -> None:
    net = network(kind)
    result = lipdeploy.export(net, torch.randn(2, 5), tmp_path / "model.onnx")
    assert result.verdict.status == "verified" and result.verdict.lipschitz_bound is not None
    assert truth(net) * (1 - 1e-5) <= result.verdict.lipschitz_bound.value <= truth(net) * (1 + 1e-5)
    stored = onnx.load(tmp_path / "model.onnx").graph.node
    assert not {"Sqrt", "Pow", "Exp", "Abs", "ReduceL2", "ReduceSum"} & {node.op_type for node in stored}


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_the_fold_of_a_file_that_the_hint_names(kind: type[Layer], tmp_path: Path) -> None:
    """Without the module: ONNX Runtime computes the constants once and writes the file that it would run."""
    net = network(kind)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(legacy(net), options, providers=["CPUExecutionProvider"])
    verdict = verify(tmp_path / "folded.onnx")
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None, verdict.refusals
    assert truth(net) * (1 - 1e-5) <= verdict.lipschitz_bound.value <= truth(net) * (1 + 1e-5)


def test_a_constant_that_the_input_reaches_is_no_constant(tmp_path: Path) -> None:
    """Near-miss: the same factor of the input's own entries. It is named for what it is."""

    class Attentive(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x * torch.abs(x).sum(1, keepdim=True) ** -0.5, self.weight, self.bias)

    codes = {refusal.code for refusal in verify(legacy(network(Attentive))).refusals}
    assert codes and codes <= {"LIP004", "LIP010"}
