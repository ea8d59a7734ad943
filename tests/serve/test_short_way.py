"""An inference request that comes in one piece takes a shorter way through the server, and gets the same answer."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.serve import asgi, oip
from tests.serve.conftest import CLASSIFIER, Client, Serve, binary_request, json_request, write
from tests.serve.processes import Connection, ask, serving

INFER = "/v2/models/net/infer"
ROWS = np.array([[1.0, 0.5, -0.25, 2.0], [0.1, 0.2, 0.3, 0.4]], np.float32)
BINARY, HEADERS = binary_request(ROWS)
JSON = json.dumps(json_request(ROWS)).encode()
LENGTH = ("Inference-Header-Content-Length", HEADERS["inference_header_content_length"])

REQUESTS: dict[str, tuple[str, str, list[tuple[str, str]], bytes, int]] = {
    "JSON": ("POST", INFER, [], JSON, 200),
    "binary": ("POST", INFER, [LENGTH], BINARY, 200),
    "a version": ("POST", "/v2/models/net/versions/1/infer", [], JSON, 200),
    "an id": ("POST", INFER, [("X-Request-Id", "abc-1")], JSON, 200),
    "an unusable id": ("POST", INFER, [("X-Request-Id", "a b")], JSON, 200),
    "an escaped path": ("POST", "/v2/models/n%65t/infer", [], JSON, 200),
    "a query": ("POST", INFER + "?a=b", [], JSON, 200),
    "no model": ("POST", "/v2/models/nobody/infer", [], JSON, 404),
    "no version": ("POST", "/v2/models/net/versions/7/infer", [], JSON, 404),
    "no route": ("POST", "/v2/infer", [], JSON, 404),
    "no JSON": ("POST", INFER, [], b"{" + JSON, 400),
    "an empty body": ("POST", INFER, [], b"", 400),
    "NaN": ("POST", INFER, [LENGTH], BINARY[:-4] + b"\xff\xff\xff\xff", 400),
    "too short": ("POST", INFER, [LENGTH], BINARY[:-4], 400),
    "compressed": ("POST", INFER, [("Content-Encoding", "gzip")], JSON, 415),
    "one header twice": ("POST", INFER, [LENGTH, LENGTH], BINARY, 400),
    "too large": ("POST", INFER, [], JSON + b" " * 70_000, 413),
    "GET": ("GET", INFER, [], b"", 405),
    "a wrong certificate": (
        "POST", INFER, [],
        json.dumps(json_request(ROWS, parameters={"lipdeploy_require_certificate": "0" * 64})).encode(), 409,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that takes bodies of 64 KiB."""
    net = write(tmp_path_factory.mktemp("net") / "net.onnx", CLASSIFIER)
    with serving(net, "--threads", 1, "--max-body-bytes", 65536) as server:
        _, port = server.listening()
        server.event("ready")
        yield port


def written(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> tuple[bytes, bytes]:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])).encode(), body


def answered(port: int, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = Connection(port)
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number, piece in enumerate(pieces):
        if number:
            time.sleep(0.05)
        connection.socket.sendall(piece)
    answer = connection.answer()
    connection.close()
    return answer.status, dict(answer.headers), answer.body


@pytest.mark.parametrize("name", REQUESTS)
def test_both_ways_say_the_same(shared: int, name: str) -> None:
    *request, status = REQUESTS[name]
    head, body = written(*request)
    whole, pieces = answered(shared, head + body), answered(shared, head, *([body] if body else []))
    assert whole == pieces
    assert whole[0] == status


def test_the_short_way_was_taken(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise the comparison above compares nothing."""
    from lipdeploy.serve import Settings, model_sources, process
    from lipdeploy.serve.asgi import App
    from lipdeploy.serve.binding import Binding
    from lipdeploy.serve.ports import bind
    from lipdeploy.serve.service import Service

    ways: list[str] = []
    for name in ("answer_shortly", "_infer"):
        taken = getattr(App, name)
        monkeypatch.setattr(App, name, lambda *a, _taken=taken, _name=name, **k: ways.append(_name) or _taken(*a, **k))
    listener = bind("127.0.0.1", 0)
    port = listener.wire.getsockname()[1]
    service = Service(Settings(models=model_sources([write(tmp_path / "net.onnx", CLASSIFIER)]), threads=1))
    running = process.Server(service, Binding(), "all", listener)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener.wire])), daemon=True)
    thread.start()
    while ask(port, "GET", "/v2/health/ready").status != 200:
        time.sleep(0.02)
    head, body = written("POST", INFER, [], JSON)
    one, two = answered(port, head + body), answered(port, head, body)
    running.should_exit = running.hurry = True
    thread.join(20)
    assert (one[0], one[2]) == (two[0], two[2]) == (200, one[2])
    assert ways == ["answer_shortly", "_infer"]


def test_a_pipelined_request_without_its_end_is_waited_for(shared: int) -> None:
    head, body = written("POST", INFER, [], JSON)
    connection = Connection(shared)
    connection.socket.sendall(head + body + head + body[:30])
    assert connection.answer().status == 200
    time.sleep(0.05)
    connection.socket.sendall(body[30:] + head + body)
    assert [connection.answer().status for _ in range(2)] == [200, 200]
    connection.close()


def test_a_client_that_leaves_its_answers_lying_gets_them_all(shared: int) -> None:
    """More answers than the socket's buffers hold: the server waits for the client, and loses none."""
    count, rows = 400, np.ones((700, 4), np.float32)
    body, headers = binary_request(rows, outputs=[{"name": "logits"}, {"name": "radius"}])
    head, body = written("POST", INFER, [(LENGTH[0], headers["inference_header_content_length"])], body)
    connection = Connection(shared)
    connection.socket.settimeout(60)

    def send() -> None:
        for _ in range(count):
            connection.socket.sendall(head + body)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    time.sleep(1.0)  # long enough for the buffers to fill
    answers = [connection.answer() for _ in range(count)]
    sending.join(60)
    connection.close()
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize("size", [10, 20_000])
def test_much_json_is_read_beside_the_loop(net: Client, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    threads: list[threading.Thread] = []
    parse = oip.parse
    monkeypatch.setattr(asgi, "LOOP_JSON", 10_000)
    monkeypatch.setattr(oip, "parse", lambda *words: threads.append(threading.current_thread()) or parse(*words))
    request: Any = json_request(ROWS, parameters={"padding": "x" * size})
    assert net.post(INFER, request).status == 200
    looped = asyncio.run_coroutine_threadsafe(_thread(), net.loop).result(5)
    assert (threads == [looped]) == (size < 10_000)


async def _thread() -> threading.Thread:
    return threading.current_thread()


@pytest.mark.parametrize("count", [40, 2000])
def test_requests_that_fail_at_once_are_not_answered_inside_one_another(shared: int, count: int) -> None:
    """A thousand behind one that waits were a thousand calls deep; the connection hung, and held up the drain."""
    good, bad = b"".join(written("POST", INFER, [], JSON)), b"".join(written("POST", INFER, [], b"{}"))
    connection = Connection(shared)
    connection.socket.settimeout(20)
    threading.Thread(target=connection.socket.sendall, args=(good + count * bad + good,), daemon=True).start()
    assert [connection.answer().status for _ in range(count + 2)] == [200, *[400] * count, 200]
    connection.close()


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
def test_an_upgrade_that_is_offered_is_not_taken_and_loses_nothing(shared: int, offer: str) -> None:
    """Java's client offers HTTP/2 with every first request; the parser then says that there is no body."""
    headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", offer), ("HTTP2-Settings", "AAEAAEAA")]
    head, body = written("POST", INFER, headers, JSON)
    plain = b"".join(written("POST", INFER, [], JSON))
    expected = answered(shared, plain)
    for pieces in ([head + body], [head, body], [head[:40], head[40:] + body[:9], body[9:]]):
        assert answered(shared, *pieces)[2] == expected[2]
    connection = Connection(shared)
    connection.socket.sendall(head + body + head + body + plain)
    assert [connection.answer().body for _ in range(3)] == [expected[2]] * 3
    connection.close()


def test_an_upgrade_does_not_smuggle_a_second_length(shared: int) -> None:
    headers = [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Content-Length", "5")]
    assert answered(shared, b"".join(written("POST", INFER, headers, JSON)))[0] == 400


KEY = "alpha-key-of-a-client"
TRAILERS = {
    "a key": ("X-Api-Key: wrong", f"X-Api-Key: {KEY}", 401),
    "the only key": ("X-Other: 1", f"X-Api-Key: {KEY}", 401),
    "a length of JSON": (f"X-Api-Key: {KEY}", "Inference-Header-Content-Length: 3", 200),
    "an encoding": (f"X-Api-Key: {KEY}", "Content-Encoding: gzip", 200),
    "a request's name": (f"X-Api-Key: {KEY}", "X-Request-Id: trailer", 200),
    "a second key": (f"X-Api-Key: {KEY}", f"X-Api-Key: {KEY}", 200),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that wants a key."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with serving(write(folder / "net.onnx", CLASSIFIER), "--threads", 1, "--api-key-file", keys) as server:
        _, port = server.listening()
        server.event("ready")
        yield port


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize(("header", "trailer", "status"), TRAILERS.values(), ids=TRAILERS.keys())
def test_trailers_are_no_headers(guarded: int, header: str, trailer: str, status: int, split: bool) -> None:
    lines = [f"POST {INFER} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", header, "", ""]
    head, body = "\r\n".join(lines).encode(), b"%x\r\n%s\r\n0\r\n" % (len(JSON), JSON)
    rest = [body, trailer.encode() + b"\r\n\r\n"]
    found, headers, _ = answered(guarded, head, *rest) if split else answered(guarded, b"".join([head, *rest]))
    assert (found, headers.get("x-request-id")) == (status, None)


@pytest.mark.parametrize("blanks", [" ", "\t ", ""])
def test_blanks_around_a_value_do_not_belong_to_it(guarded: int, blanks: str) -> None:
    headers = [(name, f"{blanks}{value}{blanks}") for name, value in (("X-API-Key", KEY), LENGTH)]
    head, body = written("POST", INFER, headers, BINARY)
    assert answered(guarded, head + body)[0] == answered(guarded, head, body)[0] == 200


def test_long_paths_are_not_kept() -> None:
    from lipdeploy.serve import routes

    routes._known.cache_clear()
    for number in range(2 * routes.CACHED_PATHS):
        assert routes.route(f"/v2/models/{number}{'x' * routes.LONGEST_CACHED}/infer") is not None
    assert routes._known.cache_info().currsize == 0
    for number in range(2 * routes.CACHED_PATHS):
        assert routes.route(f"/v2/models/{number}/infer") is not None
    assert routes._known.cache_info().currsize == routes.CACHED_PATHS
