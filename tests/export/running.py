"""Helpers of the export tests: two independent programs to run a file with, and one call that exports and compares."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

import lipdeploy as lip


def run_onnxruntime(model: onnx.ModelProto | str | Path, feeds: Mapping[str, Any]) -> Sequence[Any]:
    """ONNX Runtime without our library and without rewriting: the function bodies run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def export_and_compare(network: nn.Module, shape: tuple[int, ...], folder: Path, **options: Any) -> lip.ExportResult:
    """Export, and hold what ONNX Runtime computes at another batch size against the torch module in evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    example = torch.randn(2, *shape, generator=generator)
    result = lip.export(network, example, folder / "model.onnx", **options)
    x = torch.randn(5, *shape, generator=generator)
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    (actual,) = run_onnxruntime(result.path, {"input": x.numpy()})
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
    assert result.verdict.status == "verified"
    assert result.certificate_path.is_file()
    return result


def jacobian_norm(
    network: nn.Module, shape: tuple[int, ...], points: int = 40, dtype: torch.dtype = torch.float64
) -> float:
    """The largest singular value, in float64, of Jacobians in ``dtype``: no sound bound is below it."""
    generator = torch.Generator().manual_seed(1)
    copied = copy.deepcopy(network).to(dtype).eval()
    norms = []
    for _ in range(points):
        x = 2 * torch.randn(1, *shape, generator=generator, dtype=dtype)
        jacobian = torch.autograd.functional.jacobian(copied, x).reshape(-1, x.numel()).double()
        norms.append(float(torch.linalg.matrix_norm(jacobian, 2)))
    return max(norms)


def operators(result: lip.ExportResult) -> list[str]:
    """Operator types in the file's order."""
    return [node.op_type for node in onnx.load(result.path).graph.node]


def initializers(result: lip.ExportResult) -> dict[str, np.ndarray[Any, Any]]:
    """Stored constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(result.path).graph.initializer}


def randomize_norms(network: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics that matter."""
    generator = torch.Generator().manual_seed(3)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            size = layer.num_features
            layer.running_mean = torch.randn(size, generator=generator)
            layer.running_var = torch.rand(size, generator=generator) * 2 + 0.3
            layer.weight.data = torch.randn(size, generator=generator)
            layer.bias.data = torch.randn(size, generator=generator)
    return network
