"""What every reproduction shares: its command line, its clock and progress bar, and the way to a proven number."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOOLS))

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

import lipdeploy as lip
from lipdeploy.verify.rounding import formatted_up

FOLDER = TOOLS.parent / "build" / "reproduce"
STDERR = Console(stderr=True)
#: Largest square of a singular value that ``orthonormal`` starts from; the iteration diverges from 5, and needs < 3.
BASIN = 2.5


@dataclass(frozen=True)
class Options:
    """One call: how long, from which seed, and where to."""

    quick: bool
    seed: int
    steps: int | None
    folder: Path

    def budget(self, quick: int, full: int) -> int:
        """Optimiser steps: as asked for, else the quick or the full number."""
        return self.steps or (quick if self.quick else full)


def parse(
    document: str | None,
    arguments: Sequence[str] | None,
    seed: int = 0,
    own: argparse.ArgumentParser | None = None,
) -> Options:
    """The command line of a reproduction, with its default ``seed``; torch gives the same numbers every time.

    ``own`` are the options of this one alone, which it has read itself; they belong to the help.
    """
    parents = [] if own is None else [own]
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0], parents=parents)
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour: fewer steps, smaller nets")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--steps", type=int, help="optimiser steps per network, instead of the budget's")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for files (default: build/reproduce)")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and it costs a fifth of the time
    return Options(given.quick, given.seed, given.steps, given.output)


def once(options: Options, name: str, config: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of one training run: from its file where the same run is done, else made and kept.

    This is what makes a reproduction resumable: a call that was stopped goes on with the first run not done.
    """
    path = options.folder / f"{name}.run.json"
    described = json.loads(json.dumps(asdict(config) if is_dataclass(config) else config, default=str))  # type: ignore[arg-type]
    if path.is_file():
        saved = json.loads(path.read_text("utf-8"))
        if saved["config"] == described:
            result: dict[str, Any] = saved["result"]
            return result
    began = time.process_time()
    result = {**make(), "cpu_seconds": round(time.process_time() - began, 1)}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"config": described, "result": result}, indent=1) + "\n", "utf-8")
    temporary.replace(path)
    return result


def prove(network: nn.Module, example: Tensor, path: Path, norm: str = "l2") -> float:
    """Export, verify, and return the proven constant of the very file; its certificate lies beside it."""
    result = lip.export(network, example, path, norm=norm)
    bound = result.verdict.lipschitz_bound
    if bound is None:
        raise RuntimeError(f"{path.name} was exported without a bound")
    return float(bound.value)


def certified(path: Path, images: np.ndarray, labels: np.ndarray, epsilons: Sequence[float], norm: str) -> dict:
    """Accuracy and certified accuracy of a file on images (N, …), in percent and rounded down."""
    prediction = lip.CertifiedSession(path, norm=norm).predict(images)
    correct, radius = prediction.label == labels, prediction.radius
    shares = {str(e): _percent(correct & (radius > 0) & (radius >= e)) for e in epsilons}
    return {"accuracy": _percent(correct), "certified_accuracy": shares}


def _percent(mask: np.ndarray) -> float:
    return int(mask.sum()) * 1000 // len(mask) / 10


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error; call what it gives after every step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=STDERR) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def write(options: Options, name: str, config: Any, results: Any) -> Path:
    """The JSON of a whole reproduction."""
    path = options.folder / f"{name}.json"
    document = {
        "name": name,
        "quick": options.quick,
        "seed": options.seed,
        "config": asdict(config) if is_dataclass(config) else config,  # type: ignore[arg-type]
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "results": results,
    }
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", "utf-8")
    STDERR.print(f"wrote {path.name}", markup=False, highlight=False)
    return path


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table on standard output: what docs/papers.md holds."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row) + " |")


def rounded_up(bound: float) -> str:
    """An upper bound to seven places, never below it."""
    return formatted_up(bound, ".7f")


def rounded_down(bound: float) -> str:
    """A lower bound to five places, never above it."""
    return f"{math.floor(bound * 1e5) / 1e5:.5f}"


def plt() -> Any:
    """Matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@torch.no_grad()
def orthonormal(weight: Tensor, iterations: int = 1, basin: float = BASIN) -> Tensor:
    """Björck's iteration on (…, m, n) matrices near orthonormal ones: W ← (3W − W Wᵀ W)/2.

    It does not converge from singular values above √3. The largest row sum of |W Wᵀ| bounds their squares, so a matrix
    for which it exceeds ``basin`` is scaled back first. For wide layers the row sum is loose: a small ``basin`` then
    shrinks at every step, which costs accuracy.
    """
    for _ in range(iterations):
        wide = weight.shape[-2] <= weight.shape[-1]
        gram = weight @ weight.mT if wide else weight.mT @ weight
        outside = (gram.abs().sum(dim=-1).amax(dim=-1)[..., None, None] / basin).clamp(min=1)
        cubed = gram @ weight if wide else weight @ gram
        weight = (1.5 * weight - 0.5 / outside * cubed) / outside.sqrt()
    return weight


@torch.no_grad()
def tangent(weight: Tensor, gradient: Tensor) -> Tensor:
    """The part of a gradient (…, m, n) along the orthonormal matrices at ``weight``: G − sym(G Wᵀ) W if W is wide.

    Björck's iteration undoes the rest of a step. But Adam divides a step by its size, rest included, and so moves less.
    """
    wide = weight.shape[-2] <= weight.shape[-1]
    product = gradient @ weight.mT if wide else weight.mT @ gradient
    normal = (product + product.mT) / 2
    return gradient - (normal @ weight if wide else weight @ normal)


def along_the_constraint(network: nn.Module, dense: type[nn.Module] = nn.Linear) -> None:
    """The gradient of every layer of the kind ``dense`` becomes its ``tangent`` part."""
    for layer in network.modules():
        if isinstance(layer, dense) and isinstance(layer.weight, Tensor) and layer.weight.grad is not None:
            layer.weight.grad = tangent(layer.weight, layer.weight.grad)
