"""``lipdeploy certify``: accuracy and certified accuracy over a whole data set, with a report to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import outputs, report
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import (
    debug_option,
    graph_output_option,
    json_option,
    limit_option,
    norm_option,
    percentage,
    radius,
)
from lipdeploy.cli.predict import MODES

if TYPE_CHECKING:
    from lipdeploy.certify.document import Outcome
    from lipdeploy.certify.results import AtRadius
    from lipdeploy.certify.run import Settings, Task

MISSED = 1
NORMS = {"l2": "ℓ2", "linf": "ℓ∞", "l1": "ℓ1"}


@click.command("certify")
@click.argument("model")
@click.argument("data")
@click.option(
    "--epsilon",
    "epsilons",
    type=radius,
    multiple=True,
    metavar="E",
    help="Report certified accuracy at this radius, in the input norm; several are welcome.",
)
@click.option(
    "--linf-epsilon",
    "linf_epsilons",
    type=radius,
    multiple=True,
    metavar="E",
    help="The same at an linf radius, through r/√n from an l2 certificate (r/n from l1).",
)
@norm_option
@click.option(
    "--certify",
    type=click.Choice(MODES),
    default="f64",
    show_default=True,
    help="The program whose answers are certified.",
)
@click.option("--labels", metavar="FILE", help="The labels, where they are not in DATA nor beside it.")
@click.option(
    "--min-certified",
    type=percentage,
    metavar="P",
    help="Fail (exit 1) when certified accuracy at any --epsilon is below P percent.",
)
@click.option("--report", "page", metavar="FILE", help="Write the report as one HTML page.")
@json_option
@click.option("--output", metavar="FILE", help="Write the table, or with --json the document, to FILE.")
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="'ray' spreads the batches over a Ray cluster.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Actors of '--engine ray' (default: all processors)."
)
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 2**20),
    metavar="N",
    help="Samples at a time (default: what fits into memory).",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N samples.")
@click.option(
    "--resume",
    "journal",
    metavar="FILE",
    help="Keep a journal in FILE, and go on from it where it is there.",
)
@limit_option
@graph_output_option
@debug_option
def command(
    model: str,
    data: str,
    epsilons: tuple[float, ...],
    linf_epsilons: tuple[float, ...],
    norm: str,
    certify: str,
    labels: str | None,
    min_certified: Fraction | None,
    page: str | None,
    as_json: bool,
    output: str | None,
    engine: str,
    workers: int | None,
    batch_rows: int | None,
    limit: int | None,
    journal: str | None,
    max_lipschitz: float | None,
    graph_output: str | None,
) -> int:
    """Certify every sample of DATA and report accuracy and certified accuracy.

    DATA is .npz (x and y), .npy or IDX (labels beside it; .gz too), or a folder with one sub-folder of images per
    class. Radii are in the units of DATA, and shares are rounded down.
    """
    need("onnxruntime", purpose="certify", install="lipdeploy[runtime]")
    if min_certified is not None and not (epsilons or linf_epsilons):
        raise click.UsageError("--min-certified needs an --epsilon")
    if page is not None and not page.lower().endswith((".html", ".htm")) and not page.startswith("/dev/"):
        raise click.UsageError(f"--report: '{page}' does not end in .html, and the report is a web page")
    if workers is not None and engine != "ray":
        raise click.UsageError("--workers is for --engine ray; the local engine uses the threads of ONNX Runtime")
    from lipdeploy.certify.run import Settings

    written = [("--report", page), ("--output", output), ("--resume", journal)]
    outputs.check(written, outputs.places([(data, "the data"), (labels, "the labels"), *outputs.files_of(model)]))
    settings = Settings(
        norm=norm,
        certify=certify,
        max_lipschitz=max_lipschitz,
        output_name=graph_output,
        epsilon=max(epsilons, default=None),
        linf_epsilon=max(linf_epsilons, default=None),
        batch_rows=batch_rows,
        limit=limit,
        workers=workers,
    )
    task = _prepared(model, data, labels, settings)
    outputs.check(written, outputs.places(_read(task)))  # what only opening the model and the data tells
    outcome = _certified(task, engine, journal, epsilons, linf_epsilons)
    _deliver(outcome, page, as_json, output)
    return _verdict(outcome.at, min_certified)


def _prepared(model: str, data: str, labels: str | None, settings: Settings) -> Task:
    import os

    from lipdeploy.certify.run import prepare

    if os.path.isdir(data):
        need("PIL", purpose=f"{data}: reading images", install="pillow")
    with report.working(f"verifying {model}, opening {data}"):
        return prepare(model, data, settings, labels=labels)


def _read(task: Task) -> Iterator[tuple[outputs.Path, str]]:
    yield from outputs.external_data(task.model, task.verdict.external_sha256)
    yield from ((path, "a file of the data set") for path in task.data.files)


def _certified(
    task: Task, engine: str, journal: str | None, epsilons: tuple[float, ...], linf_epsilons: tuple[float, ...]
) -> Outcome:
    from lipdeploy.certify import run
    from lipdeploy.certify.document import Outcome, counts

    if engine == "ray":
        need("ray", purpose="--engine ray", install="lipdeploy[ray]")
        from lipdeploy.certify.distributed import over_ray as spread
    else:
        spread = run.local
    start = time.perf_counter()
    try:
        with report.progress(f"certifying {task.rows} samples", task.rows) as on_rows:
            results = run.certify(task, spread, journal=journal, on_rows=on_rows)
    except KeyboardInterrupt:
        if journal is not None:
            report.note(f"{journal} holds what is done: the same command goes on from there")
        raise
    seconds = time.perf_counter() - start
    return Outcome(task, results, counts(task, results, epsilons, linf_epsilons), engine, seconds)


def _deliver(outcome: Outcome, page: str | None, as_json: bool, output: str | None) -> None:
    from lipdeploy.certify.document import as_document

    if page is not None:
        from lipdeploy.certify.page import page as rendered

        report.save(page, rendered(outcome))
    if output is not None:
        report.save(output, report.as_json(as_document(outcome)) if as_json else report.plain(_blocks(outcome)))
    elif as_json:
        report.document(as_document(outcome))
    else:
        report.show(_blocks(outcome))


def _verdict(at: tuple[AtRadius, ...], min_certified: Fraction | None) -> int:
    from lipdeploy.certify.results import percent_down, shown

    missed = [line for line in at if min_certified is not None and 100 * line.certified_accuracy < min_certified]
    for line in missed:
        found = f"{NORMS[line.norm]} {shown(line.epsilon)} is {percent_down(line.certified_accuracy)} %"
        report.note(f"certified accuracy at {found}, below the {float(min_certified or 0):.6g} % that were asked for")
    return MISSED if missed else 0


def _blocks(outcome: Outcome) -> list[report.Block]:
    from lipdeploy.certify.results import percent_down, shown
    from lipdeploy.verify.rounding import decimal_down

    task, results = outcome.task, outcome.results
    lines = [
        (
            f"{NORMS[line.norm]} {shown(line.epsilon)}",
            f"{percent_down(line.certified_accuracy)} %",
            str(line.correct),
            str(line.wrong),
            str(line.abstained),
        )
        for line in outcome.at
    ]
    median = results.quantile_down(Fraction(1, 2))
    blocks: list[report.Block] = [
        f"accuracy {percent_down(results.accuracy)} % of {len(results)} samples; {results.without_certificate} without "
        f"a certificate; median radius {decimal_down(median, 4) if math.isfinite(median) else 'unbounded'}"
    ]
    if lines:
        head = ("epsilon", "certified accuracy", "right", "wrong", "abstained")
        blocks.append(report.Table(head, tuple(lines)))
    blocks.append(
        f"{task.verdict.norm} norm, guarantee '{task.session.guarantee}', Lipschitz bound "
        f"{task.verdict.lipschitz_bound}; {outcome.seconds:.1f} s"
    )
    if task.data.left_out:
        blocks.append(f"{task.data.left_out} files are no images and were left out")
    return blocks
