"""``lipdeploy bench``: what it measures exists, and its report is the published one. Speeds are not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from lipdeploy.cli import schema

from .conftest import Cli, write_model

SORTING = """
<ir_version: 9, opset_import: ["": 20, "lipdeploy": 1]>
sorting (float[N, 2] x) => (float[N, 2] y) { y = lipdeploy.GroupSort <group_size = 2> (x) }
"""
SEQUENCE = """
<ir_version: 9, opset_import: ["": 20]>
image (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) { y = Relu (x) }
"""


def contenders(document: dict) -> list[tuple[str, int]]:
    return [(one["contender"], one["batch"]) for one in document["latency"]]


def test_the_report(cli: Cli, dense: Path) -> None:
    result = cli("bench", dense, "--batch", "1,4", "--seconds", "0.05", "--json")
    assert result.code == 0, result.err
    jsonschema.validate(result.document, json.loads(schema.read("bench-report/v1")))
    modes = [f"predict, {mode}" for mode in ("f64", "adaptive", "f32", "network")]
    names = ["run, no certificate", "run, default ONNX Runtime", *modes]
    assert contenders(result.document) == [(name, batch) for batch in (1, 4) for name in names]
    assert all(0 < one["p50"] <= one["p90"] <= one["p99"] for one in result.document["latency"])


def test_modes_and_rows_can_be_chosen(cli: Cli, dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    words = ("--batch", "5", "--seconds", "0.05", "--certify", "f32", "--input", tmp_path / "x.npy")
    result = cli("bench", dense, *words)
    assert result.code == 0
    assert "predict, f32" in result.out and "predict, f64" not in result.out
    assert "1.00" in result.out  # the bare program, over itself


def test_our_operators_without_our_kernels(cli: Cli, tmp_path: Path) -> None:
    from lipdeploy.ops import attach_functions

    model = onnx.parser.parse_model(SORTING)
    attach_functions(model, {onnx.TensorProto.FLOAT})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    result = cli("bench", tmp_path / "m.onnx", "--batch", "2", "--seconds", "0.05", "--json")
    assert ("run, function bodies", 2) in contenders(result.document)


def test_beside_torch(cli: Cli, dense: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "net.py").write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(2, 2)\n")
    words = ("--batch", "2", "--seconds", "0.05", "--torch", f"{tmp_path / 'net.py'}:build", "--json")
    assert ("torch, eager", 2) in contenders(cli("bench", dense, *words).document)


def test_what_is_no_classifier(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench", write_model(tmp_path / "image.onnx", SEQUENCE), "--batch", "2", "--seconds", "0.05", "--json")
    assert result.code == 0
    assert "not a classifier" in result.err
    assert not any("predict" in name for name, _ in contenders(result.document))


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (("--batch", "0"), "not a list of batch sizes"),
        (("--batch", "1,,2"), "not a list of batch sizes"),
        (("--seconds", "0"), "not above 0"),
        (("--checkpoint", "w.pt"), "weights of what?"),
        (("--input", "nowhere.npy"), "nowhere.npy"),
    ],
)
def test_mistakes(cli: Cli, dense: Path, words: tuple[str, ...], phrase: str) -> None:
    result = cli("bench", dense, *words)
    assert (result.code, result.out) == (2, "")
    assert phrase in result.error


def test_what_is_refused_is_not_timed(cli: Cli, unknown: Path) -> None:
    assert cli("bench", unknown).code == 3
