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

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which the README was followed, and how its shell block ended."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("journey")
    (folder / "net.py").write_text(blocks("python")[0])
    (shell,) = blocks("sh")
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", shell],
        cwd=folder,
        env=environment(tmp_path_factory.mktemp("bin")),
        capture_output=True,
        text=True,
    )
    return folder, done


def environment(programs: Path) -> dict[str, str]:
    """PATH with this interpreter's own programs; where ``lipdeploy`` is not installed, what its script would run."""
    own = Path(sys.executable).parent
    for name, words in (("python", ""), ("lipdeploy", "-m lipdeploy.cli.main")):
        if not (own / name).exists():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            program.chmod(0o755)
    path = os.pathsep.join([str(own), str(programs), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_shell_block_runs_as_it_stands(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = journey
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "verified" in done.stdout
    assert "rows certified" in done.stdout


def test_what_the_shell_block_left_behind(journey: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = journey
    left = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    assert left == {"net.py", "net.onnx", "net.cert.json", "x.npy", "answers.json", "report.json"}
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
        [sys.executable, "-c", blocks("python")[1]],
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
