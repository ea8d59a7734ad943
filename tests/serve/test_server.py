"""The process: it listens first, ends without losing a request, and says how it ended."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import CLASSIFIER, UNKNOWN, json_request, write
from tests.serve.processes import ROOT, Connection, Process, ask, serving, until_ready

INFER = "/v2/models/net/infer"
BODY = json.dumps(json_request([[1.0, 0.5, -0.25, 2.0]])).encode()
OTHER = CLASSIFIER.replace("b = {0.25, 0.0, -0.5}", "b = {-9.0, -9.0, 9.0}")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write(tmp_path / "net.onnx", CLASSIFIER)


class Load:
    """Clients in closed loops, each counting what it was answered and what it lost."""

    def __init__(self, port: int, clients: int, *, keep_alive: bool) -> None:
        self.port, self.keep_alive = port, keep_alive
        self.answered, self.lost, self.strange = 0, [], []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _loop(self) -> None:
        connection: Connection | None = None
        while not self._stop.is_set():
            try:
                connection = connection or Connection(self.port)
            except OSError:
                return  # nobody listens any more, which is how it should end
            try:
                headers = {} if self.keep_alive else {"Connection": "close"}
                response = connection.ask("POST", INFER, BODY, **headers)
            except OSError as error:
                with self._lock:
                    self.lost.append(repr(error))
                return
            with self._lock:
                self.answered += 1
                if response.status != 200:
                    self.strange.append(response)
            if response.headers.get("connection") == "close":
                connection.close()
                connection = None

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("keep_alive", [True, False])
def test_no_accepted_request_is_lost(net: Path, keep_alive: bool) -> None:
    """SIGTERM in the middle of eight closed loops: every request that was sent is answered, and the code is 0."""
    with serving(net, "--threads", 1, "--drain-seconds", 2) as server:
        _, port = server.listening()
        server.event("ready")
        load = Load(port, 8, keep_alive=keep_alive)
        time.sleep(0.5)
        server.signal(signal.SIGTERM)
        server.event("draining")
        assert ask(port, "GET", "/v2/health/ready").status == 503
        before = load.answered
        assert server.wait() == 0
        load.join()
    assert (load.lost, load.strange) == ([], [])
    assert load.answered > before > 0  # it went on answering while it drained
    assert not [line for line in server.lines if line["event"] == "drain ended early"]


def test_who_has_just_connected_is_waited_for(net: Path) -> None:
    """A client between its connect and its first byte, or in the middle of its headers, has not gone idle."""
    with serving(net, "--threads", 1) as server:
        _, port = server.listening()
        server.event("ready")
        silent, halfway = Connection(port), Connection(port)
        halfway.socket.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        server.signal(signal.SIGINT)
        server.event("draining")
        time.sleep(0.1)
        assert silent.ask("POST", INFER, BODY).status == 200
        halfway.socket.sendall(b"Host: localhost\r\n\r\n")
        assert halfway.answer().status == 200
        assert server.wait() == 0


def test_an_idle_server_ends_soon(net: Path) -> None:
    with serving(net, "--threads", 1) as server:
        _, port = server.listening()
        server.event("ready")
        idle = Connection(port)
        assert idle.ask("GET", "/v2/health/live").status == 200
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10.0  # far below the 30 seconds that it may take
        idle.close()


def test_a_request_that_is_half_sent_is_waited_for(net: Path) -> None:
    with serving(net, "--threads", 1, "--drain-seconds", 10) as server:
        _, port = server.listening()
        server.event("ready")
        slow = Connection(port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        slow.socket.sendall(head + BODY[:20])
        time.sleep(0.1)
        server.signal(signal.SIGTERM)
        time.sleep(1.0)
        slow.socket.sendall(BODY[20:])
        assert slow.answer().status == 200
        assert server.wait() == 0


def test_pipelined_requests_survive_the_drain(net: Path) -> None:
    with serving(net, "--threads", 1, "--drain-seconds", 10) as server:
        _, port = server.listening()
        server.event("ready")
        connection = Connection(port)
        assert connection.ask("POST", INFER, BODY).status == 200
        server.signal(signal.SIGTERM)
        server.event("draining")
        request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
        connection.socket.sendall(request * 5)
        assert [connection.answer().status for _ in range(5)] == [200] * 5
        connection.close()
        assert server.wait() == 0


def test_the_drain_has_an_end(net: Path) -> None:
    with serving(net, "--threads", 1, "--drain-seconds", 1) as server:
        _, port = server.listening()
        server.event("ready")
        never = Connection(port)
        never.socket.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode())
        time.sleep(0.1)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8.0
    told = [line for line in server.lines if line["event"] == "text" or line.get("level") == "error"]
    assert not told  # nothing was accepted, so nothing was lost


def test_a_signal_while_verifying(net: Path) -> None:
    with serving(net, "--threads", 1) as server:
        server.listening()
        assert server.stop() == 0


ENDLESS = """
import sys
import numpy as np
import onnxruntime
from lipdeploy.cli.main import main
from lipdeploy.serve import models

bare = onnxruntime.InferenceSession(sys.argv[1])

def endless(*words, **options):
    while True:
        bare.run(None, {"x": np.zeros((2000, 4), np.float32)})

models.CertifiedSession = endless
sys.exit(main(["serve", sys.argv[1], "--port", "0", *sys.argv[2:]]))
"""


def test_a_proof_inside_a_library_does_not_spoil_the_end(net: Path) -> None:
    """A thread in the middle of C++ when the interpreter goes away takes the process along: SIGABRT."""
    command = [sys.executable, "-c", ENDLESS, str(net)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            while "verifying" not in server.stderr.readline():
                assert server.poll() is None
            server.send_signal(signal.SIGTERM)
            _, rest = server.communicate(timeout=60)
            assert (server.returncode, '"event": "stopped"' in rest.replace('":"', '": "')) == (0, True), rest


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [(CLASSIFIER, ["--max-lipschitz", "0.001"], 1), ("junk", [], 2), (UNKNOWN, [], 3), ("stale", [], 4)],
    ids=["above the limit", "unreadable", "refused", "integrity"],
)
def test_fail_fast_ends_with_the_contracts_code(tmp_path: Path, text: str, options: list[str], code: int) -> None:
    from lipdeploy.verify import verify
    from lipdeploy.verify.certificate import certificate_path

    path = write(tmp_path / "net.onnx", CLASSIFIER)
    if text == "junk":
        path.write_bytes(b"junk")
    elif text == "stale":
        verify(path).write_certificate(certificate_path(path))
        write(path, OTHER)
    else:
        write(path, text)
    with serving(path, "--fail-fast", *options) as server:
        assert server.wait() == code
    with serving(path, *options) as server:  # without it: it stays, and never says ready
        _, port = server.listening()
        assert server.event("load failed")["hint"]
        assert ask(port, "GET", "/v2/health/live").status == 200
        assert ask(port, "GET", "/v2/health/ready").status == 503
        assert server.stop() == 0


def test_several_failures_end_with_the_worst(tmp_path: Path, net: Path) -> None:
    unknown, junk = write(tmp_path / "unknown.onnx", UNKNOWN), tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    with serving(junk, unknown, net, "--fail-fast") as server:
        assert server.wait() == 3


def test_a_port_that_is_taken(net: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = Process(net, "--port", taken.getsockname()[1], "--port", 0, "--admin-port", taken.getsockname()[1])
        assert process.wait() == 2
        assert "cannot listen on 127.0.0.1" in str(process.lines)


@pytest.mark.parametrize(
    "words",
    [("nowhere.onnx",), ("--name", "x"), ("--api-key-file", "nowhere"), ("--tls-cert", "x.pem"), ("--workers", "0"),
     ("--epsilon", "-1"), ("--certify", "hope"), ("--max-batch-rows", "0"), ("--tracing",)],
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_words_that_make_no_sense(net: Path, words: tuple[str, ...]) -> None:
    extra = (net, net) if words[0] == "--name" else () if words[0] == "nowhere.onnx" else (net,)
    if words == ("--tracing",):
        try:
            import opentelemetry.trace  # noqa: F401
        except ImportError:
            pass
        else:
            return
    process = Process(*extra, *words)
    assert process.wait() == 2
    assert "Traceback" not in str(process.lines)


def test_sighup_reloads(net: Path) -> None:
    with serving(net, "--threads", 1) as server:
        _, port = server.listening()
        first = server.event("ready")["certificate"]
        write(net, OTHER)
        server.signal(signal.SIGHUP)
        assert server.event("ready")["certificate"] != first
        assert json.loads(ask(port, "POST", INFER, BODY).body)["outputs"][0]["data"] == [2]
        assert server.stop() == 0


def test_an_admin_port(net: Path) -> None:
    with serving(net, "--threads", 1, "--admin-port", 0) as server:
        line = server.event("listening")
        port, admin = (int(line[name].rpartition(":")[2]) for name in ("url", "admin_url"))
        server.event("ready")
        load = "/v2/repository/models/net/load"
        assert (ask(port, "POST", load).status, ask(admin, "POST", load).status) == (404, 200)
        assert (ask(port, "POST", INFER, BODY).status, ask(admin, "POST", INFER, BODY).status) == (200, 404)
        assert server.stop() == 0


# HTTP that is wrong, below what an ASGI app sees.

WIRES: dict[str, tuple[bytes, int]] = {
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    "a strange method": (b"B(EW /v2 HTTP/1.1\r\n\r\n", 400),
    "a space in a header's name": (b"GET /v2 HTTP/1.1\r\nHo st: x\r\n\r\n", 400),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "content-length is a word": (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: all\r\n\r\n", 400),
    "content-length twice": (b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "content-length and chunks": (
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400
    ),
    "a chunk of negative size": (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nx\r\n\r\n", 400),
    "headers without end": (b"GET /v2 HTTP/1.1\r\n" + b"a: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(20_000)) + b"\r\n", 431),
    "a long target": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
    "a target that is no path": (b"GET http://[::bad HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write(tmp_path_factory.mktemp("shared") / "net.onnx", CLASSIFIER)
    with serving(path, "--threads", 1, "--max-body-bytes", 100_000) as server:
        _, port = server.listening()
        server.event("ready")
        yield port
        assert server.stop() == 0


@pytest.mark.parametrize(("data", "status"), WIRES.values(), ids=WIRES.keys())
def test_what_is_not_http(shared: int, data: bytes, status: int) -> None:
    connection = Connection(shared)
    connection.socket.sendall(data)
    reply = connection.answer()
    connection.close()
    assert reply.status == status
    assert set(reply.json) == {"error"}
    assert ask(shared, "POST", INFER, BODY).status == 200


def test_http_1_0_needs_no_host(shared: int) -> None:
    connection = Connection(shared)
    connection.socket.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
    assert connection.answer().status == 200
    connection.close()


def test_a_body_longer_than_allowed_is_not_read(shared: int) -> None:
    connection = Connection(shared)
    connection.socket.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode())
    reply = connection.answer()
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    connection.close()


def test_pipelined_requests_are_answered_in_order(shared: int) -> None:
    connection = Connection(shared)
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    connection.socket.sendall(request + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + request)
    assert [connection.answer().status for _ in range(3)] == [200, 200, 200]
    connection.close()


def test_clients_that_hang_up_do_no_harm(shared: int) -> None:
    for _ in range(50):
        connection = Connection(shared)
        connection.socket.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
        )
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        connection.close()
    assert ask(shared, "POST", INFER, BODY).status == 200
    assert b"lipdeploy_inflight 0" in ask(shared, "GET", "/metrics").body


def test_overload_is_503_and_the_accepted_are_answered(net: Path) -> None:
    """More rows at once than may wait: some are turned away with Retry-After, the others get their answer."""
    with serving(net, "--threads", 1, "--max-queue-rows", 64, "--max-batch-rows", 8) as server:
        _, port = server.listening()
        server.event("ready")
        body = json.dumps(json_request(np.ones((60, 4)))).encode()
        connections = [Connection(port) for _ in range(20)]
        request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for connection in connections:
            connection.socket.sendall(request)
        replies = [connection.answer() for connection in connections]
        assert {reply.status for reply in replies} <= {200, 503}
        assert any(reply.status == 200 for reply in replies)
        for reply in replies:
            if reply.status == 503:
                assert int(reply.headers["retry-after"]) >= 1
                assert "overloaded" in reply.json["error"]
        assert server.stop() == 0


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, and a server's and a client's certificate signed by it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def issue(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name)).issuer_name(named("ca")).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
        )  # fmt: skip
        certificate = builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return certificate, key

    ca = issue("ca", None)
    issue("server", ca)
    issue("client", ca)
    return folder


def test_tls(net: Path, authority: Path) -> None:
    words = ("--tls-cert", authority / "server.pem", "--tls-key", authority / "server.key")
    with serving(net, "--threads", 1, *words) as server:
        scheme, port = server.listening()
        server.event("ready")
        assert scheme == "https"
        connection = Connection(port, ssl.create_default_context(cafile=str(authority / "ca.pem")))
        assert connection.ask("POST", INFER, BODY).status == 200
        connection.close()
        with pytest.raises((OSError, ValueError)):
            ask(port, "GET", "/v2")  # in the clear
        assert server.stop() == 0


def test_clients_must_show_a_certificate(net: Path, authority: Path) -> None:
    words = ["--tls-cert", authority / "server.pem", "--tls-key", authority / "server.key"]
    with serving(net, "--threads", 1, *words, "--tls-client-ca", authority / "ca.pem") as server:
        _, port = server.listening()
        server.event("ready")
        context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        with pytest.raises(OSError):
            Connection(port, context).ask("GET", "/v2")
        context.load_cert_chain(authority / "client.pem", authority / "client.key")
        connection = Connection(port, context)
        assert connection.ask("POST", INFER, BODY).status == 200
        connection.close()
        assert server.stop() == 0


# Workers.


@pytest.mark.slow
def test_two_workers_are_one_server(net: Path) -> None:
    """Readiness, metrics, reload and the drain are those of both."""
    with serving(net, "--threads", 1, "--workers", 2, "--drain-seconds", 4) as server:
        _, port = server.listening()
        until_ready(port)
        count, workers = 40, set()
        for _ in range(count):
            assert ask(port, "POST", INFER, BODY).status == 200
        for _ in range(10):
            text = ask(port, "GET", "/metrics").body.decode()
            assert f'lipdeploy_requests_total{{model="net",version="1",code="200"}} {count}\n' in text
        workers = {line["pid"] for line in server.lines}
        write(net, OTHER)
        assert ask(port, "POST", "/v2/repository/models/net/load").status == 200
        for _ in range(20):
            assert ask(port, "POST", INFER, BODY).json["outputs"][0]["data"] == [2]
        load = Load(port, 4, keep_alive=False)
        time.sleep(0.3)
        assert server.stop() == 0
        load.join()
        assert (load.lost, load.strange) == ([], [])
        workers = {line["pid"] for line in server.lines if line["event"] == "ready"}
        assert len(workers) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced(net: Path, number: signal.Signals) -> None:
    """Also one that was told to end by somebody else: it must not close the port behind it as the last one does."""
    with serving(net, "--threads", 1, "--workers", 2, "--drain-seconds", 12) as server:
        _, port = server.listening()
        victim = server.event("ready")["pid"]
        until_ready(port)
        load = Load(port, 4, keep_alive=False)
        os.kill(victim, number)
        server.event("a worker died")
        assert ask(port, "POST", INFER, BODY).status == 200
        while len({line["pid"] for line in server.so_far() if line["event"] == "ready"}) < 3:
            assert ask(port, "GET", "/v2/health/ready").status == 200  # the other one is
            assert ask(port, "GET", "/v2/models/net/ready").status == 200
        assert ask(port, "POST", INFER, BODY).status == 200
        if number == signal.SIGTERM:  # the others go on listening, so it need not wait for a quiet moment
            at = {line["event"]: line["ts"] for line in server.lines if line["pid"] == victim}
            assert datetime.datetime.fromisoformat(at["stopped"]) - datetime.datetime.fromisoformat(
                at["draining"]
            ) < datetime.timedelta(seconds=5)
        assert server.stop() == 0
        load.join()
        if number == signal.SIGTERM:
            assert (load.lost, load.strange) == ([], [])


@pytest.mark.slow
def test_a_worker_that_is_replaced_serves_what_the_other_serves(net: Path) -> None:
    """Killed with new bytes on the disk it is not ready until a load; what was unloaded stays so."""
    import os

    with serving(net, "--threads", 1, "--workers", 2) as server:
        _, port = server.listening()
        first = server.event("ready")
        victim = first["pid"]
        until_ready(port)
        write(net, OTHER)
        os.kill(victim, signal.SIGKILL)
        assert server.event("left out")["pid"] != victim
        while ask(port, "GET", "/v2/health/ready").status == 200:  # until it listens
            time.sleep(0.02)
        assert {ask(port, "GET", "/v2/health/ready").status for _ in range(20)} == {503}
        replies = [ask(port, "POST", INFER, BODY) for _ in range(20)]
        assert {reply.status for reply in replies} <= {200, 503}
        assert not [reply for reply in replies if reply.status == 200 and reply.json["outputs"][0]["data"] == [2]]
        server.signal(signal.SIGHUP)
        assert first["certificate"] not in [server.event("ready")["certificate"] for _ in range(2)]
        until_ready(port)
        for _ in range(20):
            assert ask(port, "POST", INFER, BODY).json["outputs"][0]["data"] == [2]
        assert ask(port, "POST", "/v2/repository/models/net/unload").status == 200
        pids = {server.event("unloaded")["pid"] for _ in range(2)}
        os.kill(pids.pop(), signal.SIGKILL)
        assert server.event("unloaded")["pid"] not in pids
        until_ready(port)
        assert {ask(port, "POST", INFER, BODY).status for _ in range(20)} == {503}
        assert server.stop() == 0


@pytest.mark.slow
def test_workers_do_not_outlive_a_supervisor_that_was_killed(net: Path) -> None:
    with serving(net, "--threads", 1, "--workers", 2) as server:
        _, port = server.listening()
        until_ready(port)
        server.signal(signal.SIGKILL)
        server.process.wait(60)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                ask(port, "GET", "/v2/health/live")
            except OSError:
                return
            time.sleep(0.1)
        raise AssertionError("someone still answers")


@pytest.mark.slow
def test_workers_fail_fast_together(tmp_path: Path) -> None:
    with serving(write(tmp_path / "net.onnx", UNKNOWN), "--workers", 2, "--fail-fast") as server:
        assert server.wait() == 3


@pytest.mark.slow
def test_sighup_while_workers_begin_is_not_their_end(net: Path) -> None:
    with serving(net, "--threads", 1, "--workers", 2, "--fail-fast") as server:
        _, port = server.listening()
        server.signal(signal.SIGHUP)
        until_ready(port)
        assert server.stop() == 0
    assert "a worker died" not in [line["event"] for line in server.lines]


@pytest.mark.slow
def test_workers_without_a_grpc_port_end_as_one_process_does(net: Path) -> None:
    pytest.importorskip("grpc")
    taken = socket.create_server(("127.0.0.1", 0))
    words = ("--threads", 1, "--workers", 2, "--grpc-port", taken.getsockname()[1])
    with taken, serving(net, *words) as server:
        assert "for gRPC" in server.event("a worker cannot serve")["reason"]
        assert server.wait() == 2


@pytest.mark.slow
def test_an_order_that_cannot_be_written_does_not_end_the_server(net: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with serving(net, "--threads", 1, "--workers", 2) as server:
        _, port = server.listening()
        until_ready(port)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk
        server.signal(signal.SIGHUP)
        assert "agreed on cannot be" in server.event("reload failed")["reason"]
        assert ask(port, "POST", INFER, BODY).status == 200
        assert server.stop() == 0
