"""The same work over Ray Data: every actor opens its own session from the bytes that were verified here.

Actors read their rows from the data set's own path, so on several machines it must lie on a shared file system; they
compare its digest before they begin.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.certify.results import Batch
from lipdeploy.certify.run import Settings, Task, certify_block, prepare
from lipdeploy.errors import IntegrityError, LipdeployError
from lipdeploy.verify.certificate import certificate_path, is_there, read_bytes
from lipdeploy.verify.source import read_source

Array = np.ndarray[Any, Any]
MODEL = "model.onnx"
COLUMNS = ("row", "label", "radius", "program", "problem")


@dataclasses.dataclass(frozen=True)
class Order:
    """What an actor is given: the model's files by name, the data set, and what their digests must be."""

    files: Mapping[str, bytes]
    model_sha256: str
    external_sha256: Mapping[str, str]
    certificate_sha256: str
    data: str
    labels: str | None
    data_sha256: str
    settings: Settings


class Certifier:
    """A Ray Data actor: ranges of rows in, one line per row out."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.task: Task | None = None
        self.problem: LipdeployError | None = None
        try:
            self.task = self._open()
        except LipdeployError as problem:
            self.problem = problem

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        """The answers of the rows in these batches; an error of ours travels as one line, for Ray would wrap it."""
        try:
            if self.task is None:
                raise self.problem or LipdeployError("an actor of Ray Data did not open its session")
            return self._answers(self.task, batch)
        except LipdeployError as problem:
            packed = base64.b64encode(pickle.dumps(problem)).decode("ascii")
            nothing = (np.array([-1]), np.array([-1]), np.array([0.0]), np.array([0], np.uint8))
            return dict(zip(COLUMNS, (*nothing, np.array([packed])), strict=True))

    def _open(self) -> Task:
        with tempfile.TemporaryDirectory(prefix="lipdeploy-") as folder:
            for name, content in self.order.files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            model = os.path.join(folder, MODEL)
            task = prepare(model, self.order.data, self.order.settings, labels=self.order.labels)
        self._check(task)
        return task

    def _answers(self, task: Task, batch: dict[str, Array]) -> dict[str, Array]:
        ranges = [range(*ends) for ends in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True)]
        lines: list[tuple[Array, ...]] = []
        for rows, block in zip(ranges, task.data.blocks(ranges), strict=True):
            answer = certify_block(task.session, task.data.rows.where, rows, block, task.epsilon)
            numbers, fine = np.arange(rows.start, rows.stop), np.full(len(rows), "")
            lines.append((numbers, answer.label, answer.radius, answer.program, fine))
        return {name: np.concatenate(column) for name, column in zip(COLUMNS, zip(*lines, strict=True), strict=True)}

    def _check(self, task: Task) -> None:
        verdict = task.verdict
        same_model = verdict.file_sha256 == self.order.model_sha256
        if not same_model or dict(verdict.external_sha256) != dict(self.order.external_sha256):
            raise IntegrityError("an actor of Ray Data opened another model than the one that was verified")
        if task.session.certificate_sha256 != self.order.certificate_sha256:
            hint = "install one version of lipdeploy, NumPy and ONNX on every machine"
            raise IntegrityError("an actor of Ray Data proves other numbers than were proven here", hint=hint)
        if task.data_sha256 != self.order.data_sha256:
            hint = "put the data set on a file system that all machines share"
            raise IntegrityError(f"{self.order.data}: an actor of Ray Data found other data there", hint=hint)


def over_ray(task: Task, ranges: list[range], keep: Callable[[Batch], None]) -> None:
    """Certify ``ranges`` with ``settings.workers`` actors (default: one per free processor).

    Uses the cluster of ``RAY_ADDRESS`` or the one that this process is connected to, else starts Ray here.
    """
    if not ranges:
        return
    import ray

    began = not ray.is_initialized()
    if began:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        _collect(task, ranges, keep)
    except ray.exceptions.RayError as problem:
        lines = str(problem).strip().splitlines() or [repr(problem)]
        hint = "run again with --engine local, or with --debug"
        raise LipdeployError(f"Ray Data failed: {lines[0][:300]}", hint=hint) from problem
    finally:
        if began:
            ray.shutdown()


def _collect(task: Task, ranges: list[range], keep: Callable[[Batch], None]) -> None:
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
    workers = min(task.settings.workers or processors, processors, len(ranges))  # more actors would wait for ever
    # Tables, not ray.data.range: its tasks would need a processor of their own beside the actors'.
    tables = [pyarrow.table({"start": [rows.start], "stop": [rows.stop]}) for rows in ranges]
    answers = ray.data.from_arrow(tables).map_batches(
        Certifier,
        fn_constructor_args=(_order(task),),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    for lines in answers.iter_batches(batch_size=None, batch_format="numpy"):
        for problem in filter(None, lines["problem"].tolist()):
            raise pickle.loads(base64.b64decode(problem))  # from an actor of this very run
        for part in _runs(lines):
            keep(part)


def _runs(lines: Mapping[str, Array]) -> list[Batch]:
    """Batches of consecutive rows."""
    row = lines["row"]
    edges = [0, *(np.flatnonzero(np.diff(row) != 1) + 1).tolist(), len(row)]
    return [
        Batch(int(row[first]), lines["label"][first:last], lines["radius"][first:last], lines["program"][first:last])
        for first, last in itertools.pairwise(edges)
        if last > first
    ]


def _order(task: Task) -> Order:
    source = read_source(task.model)
    if source.file_sha256 != task.verdict.file_sha256 or source.external_sha256 != task.verdict.external_sha256:
        raise IntegrityError(f"{task.model}: changed since it was verified", hint="start again")
    files = {MODEL: source.model_bytes, **source.external}
    beside = certificate_path(task.model)
    if is_there(beside):  # it may store multipliers, without which the bound is larger
        files[certificate_path(MODEL).name] = read_bytes(beside)
    labels = task.data.files[1] if task.data.kind != "images" and len(task.data.files) > 1 else None
    return Order(
        files=files,
        model_sha256=source.file_sha256,
        external_sha256=dict(source.external_sha256),
        certificate_sha256=task.session.certificate_sha256,
        data=os.path.abspath(task.data.path),
        labels=None if labels is None else os.path.abspath(labels),
        data_sha256=task.data_sha256,
        settings=task.settings,
    )
