"""What serving costs: processor time of the server per request, requests a second, latencies: ``tools/bench/serve.py``.

Closed loop over loopback at 1, 8 and 32 clients, one row a request, binary tensors both ways, MLP 784-512³-10 with
random orthogonal layers, one thread for inference. Contenders take turns in rounds; the median over rounds is reported.
"bare" is this server around the float32 program alone: no float64, no radius, no certificate (the label is an argmax),
so that the rows above it show what the guarantee costs. "triton" (Python backend), "kserve" and "mlserver" are those
servers around the same program without certificates, where ``make conformance`` has built their environments; MLServer
is asked in JSON, because it takes nothing else. All rows are such that float32 certifies them; only "escalating" gets
rows at a decision boundary: an ``adaptive`` server takes each of them through float64 as well, its dearest case.

``--rounds N --seconds S --only NAME --clients 1,8,32``.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import itertools
import json
import platform
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "bench")]

OURS = ("adaptive", "escalating", "f64", "f32", "bare")
FOREIGN = ("triton", "kserve", "mlserver")
CONTENDERS = (*OURS, *FOREIGN)
READY_SECONDS = 90.0
HEAD_LENGTH = b"inference-header-content-length"
WARM_REQUESTS = 200


@dataclass
class Measured:
    """One contender at one number of clients, one round."""

    requests: int
    wall: float
    cpu: float
    latencies: list[float] = field(repr=False)


def main() -> None:
    """Print the machine and one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--only", choices=CONTENDERS, action="append")
    parser.add_argument("--serve", nargs=2, metavar=("MODEL", "MODE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        raise SystemExit(serve(*given.serve))
    with tempfile.TemporaryDirectory() as folder:
        model, *rows = exported(Path(folder))
        names = [name for name in given.only or CONTENDERS if name in OURS or environment(name) is not None]
        bench(model, rows, names, [int(n) for n in given.clients.split(",")], given)
        for name in set(given.only or CONTENDERS) - set(names):
            print(f"\n{name}: not measured (make conformance builds its environment)")


def bench(model: Path, rows: Any, names: Any, clients: list[int], given: argparse.Namespace) -> None:
    """Interleaved rounds, then the table."""
    servers = {name: Server(model, name) if name in OURS else ForeignServer(model, name) for name in names}
    certain, boundary = rows
    sent = {name: [request(row) for row in (boundary if name == "escalating" else certain)] for name in names}
    sent |= {name: [request_in_json(row) for row in certain] for name, server in servers.items() if server.json}
    found: dict[tuple[str, int], list[Measured]] = {}
    try:
        for (name, server), count in itertools.product(servers.items(), clients):
            load(server, count, sent[name], requests=WARM_REQUESTS)
        for _, count, (name, server) in itertools.product(range(given.rounds), clients, servers.items()):
            found.setdefault((name, count), []).append(load(server, count, sent[name], seconds=given.seconds))
    finally:
        for server in servers.values():
            server.stop()
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    print(f"{processor()}; {versions}; {given.rounds} rounds of {given.seconds} s, interleaved\n")
    print("| server | clients | cpu µs/request | req/s | p50 ms | p99 ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, count), measured in found.items():
        print(f"| {name} | {count} | " + " | ".join(summary(measured)) + " |")


def summary(rounds: list[Measured]) -> list[str]:
    """Medians over rounds."""
    cpu = statistics.median(one.cpu / one.requests * 1e6 for one in rounds)
    rate = statistics.median(one.requests / one.wall for one in rounds)
    p50, p99 = (
        statistics.median(float(np.quantile(one.latencies, q)) * 1e3 for one in rounds) for q in (0.5, 0.99)
    )  # fmt: skip
    return [f"{cpu:.0f}", f"{rate:.0f}", f"{p50:.2f}", f"{p99:.2f}"]


class Server:
    """A contender in a process of its own, ready. ``json``: it takes no binary tensors."""

    json = False

    def __init__(self, model: Path, mode: str) -> None:
        words = [sys.executable, str(Path(__file__).resolve()), "--serve", str(model), mode]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = json.loads(line)
            if entry["event"] == "listening":
                self.port = int(entry["url"].rpartition(":")[2])
            if entry["event"] == "ready":
                return
        raise RuntimeError(f"{mode}: the server ended")

    def cpu_seconds(self) -> float:
        """Processor time of all its threads, and of the processes that it started, so far."""
        return sum(map(_cpu_seconds, _tree(self.process.pid)))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


class ForeignServer(Server):
    """Somebody else's server around the same program; ``BENCH_…`` tell it what to load."""

    def __init__(self, model: Path, name: str) -> None:
        self.json = name == "mlserver"
        self.port, second, third = free_ports(3)
        folder = model.parent / name
        shutil.copytree(ROOT / "tools" / "bench" / "foreign", folder)
        python = environment(name)
        assert python is not None
        site = next((python.parents[1] / "lib").glob("python*/site-packages"))
        variables = {
            **os.environ, "BENCH_MODEL": str(model), "BENCH_SITE": str(site), "PYTHONPATH": str(folder),
            "BENCH_LIBRARY": str(ROOT / "lipdeploy" / "custom_ops_lib" / "liblipdeploy_ops.so"),
        }  # fmt: skip
        command = getattr(self, f"_{name}")(python, site, folder, variables, (second, third))
        log = (folder / "log").open("wb")
        self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        wait_for(f"http://127.0.0.1:{self.port}/v2/models/model/ready", self.process, folder / "log")

    def _triton(self, python: Path, site: Path, folder: Path, variables: dict[str, str], ports: Any) -> list[str]:
        bundled, backend = site / "pytriton" / "tritonserver", folder / "backends" / "python"
        shutil.copytree(bundled / "backends" / "python", backend)
        stub = bundled / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
        shutil.copy(stub, backend)
        (folder / "models" / "model" / "1").mkdir(parents=True)
        shutil.copy(folder / "triton_model.py", folder / "models" / "model" / "1" / "model.py")
        (folder / "models" / "model" / "config.pbtxt").write_text(TRITON_CONFIG)
        variables["LD_LIBRARY_PATH"], variables["PYTHONHOME"] = str(site / "nvidia_pytriton.libs"), sys.base_prefix
        words = ["--model-repository", str(folder / "models"), "--backend-directory", str(folder / "backends")]
        for name, port in (("http", self.port), ("grpc", ports[0]), ("metrics", ports[1])):
            words += [f"--{name}-address", "127.0.0.1", f"--{name}-port", str(port)]
        return [str(bundled / "bin" / "tritonserver"), *words]

    def _kserve(self, python: Path, site: Path, folder: Path, variables: dict[str, str], ports: Any) -> list[str]:
        return [str(python), str(folder / "kserve_server.py"), str(self.port)]

    def _mlserver(self, python: Path, site: Path, folder: Path, variables: dict[str, str], ports: Any) -> list[str]:
        served = folder / "served"
        served.mkdir()
        settings = {"debug": False, "parallel_workers": 0, "host": "127.0.0.1", "http_port": self.port}
        settings |= {"grpc_port": ports[0], "metrics_port": ports[1]}
        (served / "settings.json").write_text(json.dumps(settings))
        (served / "model-settings.json").write_text(
            json.dumps({"name": "model", "implementation": "mlserver_runtime.Plain"})
        )
        return [str(python.parent / "mlserver"), "start", str(served)]


TRITON_CONFIG = """name: "model"
backend: "python"
max_batch_size: 64
dynamic_batching { }
input [ { name: "input" data_type: TYPE_FP32 dims: [ 784 ] } ]
output [ { name: "label" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""


def environment(name: str) -> Path | None:
    """The Python of a foreign server's environment, or ``None``."""
    python = ROOT / "build" / "conformance" / name / "bin" / "python"
    return python if python.exists() else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Until ``url`` answers with success."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError(log.read_text(errors="replace")[-2000:])


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return [pid, *(found for child in children for found in _tree(child))]


def _cpu_seconds(pid: int) -> float:
    folder = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in folder.iterdir()) / 1e9


def load(server: Server, clients: int, bodies: list[bytes], *, requests: int = 0, seconds: float = 0.0) -> Measured:
    """A closed loop of ``clients`` connections, for ``seconds`` or until ``requests`` were answered."""
    selector, latencies, turn = selectors.DefaultSelector(), [], itertools.cycle(bodies)
    sent: dict[socket.socket, float] = {}
    for _ in range(clients):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
    cpu, started = server.cpu_seconds(), time.perf_counter()
    for key in list(selector.get_map().values()):
        sent[key.fileobj] = time.perf_counter()
        key.fileobj.sendall(next(turn))
    while time.perf_counter() - started < seconds or len(latencies) < requests:
        for key, _ in selector.select():
            connection = key.fileobj
            answer(connection)
            now = time.perf_counter()
            latencies.append(now - sent[connection])
            sent[connection] = now
            connection.sendall(next(turn))
    wall = time.perf_counter() - started
    used = server.cpu_seconds() - cpu
    for key in list(selector.get_map().values()):
        answer(key.fileobj)
        key.fileobj.close()
    return Measured(len(latencies), wall, used, latencies)


def answer(connection: socket.socket) -> bytes:
    """One whole response, which must be a success."""
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(data[:500])
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    chunked = b"transfer-encoding: chunked" in head.lower()
    while len(body) < length or (chunked and not body.endswith(b"0\r\n\r\n")):
        body += connection.recv(65536)
    return body


def request(row: Any) -> bytes:
    """The bytes of an inference request with binary tensors, as tritonclient would send them."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "input",
                    "shape": [1, row.size],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": row.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    lines = [
        b"POST /v2/models/model/infer HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/octet-stream",
        HEAD_LENGTH + b": %d" % len(head),
        b"Content-Length: %d" % (len(head) + row.nbytes),
    ]
    return b"\r\n".join([*lines, b"", head + row.tobytes()])


def request_in_json(row: Any) -> bytes:
    """The same request as JSON alone."""
    tensor = {"name": "input", "shape": [1, row.size], "datatype": "FP32", "data": row.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    lines = [b"POST /v2/models/model/infer HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def exported(folder: Path) -> tuple[Path, Any, Any]:
    """The model of the goals, rows that float32 certifies, and rows that it does not."""
    import modes
    import torch

    from lipdeploy import CertifiedSession, export

    torch.manual_seed(0)
    _, module, shape, _ = modes.networks()[0]
    export(module, torch.rand(2, *shape), folder / "model.onnx")
    random = np.random.default_rng(0).random((256, *shape), dtype=np.float32)
    session = CertifiedSession(str(folder / "model.onnx"), certify="adaptive", threads=1)
    rows = modes.certain_rows(module, random)
    certain = rows[session.predict(rows).program == "f32"]
    boundary = at_boundary(session, certain)
    boundary = boundary[session.predict(boundary).program == "f64"]
    assert len(certain) > 100 and len(boundary) > 10
    return folder / "model.onnx", certain[:, None], boundary[:, None]


def at_boundary(session: Any, rows: Any) -> Any:
    """Points between rows of different classes at which the float32 program's label changes, by bisection."""
    label = session.predict(rows).label
    apart = np.flatnonzero(label != np.roll(label, 1))
    one, other = rows[apart], np.roll(rows, 1, axis=0)[apart]
    for _ in range(40):
        middle = (one + other) / np.float32(2)
        same = (session.predict(middle).label == label[apart])[:, None]
        one, other = np.where(same, middle, one), np.where(same, other, middle)
    return one


def serve(model: str, mode: str) -> int:
    """One contender."""
    from lipdeploy.serve import Settings, logs, model_sources, models, server
    from lipdeploy.serve.binding import Binding

    logs.configure("info")
    if mode == "bare":
        models.Program.run = bare_run
    certify = {"bare": "f32", "escalating": "adaptive"}.get(mode, mode)
    settings = Settings(models=model_sources([model]), threads=1, certify=certify)
    return server.run(settings, Binding(port=0))


def bare_run(self: Any, feeds: Any, epsilon: float | None) -> Any:
    """A batch of the float32 program: labels, and no promise."""
    from lipdeploy.serve.columns import Rows

    logits = self.session.run(None, feeds)[0]
    return Rows(Uncertified(logits.argmax(axis=1), np.zeros(len(logits))))


@dataclass
class Uncertified:
    """What ``Rows`` reads of a prediction."""

    label: Any
    radius: Any


def processor() -> str:
    """The name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
