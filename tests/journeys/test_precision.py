"""docs/precision.md is typed exactly as it stands; then the smallest file is served."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.journeys.conftest import Shell, blocks
from tests.serve.processes import ask, serving, until_ready

PAGE = "docs/precision.md"
FILES = ("float32", "float16", "bfloat16", "int8")


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which the page was followed, and how its shell block ended."""
    for module in ("torch", "onnxruntime", "sklearn"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("precision")
    (folder / "net.py").write_text(blocks(PAGE, "python")[0])
    (script,) = blocks(PAGE, "sh")
    return folder, shell(f"set -u\n{script}", folder)


def test_the_page_runs_as_it_stands(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = journey
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for words in (
        "Weights stored in float16 (4 tensors", "Weights stored in bfloat16", "Weights stored in int8 (2 tensors",
        "changed), margins by", "Outputs scaled by 0.9", "float16 has a larger bound",
    ):  # fmt: skip
        assert words in done.stdout, done.stdout
    assert {path.name for path in folder.glob("*.cert.json")} == {f"{name}.cert.json" for name in FILES}


def test_files_shrink_and_say_what_is_in_them(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = journey
    sizes = {name: (folder / f"{name}.onnx").stat().st_size for name in FILES}
    weights = 64 * 64 + 64 * 10
    assert abs(sizes["float32"] - sizes["float16"] - 2 * (weights + 74)) < 700
    assert sizes["float16"] == pytest.approx(sizes["bfloat16"], abs=20)
    assert abs(sizes["float32"] - sizes["int8"] - 3 * weights) < 1500
    for name in FILES:
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)


def test_the_report_names_the_type(journey: tuple[Path, subprocess.CompletedProcess[str]], shell: Shell) -> None:
    folder, _ = journey
    words = "--checkpoint digits.pt --input-shape 64 --samples test.npz"
    done = shell(f"lipdeploy export net.py:build {words} -o again.onnx --weights int8 --json", folder)
    report = json.loads(done.stdout)
    assert report["dtype"] == "int8" and report["storage"]["samples"] == 256 and report["storage"]["tensors"] == 2
    assert 0 <= report["storage"]["classes_changed"] < 10 and 0 < report["storage"]["margin_change"] < 0.1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", ["f64", "adaptive", "f32", "network"])
def test_every_variant_answers_in_every_mode(journey: tuple[Path, object], name: str, mode: str) -> None:
    from lipdeploy import CertifiedSession

    folder, _ = journey
    data = np.load(folder / "test.npz")
    answers = CertifiedSession(folder / f"{name}.onnx", certify=mode).predict(data["x"], epsilon=0.05)
    assert (answers.label == data["y"]).mean() > 0.8
    assert answers.certified.mean() > 0.7
    assert CertifiedSession(folder / "int8.onnx").lipschitz_bound <= 1.0


def test_the_quarter_is_served(journey: tuple[Path, object]) -> None:
    from lipdeploy import CertifiedSession

    folder, _ = journey
    x = np.load(folder / "test.npz")["x"][:9]
    expected = CertifiedSession(folder / "int8.onnx").predict(x)
    with serving("int8.onnx", "--max-lipschitz", "1.0", cwd=folder) as server:
        _, port = server.listening()
        until_ready(port)
        tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
        answer = ask(port, "POST", "/v2/models/int8/infer", json.dumps({"inputs": [tensor]}).encode())
        assert answer.status == 200, answer.body
        outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
        assert outputs["label"] == expected.label.tolist()
        assert np.all(np.array(outputs["radius"]) <= expected.radius)
        assert np.allclose(outputs["radius"], expected.radius, rtol=1e-5)
