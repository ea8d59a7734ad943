"""Provably robust digit classifiers: rows in the ℓ1 ball for ℓ∞, orthonormal matrices for ℓ2.

Paper B (arXiv 1811.05381): MLPs with MaxMin on MNIST; in ℓ∞ every row is projected to the ℓ1 ball after each step and
the multi-margin hinge asks for the margin 2ε, in ℓ2 the layers are orthonormal. The paper's size and budget are
``--hidden 1024,1024,1024 --epochs 200``. Every network is exported, verified and
certified; the certified accuracy is that of the file. Without MNIST, scikit-learn's digits stand in (``--data
digits``).

::

    python tools/reproduce/classifiers.py --quick    # less than a minute of one core
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from common import (
    Options,
    along_the_constraint,
    certified,
    once,
    orthonormal,
    parse,
    plt,
    progress,
    prove,
    rounded_up,
    table,
    write,
)
from demo_data import Dataset, DatasetMissing, digits, mnist
from torch import Tensor, nn

from lipdeploy.nn import (
    GroupSort,
    LinearSpline,
    MaxMin,
    bake,
    hinge_margin_loss,
    offset_cross_entropy,
    parameter_groups,
)
from lipdeploy.nn.linear import project_rows_l1

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """One classifier. ``epsilon`` is the radius trained for, images in [0, 1]; 0.15 in ℓ∞ is a margin of 0.3."""

    title: str
    norm: str
    activation: str
    epsilon: float
    radii: tuple[float, ...]
    learning_rate: float
    hidden: tuple[int, ...] = (256, 256, 256)
    epochs: int = 20
    batch: int = 256
    momentum: bool = False


CONFIGS = {
    "linf": Config(
        "MaxMin, rows in the ℓ1 ball", "linf", "MaxMin", 0.15, (0.02, 0.05, 0.1, 0.3), 0.3, epochs=60, momentum=True
    ),
    "l2": Config("GroupSort(2), orthonormal", "l2", "GroupSort(2)", 0.5, (0.1, 0.3, 0.5, 1.58), 5e-3),
    "l2_spline": Config("splines, orthonormal", "l2", "spline", 0.5, (0.1, 0.3, 0.5, 1.58), 5e-3),
    "l2_relu": Config("ReLU, orthonormal", "l2", "ReLU", 0.5, (0.1, 0.3, 0.5, 1.58), 5e-3),
}
QUICK: dict[str, Any] = {"hidden": (128, 128), "epochs": 3}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "MaxMin": lambda width: MaxMin(),
    "GroupSort(2)": lambda width: GroupSort(2),
    "spline": lambda width: LinearSpline(width, 21, 1.0, init="absolute_value"),
    "ReLU": lambda width: nn.ReLU(),
}


def network(config: Config, size: int) -> nn.Sequential:
    """An MLP whose dense layers start inside their constraint."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in config.hidden:
        layers += [_dense(size, width, config.norm), ACTIVATIONS[config.activation](width)]
        size = width
    return nn.Sequential(*layers, _dense(size, 10, config.norm))


def _dense(size: int, width: int, norm: str) -> nn.Linear:
    layer = nn.Linear(size, width)
    nn.init.orthogonal_(layer.weight)
    if norm == "linf":
        with torch.no_grad():
            layer.weight.div_(layer.weight.abs().sum(dim=1, keepdim=True))
    return layer


@torch.no_grad()
def rows_to_ball(weight: Tensor, passes: int = 12) -> Tensor:
    """``project_rows_l1`` for training: Newton's steps towards the threshold, which cost a third of sorting.

    They come from below, so that a row may end outside where ``passes`` did not suffice, never too far inside.
    """
    size = weight.abs()
    threshold = torch.zeros_like(size[:, :1])
    for _ in range(passes):
        kept = size > threshold
        better = ((size * kept).sum(dim=1, keepdim=True) - 1) / kept.sum(dim=1, keepdim=True).clamp(min=1)
        if bool((better <= threshold).all()):
            break
        threshold = torch.maximum(threshold, better)
    return weight.sign() * (size - threshold).clamp(min=0)


@torch.no_grad()
def constrain(network: nn.Module, norm: str, final: bool = False) -> None:
    """After a step: rows to the ℓ1 ball, or one Björck iteration; at the end in float64 and a hair inside."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.double() if final else layer.weight
            if norm == "linf":
                weight = project_rows_l1(weight, 1 - 1e-6) if final else rows_to_ball(weight)
            else:
                weight = orthonormal(weight, 12 if final else 1) * (1 - 1e-6 if final else 1)
            layer.weight.copy_(weight)


def loss_of(config: Config) -> Loss:
    """The paper's hinge in ℓ∞; in ℓ2 the cross-entropy with an offset, which trains faster in few epochs."""
    if config.norm == "linf":
        return lambda y, labels: hinge_margin_loss(y, labels, epsilon=config.epsilon, norm="linf")
    return lambda y, labels: offset_cross_entropy(y, labels, epsilon=config.epsilon, temperature=0.1)


def optimiser_of(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """Adam or momentum. In ℓ∞ Adam moves all entries of a row alike, and the projection takes most of that back."""
    if config.momentum:
        return torch.optim.SGD(net.parameters(), config.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.Adam(parameter_groups(net, config.learning_rate))


def train(config: Config, options: Options, data: Dataset) -> nn.Module:
    """A cosine schedule, the constraint restored after every step."""
    torch.manual_seed(options.seed)
    images = torch.from_numpy(data.train_images / np.float32(data.full_scale))
    labels = torch.from_numpy(data.train_labels)
    net, loss = network(config, images[0].numel()), loss_of(config)
    epochs = max(config.epochs, 40 * config.epochs * config.batch // len(images))  # a small set needs steps, not epochs
    steps = options.steps or epochs * (len(images) // config.batch)
    optimiser = optimiser_of(config, net)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with progress(f"{data.name}: {config.title}", steps) as advance:
        for _ in range(steps):
            batch = torch.randint(len(images), (config.batch,))
            optimiser.zero_grad()
            loss(net(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            if config.norm == "l2":
                along_the_constraint(net)
            optimiser.step()
            schedule.step()
            constrain(net, config.norm)
            advance()
    constrain(net, config.norm, final=True)
    return bake(net)


def run(options: Options, name: str, config: Config, data: Dataset) -> dict[str, Any]:
    """One classifier: trained, exported, proven and certified on the held-out images."""
    stem = f"classifier_{data.name}_{name}"

    def make() -> dict[str, Any]:
        net = train(config, options, data)
        images = data.test_images / np.float32(data.full_scale)
        path = options.folder / f"{stem}.onnx"
        proven = prove(net, torch.from_numpy(images[:16]), path, config.norm)
        return {"proven": proven, **certified(path, images, data.test_labels, config.radii, config.norm)}

    return once(options, stem, [config.__dict__, options.seed, options.quick, options.steps], make)


def load(name: str) -> Dataset:
    """MNIST, or scikit-learn's digits when that is asked for or MNIST is not there."""
    if name == "digits":
        return digits()
    try:
        return mnist()
    except DatasetMissing:
        return digits()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--data", choices=("mnist", "digits"), default="mnist", help="digits needs no download")
    own.add_argument("--hidden", type=_widths, help="widths of the hidden layers, such as 1024,1024,1024")
    own.add_argument("--epochs", type=int, help="instead of the budget's")
    chosen, _ = own.parse_known_args(arguments)
    options = parse(__doc__, arguments, own=own)
    data = load(chosen.data)
    given = {"hidden": chosen.hidden, "epochs": chosen.epochs}
    changed = (QUICK if options.quick else {}) | {key: value for key, value in given.items() if value}
    configs = {name: replace(config, **changed) for name, config in CONFIGS.items()}
    results = {name: run(options, name, config, data) for name, config in configs.items()}
    write(options, "classifiers", {name: config.__dict__ for name, config in configs.items()}, results)
    _plot(options, results, data)
    rows = []
    for name, r in results.items():
        shares = ", ".join(f"{share} % at {radius}" for radius, share in r["certified_accuracy"].items())
        config = CONFIGS[name]
        rows.append(
            (config.norm, config.title, rounded_up(r["proven"]), f"{r['accuracy']} %", shares, r["cpu_seconds"])
        )
    columns = ("norm", "network", "proven L", "accuracy", "certified accuracy at ε", "CPU s")
    table(f"{data.name}, {len(data.test_labels)} held-out images in [0, 1]", columns, rows)
    return 0


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


def _plot(options: Options, results: dict[str, Any], data: Dataset) -> None:
    pyplot = plt()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name, result in results.items():
        config = CONFIGS[name]
        shares = [result["accuracy"], *result["certified_accuracy"].values()]
        axes[int(config.norm == "l2")].plot([0, *config.radii], shares, "o:", label=config.title)
    for axis, norm in zip(axes, ("ℓ∞", "ℓ2"), strict=True):
        axis.set_xlabel(f"radius in {norm}, images in [0, 1]")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("certified accuracy, %")
    figure.suptitle(data.name)
    figure.tight_layout()
    figure.savefig(options.folder / "classifiers.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
