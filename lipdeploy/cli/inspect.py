"""``lipdeploy inspect``: where the bound comes from, node by node, and how tight it is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import estimating, report, verdicts
from lipdeploy.cli.options import debug_option, graph_output_option, json_option, norm_option
from lipdeploy.errors import IntegrityError

if TYPE_CHECKING:
    from lipdeploy.verify import Verdict


@click.command("inspect")
@click.argument("model")
@norm_option
@graph_output_option
@click.option(
    "--estimate/--no-estimate",
    default=True,
    show_default=True,
    help="Search for a lower estimate, when a runtime is installed.",
)
@json_option
@debug_option
def command(model: str, norm: str, graph_output: str | None, estimate: bool, as_json: bool) -> int:
    """Show every node's gain, loosest first, and the proven bound beside an estimate from below."""
    from lipdeploy.verify import verify

    with report.working(f"verifying {model}"):
        verdict = verify(model, norm=norm, output_name=graph_output, method="best")
    if estimate and verdict.status == "verified" and estimating.is_possible():
        with report.working("estimating from below"):
            verdict = dataclasses.replace(verdict, lower_estimate=estimating.estimate(model, verdict))
    if as_json:
        from lipdeploy.cli.formats.document import as_document
        from lipdeploy.cli.judging import Judged

        report.document(as_document([Judged(model, verdict)]))
    else:
        report.show(_blocks(verdict))
    return verdicts.exit_code(verdict)


def _blocks(verdict: Verdict) -> list[report.Block]:
    ends = [f"input  {tensor.name}: {tensor.dtype} {verdicts.shape(tensor.shape)}" for tensor in verdict.inputs]
    if verdict.output is not None:
        ends.append(f"output {verdict.output.name}: {verdict.output.dtype} {verdicts.shape(verdict.output.shape)}")
    table: list[report.Block] = [verdicts.nodes(verdict)] if verdict.nodes else []
    ends += _operators(verdict)
    return [
        verdicts.summary([verdict]),
        *ends,
        *_tightness(verdict),
        *table,
        *verdicts.advice(verdict),
        *verdicts.reasons(verdict),
    ]


def _operators(verdict: Verdict) -> list[str]:
    """lipdeploy's operators in the graph, and the library whose kernels would run them here."""
    if not verdict.operators:
        return []
    names = ", ".join(f"{name} {number}" for name, number in verdict.operators.items())
    if not estimating.is_possible():
        return [f"operators {names}"]
    from lipdeploy.runtime import find_library

    try:
        library = find_library()
    except IntegrityError as problem:
        return [f"operators {names}; library: {problem.message}"]
    if library is None:
        return [f"operators {names}; no operator library, the function bodies would run"]
    return [f"operators {names}; library version {library.version} of lipdeploy {library.release}, {library.sha256}"]


def _tightness(verdict: Verdict) -> list[report.Block]:
    bound, lower = verdict.lipschitz_bound, verdict.lower_estimate
    if bound is None or lower is None or not lower.value > 0.0:
        return []
    from lipdeploy.verify import rounding

    ratio = rounding.decimal_up(rounding.div_up(bound.value, lower.value), 4)
    return [f"The proven bound is at most {ratio} times the steepest slope that was found."]
