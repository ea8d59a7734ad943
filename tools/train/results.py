"""Certified accuracy of trained networks, for docs/results.md: train, export, prove, certify, in both guarantees.

::

    python tools/train/results.py                  # everything that is not in build/results yet, about half an hour
    python tools/train/results.py --data mnist     # one data set

What is done stays in build/results: training goes on after its last epoch, certification after its last journal, and
a finished network is not trained again (delete its .onnx file to do so). After each network, docs/results.md is
written anew from what is there. Exit code 2 when a data set is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOOLS))

import numpy as np
import onnxruntime
import torch
from demo_data import Dataset, DatasetMissing, fashion, mnist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from training import FASHION_RESULTS, MNIST_RESULTS, Recipe, steps, train

import lipdeploy as lip
from lipdeploy.certify.results import percent_down
from lipdeploy.cli.main import main as lipdeploy

FOLDER = TOOLS.parent / "build" / "results"
PAGE = TOOLS.parent / "docs" / "results.md"
TASKS: dict[str, tuple[str, Callable[[], Dataset], tuple[Recipe, ...]]] = {
    "mnist": ("MNIST", mnist, MNIST_RESULTS),
    "fashion": ("Fashion-MNIST", fashion, FASHION_RESULTS),
}
EPSILONS = ("0.1", "0.3", "0.5", "1.0", "1.58")
MODES = ("f64", "adaptive", "network")
BEGIN, END = "<!-- numbers -->\n", "<!-- end of numbers -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=sorted(TASKS), action="append", help="data set (default: both)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in options.data or TASKS:
        _, load, recipes = TASKS[name]
        try:
            data = load()
        except DatasetMissing as missing:
            console.print(f"error: {missing}", markup=False, soft_wrap=True)
            return 2
        samples = _write_samples(data)
        for recipe in recipes:
            model = _model(recipe, data, console)
            for mode in MODES:
                _certify(model, samples, mode)
            _write_page()
    return 0


def _write_samples(data: Dataset) -> Path:
    """The held-out images in [0, 1], as the networks take them."""
    path = FOLDER / f"{data.name}_test.npz"
    if not path.is_file():
        images = data.test_images / np.float32(data.full_scale)
        np.savez(path, x=images, y=data.test_labels)
    return path


def _model(recipe: Recipe, data: Dataset, console: Console) -> Path:
    path = FOLDER / f"{recipe.stem}.onnx"
    if path.is_file():
        return path
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    checkpoint = FOLDER / f"{recipe.stem}.checkpoint"
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"{data.name}: {recipe.title}", total=steps(recipe, len(data.train_images)))
        images = data.train_images / np.float32(data.full_scale)
        network = train(recipe, images, data.train_labels, lambda: progress.advance(task), checkpoint)
    seconds = torch.load(checkpoint, weights_only=True)["seconds"]
    example = data.test_images[:16] / np.float32(data.full_scale)
    lip.export(network, example, path, max_lipschitz=1.0, normalize=True, class_names=data.classes)
    (FOLDER / f"{recipe.stem}.training.json").write_text(json.dumps({"cpu_seconds": seconds}))
    return path


def _report(recipe: Recipe, mode: str) -> Path:
    return FOLDER / f"{recipe.stem}.{mode}.json"


def _certify(model: Path, samples: Path, mode: str) -> None:
    report = model.with_suffix(f".{mode}.json")
    if report.is_file() and report.stat().st_mtime > model.stat().st_mtime:
        return
    words = ["certify", str(model), str(samples), "--certify", mode, "--json", "--output", str(report)]
    words += ["--resume", str(report.with_suffix(".journal")), "--report", str(report.with_suffix(".html"))]
    for epsilon in EPSILONS:
        words += ["--epsilon", epsilon]
    code = lipdeploy(words)
    if code:
        raise RuntimeError(f"lipdeploy {' '.join(words)} ended with code {code}")


def _write_page() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(_tables(title, recipes) for title, _, recipes in TASKS.values())
    PAGE.write_text(f"{before}{BEGIN}{_machine()}\n\n{tables}{END}{after}", "utf-8")


def _machine() -> str:
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, ONNX Runtime {onnxruntime.__version__}"
    return f"{_processor()}, shared; {versions} (CPU provider), torch {torch.__version__.partition('+')[0]}."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} cores of an {models[0]}" if models else platform.machine()


def _tables(title: str, recipes: Sequence[Recipe]) -> str:
    text = [f"## {title}\n"]
    for recipe in recipes:
        if not all(_report(recipe, mode).is_file() for mode in MODES):
            continue
        deployed, adaptive, network = (json.loads(_report(recipe, mode).read_text()) for mode in MODES)
        text += [f"**{recipe.title}**: {_facts(recipe, deployed)}\n", *_lines(deployed, adaptive, network), ""]
    return "\n".join(text) + "\n"


def _facts(recipe: Recipe, report: dict[str, Any]) -> str:
    trained = json.loads((FOLDER / f"{recipe.stem}.training.json").read_text())["cpu_seconds"]
    return (
        f"accuracy {_percent(report['correct'], report['rows'])}, L ≤ {report['lipschitz_bound']!r}, proven in "
        f"{report['verification_seconds']:.2f} s; {recipe.epochs} epochs in {trained:.0f} CPU seconds; "
        f"{report['rows']} images certified in {report['elapsed_seconds']:.1f} s."
    )


def _lines(deployed: dict[str, Any], adaptive: dict[str, Any], network: dict[str, Any]) -> list[str]:
    lines = [
        "| ε (ℓ2) | certified, `network` | certified, `deployed` (f64) | lost | certified, `deployed` (adaptive) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for columns in zip(network["at"], deployed["at"], adaptive["at"], strict=True):
        counts, rows = [column["certified_correct"] for column in columns], deployed["rows"]
        shares = [_percent(count, rows) for count in counts]
        lost = f"{float(Fraction(100 * (counts[0] - counts[1]), rows)):.2f} points"
        lines.append(f"| {columns[0]['epsilon']:g} | {shares[0]} | {shares[1]} | {lost} | {shares[2]} |")
    return lines


def _percent(count: int, rows: int) -> str:
    return f"{percent_down(Fraction(count, rows))} %"


if __name__ == "__main__":
    sys.exit(main())
