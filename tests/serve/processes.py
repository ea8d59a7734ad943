"""``lipdeploy serve`` in a process of its own, and HTTP spoken by hand."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0


@dataclass(frozen=True)
class Response:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Process:
    """A running server; ``lines`` are its log so far."""

    def __init__(self, *words: object, cwd: Path | None = None) -> None:
        command = [sys.executable, "-m", "lipdeploy", "serve", *map(str, words), "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self._news.put(json.loads(line))
            except ValueError:
                self._news.put({"event": "text", "text": line})
        self._news.put(None)

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next log line of this kind; fails when the process ends before."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                line = self._news.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no '{name}': {self.lines}") from None
            assert line is not None, f"ended before '{name}': {self.lines}"
            self.lines.append(line)
            if line["event"] == name and fields.items() <= line.items():
                return line

    def so_far(self) -> list[dict[str, Any]]:
        """Every log line that has come."""
        with contextlib.suppress(queue.Empty):
            while (line := self._news.get_nowait()) is not None:
                self.lines.append(line)
        return self.lines

    def listening(self) -> tuple[str, int]:
        """Scheme and port, once it listens."""
        url = self.event("listening")["url"]
        return url.partition(":")[0], int(url.rpartition(":")[2])

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended; what it still said is in ``lines``."""
        code = self.process.wait(SECONDS)
        while (line := self._news.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
        return code

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()


@contextlib.contextmanager
def serving(*words: object, cwd: Path | None = None) -> Iterator[Process]:
    """A server that does not outlive the test."""
    process = Process(*words, cwd=cwd)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait(SECONDS)


class Connection:
    """A keep-alive connection on which bytes are sent as they are."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        wire = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket = wire if context is None else context.wrap_socket(wire, server_hostname="localhost")
        self._rest = b""

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """One request and its response."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return self.answer()

    def answer(self) -> Response:
        """The next response. ``ConnectionError`` when the other end hangs up instead."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Response(int(status.split()[1]), headers, body)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server hung up")
        self._rest += data


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
    """One request on a connection of its own."""
    connection = Connection(port)
    try:
        return connection.ask(method, path, body, Connection="close", **headers)
    finally:
        connection.close()


def until_ready(port: int) -> None:
    """Wait until the server says ready."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if ask(port, "GET", "/v2/health/ready").status == 200:
            return
        time.sleep(0.02)
    raise AssertionError(ask(port, "GET", "/v2/health/ready"))
