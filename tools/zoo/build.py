"""Small trained networks with certificates: train, export, prove, certify, and write a card for each.

::

    python tools/zoo/build.py                      # what is not in zoo/ yet; a few minutes of one core
    python tools/zoo/build.py --only digits_linf   # one of them
    python tools/zoo/build.py --list

Each folder of zoo/ holds model.onnx, model.cert.json and card.json; zoo/README.md is their table. The same seed gives
the same network on one machine. Exit code 2 when a data set is missing (the others are built).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOOLS), str(TOOLS / "reproduce")]

import classifiers
import denoising
import numpy as np
import torch
from common import Options, certified, progress
from demo_data import Dataset, DatasetMissing, digits, fashion, mnist
from torch import nn
from training import Recipe, steps, train

import lipdeploy as lip
from lipdeploy.nn import AOLConv2d, BjorckLinear, GroupSort, LinearSpline
from lipdeploy.verify.rounding import formatted_up

FOLDER = TOOLS.parent / "zoo"
L2_RADII, LINF_RADII = (0.1, 0.3, 0.5, 1.0), (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Entry:
    """One network of the zoo: what it is, and how it is made; ``make`` returns (network, card entries)."""

    about: str
    make: Callable[[Path, int | None], dict[str, Any]]


def _spline(channels: int) -> nn.Module:
    return LinearSpline(channels, num_knots=21, limit=1.0, init="absolute_value")


def _pairs(channels: int) -> nn.Module:
    return GroupSort(2)


def mlp(pixels: int, width: int, activation: Callable[[int], nn.Module]) -> nn.Module:
    """Three orthonormal dense layers."""
    sizes = [(pixels, width), (width, width)]
    hidden = [part for size in sizes for part in (BjorckLinear(*size, iterations=4, order=2), activation(size[1]))]
    return nn.Sequential(nn.Flatten(), *hidden, BjorckLinear(width, 10, iterations=4, order=2))


def conv_8x8(activation: Callable[[int], nn.Module]) -> nn.Module:
    """8 × 8 → 8 × 8 → 4 × 4, two dense layers."""
    return nn.Sequential(
        AOLConv2d(1, 8, 3, padding=1), activation(8), AOLConv2d(8, 16, 2, stride=2), activation(16), nn.Flatten(),
        BjorckLinear(256, 48, iterations=4, order=2), activation(48), BjorckLinear(48, 10, iterations=4, order=2),
    )  # fmt: skip


def conv_28x28(activation: Callable[[int], nn.Module]) -> nn.Module:
    """28 × 28 → 14 × 14 → 7 × 7, two dense layers."""
    return nn.Sequential(
        AOLConv2d(1, 8, 4, stride=2, padding=1), activation(8), AOLConv2d(8, 16, 4, stride=2, padding=1),
        activation(16), nn.Flatten(),
        BjorckLinear(784, 48, iterations=4, order=2), activation(48), BjorckLinear(48, 10, iterations=4, order=2),
    )  # fmt: skip


def classifier(data: Callable[[], Dataset], recipe: Recipe) -> Callable[[Path, int | None], dict[str, Any]]:
    """A network of ``training.Recipe``, certified in ℓ2."""

    def make(path: Path, limit: int | None) -> dict[str, Any]:
        source = _cut(data(), limit)
        images = source.train_images / np.float32(source.full_scale)
        with progress(f"{source.name}: {recipe.title}", steps(recipe, len(images))) as advance:
            network = train(recipe, images, source.train_labels, advance)
        how = (
            f"Adam, one cycle up to {recipe.learning_rate}, {recipe.epochs} epochs, batches of {recipe.batch_size}, "
            f"cross-entropy with the offset of radius {recipe.epsilon} (Prach & Lampert 2022), seed 0"
        )
        return {**_measure(network, source, path, "l2", L2_RADII), "data": source.name, "trained": how}

    return make


def linf_classifier(path: Path, limit: int | None) -> dict[str, Any]:
    """An MLP in ℓ∞ as in paper B, on scikit-learn's digits."""
    source = _cut(digits(), limit)
    config = classifiers.Config("MaxMin", "linf", "MaxMin", 0.08, LINF_RADII, 5e-3, hidden=(96, 96), batch=128)
    network = classifiers.train(config, Options(True, 0, 1500 if limit is None else 20, path.parent), source)
    how = "Adam, cosine from 0.005, 1500 steps of 128, hinge of radius 0.08, rows projected to the ℓ1 ball, seed 0"
    return {**_measure(network, source, path, "linf", LINF_RADII), "data": source.name, "trained": how}


def photo_denoiser(path: Path, limit: int | None) -> dict[str, Any]:
    """A spline denoiser as in tools/reproduce/denoising.py, of AOL convolutions; held-out PSNR in place of accuracy."""
    config = denoising.Config("AOL", layers=4, batch=16, steps=400, learning_rate=4e-3, trained_on=640)
    steps = config.steps if limit is None else 3
    network, _ = denoising.train("spline", config, Options(False, 0, steps, path.parent))
    clean = denoising.photographs()[1][:, :, 100:356, 200:456]
    torch.manual_seed(99)
    noisy = clean + config.sigma * torch.randn_like(clean)
    with torch.no_grad():
        quality = denoising.psnr(network(noisy), clean)
    result = lip.export(network, noisy[:, :, :64, :64], path, max_lipschitz=1.0)
    before = denoising.psnr(noisy, clean)
    return {
        "norm": "l2", "proven": _bound(result), "psnr_noisy": round(before, 2), "psnr": round(quality, 2),
        "data": "scikit-learn's photographs, Gaussian noise of 5/255",
        "trained": f"Adam, cosine from {config.learning_rate}, {steps} steps of {config.batch}, seed 0",
    }  # fmt: skip


def _measure(network: nn.Module, data: Dataset, path: Path, norm: str, radii: Sequence[float]) -> dict[str, Any]:
    images = data.test_images / np.float32(data.full_scale)
    example = torch.from_numpy(images[:16])
    options: dict[str, Any] = {"max_lipschitz": 1.0, "normalize": True, "class_names": data.classes}
    result = lip.export(network, example, path, norm=norm, **options)
    return {"norm": norm, "proven": _bound(result), **certified(path, images, data.test_labels, radii, norm)}


def _bound(result: lip.ExportResult) -> float:
    bound = result.verdict.lipschitz_bound
    if bound is None:
        raise RuntimeError(f"{result.path} was exported without a bound")
    return float(bound.value)


def _cut(data: Dataset, limit: int | None) -> Dataset:
    """The first ``limit`` images of both parts, for a try."""
    if limit is None:
        return data
    parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    return Dataset(data.name, *(part[:limit] for part in parts), data.full_scale, data.classes)


def _recipe(
    title: str, build: Callable[[], nn.Module], epochs: int, rate: float, epsilon: float, **more: Any
) -> Recipe:
    return Recipe(title, "zoo", build, epochs, rate, epsilon, **more)


ZOO: dict[str, Entry] = {
    "digits_group_sort_mlp": Entry(
        "GroupSort(2) MLP 64-96-96-10, orthonormal",
        classifier(digits, _recipe("GroupSort MLP", lambda: mlp(64, 96, _pairs), 40, 3e-3, 0.5)),
    ),
    "digits_spline_mlp": Entry(
        "learned-spline MLP 64-64-64-10, orthonormal",
        classifier(digits, _recipe("spline MLP", lambda: mlp(64, 64, _spline), 40, 1e-2, 0.5, tv2_weight=1e-6)),
    ),
    "digits_spline_conv": Entry(
        "AOL convolutions 8-16, dense 48-10, learned splines",
        classifier(digits, _recipe("spline conv net", lambda: conv_8x8(_spline), 30, 1e-2, 0.5, tv2_weight=1e-6)),
    ),
    "digits_linf": Entry("MaxMin MLP 64-96-96-10, rows in the ℓ1 ball", linf_classifier),
    "mnist_group_sort_conv": Entry(
        "AOL convolutions 8-16, dense 48-10, GroupSort(2)",
        classifier(mnist, _recipe("GroupSort conv net", lambda: conv_28x28(_pairs), 3, 1e-2, 0.5, batch_size=256)),
    ),
    "mnist_spline_conv": Entry(
        "AOL convolutions 8-16, dense 48-10, learned splines",
        classifier(mnist, _recipe("spline conv net", lambda: conv_28x28(_spline), 3, 1e-2, 0.5, batch_size=256)),
    ),
    "fashion_spline_conv": Entry(
        "AOL convolutions 8-16, dense 48-10, learned splines",
        classifier(fashion, _recipe("spline conv net", lambda: conv_28x28(_spline), 3, 1e-2, 0.4, batch_size=256)),
    ),
    "photo_spline_denoiser": Entry("(x + N(x))/2 with N of four AOL convolutions and learned splines", photo_denoiser),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=sorted(ZOO), action="append", help="build these (default: all)")
    parser.add_argument("--list", action="store_true", help="name the networks and stop")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: zoo)")
    parser.add_argument("--limit", type=int, help="use so many images only: a try, not a network to keep")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name}: {entry.about}" for name, entry in ZOO.items()))
        return 0
    missing = [name for name in options.only or ZOO if not _build(name, options.output, options.limit)]
    (options.output / "README.md").write_text(described(options.output), "utf-8")
    return 2 if missing else 0


def _build(name: str, folder: Path, limit: int | None) -> bool:
    """Whether the network is there now."""
    home = folder / name
    if (home / "card.json").is_file():
        return True
    home.mkdir(parents=True, exist_ok=True)
    path, began = home / "model.onnx", time.process_time()
    try:
        facts = ZOO[name].make(path, limit)
    except DatasetMissing as missing:
        home.rmdir()
        print(f"error: {name}: {missing}", file=sys.stderr)
        return False
    card = {
        "name": name, "network": ZOO[name].about, **facts,
        "command": f"python tools/zoo/build.py --only {name}", "cpu_seconds": round(time.process_time() - began, 1),
        "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch": torch.__version__, "license": "Apache-2.0, the data sets under their own terms",
    }  # fmt: skip
    (home / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return True


def described(folder: Path) -> str:
    """The table of all cards in ``folder``: what its README.md holds. Bounds are rounded up."""
    cards = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/card.json"))]
    lines = [
        "# The zoo",
        "",
        "Small trained networks with certificates, built by `make zoo` (`tools/zoo/build.py`). Each folder holds the",
        "model, its certificate and a card. `lipdeploy verify zoo/NAME/model.onnx` (with `--norm linf` where the card",
        "says so) proves the constant again and holds the certificate against it.",
        "Accuracies are those of the file on held-out images in [0, 1], rounded down.",
        "",
        "| network | what | norm | proven L | accuracy | certified accuracy at ε | kB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        shares = ", ".join(f"{share} % at {e}" for e, share in card.get("certified_accuracy", {}).items())
        quality = f"{card['accuracy']} %" if "accuracy" in card else f"{card['psnr_noisy']} → {card['psnr']} dB"
        proven = formatted_up(card["proven"], ".7f")
        cells = (card["name"], card["network"], card["norm"], proven, quality, shares or "–")
        lines.append(f"| {' | '.join(cells)} | {card['bytes'] / 1000:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
