"""One version of a model: a file that was verified, its queue, and what it counts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lipdeploy.runtime import CertifiedSession
from lipdeploy.serve import oip
from lipdeploy.serve.batcher import Batcher, Limits
from lipdeploy.serve.columns import CLASS_OUTPUTS, DEFAULT_OUTPUTS, Rows, Values
from lipdeploy.serve.metrics import Metrics
from lipdeploy.serve.settings import Settings
from lipdeploy.verify import TensorSpec, Verdict, certificate
from lipdeploy.verify.progress import Watch
from lipdeploy.verify.rounding import decimal_up
from lipdeploy.verify.source import Source, read_source

Array = np.ndarray[Any, Any]
PLATFORM = "onnx_onnxv1"


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


class Program:
    """What a queue calls: it answers batches and counts them.

    It does not know the queue, nor the version that holds both. So a version that was replaced is freed with its last
    request; in a cycle its weights would wait for a collection of everything that is old.
    """

    def __init__(self, session: CertifiedSession, counts: Counts, metrics: Metrics, *labels: str) -> None:
        self.session, self.counts = session, counts
        self.fixed_rows = session.inputs[0].shape[0]
        self.adaptive = session.certify == "adaptive"
        self._queue_seconds = metrics.queue_seconds.labelled(*labels)
        self._infer_seconds = metrics.infer_seconds.labelled(*labels)
        self._batch_rows = metrics.batch_rows.labelled(*labels)
        self._queue_rows = metrics.queue_rows.labelled(*labels)
        if session.classes:
            self._radius = metrics.radius.labelled(*labels)

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


def digest(files: Source | Verdict) -> str:
    """Of the bytes of a model: SHA-256 of its file, then of its external data by name, which the same file may lie
    beside in two forms.
    """
    external = (f"{name} {sha256}" for name, sha256 in sorted(files.external_sha256.items()))
    return " ".join([files.file_sha256, *external])


@dataclass(frozen=True)
class Files:
    """What a version is made from, by digest: the model, and the certificate beside it where there is one."""

    model: str
    certificate: str | None

    @classmethod
    def read(cls, path: Path) -> Files:
        """As they are now. Raises as ``read_source`` and ``certificate_digest`` do."""
        return cls(digest(read_source(path)), certificate_digest(path))


def certificate_digest(model: Path) -> str | None:
    """SHA-256 of the certificate beside a model; ``None`` where there is none. Raises ``IntegrityError``."""
    path = certificate.certificate_path(model)
    return hashlib.sha256(certificate.read_bytes(path)).hexdigest() if certificate.is_there(path) else None


class ModelVersion:
    """One file behind one name and version, verified; ``batcher`` answers. Built off the loop, used on it."""

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        settings: Settings,
        metrics: Metrics,
        executor: Executor | None = None,
        watch: Watch | None = None,
    ) -> None:
        started = time.perf_counter()
        self.name, self.version, self.settings = name, version, settings
        beside = certificate_digest(path)
        self.session = CertifiedSession(
            path, norm=settings.norm, max_lipschitz=settings.max_lipschitz, certify=settings.certify,
            output_name=settings.output_name,
            providers=settings.providers, threads=settings.threads, spinning=False,  # idle threads sleep
            watch=watch,
        )  # fmt: skip
        self.files = Files(digest(self.session.verdict), beside)
        self.inputs: tuple[TensorSpec, ...] = self.session.inputs
        self.inputs_by_name = {spec.name: (spec, oip.datatype_of(spec.dtype)) for spec in self.inputs}
        self.outputs = self._output_types()
        self.default_outputs = DEFAULT_OUTPUTS if self.session.classes else ("y",)
        self._describe()
        self.counts = Counts()
        self._count(metrics)
        self.program = Program(self.session, self.counts, metrics, name, version)
        self.fixed_rows, self.adaptive = self.program.fixed_rows, self.program.adaptive
        self.rows_at_once = settings.max_batch_rows if self.fixed_rows is None else self.fixed_rows
        limits = Limits(
            self.rows_at_once,
            settings.max_queue_rows, settings.max_queue_bytes, settings.batch_delay_seconds, settings.inline_seconds,
        )  # fmt: skip
        self.batcher = Batcher(self.program.run, limits, self.program, executor)
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
        if self.session.classes:
            self._certified = metrics.predictions.labelled(*key, "certified")
            self._abstained = metrics.predictions.labelled(*key, "abstained")

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

    def _warm_up(self, most: int) -> None:
        """Every size of batch once before the first request, largest first (memory arenas grow to their end), then
        measured, so that the queue knows what is short enough for the event loop.
        """
        sizes = [most, *(2**power for power in range(most.bit_length(), -1, -1) if 2**power < most)]
        for size in sizes if self.fixed_rows is None else [self.fixed_rows]:
            feeds = {spec.name: _zeros(spec, size) for spec in self.inputs}
            for again in range(3):
                started = time.perf_counter()
                self.program.run(feeds, self.settings.epsilon)
                if again:  # the first allocates
                    self.batcher.measured(size, time.perf_counter() - started)

    def outcomes(self, certified: int, rows: int) -> None:
        """Count rows by outcome."""
        self._certified.value += certified
        self._abstained.value += rows - certified


def _padded(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _zeros(spec: TensorSpec, rows: int) -> Array:
    return np.zeros([rows, *(1 if size is None else size for size in spec.shape[1:])], spec.dtype)
