"""A user's afternoon with ``certify``: MNIST-like IDX files from elsewhere, a report, a stop, a resume, a gate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.certify.conftest import write_idx_pair
from tests.journeys.conftest import ROOT, Shell

pytest.importorskip("onnxruntime")

NET = """
<ir_version: 9, opset_import: ["": 20]>
digits (uint8[N, 12, 12] x) => (float[N, 3] y) {
  [widen] f = Cast <to = 1> (x)
  [scale] s = Mul (f, unit)
  [flat] v = Flatten (s)
  [head] y = Gemm (v, w, b)
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three blurred strokes as classes, a model of their means, and IDX files that are packed."""
    random = np.random.default_rng(0)
    means = random.random((3, 12, 12)) * 255
    y = random.integers(0, 3, 900)
    x = np.clip(means[y] + random.normal(0, 60, (900, 12, 12)), 0, 255).astype(np.uint8)
    write_idx_pair(tmp_path, x, y.astype(np.uint8), packed=True)
    weight = (means.reshape(3, 144).T / 255).astype(np.float32)
    proto = onnx.parser.parse_model(NET)
    for name, values in (
        ("unit", np.float32(1 / 255)), ("w", weight), ("b", -(weight**2).sum(axis=0) / 2),
    ):  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
    onnx.save(proto, tmp_path / "digits.onnx")
    return tmp_path


DATA = "t10k-images-idx3-ubyte.gz"


def test_certify_report_and_gate(folder: Path, shell: Shell) -> None:
    done = shell(
        f"lipdeploy certify digits.onnx {DATA} --epsilon 10 --report r.html --resume j --min-certified 50", folder
    )
    assert done.returncode == 0, done.stderr
    assert "900 samples" in done.stdout and (folder / "r.html").read_text("utf-8").count("data:image/png") == 24
    assert (
        shell(f"lipdeploy certify digits.onnx {DATA} --epsilon 2000 --resume j --min-certified 99", folder).returncode
        == 1
    )


def test_killed_in_the_middle_and_resumed(folder: Path, shell: Shell) -> None:
    whole = shell(f"lipdeploy certify digits.onnx {DATA} --epsilon 10 --json", folder)
    slow = (
        "import sys, time\n"
        "from lipdeploy.certify import journal, run\n"
        "journal.SECONDS_BETWEEN_WRITES = 0.0\n"
        "certify_block = run.certify_block\n"
        "def slowly(*arguments):\n    time.sleep(0.05)\n    return certify_block(*arguments)\n"
        "run.certify_block = slowly\n"
        "from lipdeploy.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["certify", "digits.onnx", DATA, "--epsilon", "10", "--json", "--batch-rows", "9", "--resume", "j"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [sys.executable, "-c", slow, *words], cwd=folder, env=environment, stdout=subprocess.PIPE
    )
    for _ in range(600):
        if (folder / "j").exists() and (folder / "j").read_bytes().count(1) > 100:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    again = shell(f"lipdeploy {' '.join(words)}", folder)
    assert again.returncode == 0, again.stderr
    first, second = json.loads(whole.stdout), json.loads(again.stdout)
    assert [first[name] for name in ("correct", "at", "curve")] == [second[name] for name in ("correct", "at", "curve")]
    assert not list(folder.glob(".j.*"))  # no half-written journal is left behind once it is whole again
