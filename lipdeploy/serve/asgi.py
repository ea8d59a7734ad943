"""The REST door: a plain ASGI app. No framework, so that it can be mounted in any and costs a request little.

Every answer that is not a success is ``{"error": "…"}``. Bodies are read only after the route, the key and the length
were checked. ``surface`` says which routes a port has: ``"public"`` without load and unload, ``"admin"`` with them and
without inference, ``"all"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lipdeploy.serve import auth, metrics, oip, openapi
from lipdeploy.serve.bodies import Bodies, Gone, Headers, Message, Receive, Scope, check_body, disconnected
from lipdeploy.serve.logs import event
from lipdeploy.serve.problems import RequestProblem, bad
from lipdeploy.serve.responses import JSON, OCTETS, Field, Response, WrongMethod, json_response, problem_response
from lipdeploy.serve.routes import ADMIN_ROUTES, Route, route
from lipdeploy.serve.service import Pending, Service
from lipdeploy.serve.settings import Settings, model_sources
from lipdeploy.serve.tracing import Tracer

Send = Callable[[Message], Awaitable[None]]
#: ``respond(status, fields, body, close)``: a whole answer in one piece; false where the client reads too slowly.
Respond = Callable[[int, Sequence[Field], bytes, bool], bool]
Surface = Literal["all", "public", "admin"]

HEAD_LENGTH = b"inference-header-content-length"
ONCE = (HEAD_LENGTH, b"content-length", b"authorization", b"x-api-key")
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
ADMIN_BODY = 64 * 1024
LOOP_JSON = 128 * 1024  # bytes of JSON that are read on the loop; about a millisecond
OPEN_ROUTES = frozenset({"live", "ready"})


class Exchange:
    """A request, and since when."""

    __slots__ = ("headers", "path", "scope", "started")

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        path, root = scope["path"], scope.get("root_path", "")
        self.path: str = path[len(root) :] if root and path.startswith(root) else path

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.perf_counter() - self.started


class App:
    """The ASGI callable. ``service`` may be shared with other doors of the same process."""

    def __init__(self, service: Service, surface: Surface = "all") -> None:
        settings = service.settings
        self.service, self.surface = service, surface
        self._keys, self._admin_keys = auth.Keys(settings.api_keys), auth.Keys(settings.admin_keys)
        self._tracer = Tracer(settings.tracing)
        self._numbers = itertools.count(1)
        self._bodies = Bodies(settings)
        self._handlers: dict[str, Callable[[Route, Headers, Receive], Awaitable[Response]]] = {
            "server": self._server,
            "live": self._live,
            "ready": self._ready,
            "metadata": self._metadata,
            "model_ready": self._model_ready,
            "statistics": self._statistics,
            "certificate": self._certificate,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "metrics": self._metrics,
            "openapi": self._openapi,
        }

    # Life.

    async def startup(self) -> None:
        """Begin to verify; returns at once."""
        self.service.start()

    async def shutdown(self) -> None:
        """Answer what was accepted."""
        await self.service.stop()

    @contextlib.asynccontextmanager
    async def running(self, *, until_ready: bool = False) -> AsyncIterator[App]:
        """For a host that does not pass on lifespan events to what it mounts: ``async with app.running(): …``."""
        loading = self.service.start()
        if until_ready:
            await loading
        try:
            yield self
        finally:
            await self.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI: http, or lifespan."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.startup()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # One request.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope)
        try:
            found = self._admitted(exchange)
            if found.name == "infer":
                with self._tracer.request(scope, exchange.headers, found.model):
                    response = await self._infer(found, exchange, receive)
            else:
                response = await self._handlers[found.name](found, exchange.headers, receive)
        except (asyncio.CancelledError, Gone):
            raise_if_cancelled()
            return
        except Exception as error:
            response = self._failure(error, exchange)
        await self._send(exchange, response, send)

    def _failure(self, error: Exception, exchange: Exchange) -> Response:
        """What a client is told of an exception."""
        if isinstance(error, RequestProblem):
            return problem_response(error)
        number = self._number(exchange.headers)
        event("request failed", logging.ERROR, error, request_id=number, path=exchange.path)
        message = f"internal error; look for request {number} in the server's log"
        return problem_response(RequestProblem(500, message))

    # The short way: our own server hands over an inference request that has come whole; no task is made for it, and
    # what the queue calls back writes the answer. It means what ``_http`` means.

    def takes_short_way(self, scope: Scope) -> bool:
        """Whether ``answer_shortly`` may answer a request, once its body is there."""
        return scope["method"] == "POST" and scope["path"].endswith("/infer") and not self._tracer.wanted

    def answer_shortly(self, scope: Scope, body: bytes | bytearray, gone: Callable[[], bool], respond: Respond) -> None:
        """Answer through ``respond(status, fields, body, close)``, now or when the queue has the result."""
        exchange = Exchange(scope)
        try:
            found = self._admitted(exchange)
            pending = self._accepted(found, exchange, body, gone)
        except Exception as error:
            self._respond(exchange, self._failure(error, exchange), respond)
        else:
            pending.ticket.when_done(partial(self._answered_shortly, exchange, pending, respond))

    def _answered_shortly(self, exchange: Exchange, pending: Pending, respond: Respond) -> None:
        try:
            response = _encoded(pending, self.service.finish(pending))
        except Exception as error:
            response = self._failure(error, exchange)
        self._respond(exchange, response, respond)

    def _accepted(self, found: Route, exchange: Exchange, body: bytes | bytearray, gone: Callable[[], bool]) -> Pending:
        headers = exchange.headers
        try:
            check_body(headers, self.service.settings.max_body_bytes, len(body))
            request = oip.parse(body, _head_length(headers))
        except RequestProblem as problem:
            self.service.misfit(problem, found.model, found.version)
            raise
        return self.service.submit(found.model, found.version, request, gone=gone, client=self._client(exchange))

    def _admitted(self, exchange: Exchange) -> Route:
        """The route, once path, method, key and framing are in order."""
        self.service.start()
        scope, headers = exchange.scope, exchange.headers
        found = route(exchange.path)
        if found is None or (found.name in ADMIN_ROUTES and self.surface == "public"):
            raise RequestProblem(404, "there is nothing at this path; see /openapi.json")
        if found.name == "infer" and self.surface == "admin":
            raise RequestProblem(404, "this port is for administration")
        if scope["method"] not in found.methods:
            raise WrongMethod(found.methods)
        if len(headers) != len(scope["headers"]):
            names = [name for name, _ in scope["headers"]]
            for name in ONCE:
                if names.count(name) > 1:
                    raise bad(f"the header {name.decode()} is there twice")
        self._check_key(found, headers)
        return found

    def _check_key(self, found: Route, headers: Headers) -> None:
        if found.name in ADMIN_ROUTES:
            if not self.service.settings.admin and self.surface == "all":
                message = "load and unload are off here: give the server --admin-key-file or --admin-port"
                raise RequestProblem(403, message, reason="key")
            if self._admin_keys:
                auth.check(headers, self._admin_keys)
                return
        if self._keys and found.name not in OPEN_ROUTES:
            auth.check(headers, self._keys, self._admin_keys)

    async def _infer(self, found: Route, exchange: Exchange, receive: Receive) -> Response:
        headers = exchange.headers
        try:
            body = await self._bodies.read(headers, receive, self.service.settings.max_body_bytes)
            request = await _parsed(body, _head_length(headers))
        except RequestProblem as problem:
            self.service.misfit(problem, found.model, found.version)
            raise
        cycle = getattr(receive, "__self__", None)  # uvicorn's: it knows at once when the client has gone
        gone = None if not hasattr(cycle, "disconnected") else partial(getattr, cycle, "disconnected")
        pending = self.service.submit(found.model, found.version, request, gone=gone, client=self._client(exchange))
        if gone is None:
            answer = await self._answer_or_disconnect(pending, receive)
        else:
            answer = await self.service.answer(pending)
        return _encoded(pending, answer)

    async def _answer_or_disconnect(self, pending: Pending, receive: Receive) -> oip.Answer:
        """The answer; where the host tells of a client that went away, the request leaves the queue."""
        answer = asyncio.ensure_future(self.service.answer(pending))
        going = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({answer, going}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not pending.ticket.future.done():
                pending.ticket.end(RequestProblem(499, "the client has gone", reason="gone"))
            return await answer
        finally:
            going.cancel()

    def _client(self, exchange: Exchange) -> str | None:
        if self.service.settings.max_client_rows is None:
            return None
        key = auth.given_key(exchange.headers) if self._keys else None
        if key is not None:
            return f"key {key.decode('latin-1')}"
        address = exchange.scope.get("client")
        return f"address {address[0]}" if address else None

    async def _send(self, exchange: Exchange, response: Response, send: Send) -> None:
        respond = exchange.scope.get("lipdeploy.respond")  # our own server's; any other host has only ``send``
        if respond is not None and self._respond(exchange, response, respond):
            return
        fields, close = self._fields(exchange, response)
        if close:
            fields.append((b"connection", b"close"))
        body = b"" if exchange.scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        await send({"type": "http.response.body", "body": body})
        self._log(exchange, response)

    def _respond(self, exchange: Exchange, response: Response, respond: Respond) -> bool:
        fields, close = self._fields(exchange, response)
        body = b"" if exchange.scope["method"] == "HEAD" else response.body
        done = respond(response.status, fields, body, close)
        if done:
            self._log(exchange, response)
        return done

    def _fields(self, exchange: Exchange, response: Response) -> tuple[list[Field], bool]:
        """The headers, and whether the connection should end."""
        fields = [*response.headers, (b"content-length", b"%d" % len(response.body))]
        given = exchange.headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            fields.append((b"x-request-id", given))
        return fields, self.service.draining or response.status in (408, 413)

    def _log(self, exchange: Exchange, response: Response) -> None:
        if self.service.settings.access_log:
            event(
                "request", request_id=self._number(exchange.headers), method=exchange.scope["method"],
                path=exchange.path, status=response.status, ms=round(exchange.seconds * 1e3, 3),
                bytes=len(response.body),
            )  # fmt: skip

    def _number(self, headers: Headers) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{os.getpid():x}-{next(self._numbers):x}"

    # What the other routes say.

    async def _server(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return json_response(self.service.server_metadata())

    async def _live(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return json_response({"live": True})

    async def _ready(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return _state(await self.service.ready())

    async def _metadata(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return json_response(self.service.model_metadata(found.model, found.version))

    async def _model_ready(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return _state(await self.service.model_ready(found.model, found.version))

    async def _statistics(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return json_response(self.service.statistics(found.model or None, found.version))

    async def _certificate(self, found: Route, headers: Headers, receive: Receive) -> Response:
        model = self.service.repository.model(found.model, found.version)
        tag = b'"' + model.sha256.encode() + b'"'
        if tag in [word.strip() for word in headers.get(b"if-none-match", b"").split(b",")]:
            return Response(304, b"", ((b"etag", tag),))
        return Response(200, model.certificate, (JSON, (b"etag", tag)))

    async def _index(self, found: Route, headers: Headers, receive: Receive) -> Response:
        body = await self._bodies.read(headers, receive, ADMIN_BODY)
        wanted = oip.json_value(body) if body else {}
        only_ready = wanted.get("ready", False) if isinstance(wanted, dict) else None
        if not isinstance(only_ready, bool):
            raise bad("the request must be a JSON object; 'ready' is true or false")
        return json_response(self.service.index(only_ready))

    async def _load(self, found: Route, headers: Headers, receive: Receive) -> Response:
        await self._no_content(headers, receive)
        return await self._everywhere("load", found.model)

    async def _unload(self, found: Route, headers: Headers, receive: Receive) -> Response:
        await self._no_content(headers, receive)
        return await self._everywhere("unload", found.model)

    async def _no_content(self, headers: Headers, receive: Receive) -> None:
        """Load and unload read what the operator configured; nothing that a request says can change that."""
        body = await self._bodies.read(headers, receive, ADMIN_BODY)
        content = oip.json_value(body) if body else {}
        if not isinstance(content, dict):
            raise bad("the request must be a JSON object")
        parameters = content.get("parameters")
        if parameters not in (None, {}) and (
            not isinstance(parameters, dict) or set(parameters) - {"unload_dependents"}
        ):
            raise bad("load takes no parameters: models come from the files that the server was started with")

    async def _everywhere(self, action: str, name: str) -> Response:
        """Load or unload here and in the sibling processes; an error unless it worked everywhere."""
        self.service.repository.order(action, name)
        siblings = self.service.siblings or _nobody
        problem, others = await asyncio.gather(change(self.service, name), siblings(action, {"name": name}))
        problem = problem or next((other["error"] for other in others if other.get("error")), None)
        if problem is not None:
            raise bad(problem)
        return json_response({})

    async def _metrics(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return Response(200, await self.service.snapshots(), ((b"content-type", metrics.CONTENT_TYPE),))

    async def _openapi(self, found: Route, headers: Headers, receive: Receive) -> Response:
        return json_response(openapi.document(self.surface, keys=bool(self._keys), admin_keys=bool(self._admin_keys)))


async def change(service: Service, name: str) -> str | None:
    """Load or unload a model of this process as was ordered; what went wrong, or ``None``. Raises 404."""
    failures = await service.repository.follow(name)
    return f"model '{name}' was not loaded: {failures[0]}" if failures else None


async def _nobody(action: str, content: dict[str, Any]) -> list[Any]:
    return []


def _state(state: dict[str, Any]) -> Response:
    return json_response(state) if state["ready"] else json_response(state, 503, (b"retry-after", b"1"))


def create_app(
    models: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, name: str | None = None, **settings: Any
) -> App:
    """An ASGI app that serves ``models`` (paths as on the command line); ``settings`` as in ``Settings``.

    Verification begins with the host's lifespan, with ``App.running``, or with the first request.
    Raises ``InputError`` for paths and settings that make no sense.
    """
    words = [models] if isinstance(models, str | Path | os.PathLike) else list(models)
    return App(Service(Settings(models=model_sources(words, name), **settings)))


def raise_if_cancelled() -> None:
    """Let a cancelled task end as cancelled; a client that has gone needs no answer."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _head_length(headers: Headers) -> int | None:
    length = headers.get(HEAD_LENGTH)
    return None if length is None else oip.head_length(length)


async def _parsed(body: bytes, head_length: int | None) -> oip.InferenceRequest:
    """The request; much JSON is read on a thread, so that it holds up nobody else."""
    if (len(body) if head_length is None else head_length) <= LOOP_JSON:
        return oip.parse(body, head_length)
    return await asyncio.get_running_loop().run_in_executor(None, oip.parse, body, head_length)


def _encoded(pending: Pending, answer: oip.Answer) -> Response:
    payload, head = oip.encode(answer, [output.binary for output in pending.outputs])
    if head is None:
        return Response(200, payload, (JSON,))
    return Response(200, payload, (OCTETS, (HEAD_LENGTH, b"%d" % head)))
