"""Reading the body of a request: how long it may be, how long it may take, and that its sender is still there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = Mapping[bytes, bytes]

DIGITS = re.compile(rb"\d{1,18}")


class Gone(Exception):
    """The client went away while its body was read."""


class Bodies:
    """The bodies that are arriving. All of them at a time may have as many bytes as the queue."""

    def __init__(self, settings: Settings) -> None:
        self._most, self._seconds = settings.max_queue_bytes, settings.body_seconds
        self._arriving_bytes = 0

    async def read(self, headers: Headers, receive: Receive, limit: int) -> bytes:
        """A whole body. Raises 408, 413, 415 or 503, and ``Gone``."""
        expected = check_body(headers, limit)
        cycle = getattr(receive, "__self__", None)
        if not getattr(cycle, "more_body", True):  # uvicorn has all of it: no timer, no turn of the loop
            body: bytes = (await receive()).get("body", b"")
            check_body(headers, limit, len(body))
            return body
        return await self._arriving(receive, limit, expected)

    async def _arriving(self, receive: Receive, limit: int, expected: int) -> bytes:
        if self._arriving_bytes and self._arriving_bytes + expected > self._most:
            raise RequestProblem(503, "overloaded: too many large requests at once", retry_after=1, reason="bytes")
        self._arriving_bytes += expected
        try:
            async with asyncio.timeout(self._seconds):
                return await _rest(receive, limit)
        except TimeoutError:
            raise RequestProblem(408, "the body did not arrive in time", reason="slow") from None
        finally:
            self._arriving_bytes -= expected


def check_body(headers: Headers, limit: int, size: int = 0) -> int:
    """How long the body can be. Raises 415 where it is compressed, 413 where it is, or says it is, too long."""
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise RequestProblem(415, "compressed bodies are not taken")
    stated = headers.get(b"content-length")
    if size > limit or (stated is not None and (not DIGITS.fullmatch(stated) or int(stated) > limit)):
        raise RequestProblem(413, f"the body may have at most {limit} bytes", reason="size")
    return int(stated or limit)


async def disconnected(receive: Receive) -> None:
    """Return when the host tells that the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _rest(receive: Receive, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise RequestProblem(413, f"the body may have at most {limit} bytes", reason="size")
        if not message.get("more_body", False):
            return b"".join(parts)
