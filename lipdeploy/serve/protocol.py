"""HTTP/1.1 as uvicorn speaks it, with errors in our words and bounds on what a stranger can make us keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 30.0
#: In the scope of a request: ``respond(status, fields, body, close) -> done``.
RESPOND = "lipdeploy.respond"


class Protocol(HttpToolsProtocol):
    """One connection. ``begun`` is when the request began whose headers are not complete, on the loop's clock."""

    begun: float | None = None
    _header_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A connection owes a request from its first moment."""
        super().connection_made(transport)
        self.begun = self.loop.time()

    def on_message_begin(self) -> None:
        """Start counting."""
        super().on_message_begin()
        self.begun, self._header_bytes = self.loop.time(), 0

    def on_url(self, url: bytes) -> None:
        """Collect the target, which arrives in pieces."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request is on its way."""
        self.begun = None
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise httptools.HttpParserError("headers too large")  # uvicorn answers 400 and closes

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer all the same; the connection is over."""
        if self.transport.is_closing():
            return
        too_large = self._header_bytes > MAX_HEADER_BYTES
        text = f"the headers may have at most {MAX_HEADER_BYTES} bytes" if too_large else "this is not an HTTP request"
        body = orjson.dumps({"error": text})
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[431 if too_large else 400] + head + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Offer the app a way to answer in one piece."""
        cycle.scope[RESPOND] = partial(self._respond, cycle)
        super()._start_asgi_task(cycle, app)

    def _respond(
        self, cycle: Any, status: int, fields: Sequence[tuple[bytes, bytes]], body: bytes, close: bool
    ) -> bool:
        """A whole response in one write; false where the app has to go the long way (a client that reads slowly).

        What ``send`` does for a start and a body, without parsing our own headers: two writes are two system calls,
        which cost more than everything else that the server does for a small answer.
        """
        if cycle.flow.write_paused or cycle.response_started:
            return False
        if cycle.disconnected:
            return True
        cycle.keep_alive = cycle.keep_alive and not (close and not self.pipeline)  # others wait behind this one
        parts = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *fields):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body)
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def too_slow(self) -> bool:
        """Whether the headers of a request have been arriving for too long."""
        return self.begun is not None and self.idle and self.loop.time() - self.begun > HEADER_SECONDS
