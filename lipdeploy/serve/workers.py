"""Several processes behind one port: each verifies for itself, and they tell one another what is not theirs alone.

The supervisor binds, starts the workers as fresh interpreters (settings go through a pipe as JSON, sockets by
inheritance), restarts one that dies, passes signals on and waits. Each worker listens on a Unix socket in a private
folder; whoever is asked for metrics, readiness, load or unload asks the others there. What they agreed to serve lies
there, too, so that one that is restarted serves that or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from lipdeploy.errors import InputError, IntegrityError, LipdeployError
from lipdeploy.exit_codes import INTERNAL_ERROR
from lipdeploy.serve.agreement import SharedAgreement
from lipdeploy.serve.asgi import change
from lipdeploy.serve.binding import Binding, announce
from lipdeploy.serve.logs import LOGGER, configure, event
from lipdeploy.serve.ports import ENDING, Port
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.process import run_process
from lipdeploy.serve.service import Service
from lipdeploy.serve.settings import ModelSource, Settings

ASK_SECONDS = {"metrics": 2.0, "ready": 2.0, "model_ready": 2.0, "load": 3600.0, "unload": 10.0}
MESSAGE_BYTES = 64 * 2**20
RESTART_SECONDS = 1.0
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1
BEGUN = "begun"  # a file in the private folder: all were ready once


def supervise(settings: Settings, binding: Binding, ports: Sequence[Port]) -> int:
    """Run ``binding.workers`` workers until a signal; the worst of their exit codes."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lipdeploy-serve-"))
        stack.enter_context(_kept(folder))
        agreement = SharedAgreement.begin(Path(folder))
        task = _task(settings, binding, ports, folder)
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: stopping.append(number))
        announce(binding, ports, settings)
        workers = {index: _start(task, index, ports) for index in range(binding.workers)}
        return _watch(workers, task, ports, stopping, settings, agreement)


@contextlib.contextmanager
def _kept(folder: str) -> Iterator[None]:
    """A lock on the folder, which tells systemd-tmpfiles not to clean up what is old in it."""
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        yield
    finally:
        os.close(held)


def _reopened(settings: Settings, agreement: SharedAgreement) -> bool:
    """Order a load of every model; an order that cannot be given does not end the server."""
    try:
        for source in settings.models:
            agreement.reopen(source.name)
    except IntegrityError as error:
        event("reload failed", logging.ERROR, reason=error.message, hint=error.hint)
        return False
    return True


def _watch(
    workers: dict[int, subprocess.Popen[bytes]],
    task: dict[str, Any],
    ports: Sequence[Port],
    signals: list[int],
    settings: Settings,
    agreement: SharedAgreement,
) -> int:
    restarted: set[int] = set()
    ending, worst, started = False, 0, dict.fromkeys(workers, time.monotonic())
    while workers:
        while signals:
            number = signals.pop(0)
            if number != signal.SIGHUP:
                ending = True
                (Path(task["folder"]) / ENDING).touch()
            if number == signal.SIGHUP and not _reopened(settings, agreement):
                continue
            for worker in workers.values():
                with contextlib.suppress(ProcessLookupError):
                    worker.send_signal(number)
        for index, worker in list(workers.items()):
            code = worker.poll()
            if code is None:
                continue
            del workers[index]
            hopeless = code == InputError.exit_code and index not in restarted  # the gRPC port is taken
            if ending or settings.fail_fast or hopeless:
                worst = max(worst, _end_code(code, asked=ending))
                if not ending:  # one that gives up takes the others along
                    ending = True
                    signals.append(signal.SIGINT)
                continue
            event("a worker died", logging.ERROR, worker=index, code=code)
            time.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - started[index])))
            restarted.add(index)
            workers[index], started[index] = _start(task, index, ports), time.monotonic()
        time.sleep(POLL_SECONDS)
    return worst


def _end_code(code: int, *, asked: bool) -> int:
    """A worker's exit code; one that was told to end before it could listen to signals has done as it was told."""
    if code >= 0 or (asked and -code in (signal.SIGINT, signal.SIGTERM)):
        return max(code, 0)
    return INTERNAL_ERROR


def _task(settings: Settings, binding: Binding, ports: Sequence[Port], folder: str) -> dict[str, Any]:
    models = [[source.name, str(source.path)] for source in settings.models]
    return {
        "settings": {**dataclasses.asdict(settings), "models": models},
        "binding": dataclasses.asdict(binding),
        "ports": [port.wire.fileno() for port in ports],
        "folder": folder,
        "supervisor": os.getpid(),
        "level": logging.getLevelName(LOGGER.level).lower(),
    }


def _start(task: dict[str, Any], index: int, ports: Sequence[Port]) -> subprocess.Popen[bytes]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # inherited: it waits until the worker can listen
    try:
        worker = subprocess.Popen(
            [sys.executable, "-m", "lipdeploy.serve.workers"],
            stdin=subprocess.PIPE,
            pass_fds=[port.wire.fileno() for port in ports],
            start_new_session=True,  # a Ctrl-C reaches the supervisor only, which passes it on once
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(orjson.dumps({**task, "index": index}))
        worker.stdin.close()
    return worker


def main() -> int:
    """One worker: its task comes on standard input."""
    task = orjson.loads(sys.stdin.buffer.read())
    _end_with(task["supervisor"])
    configure(task["level"])
    given = task["settings"]
    given["models"] = tuple(ModelSource(name, Path(path)) for name, path in given["models"])
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    settings = Settings(**options)
    binding = Binding(**task["binding"])
    folder = Path(task["folder"])
    ports = [Port(socket.socket(fileno=number), folder / f"{number}.lock") for number in task["ports"]]
    service = Service(settings, SharedAgreement(folder))
    talk = Talk(service, folder, task["index"], binding.workers)
    try:
        return run_process(service, binding, ports, talk.listening())
    except LipdeployError as error:
        event("a worker cannot serve", logging.ERROR, reason=error.message, hint=error.hint)
        return error.exit_code


def _end_with(supervisor: int) -> None:
    """Linux: drain when the supervisor ends without having said so (it was killed)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            sys.exit(INTERNAL_ERROR)


class Talk:
    """One worker's ear and voice: a line of JSON each way."""

    def __init__(self, service: Service, folder: Path, index: int, workers: int) -> None:
        self.service, self.folder, self.index, self.workers = service, folder, index, workers

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer the siblings meanwhile."""
        path = self._path(self.index)
        path.unlink(missing_ok=True)
        ear = await asyncio.start_unix_server(self._heard, str(path), limit=MESSAGE_BYTES)
        self.service.siblings = self.ask
        try:
            yield
        finally:
            self.service.siblings = None
            ear.close()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.sock"

    async def ask(self, action: str, content: dict[str, Any]) -> list[Any]:
        """What every other worker says to ``action``.

        One that does not answer is left out of ``metrics``, one that does not listen of readiness once all were ready.
        """
        others = [index for index in range(self.workers) if index != self.index]
        answers = [
            answer
            for answer in await asyncio.gather(*(self._ask_one(index, action, content) for index in others))
            if answer is not None
        ]
        return self._counting(action, answers) if action in ("ready", "model_ready") else answers

    def _counting(self, action: str, answers: list[Any]) -> list[Any]:
        """The states of those who listen, or of everybody until all models of all workers were ready once."""
        begun = self.folder / BEGUN
        if action == "ready" and all(answer["state"]["ready"] for answer in answers):
            begun.touch()
        everybody = not begun.exists()
        return [answer["state"] for answer in answers if answer["listening"] or everybody]

    async def _ask_one(self, index: int, action: str, content: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(ASK_SECONDS[action]):
                reader, writer = await asyncio.open_unix_connection(str(self._path(index)), limit=MESSAGE_BYTES)
                try:
                    writer.write(orjson.dumps({"action": action, **content}) + b"\n")
                    return orjson.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            reason = f"worker {index} does not answer: {type(error).__name__}"
            return _silence(action, reason, died=not isinstance(error, TimeoutError))

    async def _heard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = orjson.loads(await reader.readline())
            writer.write(orjson.dumps(await self._reply(question)) + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:
            event("a sibling's question was lost", logging.WARNING, reason=str(error))
        finally:
            writer.close()

    async def _reply(self, question: dict[str, Any]) -> Any:
        action = question["action"]
        if action == "metrics":
            return self.service.metrics.snapshot()
        if action == "ready":
            return self._listens(self.service.readiness())
        if action == "model_ready":
            return self._listens(self._model_ready(question["name"], question["version"]))
        try:
            return {"error": await change(self.service, question["name"])}
        except RequestProblem as problem:
            return {"error": problem.message}

    def _listens(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"listening": self.service.listening and not self.service.draining, "state": state}

    def _model_ready(self, name: str, version: str | None) -> dict[str, Any]:
        try:
            return self.service.model_readiness(name, version)
        except RequestProblem as problem:
            return {"ready": False, "error": problem.message}


def _silence(action: str, reason: str, *, died: bool) -> Any:
    """Stands for an answer that did not come; one that died, or is still to come, does not listen."""
    if action == "metrics":
        return None
    state = {"ready": False, "reason": reason, "error": reason, "progress": 0.0}
    return state if action in ("load", "unload") else {"listening": not died, "state": state}


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
