"""One process that listens: sockets, signals, and an end without a lost request.

It listens before it verifies: live is true at once, ready when every model is. On SIGTERM ready becomes false and
requests are still answered, each with ``Connection: close``, until half a second passes without one (or half the drain
time has); then the port closes, what was accepted is answered, and the process ends with code 0. SIGINT skips the
wait; a second signal ends at once. One of several workers that ends by itself leaves the port to the others at once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import uvicorn

from lipdeploy.errors import LipdeployError
from lipdeploy.exit_codes import INTERNAL_ERROR
from lipdeploy.serve.asgi import App
from lipdeploy.serve.binding import Binding, announce
from lipdeploy.serve.logs import event
from lipdeploy.serve.ports import BACKLOG, Port
from lipdeploy.serve.protocol import Protocol
from lipdeploy.serve.repository import still_verifying
from lipdeploy.serve.service import Service

QUIET_SECONDS = 0.5
HANG_UP_SECONDS = 0.1  # for those to end who are told that their client has gone
TURN_SECONDS = 0.05
LAST_HANDSHAKES_SECONDS = 0.1


def run_process(service: Service, binding: Binding, ports: Sequence[Port], extra: Any = None) -> int:
    """Serve with this process alone, or as one of several: ``extra`` is what such a one holds open meanwhile.

    The exit code; does not return where a proof is still running then, but ends the process with it.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_process(service, binding, ports, extra))
    if still_verifying():
        _end_process(code)
    return code


def _end_process(code: int) -> NoReturn:
    """End without taking the interpreter down: a thread that comes back from C++ to one that has gone aborts."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


async def _process(service: Service, binding: Binding, ports: Sequence[Port], extra: Any) -> int:
    surfaces = ["all"] if binding.admin_port is None else ["public", "admin"]
    servers = [Server(service, binding, surface, port) for surface, port in zip(surfaces, ports, strict=True)]
    _watch_signals(service, servers)
    async with contextlib.AsyncExitStack() as stack:
        if extra is not None:
            service.listening = False
            await stack.enter_async_context(extra)
            await _turn(service, servers)
            service.listening = True
        await stack.enter_async_context(_grpc(service, binding))
        if extra is None:
            announce(binding, ports, service.settings)
        watching = _keep(asyncio.create_task(_give_up(service, servers)))
        await asyncio.gather(*(server.serve(sockets=[server.port.wire]) for server in servers))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return int(await watching)
        event("stopped", inflight=service.inflight)
        return 0


async def _turn(service: Service, servers: Sequence[Server]) -> None:
    """Beside others that listen, verify first: nobody is to meet the worker that was just restarted, and has nothing to
    answer with.
    """
    while all(server.port.taken() and not server.should_exit for server in servers):
        if service.start().done():
            return
        await asyncio.sleep(TURN_SECONDS)


def _grpc(service: Service, binding: Binding) -> contextlib.AbstractAsyncContextManager[Any]:
    """The gRPC port, where one was asked for; it closes after the others have drained."""
    if binding.grpc_port is None:
        return contextlib.nullcontext()
    from lipdeploy.serve import rpc

    host = f"[{binding.host}]" if ":" in binding.host else binding.host
    keys = rpc.credentials(binding.tls_cert, binding.tls_key, binding.tls_client_ca)
    return rpc.listening(service, f"{host}:{binding.grpc_port}", keys, shared=binding.workers > 1)


async def _give_up(service: Service, servers: Sequence[Server]) -> int:
    """With ``fail_fast``: stop everything when a model has failed, and say with which code. Never ends otherwise."""
    await service.start()
    failures = service.repository.failures
    if service.settings.fail_fast and failures:
        for server in servers:
            server.should_exit = server.hurry = True
        return worst(failures)
    await asyncio.Event().wait()
    return 0


def worst(failures: Iterable[BaseException]) -> int:
    """The contract's exit code for several failures: the highest."""
    return max(error.exit_code if isinstance(error, LipdeployError) else INTERNAL_ERROR for error in failures)


def _watch_signals(service: Service, servers: Sequence[Server]) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        service.drain()
        for server in servers:
            server.force_exit = server.should_exit
            server.hurry = server.hurry or number == signal.SIGINT
            server.should_exit = True

    loop.add_signal_handler(signal.SIGTERM, stop, signal.SIGTERM)
    loop.add_signal_handler(signal.SIGINT, stop, signal.SIGINT)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, lambda: _keep(loop.create_task(service.reload())))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # a worker begins with it blocked


_TASKS: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    """The loop holds its tasks weakly, so someone else must hold them."""
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    return task


class Server(uvicorn.Server):
    """uvicorn, with our signals and our end. ``hurry``: do not wait for a quiet moment."""

    def __init__(self, service: Service, binding: Binding, surface: Any, port: Port) -> None:
        self.service, self.port = service, port
        self.hurry = False
        options: dict[str, Any] = {}
        if binding.tls_cert is not None:
            options = {"ssl_certfile": binding.tls_cert, "ssl_keyfile": binding.tls_key}
        if binding.tls_client_ca is not None:
            options |= {"ssl_ca_certs": binding.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
        config = uvicorn.Config(
            App(service, surface), http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=75, backlog=BACKLOG, **options,
        )  # fmt: skip
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would raise them again at the end, and the exit code would not be 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then begin to verify."""
        self.port.join()
        await super().startup(sockets)
        self.service.start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once a second, close connections that never get to the point."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol) and (connection.too_slow() or connection.rests_too_long()):
                    connection.transport.close()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lose nothing that was accepted."""
        self.service.drain()
        began = time.perf_counter()
        limit = began + self.service.settings.drain_seconds
        while not self.port.stays and not self._quiet(began, limit):
            await asyncio.sleep(0.02)
        if self.port.leave():
            await self._accept_the_last()
        for server in self.servers:
            server.close()
        self.port.close()
        while self.server_state.connections and time.perf_counter() < limit and not self.force_exit:
            self._close_idle()
            await asyncio.sleep(0.01)
        lost = self.service.inflight if self.server_state.connections else 0  # what is left came by another port
        if lost:
            event("drain ended early", logging.ERROR, unanswered=lost, forced=self.force_exit)
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.hang_up()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=HANG_UP_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(0)

    def _quiet(self, began: float, limit: float) -> bool:
        now = time.perf_counter()
        if self.hurry or self.force_exit or now > began + (limit - began) / 2:
            return True
        return now - max(began, self.service.last_request) > QUIET_SECONDS

    async def _accept_the_last(self) -> None:
        """Take every connection that the kernel completes for us: those whose client has begun."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(LAST_HANDSHAKES_SECONDS)
        while True:
            try:
                connection, _ = self.port.wire.accept()
            except OSError:
                return
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> Protocol:
        return Protocol(config=self.config, server_state=self.server_state, app_state={})

    def _close_idle(self) -> None:
        """Close connections that carry no request, not even one that the kernel has and we have not read.

        A client that has only just connected may be about to send one.
        """
        for connection in list(self.server_state.connections):
            if not isinstance(connection, Protocol) or not connection.idle or connection.expected(QUIET_SECONDS):
                continue
            if not _unread(connection.transport):
                connection.transport.close()


def _unread(transport: asyncio.Transport) -> bool:
    wire = transport.get_extra_info("socket")
    if wire is None or wire.fileno() < 0:
        return False
    copy = socket.socket(fileno=os.dup(wire.fileno()))
    try:
        return len(copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > 0
    except OSError:
        return False
    finally:
        copy.close()


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
