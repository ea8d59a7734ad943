"""The README is typed exactly as it stands: its shell block in a shell, its Python in Python, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from lipdeploy.cli import schema
from tests.journeys.conftest import ROOT, Shell, blocks
from tests.serve.processes import ask, serving, until_ready

README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which the README was followed, and how its shell block ended."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("journey")
    (folder / "net.py").write_text(blocks("README.md", "python")[0])
    (script,) = blocks("README.md", "sh")
    return folder, shell(f"set -u\n{script}", folder)


def test_the_shell_block_runs_as_it_stands(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = journey
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "verified" in done.stdout
    assert "rows certified" in done.stdout


def test_what_the_shell_block_left_behind(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = journey
    left = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    assert left == {
        *("net.py", "net.onnx", "net.cert.json", "x.npy", "answers.json", "report.json", "d.npz", "certified.html"),
    }
    for name, file in (
        ("certificate/v1", "net.cert.json"),
        ("prediction/v1", "answers.json"),
        ("verify-report/v1", "report.json"),
    ):
        document = json.loads((folder / file).read_text("utf-8"))
        jsonschema.Draft202012Validator(json.loads(schema.read(name))).validate(document)


def test_the_python_block_runs_as_it_stands(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = journey
    done = subprocess.run(
        [sys.executable, "-c", blocks("README.md", "python")[1]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified ")


def test_the_first_screen_says_what_is_certified_and_what_is_not() -> None:
    screen = "\n".join(README.splitlines()[:30])
    assert "What is certified." in screen
    assert "What is not." in screen
    assert "make demo" in screen
    assert "make test" in screen


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_requests_of_the_pages_are_answered_as_they_say(
    journey: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """The bodies behind ``curl -d`` in README and docs/serving.md, sent as they stand."""
    folder, _ = journey
    pages = (blocks("README.md", "text"), blocks("docs/serving.md", "sh"))
    bodies = [re.findall(r"/v2/models/net/infer -d '(.*?)'", "\n".join(found), re.DOTALL) for found in pages]
    assert [len(found) for found in bodies] == [1, 1]
    (promised,) = (json.loads(block) for block in blocks("docs/serving.md", "json") if "model_name" in block)
    with serving("net.onnx", "--max-lipschitz", "1.0", "--epsilon", "0.1", cwd=folder) as server:
        _, port = server.listening()
        until_ready(port)
        first, second = (ask(port, "POST", "/v2/models/net/infer", found[0].encode()) for found in bodies)
    assert (first.status, second.status) == (200, 200)
    answer = {output["name"]: output["data"] for output in first.json["outputs"]}
    assert answer["label"] == promised["outputs"][0]["data"]
    assert answer["certified"] == [True]
    told = second.json
    assert told["outputs"][0] == promised["outputs"][0]
    # Orthonormal weights come out a little differently on other processors.
    assert told["outputs"][1]["data"] == pytest.approx(promised["outputs"][1]["data"], rel=1e-5)
    assert told["outputs"][2] == promised["outputs"][2]
    assert set(told["parameters"]) == set(promised["parameters"])
    assert (told["model_name"], told["model_version"]) == (promised["model_name"], promised["model_version"])
