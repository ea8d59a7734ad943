"""``lipdeploy bench``: what certificates, kernels and precision cost for one model on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from lipdeploy.cli import inputs, report
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option, graph_output_option, json_option, norm_option, positive_number
from lipdeploy.cli.predict import MODES
from lipdeploy.errors import InputError, Refused

if TYPE_CHECKING:
    import numpy as np

    from lipdeploy.runtime import CertifiedSession
    from lipdeploy.runtime.latency import Call, Latency

    Feeds = Mapping[str, np.ndarray[Any, Any]]

SCHEMA = "lipdeploy/bench-report/v1"
BARE = "run, no certificate"
LARGEST_BATCH = 65536


def batch_sizes(value: str) -> tuple[int, ...]:
    """Numbers of rows separated by commas."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isascii() and word.isdecimal() and 0 < int(word) <= LARGEST_BATCH for word in words):
        raise click.BadParameter(f"'{value}' is not a list of batch sizes up to {LARGEST_BATCH} (example: 1,32)")
    return tuple(dict.fromkeys(map(int, words)))


@click.command("bench")
@click.argument("model")
@click.option("--batch", type=batch_sizes, default="1,32", show_default=True, metavar="N,…", help="Rows per call.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of one call.")
@click.option("--seconds", type=positive_number, default=3.0, show_default=True, help="Time for each batch size.")
@click.option("--certify", type=click.Choice(MODES), multiple=True, help="Modes to time [default: all of them].")
@click.option("--input", "data", metavar="FILE", help="Rows to run (.npy, .npz, .png) [default: random ones].")
@click.option("--torch", "target", metavar="TARGET", help="Also time this torch module: as for lipdeploy export.")
@click.option("--checkpoint", metavar="FILE", help="Weights of the torch module.")
@norm_option
@graph_output_option
@json_option
@debug_option
def command(
    model: str,
    batch: tuple[int, ...],
    threads: int,
    seconds: float,
    certify: tuple[str, ...],
    data: str | None,
    target: str | None,
    checkpoint: str | None,
    norm: str,
    graph_output: str | None,
    as_json: bool,
) -> int:
    """Time MODEL: certified predictions in every mode, the bare program, the same file without our kernels, torch.

    Contenders take turns in one run. Ratios are medians over the bare program's median at the same batch size.
    """
    need("onnxruntime", purpose="bench", install="lipdeploy[runtime]")
    if target is None and checkpoint is not None:
        raise InputError("--checkpoint: weights of what?", hint="--torch TARGET --checkpoint FILE")
    with report.working(f"verifying {model}"):
        sessions = _sessions(model, certify or MODES, norm=norm, threads=threads, output_name=graph_output)
    given = _given(data, next(iter(sessions.values())))
    if not next(iter(sessions.values())).classes:
        report.note(f"{model}: not a classifier, so there are no predictions to time")
    others = _others(model, target, checkpoint, threads)
    measured = [row for size in batch for row in _measured(sessions, others, given, size, seconds)]
    if as_json:
        report.document({"schema": SCHEMA, "model": model, "machine": _machine(threads), "latency": _entries(measured)})
    else:
        report.show([_table(measured), ", ".join(f"{key} {value}" for key, value in _machine(threads).items()) + "."])
    return 0


def _sessions(model: str, modes: Sequence[str], **options: Any) -> dict[str, CertifiedSession]:
    """A session for each mode that can answer this model; the reason is noted for the others."""
    from lipdeploy.runtime import CertifiedSession

    sessions, problem = {}, None
    for mode in modes:
        try:
            sessions[mode] = CertifiedSession(model, certify=mode, **options)
        except Refused as refusal:
            report.note(f"{model}: not in mode {mode}: {refusal.message}")
            problem = refusal
    if not sessions and problem is not None:
        raise problem
    return sessions


def _given(data: str | None, session: CertifiedSession) -> Feeds | None:
    from lipdeploy.runtime.inputs import feeds_for

    if data is None:
        _check_open_sizes(session)
        return None
    return feeds_for(inputs.read_samples(data, session.inputs), session.inputs)


def _check_open_sizes(session: CertifiedSession) -> None:
    for spec in session.inputs:
        if None in spec.shape[1:]:
            raise InputError(
                f"input '{spec.name}' has open sizes", hint="--input FILE, with rows of the size you serve"
            )


def _others(model: str, target: str | None, checkpoint: str | None, threads: int) -> dict[str, Any]:
    """What runs besides our sessions, as functions of the feeds."""
    from lipdeploy.runtime.latency import has_own_operators, without_library

    others: dict[str, Any] = {}
    plain = without_library(model, threads)
    if plain is not None:
        name = "run, function bodies" if has_own_operators(model) else "run, default ONNX Runtime"
        others[name] = partial(plain.run, None)
    if target is not None:
        need("torch", purpose="bench --torch", install="lipdeploy[export]")
        from lipdeploy.export.eager import eager
        from lipdeploy.export.target import load_target

        run = eager(load_target(target, checkpoint), threads)
        others["torch, eager"] = lambda feeds: run(list(feeds.values()))
    return others


def _measured(
    sessions: Mapping[str, CertifiedSession], others: Mapping[str, Any], given: Feeds | None, size: int, seconds: float
) -> Sequence[Latency]:
    from lipdeploy.runtime.latency import measure, rows

    first = next(iter(sessions.values()))
    fixed = first.inputs[0].shape[0]
    if fixed is not None and fixed != size:
        raise InputError(f"the model's batch is fixed to {fixed}", hint=f"--batch {fixed}")
    feeds = rows(given, first.inputs, size)
    calls: dict[str, Call] = {BARE: partial(first.run, None, feeds)}
    calls |= {name: partial(run, feeds) for name, run in others.items()}
    calls |= {
        f"predict, {mode}": partial(session.predict, feeds) for mode, session in sessions.items() if first.classes
    }
    with report.working(f"timing batches of {size}"):
        return list(measure(calls, size, seconds))


def _table(measured: Sequence[Latency]) -> report.Table:
    bare = {one.batch: one.p50 for one in measured if one.contender == BARE}
    columns = ("contender", "batch", "p50 ms", "p90 ms", "p99 ms", "rows/s", "× bare")
    return report.Table(
        columns,
        tuple(
            (
                one.contender,
                str(one.batch),
                *(f"{value * 1e3:.3f}" for value in (one.p50, one.p90, one.p99)),
                f"{one.rows_per_second:.0f}",
                f"{one.p50 / bare[one.batch]:.2f}",
            )
            for one in measured
        ),
    )


def _entries(measured: Sequence[Latency]) -> list[dict[str, Any]]:
    return [vars(one) | {"rows_per_second": one.rows_per_second} for one in measured]


def _machine(threads: int) -> dict[str, Any]:
    import platform

    from lipdeploy.cli.doctor import processor
    from lipdeploy.cli.needs import distribution_version

    return {
        "processor": processor(),
        "threads": threads,
        "python": platform.python_version(),
        "onnxruntime": distribution_version("onnxruntime-gpu", "onnxruntime"),
        "lipdeploy": report.version(),
    }
