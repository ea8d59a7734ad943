"""The models that a server has: verified before they answer, replaced only by something that was verified too."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import orjson

from lipdeploy.errors import LipdeployError
from lipdeploy.runtime import CertifiedPrediction, CertifiedSession
from lipdeploy.serve import oip
from lipdeploy.serve.batcher import Batcher, Limits
from lipdeploy.serve.logs import event
from lipdeploy.serve.metrics import Metrics
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.settings import Settings
from lipdeploy.verify import TensorSpec, certificate
from lipdeploy.verify.progress import Watch
from lipdeploy.verify.radius import float32_down
from lipdeploy.verify.rounding import decimal_up

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

PLATFORM = "onnx_onnxv1"
LARGEST = np.finfo(np.float32).max
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
VERIFYING = "verifying"  # how the reason of a slot begins meanwhile
DEFAULT_OUTPUTS = ("label", "radius", "certified", "abstain")
CLASS_OUTPUTS: Mapping[str, str] = {
    "label": "INT64",
    "radius": "FP32",
    "certified": "BOOL",
    "abstain": "BOOL",
    "margin": "FP32",
    "logits": "FP64",
}


class Rows:
    """A batch of certified predictions as wire types; each column is made when someone asks for it.

    ``label`` INT64, ``radius`` and ``margin`` FP32 (never above the certified number; an unbounded radius is the
    largest finite one), ``logits`` FP64 as the answering program computed them.
    """

    def __init__(self, prediction: CertifiedPrediction) -> None:
        self._prediction = prediction
        self.exact_radius = prediction.radius
        self._certified: tuple[float | None, Array, Array] | None = None

    def certified(self, epsilon: float | None) -> Array:
        """(batch,) bool: radius > 0 and ≥ ``epsilon``, from the float64 radius, before it is rounded for the wire."""
        if self._certified is None or self._certified[0] != epsilon:
            certified = self.exact_radius >= epsilon if epsilon else self.exact_radius > 0.0
            self._certified = epsilon, certified, ~certified
        return self._certified[1]

    def abstain(self, epsilon: float | None) -> Array:
        """(batch,) bool: the rows that are not certified."""
        self.certified(epsilon)
        assert self._certified is not None
        return self._certified[2]

    @cached_property
    def label(self) -> Array:
        """(batch,) int64."""
        return self._prediction.label

    @cached_property
    def radius(self) -> Array:
        """(batch,) float32."""
        return _finite(float32_down(self.exact_radius))

    @cached_property
    def margin(self) -> Array:
        """(batch,) float32."""
        return _finite(float32_down(self._prediction.margin))

    @cached_property
    def logits(self) -> Array:
        """(batch, classes) float64."""
        return self._prediction.logits


class Values:
    """A batch of outputs of a model that does not classify: ``y`` as the stored program computed it."""

    def __init__(self, y: Array) -> None:
        self.y = y


@dataclass
class Counts:
    """What the statistics extension reports of one version; times in nanoseconds."""

    requests: int = 0
    failures: int = 0
    rows: int = 0
    batches: int = 0
    request_ns: int = 0
    failure_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    last_ms: int = 0
    by_rows: dict[int, list[int]] = field(default_factory=dict)  # rows → [batches, ns]


class ModelVersion:
    """One file behind one name and version, verified; ``batcher`` answers. Built off the loop, used on it."""

    def __init__(
        self,
        name: str,
        version: str,
        path: str,
        settings: Settings,
        metrics: Metrics,
        executor: Executor | None = None,
        watch: Watch | None = None,
    ) -> None:
        started = time.perf_counter()
        self.name, self.version, self.settings = name, version, settings
        self.session = CertifiedSession(
            path, norm=settings.norm, max_lipschitz=settings.max_lipschitz, certify=settings.certify,
            providers=settings.providers, threads=settings.threads, spinning=False,  # idle threads sleep
            watch=watch,
        )  # fmt: skip
        self.inputs: tuple[TensorSpec, ...] = self.session.inputs
        self.inputs_by_name = {spec.name: (spec, oip.datatype_of(spec.dtype)) for spec in self.inputs}
        self.fixed_rows = self.inputs[0].shape[0]
        self.outputs = self._output_types()
        self.default_outputs = DEFAULT_OUTPUTS if self.session.classes else ("y",)
        self.adaptive = self.session.certify == "adaptive"
        self._describe()
        self.counts = Counts()
        self._count(metrics)
        limits = Limits(
            settings.max_batch_rows if self.fixed_rows is None else self.fixed_rows,
            settings.max_queue_rows, settings.max_queue_bytes, settings.batch_delay_seconds, settings.inline_seconds,
        )  # fmt: skip
        self.batcher = Batcher(self.run, limits, self, executor)
        self._warm_up(limits.max_batch_rows)
        self.loaded_seconds = time.perf_counter() - started

    # What is known about it.

    def _output_types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Datatype and shape behind the batch axis of every output."""
        output = self.session.verdict.output
        assert output is not None  # a verified verdict has one
        behind = tuple(-1 if size is None else size for size in output.shape[1:])
        if not self.session.classes:
            return {"y": (oip.datatype_of(output.dtype), behind)}
        return {name: (kind, behind if name == "logits" else ()) for name, kind in CLASS_OUTPUTS.items()}

    def _describe(self) -> None:
        session = self.session
        self.sha256 = session.certificate_sha256
        self.certificate = certificate.dumps(session.certificate).encode()
        bound = decimal_up(session.lipschitz_bound, 17)
        self.parameters = {
            "lipdeploy_lipschitz_bound": bound,
            "lipdeploy_norm": session.norm,
            "lipdeploy_guarantee": session.guarantee if session.classes else "network",
            "lipdeploy_certificate_sha256": self.sha256,
        }
        self.parameters_json = orjson.dumps(self.parameters)
        self.prefix = orjson.dumps({"model_name": self.name, "model_version": self.version})[:-1]
        self.properties = {
            **self.parameters,
            "lipdeploy_lipschitz_bound_hex": float(session.lipschitz_bound).hex(),
            "lipdeploy_certify": session.certify,
            "lipdeploy_model_sha256": session.verdict.file_sha256,
            "lipdeploy_provider": session.providers[0],
        }
        if session.verdict.class_names:
            self.properties["lipdeploy_class_names"] = orjson.dumps(list(session.verdict.class_names)).decode()

    def _count(self, metrics: Metrics) -> None:
        key = (self.name, self.version)
        self.requests = {code: metrics.requests.labelled(*key, code) for code in ("200",)}
        self.request_seconds = metrics.request_seconds.labelled(*key)
        self._queue_seconds = metrics.queue_seconds.labelled(*key)
        self._infer_seconds = metrics.infer_seconds.labelled(*key)
        self._batch_rows = metrics.batch_rows.labelled(*key)
        self._queue_rows = metrics.queue_rows.labelled(*key)
        if self.session.classes:
            self._certified = metrics.predictions.labelled(*key, "certified")
            self._abstained = metrics.predictions.labelled(*key, "abstained")
            self._radius = metrics.radius.labelled(*key)

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The model metadata response of the protocol; −1 is the batch axis."""
        rows = -1 if self.fixed_rows is None else self.fixed_rows
        return {
            "name": self.name,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [
                {
                    "name": spec.name,
                    "datatype": datatype,
                    "shape": [-1 if size is None else size for size in spec.shape],
                }
                for spec, datatype in self.inputs_by_name.values()
            ],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": [rows, *behind]}
                for name, (datatype, behind) in self.outputs.items()
            ],
            "properties": self.properties,
        }

    # Answering.

    def run(self, feeds: Mapping[str, Array], epsilon: float | None) -> Rows | Values:
        """A batch; a file with a fixed batch size gets its rows and zeros for the rest."""
        rows = len(next(iter(feeds.values())))
        given = dict(feeds)
        if self.fixed_rows is not None and rows < self.fixed_rows:
            given = {name: _padded(array, self.fixed_rows) for name, array in feeds.items()}
        if self.session.classes:
            return Rows(self.session.predict(given, epsilon=epsilon if self.adaptive else None))
        output = self.session.verdict.output
        assert output is not None
        return Values(self.session.run([output.name], given)[0])

    def _warm_up(self, most: int) -> None:
        """Every size of batch once before the first request, largest first (memory arenas grow to their end), then
        measured, so that the queue knows what is short enough for the event loop.
        """
        sizes = [most, *(2**power for power in range(most.bit_length(), -1, -1) if 2**power < most)]
        for size in sizes if self.fixed_rows is None else [self.fixed_rows]:
            feeds = {spec.name: _zeros(spec, size) for spec in self.inputs}
            for again in range(3):
                started = time.perf_counter()
                self.run(feeds, self.settings.epsilon)
                if again:  # the first allocates
                    self.batcher.measured(size, time.perf_counter() - started)

    # What the batcher reports.

    def batch(self, rows: int, seconds: float, result: Any) -> None:
        """Count a batch."""
        self._infer_seconds.observe(seconds)
        self._batch_rows.observe(rows)
        counts, nanoseconds = self.counts, int(seconds * 1e9)
        counts.batches += 1
        counts.rows += rows
        counts.infer_ns += nanoseconds
        counts.last_ms = int(time.time() * 1e3)
        entry = counts.by_rows.setdefault(rows, [0, 0])
        entry[0] += 1
        entry[1] += nanoseconds
        if isinstance(result, Rows):
            self._radius.observe_all(result.exact_radius[:rows])

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        self._queue_seconds.observe(seconds)

    def depth(self, rows: int) -> None:
        """Note the queue's length."""
        self._queue_rows.value = rows

    def outcomes(self, certified: int, rows: int) -> None:
        """Count rows by outcome."""
        self._certified.value += certified
        self._abstained.value += rows - certified


@dataclass
class Slot:
    """A name and version: what state it is in, and what answers. ``proven`` is how much of its proof is done, 0 … 1."""

    name: str
    version: str
    state: str
    reason: str = ""
    model: ModelVersion | None = None
    error: BaseException | None = None
    since: float = field(default_factory=time.monotonic)
    proven: float = 0.0

    def watch(self, node: str, fraction: float) -> None:
        """Note how far the proof is; called on the thread that does it."""
        self.proven = fraction
        if self.reason.startswith(VERIFYING):  # not when it was unloaded meanwhile
            self.reason = f"{VERIFYING}, {fraction:.0%} done, at node '{node}'"


class Repository:
    """Names, versions and states. All methods run on one event loop; building happens on a thread beside it."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.sources = {source.name: source for source in settings.models}
        self.slots: dict[str, dict[str, Slot]] = {name: {} for name in self.sources}
        self._answering: dict[tuple[str, str | None], ModelVersion] = {}
        self._building = asyncio.Lock()
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
        slot = slots[version] if version is not None else slots[max(slots, key=int)]
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
        """What stands between this server and ready."""
        return [slot for slot in self.slot_list() if slot.model is None and slot.name not in self.unloaded]

    # Changing.

    async def load_all(self) -> None:
        """Load every configured model, one after the other."""
        for name in self.sources:
            await self.load(name)

    async def load(self, name: str) -> list[BaseException]:
        """Read, verify and swap in every version of ``name``, and say what failed. Raises 404.

        A version that is answering goes on doing so until its successor is verified and warm, and for ever when the
        successor fails. Versions whose file has gone are retired.
        """
        self.known(name)
        async with self._building:
            self.unloaded.discard(name)
            try:
                files = self.sources[name].files()
            except (LipdeployError, OSError) as error:
                self._failed(self._slot(name, "1"), error)
                return [error]
            self._drop_all_but(name, set(files))
            for version in files:
                self._slot(name, version)
            failures = [await self._load_version(name, version, str(file)) for version, file in files.items()]
        return [error for error in failures if error is not None]

    async def _load_version(self, name: str, version: str, path: str) -> BaseException | None:
        slot = self._slot(name, version)
        slot.reason, slot.since, slot.proven = VERIFYING, time.monotonic(), 0.0
        if slot.model is None:
            slot.state = LOADING
        event("verifying", model=name, version=version, path=path)
        try:
            build = partial(ModelVersion, name, version, path, self.settings, self.metrics, self._executor, slot.watch)
            model = await _beside(build)
        except Exception as error:
            self._failed(slot, error)
            return error
        if name not in self.unloaded:  # or someone has changed their mind meanwhile
            self._swap(slot, model)
        return None

    def _swap(self, slot: Slot, model: ModelVersion) -> None:
        if slot.model is not None:  # requests that it accepted hold on to it until they are answered
            self.metrics.certificate.drop(slot.name, slot.version)
        slot.model, slot.state, slot.reason, slot.error = model, READY, "", None
        session = model.session
        bound, provider = model.parameters["lipdeploy_lipschitz_bound"], session.providers[0]
        labels = (model.sha256, bound, session.norm, session.guarantee, provider)
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

    def unload(self, name: str) -> None:
        """Stop offering ``name``; requests that were accepted are still answered. Raises 404."""
        self.known(name)
        self.unloaded.add(name)
        for slot in self.slots[name].values():
            slot.model, slot.state, slot.reason, slot.error = None, UNAVAILABLE, "unloaded", None
            self.metrics.certificate.drop(name, slot.version)
        self._refresh(name)
        event("unloaded", model=name)

    def _drop_all_but(self, name: str, versions: set[str]) -> None:
        for version in set(self.slots[name]) - versions:
            del self.slots[name][version]
            self.metrics.certificate.drop(name, version)
            self.metrics.ready.drop(name, version)
        self._refresh(name)

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

    threading.Thread(target=target, name="verify", daemon=True).start()
    return await future


def _finite(values: Array) -> Array:
    finite: Array = np.minimum(values, LARGEST)
    return finite


def _padded(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _zeros(spec: TensorSpec, rows: int) -> Array:
    return np.zeros([rows, *(1 if size is None else size for size in spec.shape[1:])], spec.dtype)
