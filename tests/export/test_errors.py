"""What people will meet: each gets one line that says what, where and what to try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipdeploy as lip
from lipdeploy.errors import Refused

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Exotic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x[:, :, None] * x[:, None, :]).flatten(1)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(2, 3)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class Mapping(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x}


def linear() -> nn.Module:
    return nn.Linear(4, 3)


ERRORS = [
    (lambda: nn.Sequential(nn.Linear(4, 4), Exotic()), X, {}, r"layer '1' \(Exotic\): .*matrix_exp", "docs/export.md"),
    (Branch, X, {}, "path depends on values", "without if"),
    (Constant, X, {}, "does not depend on its input", "forward returns"),
    (Raises, X, {}, r"cannot run on an input of shape \(16, 4\): first line$", "--input-shape"),
    (Mapping, X, {}, "returns dict", "output['y']"),
    (lambda: nn.LSTM(4, 3), X, {}, "returns a tuple with tuple at 1", "tuple of tensors"),
    (lambda: nn.Linear(7, 3), X, {}, "cannot run on an input of shape", "--input-shape"),
    (lambda: print, X, {}, "expected a torch.nn.Module, got builtin_function_or_method", "network itself"),
    (lambda: torch.jit.script(nn.Linear(4, 3)), X, {}, "network is a ScriptModule", "original nn.Module"),
    (lambda: torch.jit.trace(nn.Linear(4, 3), X), X, {}, "network is a ScriptModule", "original nn.Module"),
    (
        lambda: nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(4, 3))), X, {},
        "layer '1' is a ScriptModule", "original nn.Module",
    ),
    (lambda: nn.Linear(4, 3).half(), X, {}, "weights are float16", "--dtype float32"),
    (lambda: nn.Linear(4, 3).half(), X, {}, "weights are float16", "or float16"),
    (linear, X, {"dtype": "int8"}, "dtype='int8' is unknown", "--weights int8"),
    (linear, X, {"dtype": "float8"}, "dtype='float8' is unknown", "bfloat16"),
    (linear, X, {"weights": "int4"}, "weights='int4' is unknown", "int8"),
    (linear, X, {"weights": "int8", "dtype": "float64"}, "for a float32 program, not dtype='float64'", "leave dtype"),
    (linear, X, {"weights": "int8", "dtype": "float16"}, "for a float32 program, not dtype='float16'", "leave dtype"),
    (linear, X, {"weights": "int8", "opset": 18}, "need opset 19 or later", "--opset 19"),
    (nn.ReLU, X, {"weights": "int8"}, "no linear layer whose weights could be stored in int8", "float32"),
    (linear, X, {"dtype": "float16", "input_dtype": "float64"}, "rounded by a float32 network", "dtype='float64'"),
    (linear, X, {"input_dtype": "int64"}, "input_dtype='int64' is unknown", "uint8"),
    (linear, X, {"input_dtype": "float64"}, "rounded by a float32 network", "dtype='float64'"),
    (linear, X, {"input_dtype": "uint8"}, "values that uint8 cannot", "0 to 255"),
    (linear, X, {"opset": 16}, "opset 16 is not supported", "17 to 23"),
    (linear, X, {"norm": "l3"}, "unknown norm 'l3'", "l2"),
    (linear, X, {"mean": [1.0, 2.0]}, "mean has 2 values, the input has 4 channels", "one number, or 4"),
    (linear, X, {"std": [1.0, 0.0, 1.0, 1.0]}, "std must be positive", ""),
    (linear, X, {"mean": float("nan")}, "mean must be finite", ""),
    (linear, X, {"input_scale": 0.0}, "input_scale must not be 0", ""),
    (linear, X, {"max_lipschitz": -1.0}, "max_lipschitz must be a positive finite number", ""),
    (linear, X, {"tolerance": float("inf")}, "tolerance must be a positive finite number", ""),
    (linear, X, {"class_names": ["a", "b"]}, r"2 class names for an output of shape \(16, 3\)", "one name per logit"),
    (linear, X * np.nan, {}, "example_input holds NaN", ""),
    (linear, X[:0], {}, r"shape \(0, 4\)", "axis 0 is the batch"),
    (linear, "picture.png", {}, "not a tensor or an array", ""),
    (linear, (), {}, "example_input is empty", "one batch"),
    (linear, X, {"samples": np.zeros((3, 5))}, r"samples of shape \(3, 5\) do not fit", "axis 0"),
    (linear, X, {"samples": np.zeros((0, 4))}, "0 samples are too few", ""),
]  # fmt: skip


@pytest.mark.parametrize(("network", "example", "options", "message", "hint"), ERRORS)
def test_unusable_input(network, example, options, message, hint, tmp_path):
    with pytest.raises(lip.InputError, match=message) as caught:
        lip.export(network(), example, tmp_path / "model.onnx", **options)
    assert caught.value.exit_code == 2 and hint in caught.value.hint
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "must end in .onnx"), ("missing/model.onnx", "does not exist"), ("folder.onnx", "is a folder")],
)
def test_unusable_path(name, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(lip.InputError, match=message):
        lip.export(linear(), X, tmp_path / name)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(lip.InputError, match="does not exist"):
        lip.export(linear(), X, tmp_path / "file" / "model.onnx")


@pytest.mark.parametrize(
    ("network", "code"),
    [
        (lambda: nn.LayerNorm(4), "LIP010"),
        (Pair, "LIP016"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "LIP005"),
    ],
    ids=["LayerNorm", "two outputs", "batch statistics"],
)
def test_what_cannot_be_proven_is_refused(network, code, tmp_path):
    with pytest.raises(lip.Refused) as caught:
        lip.export(network(), X, tmp_path / "model.onnx")
    assert caught.value.exit_code == 3 and code in {refusal.code for refusal in caught.value.refusals}
    assert list(tmp_path.iterdir()) == []


def test_torch_stays_quiet(tmp_path, capfd):
    with pytest.raises(lip.InputError):
        lip.export(Branch(), X, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_attention_is_refused_as_a_layer(tmp_path: Path) -> None:
    """Not by the first of the operators that it is made of."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(Refused, match="no Lipschitz constant") as caught:
        lip.export(layer, torch.randn(2, 3, 8), tmp_path / "m.onnx")
    (refusal,) = caught.value.refusals
    assert (refusal.code, refusal.node, refusal.op) == ("LIP004", "self_attn", "MultiheadAttention")
