"""The models that a server has: verified before they answer, replaced only by something that was verified too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from lipdeploy.errors import InputError, IntegrityError, LipdeployError
from lipdeploy.serve.agreement import Agreement, Reopened
from lipdeploy.serve.logs import event
from lipdeploy.serve.metrics import Metrics
from lipdeploy.serve.models import Files, ModelVersion, digest
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.settings import Settings

Result = TypeVar("Result")

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
VERIFYING = "verifying"  # how the reason of a slot begins meanwhile
VERIFIER = "verify"  # what the threads are called that do it


@dataclass
class Slot:
    """A name and version: what state it is in, and what answers. ``proven`` is how much of its proof is done, 0 … 1.

    ``spare`` was proven for a round that was void in the end: the next one may find the same bytes.
    """

    name: str
    version: str
    state: str
    reason: str = ""
    model: ModelVersion | None = None
    spare: ModelVersion | None = None
    error: BaseException | None = None
    since: float = field(default_factory=time.monotonic)
    proven: float = 0.0

    @property
    def digest(self) -> str | None:
        """Of the bytes that answer."""
        return None if self.model is None else digest(self.model.session.verdict)

    def watch(self, node: str, fraction: float) -> None:
        """Note how far the proof is; called on the thread that does it."""
        self.proven = fraction
        if self.reason.startswith(VERIFYING):  # not when it was unloaded meanwhile
            self.reason = f"{VERIFYING}, {fraction:.0%} done, at node '{node}'"


class Repository:
    """Names, versions and states. All methods run on one event loop; building happens on a thread beside it.

    ``agreement`` is what the processes of a server have in common: orders go there, and are then followed by each.
    """

    def __init__(self, settings: Settings, metrics: Metrics, agreement: Agreement | None = None) -> None:
        self.settings, self.metrics = settings, metrics
        self.agreement = Agreement() if agreement is None else agreement
        self.sources = {source.name: source for source in settings.models}
        self.slots: dict[str, dict[str, Slot]] = {name: {} for name in self.sources}
        self._answering: dict[tuple[str, str | None], ModelVersion] = {}
        self._building = asyncio.Lock()
        self._following: set[asyncio.Task[list[BaseException]]] = set()
        self._loaded: dict[str, tuple[int, list[BaseException]]] = {}  # the last round of each name, and what failed
        self._executor = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="infer")
        self.unloaded: set[str] = set()
        for source in settings.models:
            self.slots[source.name]["1"] = Slot(source.name, "1", LOADING, "waiting to be verified")

    # Looking up.

    def model(self, name: str, version: str | None) -> ModelVersion:
        """What answers; the newest version where none is named. Raises 404 or 503."""
        model = self._answering.get((name, version))
        return model if model is not None else self._absent(name, version)

    def _absent(self, name: str, version: str | None) -> ModelVersion:
        slots = self.known(name)
        if version is not None and version not in slots:
            raise RequestProblem(404, f"model '{name}' has no version '{version[:64]}'")
        slot = slots[version] if version is not None else self._newest(name)
        raise RequestProblem(503, f"model '{name}' is not ready: {slot.reason}", retry_after=1, reason="not_ready")

    def known(self, name: str) -> dict[str, Slot]:
        """The versions of a name; raises 404."""
        slots = self.slots.get(name)
        if slots is None:
            raise RequestProblem(404, f"there is no model '{name[:64]}'")
        return slots

    def slot_list(self) -> Iterator[Slot]:
        """Every version of every model."""
        for slots in self.slots.values():
            yield from slots.values()

    def answering(self) -> list[ModelVersion]:
        """Every version that answers."""
        return [model for (_, version), model in self._answering.items() if version is not None]

    @property
    def failures(self) -> list[BaseException]:
        """Why models are not there, those that were unloaded on request aside."""
        return [slot.error for slot in self.slot_list() if slot.error is not None]

    def missing(self) -> list[Slot]:
        """What stands between this server and ready: the versions of models of which no version answers."""
        waiting = [name for name in self.slots if name not in self.unloaded and (name, None) not in self._answering]
        return [slot for name in waiting for slot in self.slots[name].values()]

    # Changing.

    def order(self, action: str, name: str) -> None:
        """Have ``name`` loaded or unloaded (``action``) by every process that follows. Raises 404."""
        self.known(name)
        if action == "unload":
            self.agreement.unload(name)
        else:
            self.agreement.reopen(name)

    async def follow_all(self) -> None:
        """Follow what was ordered for every configured model, one after the other."""
        for name in self.sources:
            await self.follow(name)

    async def load(self, name: str) -> list[BaseException]:
        """Look at the files of ``name`` again, as ``follow`` says. Raises 404."""
        self.order("load", name)
        return await self.follow(name)

    def unload(self, name: str) -> None:
        """Stop offering ``name``; requests that were accepted are still answered. Raises 404."""
        self.order("unload", name)
        self._withdraw(name)

    async def follow(self, name: str) -> list[BaseException]:
        """Read, verify and swap in every version of ``name``, and say what failed; or withdraw it, where that was the
        last order. Raises 404.

        A version that is answering goes on doing so until its successor is verified and warm, and for ever when the
        successor fails. Files that are as they were when they were proven, certificate included, are not proven again.
        Versions whose file has gone are retired. The newest comes first. Where the workers have agreed on bytes that
        this process cannot serve, it serves nothing under this name. Goes on where the caller is cancelled: it may be
        a request whose client has gone.
        """
        self.known(name)
        task = asyncio.get_running_loop().create_task(self._follow(name))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return await asyncio.shield(task)

    async def _follow(self, name: str) -> list[BaseException]:
        try:
            return await self._carry_out(name)
        except Exception as error:  # nobody can say what was agreed on: what answers goes on doing so
            for slot in self.slots[name].values():
                self._failed(slot, error)
            return [error]

    async def _carry_out(self, name: str) -> list[BaseException]:
        if self._withdrawn(name):
            return []
        async with self._building:
            while not self._withdrawn(name):
                number, failures = self._loaded.get(name, (-1, []))
                if number == self.agreement.round(name):
                    return failures  # by who waited before: the files were looked at after the last order
                with contextlib.suppress(Reopened):  # what was ordered meanwhile counts
                    await self._load(name)
        return []

    def _withdrawn(self, name: str) -> bool:
        """Whether ``name`` was unloaded on request; here, too, from now on."""
        unloaded = self.agreement.unloaded(name)
        if unloaded:
            self._withdraw(name)
        return unloaded

    async def _load(self, name: str) -> None:
        number = self.agreement.round(name)
        files: dict[str, Path] = {}
        problem: Exception | None = None
        try:
            files = self.sources[name].files()
        except (LipdeployError, OSError) as error:
            problem = error
        versions = self.agreement.versions(name, files, number)
        self.unloaded.discard(name)
        self._drop_all_but(name, set(versions))
        for version in versions:
            self._slot(name, version)
        failures: list[BaseException] = []
        for version in reversed(versions):
            gone = problem or InputError(f"version {version} has no file any more", hint="load the model again")
            failures += await self._load_version(self._slot(name, version), files.get(version, gone), number)
            if not self._keeps_to(name, version, number):
                break
        self._loaded[name] = number, failures

    async def _load_version(self, slot: Slot, path: Path | Exception, number: int) -> list[BaseException]:
        """Verify and swap in one version, and say what failed. ``path`` may be why there is none."""
        slot.reason, slot.since, slot.proven = VERIFYING, time.monotonic(), 0.0
        if slot.model is None:
            slot.state = LOADING
        try:
            model = slot.spare = await self._built(slot, path)
            found = digest(model.session.verdict)
            agreed = self.agreement.decide(slot.name, slot.version, found, number)
            slot.spare = None
            if agreed != found:
                message = f"the file has the bytes {found}, and the workers agreed on {agreed or 'none'}"
                raise IntegrityError(message, hint="load the model again")
        except Reopened:
            raise
        except Exception as error:
            slot.spare = None
            self._failed(slot, error)
            return [error]
        self._swap(slot, model)
        return []

    async def _built(self, slot: Slot, path: Path | Exception) -> ModelVersion:
        if isinstance(path, Exception):
            raise path
        known = {model.files: model for model in (slot.spare, slot.model) if model is not None}
        if known and (unchanged := known.get(await _beside(partial(Files.read, path)))) is not None:
            event("unchanged", model=slot.name, version=slot.version, path=str(path))
            return unchanged
        event("verifying", model=slot.name, version=slot.version, path=str(path))
        given = (slot.name, slot.version, path, self.settings, self.metrics, self._executor, slot.watch)
        return await _beside(partial(ModelVersion, *given))

    def _keeps_to(self, name: str, version: str, number: int) -> bool:
        """Whether this process has what all agreed on. One that has not serves no version of ``name``: its newest would
        be another one than elsewhere.
        """
        slot = self.slots[name][version]
        agreed = self.agreement.decide(name, version, slot.digest, number)
        if agreed == slot.digest:
            return True
        message = f"version {version} is not what the workers agreed on: {slot.reason}"
        event("left out", logging.ERROR, model=name, version=version, reason=slot.reason, agreed=agreed)
        self._empty(name, message, IntegrityError(message, hint="load the model again"))
        return False

    def _swap(self, slot: Slot, model: ModelVersion) -> None:
        if slot.model is not None:  # requests that it accepted hold on to it until they are answered
            self.metrics.certificate.drop(slot.name, slot.version)
        slot.model, slot.state, slot.reason, slot.error = model, READY, "", None
        session, told = model.session, model.parameters
        bound, guarantee = told["lipdeploy_lipschitz_bound"], told["lipdeploy_guarantee"]
        labels = (model.sha256, bound, session.norm, guarantee, session.providers[0])
        self.metrics.certificate.labelled(slot.name, slot.version, *labels).value = 1.0
        self.metrics.verify_seconds.labelled(slot.name, slot.version).value = model.loaded_seconds
        self._refresh(slot.name)
        event(
            "ready", model=slot.name, version=slot.version, certificate=model.sha256, bound=bound, norm=session.norm,
            seconds=round(model.loaded_seconds, 3),
        )  # fmt: skip

    def _failed(self, slot: Slot, error: BaseException) -> None:
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        unexpected = None if isinstance(error, LipdeployError) else error
        event(
            "load failed", logging.ERROR, unexpected, model=slot.name, version=slot.version, reason=message,
            code=getattr(error, "code", ""), hint=getattr(error, "hint", ""), kept=slot.model is not None,
        )  # fmt: skip
        if slot.model is None:
            slot.state, slot.reason, slot.error, slot.proven = UNAVAILABLE, message, error, 0.0
        else:
            slot.reason = f"still the old one; reload failed: {message}"
        self._refresh(slot.name)

    def _withdraw(self, name: str) -> None:
        self._empty(name, "unloaded", None)
        if name not in self.unloaded:
            event("unloaded", model=name)
        self.unloaded.add(name)

    def _empty(self, name: str, reason: str, error: BaseException | None) -> None:
        for slot in self.slots[name].values():
            slot.model = slot.spare = None
            slot.state, slot.reason, slot.error = UNAVAILABLE, reason, error
            self.metrics.certificate.drop(name, slot.version)
        self._refresh(name)

    def _drop_all_but(self, name: str, versions: set[str]) -> None:
        for version in set(self.slots[name]) - versions:
            del self.slots[name][version]
            self.metrics.certificate.drop(name, version)
            self.metrics.ready.drop(name, version)
        self._refresh(name)

    def _newest(self, name: str) -> Slot:
        """The newest version that is known; there is always one."""
        slots = self.slots[name]
        return slots[max(slots, key=int)]

    def _slot(self, name: str, version: str) -> Slot:
        return self.slots[name].setdefault(version, Slot(name, version, LOADING, "waiting to be verified"))

    def _refresh(self, name: str) -> None:
        """What requests find: every ready version, and the newest of them under no version."""
        for key in [key for key in self._answering if key[0] == name]:
            del self._answering[key]
        slots = self.slots[name]
        for version in sorted(slots, key=int):
            model = slots[version].model
            self.metrics.ready.labelled(name, version).value = float(model is not None)
            if model is not None:
                self._answering[name, version] = self._answering[name, None] = model


async def _beside(work: Callable[[], Result]) -> Result:
    """Run ``work`` on a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def target() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=target, name=VERIFIER, daemon=True).start()
    return await future


def still_verifying() -> bool:
    """Whether a thread of this process is busy with a proof, which cannot be interrupted."""
    return any(thread.name == VERIFIER for thread in threading.enumerate())
