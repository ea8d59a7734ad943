"""Running commands in this process: the exit code, and what went to each stream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from lipdeploy.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

DENSE = """
<ir_version: 9, opset_import: ["": 20]>
dense (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {0.75, 0.0, 0.0, -0.5}, float[2] b = {0.25, 0.0}> {
  h = MatMul (x, w)
  y = Add (h, b)
}
"""
UNKNOWN = """
<ir_version: 9, opset_import: ["": 20]>
unknown (float[N, 2] x) => (float[N, 2] y) { [wobble] y = Det3 (x) }
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as one JSON document, which it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), lines[0]
        assert "Traceback" not in self.err
        return lines[0]


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("verify", path)`` runs the command here and returns its ``Result``."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def process() -> Cli:
    """The same in a process of its own, as a shell would."""

    def run(*words: object, **options: Any) -> Result:
        done = subprocess.run(
            command_line(*map(str, words)), capture_output=True, text=True, **{"cwd": ROOT, **options}
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def command_line(*words: str) -> Sequence[str]:
    """``lipdeploy WORDS…`` with this interpreter."""
    return [sys.executable, "-m", "lipdeploy", *words]


def write_model(path: Path, text: str) -> Path:
    """Parse ONNX text into a file."""
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def with_external_data(path: Path, location: str) -> Path:
    """The dense model, with its tensors in the file ``location`` beside it."""
    model = onnx.parser.parse_model(DENSE)
    for tensor in model.graph.initializer:  # only raw data can move out
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(model, str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """diag(0.75, −0.5)·x + b: its ℓ2 constant is exactly 0.75, the difference of its logits has √(0.75² + 0.5²)."""
    return write_model(tmp_path / "dense.onnx", DENSE)


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A model with an operator that nobody knows."""
    return write_model(tmp_path / "unknown.onnx", UNKNOWN)


@pytest.fixture
def broken(tmp_path: Path, dense: Path) -> dict[str, Path]:
    """Files that are no models, by what is wrong with them."""
    foreign, truncated, empty = tmp_path / "foreign.onnx", tmp_path / "truncated.onnx", tmp_path / "empty.onnx"
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    truncated.write_bytes(dense.read_bytes()[:-40])
    empty.write_bytes(b"")
    missing = tmp_path / "nowhere.onnx"
    return {"missing": missing, "foreign": foreign, "truncated": truncated, "empty": empty, "folder": tmp_path}


BROKEN = ("missing", "foreign", "truncated", "empty", "folder")
