"""The lower estimate that ``verify --estimate`` and ``inspect`` print beside the proven bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lipdeploy.cli import needs, report
from lipdeploy.errors import InputError, Refused

if TYPE_CHECKING:
    import numpy as np

    from lipdeploy.verify import Verdict
    from lipdeploy.verify.bound import Estimate

    Array = np.ndarray[Any, Any]
    Run = Callable[[Array], Array]

RUNTIME = "onnxruntime"


def is_possible() -> bool:
    """Whether the runtime that evaluates the network is installed."""
    return needs.installed(RUNTIME)


def require() -> None:
    """``InputError`` unless the runtime is installed."""
    needs.need(RUNTIME, purpose="an estimate", install="lipdeploy[runtime]")


def estimate(model: str, verdict: Verdict) -> Estimate | None:
    """The steepest slope that a search finds in ``model``; ``None``, with a note, where it cannot be run in float64."""
    require()
    from lipdeploy.prove import lower_estimate
    from lipdeploy.runtime import float64_function
    from lipdeploy.verify.source import read_source

    output = None if verdict.output is None else verdict.output.name
    try:
        run = float64_function(read_source(model).proto, output)
        batch, *sizes = verdict.inputs[0].shape
        if None in sizes:
            raise InputError("the input has open sizes")
    except (Refused, InputError) as problem:
        report.note(f"{model}: no estimate: {problem.message}")
        return None
    rows = run if batch is None else _in_batches(run, batch)
    return lower_estimate(rows, [size for size in sizes if size is not None], verdict.norm)


def _in_batches(run: Run, batch: int) -> Run:
    """A program with a fixed batch, run on any number of rows."""
    import numpy as np

    def run_all(rows: Array) -> Array:
        missing = -len(rows) % batch
        padded = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]))])
        return np.concatenate([run(part) for part in np.split(padded, len(padded) // batch)])[: len(rows)]

    return run_all
