"""Environments of foreign programs, a model, and servers around it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
EPSILON = "0.25"
START_SECONDS = 90.0


def environment(name: str) -> Path:
    """The Python of an environment that ``make conformance`` builds; a counted skip where it has not."""
    python = ROOT / "build" / "conformance" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make conformance builds the environment '{name}'")
    return python


def program(python: Path, name: str, *words: object) -> Any:
    """What one of ``programs/`` prints, as JSON."""
    command = [str(python), str(PROGRAMS / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Running:
    """A server process; ``log`` is what it wrote."""

    def __init__(self, command: Sequence[str], log: Path, ready: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=variables, cwd=ROOT, start_new_session=True
            )
        self._wait(ready)

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.stop()
        pytest.fail(f"{url} never answered:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # some servers leave their own processes behind
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Ours:
    """``lipdeploy serve``: its addresses."""

    http: str
    grpc: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with both custom operators, exported and proven."""
    import torch

    from lipdeploy import export
    from lipdeploy.nn import BjorckLinear, GroupSort, LinearSpline

    torch.manual_seed(0)
    net = torch.nn.Sequential(BjorckLinear(6, 8), GroupSort(2), BjorckLinear(8, 8), LinearSpline(8), BjorckLinear(8, 3))
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    export(net.eval(), torch.randn(4, 6), path)
    return path


@pytest.fixture(scope="session")
def rows(model: Path) -> Path:
    """Inputs for the network, some of them close to a decision boundary."""
    x = np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)
    x[3] = 0.0
    path = model.parent / "rows.npy"
    np.save(path, x)
    return path


@pytest.fixture(scope="session")
def expected(model: Path, rows: Path) -> dict[str, np.ndarray]:
    """What ``CertifiedSession`` answers."""
    from lipdeploy import CertifiedSession

    answer = CertifiedSession(str(model)).predict(np.load(rows), epsilon=float(EPSILON))
    return {
        "label": answer.label,
        "radius": answer.radius,
        "certified": answer.certified,
        "abstain": ~answer.certified,
        "margin": answer.margin,
        "logits": answer.logits,
    }


@pytest.fixture(scope="session")
def ours(model: Path) -> Iterator[Ours]:
    """``lipdeploy serve`` with both doors open; it must end well."""
    http, grpc = free_ports(2)
    command = [sys.executable, "-m", "lipdeploy", "serve", str(model)]
    words = ["--port", str(http), "--grpc-port", str(grpc)]
    server = Running([*command, *words], model.parent / "serve.log", f"http://127.0.0.1:{http}/v2/health/ready")
    yield Ours(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    assert server.stop() == 0, server.log.read_text()


Check = Callable[[dict[str, Any], Sequence[str]], None]


@pytest.fixture
def agrees(expected: dict[str, np.ndarray]) -> Check:
    """``agrees(answer, names)``: the outputs are the session's, in shape and value; float32 columns never above it."""

    def check(answer: dict[str, Any], names: Sequence[str]) -> None:
        assert set(names) <= set(answer)
        for name in names:
            found, exact = answer[name], expected[name]
            assert found["shape"] == list(exact.shape), name
            values = np.array(found["values"]).reshape(exact.shape)
            if name in ("radius", "margin"):
                assert (values <= exact).all(), name
                np.testing.assert_allclose(values, exact, rtol=1e-6)
            else:
                np.testing.assert_array_equal(values, exact)

    return check
