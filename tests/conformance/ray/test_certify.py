"""``certify --engine ray`` on a real Ray: the same answers as this process gives, row by row.

``make conformance-ray`` installs Ray and runs this; elsewhere it is a counted skip.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="make conformance-ray installs it")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
ROWS, SIDE = 600, 6
MODEL = """
<ir_version: 9, opset_import: ["": 20]>
net (float[N, 1, 6, 6] x) => (float[N, 3] y)
<float[36, 3] w, float[3] b> { [flat] f = Flatten (x)  [head] y = Gemm (f, w, b) }
"""


def certify(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lipdeploy", "certify", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(MODEL.replace("<float[36, 3] w, float[3] b> ", ""))
    for name, shape in (("w", (36, 3)), ("b", (3,))):
        values = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    x = random.random((ROWS, SIDE, SIDE), np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=random.integers(0, 3, ROWS))
    return tmp_path / "d.npz"


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ray_counts_what_this_process_counts(model: Path, data: Path, tmp_path: Path) -> None:
    words = (model, data, "--epsilon", "0.1", "--epsilon", "0.5", "--json", "--batch-rows", "100")
    here = document(certify(*words))
    there = document(certify(*words, "--engine", "ray", "--workers", "2", "--resume", tmp_path / "journal"))
    assert there.pop("engine") == "ray" and here.pop("engine") == "local"
    for timing in ("elapsed_seconds", "verification_seconds"):
        here.pop(timing), there.pop(timing)
    assert there == here
    again = document(certify(*words, "--resume", tmp_path / "journal"))  # what Ray left needs no second run
    assert again["at"] == here["at"] and again["curve"] == here["curve"]


def test_what_fails_in_an_actor_is_one_line_with_the_row(model: Path, data: Path, tmp_path: Path) -> None:
    with np.load(data) as held:
        x, y = held["x"].copy(), held["y"]
    x[412, 3, 3] = np.nan
    np.savez(data, x=x, y=y)
    done = certify(model, data, "--engine", "ray", "--batch-rows", "100")
    assert done.returncode == 2 and done.stdout == ""
    assert "nan in row 412, at index (3, 3) of the sample" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_more_workers_than_processors_do_not_wait_for_ever(model: Path, data: Path) -> None:
    done = certify(model, data, "--engine", "ray", "--workers", "64", "--batch-rows", "50", "--limit", "200", "--json")
    assert document(done)["rows"] == 200
