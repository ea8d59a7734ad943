"""The demo: train two Lipschitz networks, export them, prove their bounds, certify held-out images.

::

    python tools/demo.py                  # scikit-learn's digits, under two minutes
    python tools/demo.py --data fashion   # Fashion-MNIST (Debian's dataset-fashion-mnist), about ten minutes

Writes the ONNX files with their certificates and a PNG into build/demo/. Exit code 2 when the data set is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_data import Dataset, DatasetMissing, digits, fashion
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from training import DIGITS, FASHION, Recipe, steps, train

import lipdeploy as lip
from lipdeploy.prove.estimate import lower_estimate
from lipdeploy.runtime import float64_function
from lipdeploy.verify.bound import Bound, Estimate
from lipdeploy.verify.source import read_source

Array = np.ndarray[Any, Any]

FOLDER = Path(__file__).resolve().parent.parent / "build" / "demo"
TASKS = {"digits": (digits, DIGITS, (1.0, 2.0, 4.0, 8.0)), "fashion": (fashion, FASHION, (36.0, 72.0, 108.0, 144.0))}
ESTIMATE_POINTS = 8


@dataclass(frozen=True)
class Outcome:
    """One network from training to certified predictions; radii in grey levels."""

    recipe: Recipe
    path: Path
    bound: Bound
    estimate: Estimate
    prediction: lip.CertifiedPrediction
    correct: Array
    seconds: dict[str, float]

    @property
    def accuracy(self) -> Fraction:
        """Share of held-out images whose label is right."""
        return Fraction(int(self.correct.sum()), len(self.correct))

    def certified_accuracy(self, epsilon: float) -> Fraction:
        """Share of held-out images whose label is right and holds in the whole ball of radius ``epsilon``."""
        radius = self.prediction.radius
        return Fraction(int((self.correct & (radius > 0) & (radius >= epsilon)).sum()), len(radius))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = _parse(arguments)
    console, progress_console = Console(), Console(stderr=True)
    load, recipes, epsilons = TASKS[options.data]
    try:
        data = load()
    except DatasetMissing as missing:
        progress_console.print(f"error: {missing}", markup=False, soft_wrap=True)
        return 2
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        progress_console.print(f"error: cannot make the folder {options.output}: {error.strerror}", markup=False)
        return 2
    outcomes = [_run(recipe, data, options.output, progress_console) for recipe in recipes]
    console.print(_heading(outcomes, data), markup=False, soft_wrap=True, highlight=False)
    console.print(_table(outcomes, epsilons))
    console.print(_one_prediction(outcomes, data), markup=False, soft_wrap=True)
    picture = _plot(outcomes, data, options.output / f"{data.name}.png")
    for path in (*(outcome.path for outcome in outcomes), picture):
        console.print(f"wrote {_shown(path)}", markup=False, soft_wrap=True, highlight=False)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=sorted(TASKS), default="digits", help="data set (default: digits)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the files (default: build/demo)")
    return parser.parse_args(arguments)


def _run(recipe: Recipe, data: Dataset, folder: Path, console: Console) -> Outcome:
    clock = _Clock()
    path = folder / f"{recipe.stem}.onnx"
    with clock("train"):
        network = _train(recipe, data, console)
    with clock("export"), console.status(f"{recipe.title}: exporting and proving"):
        result = _export(network, data, path)
    with clock("certify"), console.status(f"{recipe.title}: certifying {len(data.test_images)} held-out images"):
        session = lip.CertifiedSession(path, norm="l2", max_lipschitz=_limit(data))
        prediction = session.predict(data.test_images)
    with clock("estimate"), console.status(f"{recipe.title}: searching for a steep pair"):
        estimate = _estimate(path, data)
    bound = result.verdict.lipschitz_bound
    if bound is None:
        raise RuntimeError(f"{path} was exported without a bound")
    return Outcome(recipe, path, bound, estimate, prediction, prediction.label == data.test_labels, clock.seconds)


def _train(recipe: Recipe, data: Dataset, console: Console) -> torch.nn.Module:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"{recipe.title}: training", total=steps(recipe, len(data.train_images)))
        images = data.train_images / np.float32(data.full_scale)
        return train(recipe, images, data.train_labels, lambda: progress.advance(task))


def _export(network: torch.nn.Module, data: Dataset, path: Path) -> lip.ExportResult:
    """The scale goes into the graph, so the file takes grey levels, and every radius is in grey levels."""
    return lip.export(
        network,
        data.test_images[:16],
        path,
        norm="l2",
        max_lipschitz=_limit(data),
        input_scale=1 / data.full_scale,
        class_names=data.classes,
    )


def _limit(data: Dataset) -> float:
    """A network that is 1-Lipschitz on [0, 1] is 1/full_scale-Lipschitz in grey levels (as the float32 that scales)."""
    return float(np.float32(1 / data.full_scale))


def _estimate(path: Path, data: Dataset) -> Estimate:
    function = float64_function(read_source(path).proto)
    points = data.test_images[:ESTIMATE_POINTS].astype(np.float64)
    return lower_estimate(function, points.shape[1:], samples=2, points=points, step=1e-4 * data.full_scale)


class _Clock:
    """Wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _heading(outcomes: Sequence[Outcome], data: Dataset) -> str:
    count, guarantee = len(data.test_labels), outcomes[0].prediction.guarantee
    return f"\n{count} held-out images of {data.name}. ε and radii: ℓ2, in {data.units}. Guarantee: {guarantee}."


def _table(outcomes: Sequence[Outcome], epsilons: Sequence[float]) -> Table:
    table = Table()
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.recipe.title, justify="right")
    for name, values in _lines(outcomes, epsilons):
        table.add_row(name, *values)
    return table


def _lines(outcomes: Sequence[Outcome], epsilons: Sequence[float]) -> Iterator[tuple[str, list[str]]]:
    yield "accuracy", [_percent(o.accuracy) for o in outcomes]
    for epsilon in epsilons:
        yield f"certified at ε = {epsilon:g}", [_percent(o.certified_accuracy(epsilon)) for o in outcomes]
    yield "median radius, all images", [_down(float(np.median(o.prediction.radius)), 2) for o in outcomes]
    yield "proven L (per grey level)", [f"{o.bound:8}" for o in outcomes]
    yield "observed L, from below", [_down(o.estimate.value, 8) for o in outcomes]
    yield "bound / observed", [f"{o.bound.value / o.estimate.value:.3f}" for o in outcomes]
    for stage in ("train", "export", "certify", "estimate"):
        label = "export + proof" if stage == "export" else stage
        yield f"time: {label}", [f"{o.seconds[stage]:.1f} s" for o in outcomes]


def _one_prediction(outcomes: Sequence[Outcome], data: Dataset) -> str:
    """The first held-out image, as the better network answers it."""
    best = max(outcomes, key=lambda outcome: float(np.median(outcome.prediction.radius)))
    label, radius = int(best.prediction.label[0]), float(best.prediction.radius[0])
    title, name, truth = best.recipe.title, data.classes[label], data.classes[int(data.test_labels[0])]
    return (
        f"\nHeld-out image 0 (label: {truth}): the {title} says {name}, and no change of the image by less than "
        f"{_down(radius, 2)} {data.units} in ℓ2 makes the served program say anything else."
    )


def _percent(share: Fraction) -> str:
    return f"{int(share * 1000) / 10:.1f} %"


def _down(value: float, digits: int) -> str:
    """``value`` with so many digits behind the point, never rounded up."""
    text = f"{value:.{digits}f}"
    return text if float(text) <= value else f"{value - 10.0**-digits:.{digits}f}"


def _plot(outcomes: Sequence[Outcome], data: Dataset, path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.3), layout="constrained")
    widest = max(float(np.quantile(outcome.prediction.radius, 0.995)) for outcome in outcomes)
    for outcome in outcomes:
        radii = np.linspace(0, widest, 400)
        curve = [float(100 * outcome.certified_accuracy(radius)) for radius in radii]
        axes.plot(radii, curve, label=f"{outcome.recipe.title} (L ≤ {outcome.bound:6} per grey level)")
    axes.set(xlabel=f"ℓ2 radius in {data.units}", ylabel="certified accuracy in %", xlim=(0, widest), ylim=(0, 100))
    axes.set_title(f"{data.name}: {len(data.test_labels)} held-out images, guarantee '{outcome.prediction.guarantee}'")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except lip.LipdeployError as error:
        hint = f" (try: {error.hint})" if error.hint else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        sys.exit(error.exit_code)
