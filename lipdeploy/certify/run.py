"""Certifying a data set: which rows are left, how many at a time, and what each batch answers."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.certify.dataset import DataSet, check_labels, open_data
from lipdeploy.certify.images import fitted
from lipdeploy.certify.journal import ANOTHER, Journal
from lipdeploy.certify.results import PROGRAMS, Answers, Batch, Results
from lipdeploy.errors import InputError, IntegrityError, Refused
from lipdeploy.runtime import CertifiedSession
from lipdeploy.runtime.prediction import radius_for_linf
from lipdeploy.verify import version
from lipdeploy.verify.verdict import TensorSpec, Verdict

Array = np.ndarray[Any, Any]

BYTES_PER_BATCH = 128 * 2**20
SHARE_OF_FREE_MEMORY = 8
MOST_ROWS = 2048  # so that progress and the journal move
LIVE_TENSORS = 4  # of a program, at once, each as large as its largest
SPOT_CHECKS = 8
SPOT_TOLERANCE = 1e-4  # sums in another order move a radius by far less


@dataclass(frozen=True)
class Settings:
    """How rows are certified.

    ``epsilon`` and ``linf_epsilon`` are the largest radii that were asked for, in the input norm and in ℓ∞: adaptive
    mode aims at them.
    """

    norm: str = "l2"
    certify: str = "f64"
    max_lipschitz: float | None = None
    output_name: str | None = None
    epsilon: float | None = None
    linf_epsilon: float | None = None
    batch_rows: int | None = None
    limit: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Task:
    """A verified model and the rows to certify with it; ``rows`` is how many of the data set's."""

    model: str
    session: CertifiedSession
    data: DataSet
    data_sha256: str
    settings: Settings

    @property
    def rows(self) -> int:
        """The number of rows that are certified."""
        return min(len(self.data), self.settings.limit or len(self.data))

    @property
    def verdict(self) -> Verdict:
        """What was proven about the model."""
        return self.session.verdict

    @property
    def batch_rows(self) -> int:
        """Rows per batch: as asked for, as the file fixes it, or as many as fit into the memory set aside."""
        fixed = self.session.inputs[0].shape[0]
        return fixed or self.settings.batch_rows or fitting_rows(self.verdict)

    @property
    def values_per_row(self) -> int:
        """How many numbers a sample has: of the data, because the file may leave sizes open."""
        return math.prod(self.data.rows.shape[1:])

    @property
    def epsilon(self) -> float | None:
        """The radius in the input norm that certifies a row at every radius that was asked for."""
        asked, linf = self.settings.epsilon, self.settings.linf_epsilon
        converted = None if linf is None else radius_for_linf(linf, self.settings.norm, self.values_per_row)
        return max((epsilon for epsilon in (asked, converted) if epsilon is not None), default=None)

    def describe(self) -> dict[str, str | int | float | None]:
        """What makes a journal this run's."""
        return {
            "version": version(),
            "model_sha256": self.verdict.file_sha256,
            "certificate_sha256": self.session.certificate_sha256,
            "data_sha256": self.data_sha256,
            "labels_sha256": hashlib.sha256(self.data.labels.astype("<i8").tobytes()).hexdigest(),
            "rows": self.rows,
            "norm": self.settings.norm,
            "certify": self.settings.certify,
            "epsilon": self.epsilon if self.settings.certify == "adaptive" else None,
        }


#: Certifies ranges of a task's rows and hands each batch to the callback, in any order.
Engine = Callable[[Task, list[range], Callable[[Batch], None]], None]


def prepare(model: str, path: str, settings: Settings, *, labels: str | None = None) -> Task:
    """Verify ``model`` and open the data set at ``path``.

    Raises what ``CertifiedSession`` raises, ``InputError`` for data that does not fit the model, ``Refused`` (LIP019)
    where the model's output is no row of class scores.
    """
    session = CertifiedSession(
        model,
        norm=settings.norm,
        max_lipschitz=settings.max_lipschitz,
        certify=settings.certify,
        output_name=settings.output_name,
    )
    _check_batch_rows(session, settings.batch_rows)
    return Task(model, session, *_opened(path, labels, session, settings), settings)


def _check_batch_rows(session: CertifiedSession, asked: int | None) -> None:
    fixed = session.inputs[0].shape[0]
    if fixed is not None and asked not in (None, fixed):
        raise InputError(f"the model's batch is fixed to {fixed}, not {asked}", hint="leave --batch-rows out")


def _opened(path: str, labels: str | None, session: CertifiedSession, settings: Settings) -> tuple[DataSet, str]:
    classes = classes_of(session)
    data = open_data(path, labels=labels, class_names=session.verdict.class_names, classes=classes)
    check_shape(data, session.inputs)
    check_labels(data, classes, settings.limit or len(data))
    return data, data.digest()


def classes_of(session: CertifiedSession) -> int:
    """How many classes the model tells apart: two for one logit."""
    output = session.verdict.output
    if not session.classes or output is None:
        raise Refused([session.verdict.no_classes()])
    return max(output.shape[1] or 0, 2)


def check_shape(data: DataSet, specs: tuple[TensorSpec, ...]) -> None:
    """``InputError`` unless every sample can be laid out as the model's only input."""
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"the model has several inputs ({names}); certify takes models with one")
    found, wanted = data.rows.shape[1:], tuple(size or 0 for size in specs[0].shape[1:])
    if not fitted(found, wanted):
        there, needed = ("×".join(map(str, shape)) or "a number" for shape in (found, wanted))
        hint = f"reshape each sample to {needed}"
        if len(found) == 3 and (found[2], found[0], found[1]) == wanted:
            hint = "put the channels first: x.transpose(0, 3, 1, 2)"
        raise InputError(f"{data.rows.where}: samples are {there}, the model takes {needed}", hint=hint)


def fitting_rows(verdict: Verdict) -> int:
    """Rows whose tensors fit into the memory set aside for a batch, or into a share of what is free now."""
    shapes = [spec.shape for spec in verdict.inputs] + [node.shape for node in verdict.nodes]
    largest = max((math.prod(size or 1 for size in shape[1:]) for shape in shapes), default=1)
    budget = min(BYTES_PER_BATCH, _free_memory() // SHARE_OF_FREE_MEMORY)
    return max(1, min(MOST_ROWS, budget // (8 * LIVE_TENSORS * max(largest, 1))))


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return BYTES_PER_BATCH * SHARE_OF_FREE_MEMORY


def certify(
    task: Task, engine: Engine, *, journal: str | None = None, on_rows: Callable[[int], None] = lambda count: None
) -> Results:
    """Certify every row of ``task`` that ``journal`` does not hold yet; ``on_rows`` hears how many more are done.

    What is done when anything stops the run is in the journal.
    """
    answers = Answers(task.rows)
    book = Journal(Path(journal), task.describe()) if journal is not None else None
    if book is not None:
        book.read(answers)
        if answers.label.max() >= classes_of(task.session):
            raise IntegrityError(f"{book.path}: holds a label that the model does not have", hint=ANOTHER)
        _spot_check(task, answers, book)
        book.write(answers)  # a path that cannot be written is found out now
    on_rows(int(answers.done.sum()))

    def keep(batch: Batch) -> None:
        answers.add(batch)
        if book is not None:
            book.write_now_and_then(answers)
        on_rows(len(batch.label))

    try:
        engine(task, answers.missing(task.batch_rows), keep)
    finally:
        if book is not None:
            book.write(answers)
    if not answers.done.all():
        raise IntegrityError(f"{int((~answers.done).sum())} rows came back without an answer")
    return Results(task.data.labels[: task.rows], answers.label, answers.radius, answers.program)


def local(task: Task, ranges: list[range], keep: Callable[[Batch], None]) -> None:
    """This process certifies one batch after the other."""
    for rows, block in zip(ranges, task.data.blocks(ranges), strict=True):
        keep(certify_block(task.session, task.data.rows.where, rows, block, task.epsilon))


def certify_block(session: CertifiedSession, where: str, rows: range, block: Array, epsilon: float | None) -> Batch:
    """The answers for ``block``, which holds ``rows`` of the data set; bad values are named by their row there."""
    spec = session.inputs[0]
    _check_finite(where, rows, block)
    laid_out = block.reshape(len(block), *(size or 0 for size in spec.shape[1:]))
    fixed = spec.shape[0]
    if fixed is not None and len(laid_out) < fixed:  # the last batch of a file that fixes its size
        laid_out = np.concatenate([laid_out, np.repeat(laid_out[-1:], fixed - len(laid_out), axis=0)])
    try:
        prediction = session.predict(laid_out, epsilon=epsilon)
    except InputError as problem:
        message = f"{where}, rows {rows.start} to {rows.stop - 1}: {problem.message}"
        raise InputError(message, hint=problem.hint) from problem
    program = np.array([PROGRAMS.index(str(name)) for name in prediction.program], np.uint8)
    count = len(block)
    return Batch(rows.start, prediction.label[:count], prediction.radius[:count], program[:count])


def _check_finite(where: str, rows: range, block: Array) -> None:
    if block.dtype.kind != "f":
        return
    finite = np.isfinite(block)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        message = f"{where}: {block[place]} in row {rows.start + place[0]}, at index {place[1:]} of the sample"
        raise InputError(message, hint="remove or replace NaN and infinite values")


def _spot_check(task: Task, answers: Answers, book: Journal) -> None:
    """Certify a few of the journal's rows again: a journal from another machine, or an edited one, shows here."""
    done = np.flatnonzero(answers.done)
    chosen = np.unique(done[:: max(1, len(done) // SPOT_CHECKS)][:SPOT_CHECKS]).tolist()
    reach = max([1.0, *(radius for radius in answers.radius[chosen].tolist() if math.isfinite(radius))])
    for row, batch in zip(chosen, _again(task, chosen), strict=True):
        apart = _apart(float(batch.radius[0]), float(answers.radius[row]))
        if batch.label[0] != answers.label[row] or apart > SPOT_TOLERANCE * reach:
            raise IntegrityError(f"{book.path}: row {row} is answered otherwise now", hint=ANOTHER)


def _again(task: Task, rows: list[int]) -> Iterable[Batch]:
    ranges = [range(row, row + 1) for row in rows]
    for single, block in zip(ranges, task.data.blocks(ranges), strict=True):
        yield certify_block(task.session, task.data.rows.where, single, block, task.epsilon)


def _apart(first: float, second: float) -> float:
    return 0.0 if first == second else abs(first - second)
