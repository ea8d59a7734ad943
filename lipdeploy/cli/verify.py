"""``lipdeploy verify``: the gate. Every model is reported, and the worst of them decides the exit code."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import estimating, outcome, report, verdicts
from lipdeploy.cli.options import debug_option, debugging, graph_output_option, json_option, limit_option, norm_option
from lipdeploy.errors import InputError

if TYPE_CHECKING:
    from lipdeploy.verify import Verdict

BESIDE_THE_MODEL = ""


@dataclass(frozen=True)
class Request:
    """What is asked about every model of one run."""

    norm: str
    max_lipschitz: float | None
    output_name: str | None
    estimate: bool
    certificate: str | None
    debug: bool


@dataclass(frozen=True)
class Judged:
    """One model with its verdict, or with the reason why there is none."""

    path: str
    verdict: Verdict | None = None
    problem: Exception | None = None
    certificate: str | None = None

    @property
    def exit_code(self) -> int:
        """The exit code that this model alone would give."""
        if self.problem is not None:
            return outcome.exit_code(self.problem)
        return verdicts.exit_code(self.verdict) if self.verdict is not None else 0


@click.command("verify")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@norm_option
@limit_option
@graph_output_option
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Form of the report.",
)
@json_option
@click.option("--output", metavar="FILE", help="Write the report to FILE instead of printing it.")
@click.option(
    "--write-certificate", "certificate", metavar="[PATH]", is_flag=False, flag_value=BESIDE_THE_MODEL,
    help="Write what was proven to PATH (.json), or beside the model. Give MODEL before this option.",
)  # fmt: skip
@click.option("--estimate", is_flag=True, help="Also search for a lower estimate (needs the runtime extra).")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    models: tuple[str, ...],
    norm: str,
    max_lipschitz: float | None,
    graph_output: str | None,
    form: str,
    as_json: bool,
    output: str | None,
    certificate: str | None,
    estimate: bool,
) -> int:
    """Prove a Lipschitz bound of each MODEL, an ONNX file, and compare it with the limit.

    Of several models the worst decides the exit code, in the order 5, 4, 3, 2, 1, 0.
    """
    _check_certificate_path(certificate, models)
    _check_output(output, models)
    request = Request(norm, max_lipschitz, graph_output, estimate, certificate, debugging(ctx))
    judged = [_judge(path, request) for path in models]
    worst = max(one.exit_code for one in judged)
    try:
        _deliver(judged, output, as_json=as_json or form == "json")
    except InputError as problem:  # a report that cannot be written must not hide a worse verdict
        report.error(*outcome.describe(problem))
        return max(worst, problem.exit_code)
    return worst


def _judge(path: str, request: Request) -> Judged:
    """Judge one model; whatever goes wrong with it must not hide the others."""
    try:
        with report.working(f"verifying {path}"):
            verdict = _verdict(path, request)
            return Judged(path, verdict, certificate=_write_certificate(path, verdict, request))
    except Exception as problem:
        if request.debug:
            report.diagnostic("".join(traceback.format_exception(problem)))
        return Judged(path, problem=problem)


def _verdict(path: str, request: Request) -> Verdict:
    if request.estimate:
        estimating.require()
    from lipdeploy.verify import verify

    verdict = verify(
        path,
        norm=request.norm,
        max_lipschitz=request.max_lipschitz,
        output_name=request.output_name,
        check_certificate=request.certificate != BESIDE_THE_MODEL,  # else it is about to be replaced
    )
    if request.estimate and verdict.lipschitz_bound is not None:
        verdict = dataclasses.replace(verdict, lower_estimate=estimating.estimate(path, verdict))
    return verdict


def _write_certificate(path: str, verdict: Verdict, request: Request) -> str | None:
    if request.certificate is None or verdict.status != "verified":
        return None
    from lipdeploy.verify.certificate import certificate_path

    target = request.certificate or str(certificate_path(path))
    verdict.write_certificate(target)
    return target


def _check_certificate_path(certificate: str | None, models: Sequence[str]) -> None:
    if not certificate:
        return
    if not certificate.endswith(".json"):
        raise InputError(
            f"--write-certificate: '{certificate}' does not end in .json",
            hint="lipdeploy verify MODEL --write-certificate [PATH.json], with MODEL before the option",
        )
    if len(models) > 1:
        raise InputError(
            f"--write-certificate: one path, {certificate}, for {len(models)} models",
            hint="leave the path out: each certificate then lies beside its model",
        )


def _check_output(output: str | None, models: Sequence[str]) -> None:
    for model in models:
        if output is not None and os.path.realpath(output) == os.path.realpath(model):
            raise InputError(f"--output: {output} is one of the models", hint="write the report to another file")


def as_document(judged: Sequence[Judged]) -> dict[str, object]:
    """The report for programs: schema ``lipdeploy/verify-report/v1``."""
    from lipdeploy.verify.verdict import REPORT_SCHEMA

    return {
        "schema": REPORT_SCHEMA,
        "tool": {"version": report.version()},
        "models": [one.verdict.to_json() for one in judged if one.verdict is not None],
        "errors": [_error_entry(one.path, one.problem) for one in judged if one.problem is not None],
    }


def _error_entry(path: str, problem: Exception) -> dict[str, object]:
    message, hint = outcome.describe(problem)
    return {"path": path, "exit_code": outcome.exit_code(problem), "message": message, "hint": hint}


def as_text(judged: Sequence[Judged]) -> list[report.Block]:
    """The report for people: one table, what was refused and why, and what all of it assumes."""
    proven = [one.verdict for one in judged if one.verdict is not None]
    blocks: list[report.Block] = [verdicts.summary(proven)] if proven else []
    for one in judged:
        blocks += verdicts.reasons(one.verdict) if one.verdict is not None else []
        blocks += [f"{one.path}: certificate written to {one.certificate}"] if one.certificate is not None else []
    return blocks + verdicts.assumptions(proven)


def _deliver(judged: Sequence[Judged], output: str | None, *, as_json: bool) -> None:
    for one in judged:
        if one.problem is not None:
            report.error(*outcome.describe(one.problem))
    if output is not None:
        report.save(output, report.as_json(as_document(judged)) if as_json else report.plain(as_text(judged)))
        report.note(f"report written to {output}")
    elif as_json:
        report.document(as_document(judged))
    else:
        report.show(as_text(judged))
