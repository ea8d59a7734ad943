"""``lipdeploy diff``: what changed from one model or certificate to another, and whether the bound got worse."""

from __future__ import annotations

from collections.abc import Iterator

import click

from lipdeploy.cli import difference, outcome, report
from lipdeploy.cli.difference import Difference, Side
from lipdeploy.cli.options import NORMS, debug_option, graph_output_option, json_option
from lipdeploy.errors import InputError, LimitExceeded, LipdeployError


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option(
    "--norm", type=click.Choice(NORMS),
    help="Norm in which a model is proven [default: the other side's certificate's, else l2].",
)  # fmt: skip
@graph_output_option
@json_option
@debug_option
def command(old: str, new: str, norm: str | None, graph_output: str | None, as_json: bool) -> int:
    """Show what changed from OLD to NEW, each a model or a certificate (.json).

    A model's numbers are proven, a certificate's are what it states. Exit code 1 when NEW's bound is worse (above
    OLD's by more than 1e-9 of it, which is how far proofs differ between machines), 2 when the norms or outputs differ.
    """
    found = _compare(old, new, norm, graph_output)
    if isinstance(found, int):
        return found
    if as_json:
        report.document(found.to_json())
    else:
        report.show(list(_blocks(found)))
    if not found.comparable:
        problem = InputError(f"{old} and {new} state different things: {found.obstacle}", hint="--norm, --graph-output")
        report.error(*outcome.describe(problem))
        return problem.exit_code
    return LimitExceeded.exit_code if found.is_worse else 0


def _compare(old: str, new: str, norm: str | None, output: str | None) -> Difference | int:
    """The difference, or the exit code of what prevents it: both sides are tried, the worse one decides."""
    asked = difference.Asked(norm, output)
    for path in (old, new):
        try:
            asked = asked.completed_by(path)
        except LipdeployError:
            continue  # met again below, where it is reported
    sides, codes = [], [0]
    for path, other in ((old, new), (new, old)):
        try:
            with report.working(f"reading {path}"):
                sides.append(difference.side(path, asked, beside=other))
        except LipdeployError as problem:
            message, hint = outcome.describe(problem)
            report.error(message if path in message else f"{path}: {message}", hint)
            codes.append(problem.exit_code)
    return difference.of(*sides) if len(sides) == 2 else max(codes)


def _blocks(found: Difference) -> Iterator[report.Block]:
    rows = [(name, *values, "" if values[0] == values[1] else "changed") for name, values in _rows(found)]
    yield report.Table(("what", "old", "new", ""), tuple(rows))
    for word, nodes in (("added", found.added), ("removed", found.removed)):
        yield from (f"node {word}: '{node.name}' ({node.op}), gain ≤ {_number(node.gain)}" for node in nodes)
    yield from (f"node renamed: '{then}' is now '{now}'" for then, now in found.renamed)
    yield from (f"gain of '{name}': {_number(then)}, now {_number(now)}" for name, then, now in found.gains)
    yield found.conclusion


def _rows(found: Difference) -> Iterator[tuple[str, tuple[str, str]]]:
    old, new = found.old, found.new
    yield "file", (old.path, new.path)
    yield "kind", (old.kind, new.kind)
    yield "meaning", (old.semantic_sha256[:16], new.semantic_sha256[:16])
    yield "norm", (old.norm, new.norm)
    yield "output", (old.output, new.output)
    yield "bound ≤", (_number(old.lipschitz_bound), _number(new.lipschitz_bound))
    yield "class pairs ≤", (_number(old.pairwise), _number(new.pairwise))
    for mode in sorted({*old.numeric_error, *new.numeric_error}):
        yield f"{mode} error ≤", (_error(old, mode), _error(new, mode))
    yield "operators", (_operators(old), _operators(new))


def _error(side: Side, mode: str) -> str:
    error = side.numeric_error.get(mode)
    return "unknown" if error is None else f"{_number(error[0])} + {_number(error[1])}·‖x‖"


def _operators(side: Side) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(side.operators.items())) or "none"


def _number(value: float | None) -> str:
    from lipdeploy.verify.rounding import decimal_up

    return "-" if value is None else decimal_up(value, 7)
