"""``lipdeploy serve --engine ray`` on two nodes, one of which dies under load.

Each node is a network namespace with its own address, so that they share nothing but a wire. That needs root and
``ip netns``; elsewhere the tests are skipped, and counted as such.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lipdeploy import CertifiedSession

MODEL = """
<ir_version: 9, opset_import: ["": 20]>
classifier (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0.75, 0.0, 0.0, -0.5}> { y = MatMul (x, w) }
"""
NODES = {"lipdeploy-a": "10.231.77.1", "lipdeploy-b": "10.231.77.2"}
HEAD, OTHER = NODES
PORT = 8300
ROWS = np.array([[1.0, 0.25], [0.5, 3.0], [2.0, -1.0]], np.float32)
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": ROWS.ravel().tolist()}]}
).encode()
LOAD_SECONDS = 25.0

pytest.importorskip("ray", reason="make conformance-ray installs it")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip netns"
)


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def inside(node: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", node, *command]


@pytest.fixture
def wire() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    for node in NODES:
        ip("netns", "del", node, check=False)
    try:
        for node in NODES:
            ip("netns", "add", node)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()[:200]}")
    ip("link", "add", "lip-a", "netns", HEAD, "type", "veth", "peer", "name", "lip-b", "netns", OTHER)
    for (node, address), link in zip(NODES.items(), ("lip-a", "lip-b"), strict=True):
        ip("-n", node, "addr", "add", f"{address}/24", "dev", link)
        for up in (link, "lo"):
            ip("-n", node, "link", "set", up, "up")
    yield
    for node in NODES:
        _kill_everything_in(node)
        ip("netns", "del", node, check=False)


def _kill_everything_in(node: str) -> int:
    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False).stdout.split()
    for number in found:
        try:
            os.kill(int(number), signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(found)


@pytest.fixture
def cluster(wire: None) -> Iterator[dict[str, str]]:
    """Ray on both nodes, one processor each. Its folder has a short path: Unix sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="lip-ray-")
    # Nobody else is on this wire, so that Ray's tokens can stay off.
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    ray = str(Path(sys.executable).parent / "ray")
    common = ["--num-cpus=1", "--disable-usage-stats", f"--temp-dir={folder}"]
    head = ["start", "--head", f"--node-ip-address={NODES[HEAD]}", "--port=6390", "--include-dashboard=false"]
    subprocess.run(inside(HEAD, ray, *head, *common), check=True, env=variables, capture_output=True, timeout=90)
    other = ["start", f"--address={NODES[HEAD]}:6390", f"--node-ip-address={NODES[OTHER]}", *common[:2]]
    subprocess.run(inside(OTHER, ray, *other), check=True, env=variables, capture_output=True, timeout=90)
    yield {**variables, "RAY_ADDRESS": f"{NODES[HEAD]}:6390"}
    for node in NODES:
        _kill_everything_in(node)
    shutil.rmtree(folder, ignore_errors=True)


class Serving:
    """``lipdeploy serve --engine ray`` in the head's namespace."""

    def __init__(self, model: Path, variables: dict[str, str], log: Path) -> None:
        self.log = log
        words = ["serve", str(model), "--engine", "ray", "--replicas", "2", "--host", "0.0.0.0", "--port", str(PORT)]
        command = inside(HEAD, sys.executable, "-m", "lipdeploy", *words)
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)

    def wait_until(self, node: str, seconds: float = 150.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if ask(node, "/v2/health/ready", None)[0] == 200:
                return
            time.sleep(0.5)
        pytest.fail(self.log.read_text(errors="replace")[-3000:])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


#: Runs inside the head's namespace, because the nodes' addresses exist only there.
ASK = """
import json, sys, urllib.error, urllib.request
for line in sys.stdin:
    url, body = json.loads(line)
    try:
        request = urllib.request.Request(url, body and body.encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            print(json.dumps([response.status, response.read().decode()]), flush=True)
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, error.read().decode()]), flush=True)
    except Exception as error:
        print(json.dumps([0, repr(error)]), flush=True)
"""


class Asker:
    """A client process in the head's namespace."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            inside(HEAD, sys.executable, "-c", ASK), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, node: str, path: str, body: bytes | None) -> tuple[int, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        text = None if body is None else body.decode()
        self.process.stdin.write(json.dumps([f"http://{NODES[node]}:{PORT}{path}", text]) + "\n")
        self.process.stdin.flush()
        status, content = json.loads(self.process.stdout.readline())
        return status, content

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def ask(node: str, path: str, body: bytes | None) -> tuple[int, str]:
    asker = Asker()
    try:
        return asker.ask(node, path, body)
    finally:
        asker.close()


def columns(content: str) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in json.loads(content)["outputs"]}


class Load:
    """A few clients that ask node ``a`` without pause and count what they get; a wrong answer is remembered."""

    def __init__(self, right: list[dict[str, list[Any]]], clients: int = 3) -> None:
        self.right, self.wrong = right, []
        self.statuses: collections.Counter[int] = collections.Counter()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _client(self) -> None:
        asker = Asker()
        while not self._ended.is_set():
            status, content = asker.ask(HEAD, "/v2/models/net/infer", BODY)
            self.statuses[status] += 1
            if status == 200 and columns(content) not in self.right:
                self.wrong.append(content)
        asker.close()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def write(path: Path, text: str = MODEL) -> Path:
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def test_a_node_dies_under_load(cluster: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write(tmp_path / "net.onnx")
    serving = Serving(model, cluster, tmp_path / "serve.log")
    for node in NODES:
        serving.wait_until(node)
    status, content = ask(OTHER, "/v2/models/net/infer", BODY)
    assert status == 200
    right = columns(content)
    exact = CertifiedSession(str(model)).predict(ROWS)
    assert right["label"] == exact.label.tolist()
    assert all(found <= radius for found, radius in zip(right["radius"], exact.radius, strict=True))
    load = Load([right])
    time.sleep(LOAD_SECONDS / 5)
    before = load.statuses[200]
    killed = _kill_everything_in(OTHER)
    time.sleep(LOAD_SECONDS)
    during = load.statuses[200] - before
    load.end()
    with capsys.disabled():
        print(f"\nnode {OTHER} killed ({killed} processes): answers by status {dict(load.statuses)}")
    assert killed and not load.wrong
    assert before > 0 and during > 0  # the other node went on answering
    lost = sum(count for status, count in load.statuses.items() if status != 200)
    assert lost <= 0.1 * sum(load.statuses.values()), load.statuses
    assert serving.stop() == 0, serving.log.read_text(errors="replace")[-2000:]


#: Deploys again from a second process, as a release pipeline would.
REDEPLOY = """
import sys
import ray
from ray import serve
from lipdeploy.serve.ray import NAME, app
application = app({"models": sys.argv[1], "replicas": 2})
if len(sys.argv) > 2:
    import shutil
    shutil.copy(sys.argv[2], sys.argv[1])  # somebody changes the file between the release and the replicas
ray.init(address="auto")
try:
    serve.run(application, name=NAME, route_prefix="/")
except RuntimeError as error:
    print("REFUSED", error)
    sys.exit(3)
"""


def redeploy(variables: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = inside(HEAD, sys.executable, "-c", REDEPLOY, *map(str, words))
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)


def test_a_rolling_update_verifies_in_every_replica(cluster: dict[str, str], tmp_path: Path) -> None:
    model, other = write(tmp_path / "net.onnx"), write(tmp_path / "other.onnx", MODEL.replace("0.75", "1.5"))
    serving = Serving(model, cluster, tmp_path / "serve.log")
    for node in NODES:
        serving.wait_until(node)
    old = columns(ask(HEAD, "/v2/models/net/infer", BODY)[1])
    shutil.copy(other, model)
    exact = CertifiedSession(str(other)).predict(ROWS)
    new = {**old, "label": exact.label.tolist(), "radius": exact.radius.astype(np.float32).tolist()}
    new["radius"] = [float(np.nextafter(np.float32(r), np.float32(0))) if r > e else r
                     for r, e in zip(new["radius"], exact.radius.tolist(), strict=True)]  # fmt: skip
    load = Load([old, new])
    done = redeploy(cluster, model)
    assert done.returncode == 0, done.stderr[-2000:]
    assert columns(ask(HEAD, "/v2/models/net/infer", BODY)[1]) == new
    load.end()
    assert not load.wrong
    assert set(load.statuses) == {200}, load.statuses  # the old replicas answered until the new ones were proven
    assert serving.stop() == 0


def test_a_replica_refuses_another_file_than_the_one_released(cluster: dict[str, str], tmp_path: Path) -> None:
    model, other = write(tmp_path / "net.onnx"), write(tmp_path / "other.onnx", MODEL.replace("0.75", "1.5"))
    done = redeploy(cluster, model, other)
    assert done.returncode == 3, done.stdout + done.stderr[-2000:]
    assert ask(HEAD, "/v2/models/net/infer", BODY)[0] != 200
