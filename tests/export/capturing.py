"""The model in memory as the export pipeline builds it, before verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from lipdeploy.export.assemble import check
from lipdeploy.export.freeze import reference_program
from lipdeploy.export.options import ExportOptions
from lipdeploy.export.pipeline import capture_model
from lipdeploy.export.samples import example_tensors


def captured(network: nn.Module, example: Tensor, folder: Path, **options: Any) -> onnx.ModelProto:
    """Checked by ONNX, neither compared nor verified."""
    given = ExportOptions(path=folder / "model.onnx", **options)
    given.check()
    inputs = example_tensors(example, given)
    model = capture_model(reference_program(network, given, inputs), inputs, given)
    check(model)
    return model
