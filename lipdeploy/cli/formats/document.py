"""The report for programs: schema ``lipdeploy/verify-report/v1``."""

from __future__ import annotations

from collections.abc import Sequence

from lipdeploy.cli import outcome, report
from lipdeploy.cli.judging import Judged


def render(judged: Sequence[Judged]) -> str:
    """The report as one JSON document."""
    return report.as_json(as_document(judged))


def as_document(judged: Sequence[Judged]) -> dict[str, object]:
    """One entry per verdict, one error per model that could not be judged, or not completely."""
    from lipdeploy.verify.verdict import REPORT_SCHEMA

    return {
        "schema": REPORT_SCHEMA,
        "tool": {"version": report.version()},
        "models": [_model_entry(one) for one in judged if one.verdict is not None],
        "errors": [_error_entry(one.path, one.problem) for one in judged if one.problem is not None],
    }


def _model_entry(one: Judged) -> dict[str, object]:
    entry: dict[str, object] = {} if one.verdict is None else one.verdict.to_json()
    return entry if one.comparison is None else {**entry, "baseline": one.comparison.to_json()}


def _error_entry(path: str, problem: Exception) -> dict[str, object]:
    message, hint = outcome.describe(problem)
    return {"path": path, "exit_code": outcome.exit_code(problem), "message": message, "hint": hint}
