"""HTTP/1.1 as uvicorn speaks it, with errors in our words and bounds on what a stranger can make us keep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lipdeploy.serve.asgi import App

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 30.0
#: In the scope of a request: ``respond(status, fields, body, close) -> done``.
RESPOND = "lipdeploy.respond"


class Protocol(HttpToolsProtocol):
    """One connection. ``begun`` is when the request began whose headers are not complete, on the loop's clock.

    An inference request that comes in one piece takes the app's short way: it gets no task and no ASGI messages.
    """

    begun: float | None = None
    rested: float | None = None
    _header_bytes = 0
    _trailing = False  # past the headers: more of their kind are trailers
    _body_follows = False
    _wrong = 400, "this is not an HTTP request"
    _short: Any = None
    _piece = b""  # what is being parsed
    _again: bytes | None = None  # what to parse next

    def connection_made(self, transport: Any) -> None:
        """A connection owes a request from its first moment."""
        super().connection_made(transport)
        self.begun = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived; a request that they leave without an end takes the long way, which can wait for it."""
        rest: bytes | None = data
        while rest is not None:
            self._piece, self._again = rest, None
            super().data_received(rest)
            rest = self._again
        self._piece = b""
        cycle, self._short = self._short, None
        if cycle is not None:
            self._start_task(cycle, self.app)

    @property
    def _offers_upgrade(self) -> bool:
        """Whether the client would like to speak HTTP/2 or WebSocket, as Java's does with every first request."""
        return bool(self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT")

    def _unsupported_upgrade_warning(self) -> None:
        """We stay with HTTP/1.1. The parser wants no body after such an offer: it reads the request without it."""
        upgrade = sys.exc_info()[1]  # uvicorn calls this where it catches the parser's word
        if not isinstance(upgrade, httptools.HttpParserUpgrade) or not self._offers_upgrade:
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self._again = b"\r\n".join((*lines, b"", self._piece[upgrade.args[0] :]))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        """Start counting."""
        super().on_message_begin()
        self.begun, self.rested, self._header_bytes, self._trailing = self.loop.time(), None, 0, False

    def on_url(self, url: bytes) -> None:
        """Collect the target, which arrives in pieces."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header. A trailer only counts towards the limit: it must not be read as a header (RFC 9110,
        section 6.5.1), and none means anything here.
        """
        self._count(len(name) + len(value) + 4)
        if self._trailing:
            return
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The request is on its way."""
        self._trailing = True
        if self._offers_upgrade:
            return
        self._check_host()
        self.begun, self._body_follows = None, True
        super().on_headers_complete()
        self._body_follows = False

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._offers_upgrade:
            return
        super().on_message_complete()
        self._answer_shortly()

    def on_response_complete(self) -> None:
        """Go on with the next request, or note the time: ``rests_too_long`` is asked once a second, and so no request
        pays for a timer.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:  # not from here: a thousand requests with a wrong word would be a thousand calls deep
            self.loop.call_soon(self._start_next)
        else:
            self.flow.resume_reading()
            self.rested = self.loop.time()

    def _start_next(self) -> None:
        """Go on with the oldest request that waits. More is read only behind the last: nobody makes us keep a heap."""
        if self.transport.is_closing() or not self.pipeline:
            return
        waiting = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()
        self._start_asgi_task(*waiting)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._wrong = 431, f"the headers may have at most {MAX_HEADER_BYTES} bytes"
            raise httptools.HttpParserError  # uvicorn calls ``send_400_response``

    def _check_host(self) -> None:
        """RFC 9112, section 3.2."""
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            self._wrong = 400, "an HTTP/1.1 request has one Host header"
            raise httptools.HttpParserError

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer all the same; the connection is over."""
        if self.transport.is_closing():
            return
        status, text = self._wrong
        body = orjson.dumps({"error": text})
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Offer the app a way to answer in one piece; wait for the body where the app needs no task."""
        now_or_soon = not cycle.more_body or self._body_follows  # a request that waited behind another may lack its end
        short = isinstance(app, App) and not cycle.waiting_for_100_continue and app.takes_short_way(cycle.scope)
        if short and now_or_soon:
            self._short = cycle
            if not cycle.more_body:
                self._answer_shortly()
            return
        self._start_task(cycle, app)

    def _start_task(self, cycle: Any, app: Any) -> None:
        cycle.scope[RESPOND] = partial(self._respond, cycle)
        super()._start_asgi_task(cycle, app)

    def _answer_shortly(self) -> None:
        cycle, self._short = self._short, None
        if cycle is None or not isinstance(self.app, App):
            return
        body, cycle.body = cycle.body, bytearray()
        gone = partial(getattr, cycle, "disconnected")
        self.app.answer_shortly(cycle.scope, body, gone, partial(self._respond_or_wait, cycle))

    def _respond_or_wait(self, cycle: Any, *answer: Any) -> bool:
        if not self._respond(cycle, *answer):
            task = self.loop.create_task(self._respond_slowly(cycle, *answer))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        return True

    async def _respond_slowly(self, cycle: Any, *answer: Any) -> None:
        """To a client that leaves its answers lying."""
        while not self._respond(cycle, *answer):
            await cycle.flow.drain()

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

    def hang_up(self) -> None:
        """Give up on what is being read and answered; who waits for the rest of a body is told at once."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def expected(self, within: float) -> bool:
        """Whether a request may be on its way: its connection, or its first bytes, are younger than ``within`` s."""
        return self.begun is not None and self.loop.time() - self.begun < within

    def too_slow(self) -> bool:
        """Whether the headers of a request have been arriving for too long."""
        return self.begun is not None and self.idle and self.loop.time() - self.begun > HEADER_SECONDS

    def rests_too_long(self) -> bool:
        """Whether a kept connection has been without a request for too long."""
        return self.rested is not None and self.idle and self.loop.time() - self.rested > self.timeout_keep_alive
