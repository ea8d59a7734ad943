"""What a request means, whatever brought it here: parse → **infer** → encode, with the middle in this file.

REST (``asgi.py``) and gRPC turn bytes into an ``InferenceRequest`` and an ``Answer`` back into bytes; everything
between, with its checks, its queue and its counting, is the same object.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.runtime.prediction import checked_epsilon
from lipdeploy.serve import metrics as prometheus
from lipdeploy.serve import oip
from lipdeploy.serve.agreement import Agreement
from lipdeploy.serve.batcher import Part, Ticket
from lipdeploy.serve.logs import event
from lipdeploy.serve.metrics import Metrics, Snapshot
from lipdeploy.serve.models import ModelVersion
from lipdeploy.serve.problems import RequestProblem, bad, of_failure
from lipdeploy.serve.repository import READY, Repository
from lipdeploy.serve.settings import Settings

Array = np.ndarray[Any, Any]
SERVER_NAME = "lipdeploy"
EXTENSIONS = (
    "model_repository",
    "parameters",
    "statistics",
    "binary_tensor_data",
    "lipdeploy_certificate",
)


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that was accepted."""

    model: ModelVersion
    request: oip.InferenceRequest
    outputs: Sequence[oip.Output]
    epsilon: float | None
    ticket: Ticket
    client: str | None
    started: float


#: What other worker processes say when one of them is asked: see ``workers.py``.
Siblings = Callable[[str, dict[str, Any]], Awaitable[list[Any]]]


class Service:
    """The models, the queue and the counters behind every door of one process.

    ``start`` begins to verify and returns at once; ``infer`` answers. Use it on one event loop. ``listening`` is false
    in one of several processes while it leaves the port that they share to the others.
    """

    def __init__(self, settings: Settings, agreement: Agreement | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.repository = Repository(settings, self.metrics, agreement)
        self.epsilon = None if settings.epsilon is None else checked_epsilon(settings.epsilon)
        self.draining = False
        self.listening = True
        self.inflight = 0
        self.last_request = time.perf_counter()
        self.siblings: Siblings | None = None
        self._inflight = self.metrics.inflight.labelled()
        self._waiting: dict[str, int] = {}
        self._loading: asyncio.Task[None] | None = None

    # Life.

    def start(self) -> asyncio.Task[None]:
        """Begin to verify every model; the task ends when all are ready or have failed. Idempotent."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self.repository.follow_all())
        return self._loading

    async def reload(self) -> None:
        """Look at every model's files again; the supervisor of several workers orders that for them."""
        if self.siblings is None:
            for name in self.repository.sources:
                self.repository.order("load", name)
        await self.repository.follow_all()

    def drain(self) -> None:
        """Say not-ready from now on; requests are still answered."""
        if not self.draining:
            self.draining = True
            event("draining", inflight=self.inflight)

    async def stop(self) -> None:
        """Wait for what was accepted."""
        self.drain()
        while self.inflight:
            await asyncio.sleep(0.005)

    # State.

    def readiness(self) -> dict[str, Any]:
        """``ready``; where it is false also ``reason``, ``progress`` (0 … 1, of all proofs) and what each waits for."""
        missing = self.repository.missing()
        if self.draining:
            return {"ready": False, "reason": "draining", "error": "draining", "progress": 1.0}
        if not missing:
            return {"ready": True}
        slots = list(self.repository.slot_list())
        failed = [slot for slot in missing if slot.error is not None]
        progress = round(1.0 - sum(1.0 - slot.proven for slot in missing) / len(slots), 3)
        first = failed[0] if failed else missing[0]
        seconds = time.monotonic() - first.since
        reason = f"model '{first.name}' version {first.version}: {first.reason}"
        reason += "" if failed else f" for {seconds:.1f} s ({progress:.0%} of all models)"
        return {"ready": False, "reason": reason, "error": reason, "progress": progress, "models": self.index()}

    async def ready(self) -> dict[str, Any]:
        """``readiness`` of all workers: of the first that is not ready, if there is one."""
        return await self._of_all(self.readiness(), "ready", {})

    def model_readiness(self, name: str, version: str | None) -> dict[str, Any]:
        """``ready``, and ``error`` where it is false. Raises 404."""
        try:
            self.repository.model(name, version)
        except RequestProblem as problem:
            if problem.status != 503:
                raise
            return {"name": name, "ready": False, "error": problem.message}
        return {"name": name, "ready": True}

    async def model_ready(self, name: str, version: str | None) -> dict[str, Any]:
        """``model_readiness`` of all workers. Raises 404."""
        state = await self._of_all(
            self.model_readiness(name, version), "model_ready", {"name": name, "version": version}
        )
        return {key: value for key, value in {"name": name, **state}.items() if key in ("name", "ready", "error")}

    async def _of_all(self, state: dict[str, Any], action: str, content: dict[str, Any]) -> dict[str, Any]:
        if not state["ready"] or self.siblings is None:
            return state
        others = await self.siblings(action, content)
        return next((other for other in others if not other["ready"]), state)

    def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """The repository index: name, version, state and reason of every version."""
        return [
            {"name": slot.name, "version": slot.version, "state": slot.state, "reason": slot.reason}
            for slot in self.repository.slot_list()
            if slot.state == READY or not only_ready
        ]

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and extensions."""
        from lipdeploy.verify import version

        return {"name": SERVER_NAME, "version": version(), "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str | None) -> dict[str, Any]:
        """Metadata of a version, the newest where none is named."""
        model = self.repository.model(name, version)
        ready = [v for v, slot in self.repository.known(name).items() if slot.state == READY]
        return model.metadata(sorted(ready, key=int))

    def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """The statistics extension's answer: one version, the versions of a name, or everything."""
        if name is not None and version is not None:
            models = [self.repository.model(name, version)]
        elif name is not None:
            slots = self.repository.known(name)
            models = [model for model in self.repository.answering() if model.name == name]
            assert slots is not None
        else:
            models = self.repository.answering()
        return {"model_stats": [_statistics(model) for model in models]}

    async def snapshots(self) -> bytes:
        """All metrics of all workers, as text for Prometheus."""
        snapshots: list[Snapshot] = [self.metrics.snapshot()]
        if self.siblings is not None:
            snapshots += await self.siblings("metrics", {})
        return prometheus.render(prometheus.merged(snapshots))

    # Inference.

    async def infer(
        self,
        name: str,
        version: str | None,
        request: oip.InferenceRequest,
        *,
        gone: Callable[[], bool] | None = None,
        client: str | None = None,
    ) -> oip.Answer:
        """Answer one request. Raises ``RequestProblem``. ``gone`` and ``client``: see ``submit``."""
        pending = self.submit(name, version, request, gone=gone, client=client)
        return await self.answer(pending)

    def submit(
        self,
        name: str,
        version: str | None,
        request: oip.InferenceRequest,
        *,
        gone: Callable[[], bool] | None = None,
        client: str | None = None,
    ) -> Pending:
        """Check a request and queue it; whoever calls this must await ``answer``, or call ``finish`` when it is done.

        ``gone()`` tells whether the client still listens; ``client`` names it where a quota applies.
        """
        started = self.last_request = time.perf_counter()
        try:
            model = self.repository.model(name, version)
        except RequestProblem as problem:
            self.misfit(problem, name, version)
            raise
        try:
            return self._submitted(model, request, gone, client, started)
        except RequestProblem as problem:
            self._failed(model, problem, started)
            raise

    async def answer(self, pending: Pending) -> oip.Answer:
        """Wait for the batches that answer a request."""
        try:
            await pending.ticket.future
        except asyncio.CancelledError:
            self._leave(pending)
            raise
        except Exception:  # ``finish`` says what it means
            return self.finish(pending)
        return self.finish(pending)

    def finish(self, pending: Pending) -> oip.Answer:
        """The answer, once the ticket's future is done. Raises ``RequestProblem`` where there is none."""
        model, ticket = pending.model, pending.ticket
        self._leave(pending)
        try:
            parts = ticket.future.result()
        except Exception as error:
            problem = of_failure(error)
            if problem is not error and problem.status == 500:
                event("inference failed", 40, error, model=model.name, version=model.version)
            self._failed(model, problem, pending.started)
            raise problem from error
        answer = self._answered(pending, parts)
        seconds = time.perf_counter() - pending.started
        model.requests["200"].value += 1.0
        model.request_seconds.observe(seconds)
        counts = model.counts
        counts.requests += 1
        counts.request_ns += int(seconds * 1e9)
        counts.queue_ns += int(ticket.queued_seconds * 1e9)
        return answer

    def _leave(self, pending: Pending) -> None:
        """What was accepted is over, one way or the other."""
        self.inflight -= 1
        self._inflight.value -= 1.0
        if pending.client is not None:
            self._waiting[pending.client] -= pending.ticket.rows
            if not self._waiting[pending.client]:
                del self._waiting[pending.client]

    def _submitted(
        self,
        model: ModelVersion,
        request: oip.InferenceRequest,
        gone: Callable[[], bool] | None,
        client: str | None,
        started: float,
    ) -> Pending:
        if request.certificate is not None and request.certificate != model.sha256:
            message = f"the certificate is {model.sha256} now, and the request is pinned to another"
            raise RequestProblem(409, message, reason="certificate")
        outputs = _outputs(model, request)
        feeds, rows = _feeds(model, request)
        epsilon = self.epsilon if request.epsilon is None else request.epsilon
        client = self._within_quota(client, rows)
        seconds = self.settings.request_seconds if request.timeout is None else request.timeout
        ticket = model.batcher.submit(
            feeds, rows,
            epsilon=epsilon,
            bucket=epsilon if model.adaptive else None,
            deadline=None if seconds is None else started + seconds,
            gone=gone,
        )  # fmt: skip
        self.inflight += 1
        self._inflight.value += 1.0
        if client is not None:
            self._waiting[client] = self._waiting.get(client, 0) + rows
        return Pending(model, request, outputs, epsilon, ticket, client, started)

    def _within_quota(self, client: str | None, rows: int) -> str | None:
        most = self.settings.max_client_rows
        if most is None or client is None:
            return None
        if rows > min(most, self.settings.max_queue_rows):
            message = f"{rows} rows: a request may have at most {min(most, self.settings.max_queue_rows)}"
            raise RequestProblem(413, message, reason="size")
        if self._waiting.get(client, 0) + rows > most:
            message = f"this client has {self._waiting.get(client, 0)} rows waiting, and at most {most} are allowed"
            raise RequestProblem(429, message, retry_after=1, reason="quota")
        return client

    def _answered(self, pending: Pending, parts: Sequence[Part]) -> oip.Answer:
        model, epsilon = pending.model, pending.epsilon
        parameters = model.parameters_json
        if model.session.classes:
            certified = _column(parts, "certified", epsilon)
            model.outcomes(int(np.count_nonzero(certified)), len(certified))
        elif epsilon is not None:
            parameters = _with_band(model, epsilon)
        outputs = [
            (output.name, model.outputs[output.name][0], _column(parts, output.name, epsilon))
            for output in pending.outputs
        ]
        return oip.Answer(model.prefix, parameters, pending.request.id, outputs)

    def _failed(self, model: ModelVersion, problem: RequestProblem, started: float) -> None:
        model.counts.failures += 1
        model.counts.failure_ns += int((time.perf_counter() - started) * 1e9)
        self.refused(problem, model.name, model.version)

    def misfit(self, problem: RequestProblem, name: str, version: str | None) -> None:
        """Count a request that never reached a model, under what it named only if that exists."""
        slots = self.repository.slots.get(name)
        self.refused(problem, "" if slots is None else name, version if version in (slots or {}) else "")

    def refused(self, problem: RequestProblem, name: str, version: str | None) -> None:
        """Count a request that got no answer; the name and version of a model that there is, or empty."""
        self.metrics.requests.labelled(name, version or "", str(problem.status)).add()
        if problem.reason:
            self.metrics.rejected.labelled(problem.reason).add()


def _outputs(model: ModelVersion, request: oip.InferenceRequest) -> Sequence[oip.Output]:
    if request.outputs is None:
        return _DEFAULTS[model.session.classes, request.binary]
    for output in request.outputs:
        if output.name not in model.outputs:
            known = ", ".join(model.outputs)
            raise bad(f"model '{model.name}' has no output '{output.name[:64]}'; there are {known}")
    return request.outputs


_DEFAULTS = {
    (classes, binary): tuple(
        oip.Output(name, binary) for name in (("label", "radius", "certified", "abstain") if classes else ("y",))
    )
    for classes in (True, False)
    for binary in (True, False)
}


def _feeds(model: ModelVersion, request: oip.InferenceRequest) -> tuple[dict[str, Array], int]:
    """Arrays by name and the number of rows, after every check that needs no arithmetic but ``isfinite``."""
    if request.raw is not None:
        request = _described_raw(model, request)
    feeds: dict[str, Array] = {}
    for tensor in request.tensors:
        known = model.inputs_by_name.get(tensor.name)
        if known is None:
            raise bad(f"model '{model.name}' has no input '{tensor.name[:64]}'; there are {', '.join(_names(model))}")
        spec, datatype = known
        if tensor.datatype != datatype:
            raise bad(f"input '{tensor.name}' is {datatype}, and {tensor.datatype} was sent")
        if len(tensor.shape) != len(spec.shape) or tensor.shape[1:] != spec.shape[1:]:
            expected = [-1, *spec.shape[1:]]
            raise bad(f"input '{tensor.name}' has shape {expected}, and {list(tensor.shape)} was sent")
        assert tensor.values is not None
        if spec.dtype.kind not in "biu" and not np.isfinite(tensor.values).all():
            raise bad(f"input '{tensor.name}' holds NaN or infinity; every value must be finite")
        feeds[tensor.name] = tensor.values
    if len(feeds) < len(model.inputs):
        raise bad(f"model '{model.name}' needs the inputs {', '.join(_names(model))}")
    rows = {len(array) for array in feeds.values()}
    if len(rows) > 1 or 0 in rows:
        raise bad("every input must have the same number of rows, at least one")
    return feeds, rows.pop()


def _described_raw(model: ModelVersion, request: oip.InferenceRequest) -> oip.InferenceRequest:
    if len(model.inputs) != 1 or None in model.inputs[0].shape[1:]:
        raise bad("a raw request needs a model with one input of known shape")
    spec = model.inputs[0]
    shape = [size for size in spec.shape[1:] if size is not None]
    return oip.with_raw(request, spec.name, model.inputs_by_name[spec.name][1], shape)


def _names(model: ModelVersion) -> list[str]:
    return [spec.name for spec in model.inputs]


def _column(parts: Sequence[Part], name: str, epsilon: float | None) -> Array:
    """One output of a request, put together from the batches that answered it."""
    if len(parts) == 1:
        return _of_batch(parts[0], name, epsilon)
    return np.concatenate([_of_batch(part, name, epsilon) for part in parts])


def _of_batch(part: Part, name: str, epsilon: float | None) -> Array:
    column = getattr(part.result, name)
    if name in ("certified", "abstain"):
        column = column(epsilon)
    rows: Array = column[part.start : part.stop]
    return rows


def _with_band(model: ModelVersion, epsilon: float) -> bytes:
    """Parameters with how far the real network's output can move when the input moves by ≤ ε."""
    import orjson

    from lipdeploy.verify.rounding import decimal_up

    band = model.session.output_band(epsilon)
    if not math.isfinite(band):
        raise bad("lipdeploy_epsilon is too large: the band is not finite")
    return orjson.dumps({**model.parameters, "lipdeploy_output_band": decimal_up(band, 17)})


def _statistics(model: ModelVersion) -> dict[str, Any]:
    counts = model.counts
    done = counts.requests
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.rows,
        "execution_count": counts.batches,
        "inference_stats": {
            "success": {"count": done, "ns": counts.request_ns},
            "fail": {"count": counts.failures, "ns": counts.failure_ns},
            "queue": {"count": done, "ns": counts.queue_ns},
            "compute_input": {"count": done, "ns": 0},
            "compute_infer": {"count": counts.batches, "ns": counts.infer_ns},
            "compute_output": {"count": done, "ns": 0},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": {"count": batches, "ns": 0},
                "compute_infer": {"count": batches, "ns": nanoseconds},
                "compute_output": {"count": batches, "ns": 0},
            }
            for rows, (batches, nanoseconds) in sorted(counts.by_rows.items())
        ],
    }
