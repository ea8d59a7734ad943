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
from lipdeploy.nn import GroupSort
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


class Solve(Layer):
    """Cayley: (I + A)⁻¹(I − A) for the skew part A; its constants are made in forward too."""

    def forward(self, x: Tensor) -> Tensor:
        skew = (self.weight - self.weight.T) / 2
        eye = torch.eye(len(skew), dtype=skew.dtype)
        return functional.linear(x, torch.linalg.solve(eye + skew, eye - skew), self.bias)


class Inverse(Layer):
    """The same by an inverse, the skew part made in place."""

    def forward(self, x: Tensor) -> Tensor:
        skew = self.weight.clone()
        skew.sub_(self.weight.T)
        eye = torch.eye(len(skew), dtype=skew.dtype)
        return functional.linear(x, torch.linalg.inv(eye + skew) @ (eye - skew), self.bias)


class Exponential(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, torch.linalg.matrix_exp(self.weight - self.weight.T), self.bias)


class SpectralNorm(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / torch.linalg.matrix_norm(self.weight, 2), self.bias)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (Solve, "float32"), (Solve, "float64"), (Inverse, "float32"), (Exponential, "float32"),
        (SpectralNorm, "float32"),
    ],
)  # fmt: skip
def test_what_onnx_cannot_compute_is_stored_as_its_result(kind: type[Layer], dtype: str, tmp_path: Path) -> None:
    """The layers around it export as ever: BatchNorm is folded, the sort is one operator, parameters keep names."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), GroupSort(2))
    net = nn.Sequential(before, kind(4, 4), nn.ReLU(), kind(4, 4)).eval().to(getattr(torch, dtype))
    options = {"dtype": dtype, "input_dtype": dtype}
    result = lipdeploy.export(net, torch.randn(2, 5), tmp_path / "model.onnx", **options)
    first = np.linalg.norm(net[0][0].weight.detach().double() / np.sqrt(1 + 1e-5), 2)
    assert result.verdict.lipschitz_bound is not None
    assert result.verdict.lipschitz_bound.value == pytest.approx(first, rel=1e-5)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [(node.name, node.op_type) for node in graph.node] == [
        ("0.0", "Gemm"), ("0.2", "GroupSort"), ("1", "Gemm"), ("2", "Relu"), ("3", "Gemm"),
    ]  # fmt: skip
    assert {tensor.name for tensor in graph.initializer} == {
        "0.0.weight", "0.0.bias", "1.Gemm.B", "1.bias", "3.Gemm.B", "3.bias",
    }  # fmt: skip


def test_an_inverse_that_the_input_reaches_is_named(tmp_path: Path) -> None:
    """Near-miss: beside a weight that is stored as its result, one inverse is of the input."""

    class Inverting(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x[:, :, None] * x[:, None, :] + torch.eye(4))[:, 0] @ torch.linalg.inv(self.weight)

    with pytest.raises(lipdeploy.InputError, match=r"layer '1' \(Inverting\): .*linalg_inv"):
        lipdeploy.export(nn.Sequential(Solve(4, 4), Inverting(4, 4)), torch.randn(2, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_no_constants(tmp_path: Path) -> None:
    """Near-miss: no input reaches them, and they are others at every call."""

    class Noisy(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, torch.linalg.inv(self.weight + torch.rand_like(self.weight)))

    with pytest.raises(lipdeploy.InputError, match="other numbers when it runs again"):
        lipdeploy.export(Noisy(4, 4), torch.randn(2, 4), tmp_path / "model.onnx")


def test_a_constant_that_the_input_reaches_is_no_constant(tmp_path: Path) -> None:
    """Near-miss: the same factor of the input's own entries. It is named for what it is."""

    class Attentive(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x * torch.abs(x).sum(1, keepdim=True) ** -0.5, self.weight, self.bias)

    codes = {refusal.code for refusal in verify(legacy(network(Attentive))).refusals}
    assert codes and codes <= {"LIP004", "LIP010"}
