"""The report for programs: schema ``lipdeploy/certification-report/v1``. No share and no radius rounds up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lipdeploy.certify.results import PROGRAMS, AtRadius, Results
from lipdeploy.certify.run import Task
from lipdeploy.runtime.prediction import linf_radius
from lipdeploy.verify import version
from lipdeploy.verify.bound import Bound
from lipdeploy.verify.rounding import fraction_down, number_down, shortest_down

Array = np.ndarray[Any, Any]
SCHEMA = "lipdeploy/certification-report/v1"
EXTREMES = 12
QUANTILES = (Fraction(1, 10), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))


@dataclass(frozen=True)
class Outcome:
    """A finished run: what was asked, what came out, and what it took."""

    task: Task
    results: Results
    at: tuple[AtRadius, ...]
    engine: str
    seconds: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's names of its classes, else their numbers."""
        names = self.task.verdict.class_names
        output = self.task.verdict.output
        count = max(int((output.shape[1] if output else 0) or 0), 2)
        return names if len(names) == count else tuple(str(number) for number in range(count))


def counts(
    task: Task, results: Results, epsilons: Sequence[float], linf_epsilons: Sequence[float] = ()
) -> tuple[AtRadius, ...]:
    """The counts at each ``epsilon`` in the input norm, then at each ℓ∞ epsilon through r/√n (r/n from ℓ1)."""
    asked = [(epsilon, input_norm(task)) for epsilon in epsilons] + [(epsilon, "linf") for epsilon in linf_epsilons]
    return tuple(results.at(epsilon, norm, _radii(task, results, norm)) for epsilon, norm in asked)


def input_norm(task: Task) -> str:
    """The norm that radii are measured in: l2, linf or l1."""
    return task.settings.norm.split("-")[0]


def _radii(task: Task, results: Results, norm: str) -> Array:
    if norm == input_norm(task):
        return results.radius
    return linf_radius(results.radius, task.settings.norm, task.values_per_row)


def as_document(outcome: Outcome) -> dict[str, Any]:
    """The whole report, as JSON takes it."""
    task, results = outcome.task, outcome.results
    verdict, session, library = task.verdict, task.session, task.session.library
    most, least = results.extremes(EXTREMES)
    return {
        "schema": SCHEMA,
        "tool": {"version": version()},
        "model": {"path": task.model, "file_sha256": verdict.file_sha256},
        "data": {
            "path": task.data.path, "kind": task.data.kind, "sha256": task.data_sha256, "rows": len(task.data),
            "left_out": task.data.left_out,
        },
        "norm": verdict.norm,
        "certify": task.settings.certify,
        "guarantee": session.guarantee,
        "lipschitz_bound": session.lipschitz_bound,
        "certificate_sha256": session.certificate_sha256,
        "operator_library": None if library is None else {"version": library.version, "sha256": library.sha256},
        "rows": len(results),
        "correct": int(results.right.sum()),
        "accuracy": number_down(fraction_down(results.accuracy)),
        "without_certificate": results.without_certificate,
        "programs": {name: results.answered_by(name) for name in PROGRAMS},
        "at": [_at(line) for line in outcome.at],
        "radius": {
            "quantiles": [[float(share), _finite(results.quantile_down(share))] for share in QUANTILES],
            "unbounded": int(np.isinf(results.radius).sum()),
        },
        "curve": _curve(results),
        "histogram": _histogram(results),
        "classes": classes(outcome),
        "nodes": [
            {
                "name": node.name, "op": node.op,
                "gain": _bound(node.gain), "bound_after": _bound(node.bound_after),
            }
            for node in verdict.nodes
        ],
        "most_certain": [_row(results, row) for row in most],
        "least_certain": [_row(results, row) for row in least],
        "engine": outcome.engine,
        "verification_seconds": verdict.elapsed_seconds,
        "elapsed_seconds": outcome.seconds,
    }  # fmt: skip


def _at(line: AtRadius) -> dict[str, Any]:
    return {
        "epsilon": float(shortest_down(line.epsilon)),  # as it was written, or below what was counted
        "norm": line.norm,
        "certified_correct": line.correct,
        "certified_wrong": line.wrong,
        "abstained": line.abstained,
        "certified_accuracy": number_down(fraction_down(line.certified_accuracy)),
    }


def _curve(results: Results) -> dict[str, Any]:
    radii, certified = results.curve()
    return {"epsilon": list(map(number_down, radii.tolist())), "certified_correct": certified.tolist()}


def _histogram(results: Results) -> dict[str, Any]:
    edges, right, wrong = results.histogram()
    return {"edges": edges.tolist(), "correct": right.tolist(), "wrong": wrong.tolist()}


def classes(outcome: Outcome) -> list[dict[str, Any]]:
    """Counts class by class, in the order of the model's outputs."""
    return [_class(outcome, number, name) for number, name in enumerate(outcome.class_names)]


def _class(outcome: Outcome, number: int, name: str) -> dict[str, Any]:
    rows = outcome.results.of_class(number)
    certified = [rows.at(line.epsilon, line.norm, _radii(outcome.task, rows, line.norm)).correct for line in outcome.at]
    return {
        "label": number,
        "name": name,
        "rows": len(rows),
        "correct": int(rows.right.sum()),
        "certified_correct": certified,
        "median_radius": _finite(rows.quantile_down(Fraction(1, 2))) if len(rows) else None,
    }


def _row(results: Results, row: int) -> dict[str, Any]:
    label, truth, radius = int(results.label[row]), int(results.truth[row]), float(results.radius[row])
    return {"row": row, "label": label, "truth": truth, "radius": _finite(radius)}


def _bound(value: Bound) -> float | None:
    return value.value if value.is_finite else None


def _finite(value: float) -> float | None:
    return number_down(value) if math.isfinite(value) else None
