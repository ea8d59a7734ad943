"""One-dimensional functions with slopes in [−1, 1], fitted by 1-Lipschitz networks with six activations.

Paper A (arXiv 2210.16222), first experiment: f1 is a random zigzag with slopes ±1, f2 one with slopes −1, 0, 1, and
f3 = cos(7πx)/(7π), on [−1, 1]. Networks 1-10-10-10-1 with orthonormal weights; every activation gets the same steps,
batches and learning rates. The seeds of one activation train side by side, as one network of blocks.

::

    python tools/reproduce/functions.py --quick    # about two minutes of one core
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common import Options, once, orthonormal, parse, plt, progress, prove, table, write
from torch import Tensor, nn

from lipdeploy.nn import GroupSort, Householder, LinearSpline, bake, parameter_groups, tv2

WIDTH, DEPTH = 10, 3


@dataclass(frozen=True)
class Config:
    """As in the paper but for ``batch`` (10 there) and the number of steps (100,000 there)."""

    seeds: int = 5
    steps: int = 100_000
    batch: int = 100
    train: int = 1000
    test: int = 10_000
    learning_rate: float = 4e-3
    tv2_weight: float = 1e-7
    knots: int = 101
    limit: float = 0.5


def zigzag(slopes: Sequence[float], seed: int) -> Callable[[Tensor], Tensor]:
    """A piecewise linear function with random slopes on 10 equal pieces of [−1, 1], shifted to mean 0."""
    generator = np.random.default_rng(seed)
    pieces = 10
    knots = np.linspace(-1, 1, pieces + 1)
    values = np.concatenate([[0.0], np.cumsum(generator.choice(slopes, pieces) * 2 / pieces)])
    values -= np.trapezoid(values, knots) / 2
    return lambda x: torch.from_numpy(np.interp(x.numpy(), knots, values).astype(np.float32))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "f1": zigzag((-1.0, 1.0), 1),
    "f2": zigzag((-1.0, 0.0, 1.0), 2),
    "f3": lambda x: torch.cos(7 * math.pi * x) / (7 * math.pi),
}


class Absolute(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        return x.abs()


class ClippedPReLU(nn.Module):
    """PReLU with its slope clipped to [−1, 1] in ``forward``, as paper A does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels)."""
        return nn.functional.prelu(x, self.weight.clamp(-1, 1))


def activation(name: str, channels: int, config: Config) -> nn.Module:
    """One layer of the named activation for ``channels`` neurons."""
    if name == "spline":
        return LinearSpline(channels, config.knots, config.limit, init="absolute_value")
    makers: dict[str, Callable[[], nn.Module]] = {
        "ReLU": nn.ReLU,
        "absolute value": Absolute,
        "PReLU": lambda: ClippedPReLU(channels),
        "GroupSort": lambda: GroupSort(5),
        "Householder": lambda: Householder(channels, layout="adjacent"),
    }
    return makers[name]()


ACTIVATIONS = ("ReLU", "absolute value", "PReLU", "GroupSort", "Householder", "spline")


class Blocks(nn.Module):
    """``count`` dense layers side by side: (N, count·in) to (N, count·out)."""

    def __init__(self, count: int, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(width, size)) for _ in range(count)]))
        self.bias = nn.Parameter(0.2 * torch.randn(count, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """One matrix product per block."""
        count, width, size = self.weight.shape
        blocks = x.view(-1, count, size).transpose(0, 1)
        return torch.baddbmm(self.bias, blocks, self.weight.mT).transpose(0, 1).reshape(-1, count * width)


def network(name: str, seeds: int, config: Config) -> nn.Sequential:
    """Networks 1-10-10-10-1, one per seed, side by side."""
    sizes = [1, *[WIDTH] * DEPTH, 1]
    layers: list[nn.Module] = []
    for size, width in pairwise(sizes):
        layers += [Blocks(seeds, size, width), activation(name, seeds * WIDTH, config)]
    return nn.Sequential(*layers[:-1])


def train(name: str, target: Callable[[Tensor], Tensor], config: Config, seed: int, title: str) -> nn.Sequential:
    """Mean squared error plus TV(2), weights brought back to orthonormal after every step."""
    torch.manual_seed(seed)
    nets = network(name, config.seeds, config)
    x = 2 * torch.rand(config.train, 1) - 1
    y = target(x)
    optimiser = torch.optim.Adam(parameter_groups(nets, config.learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    with progress(title, config.steps) as advance:
        for _ in range(config.steps):
            batch = torch.randint(config.train, (config.batch,))
            optimiser.zero_grad()
            error = (nets(x[batch].expand(-1, config.seeds)) - y[batch]).square().mean(dim=0).sum()
            (error + config.tv2_weight * tv2(nets)).backward()
            optimiser.step()
            schedule.step()
            retract(nets, 1)
            advance()
    retract(nets, 12)
    return nets.eval()


@torch.no_grad()
def retract(nets: nn.Module, iterations: int) -> None:
    """Keep every block orthonormal; the last iterations run in float64."""
    for layer in nets.modules():
        if isinstance(layer, Blocks):
            weight = layer.weight.double() if iterations > 1 else layer.weight
            layer.weight.copy_(orthonormal(weight, iterations))


@torch.no_grad()
def single(nets: nn.Sequential, index: int, name: str, config: Config) -> nn.Module:
    """The network of one seed, cut out of the blocks, as plain layers."""
    alone = network(name, 1, config).eval()
    state = {}
    for key, value in nets.state_dict().items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] != 1:
            rows = value.shape[0] // config.seeds
            value = value[index * rows : (index + 1) * rows]
        state[key] = value
    alone.load_state_dict(state)
    layers: list[nn.Module] = []
    for layer in bake(alone):  # type: ignore[attr-defined]
        if isinstance(layer, Blocks):
            dense = nn.Linear(layer.weight.shape[2], layer.weight.shape[1])
            dense.weight.copy_(layer.weight[0])
            dense.bias.copy_(layer.bias[0, 0])
            layer = dense
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def run(options: Options, function: str, name: str, config: Config) -> dict[str, Any]:
    """Train all seeds of one activation on one function; export and prove the network with the median error."""

    def make() -> dict[str, Any]:
        target = FUNCTIONS[function]
        nets = train(name, target, config, options.seed, f"{function}, {name}")
        x = torch.linspace(-1, 1, config.test)[:, None]
        with torch.no_grad():
            errors = (nets(x.expand(-1, config.seeds)) - target(x)).square().mean(dim=0).tolist()
        middle = sorted(range(config.seeds), key=errors.__getitem__)[config.seeds // 2]
        chosen = single(nets, middle, name, config)
        stem = f"functions_{function}_{name.replace(' ', '_')}"
        bound = prove(chosen, x[:16], options.folder / f"{stem}.onnx")
        with torch.no_grad():
            curve = chosen(x[:: max(1, config.test // 500)]).flatten().tolist()
        return {"errors": errors, "median": errors[middle], "best": min(errors), "proven": bound, "curve": curve}

    return once(options, f"functions_{function}_{name.replace(' ', '_')}", [config, options.seed], make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    options = parse(__doc__, arguments)
    steps = options.budget(2500, Config.steps)
    config = Config(steps=steps, test=2000 if options.quick else Config.test)
    results = {f: {name: run(options, f, name, config) for name in ACTIVATIONS} for f in FUNCTIONS}
    write(options, "functions", config, results)
    _plot(options, results, config)
    for function, row in results.items():
        columns = ("activation", "median error", "best error", "proven L (median net)", "CPU s")
        rows = [(n, r["median"], r["best"], f"{r['proven']:.7f}", r["cpu_seconds"]) for n, r in row.items()]
        table(f"{function}: mean squared error over {config.seeds} seeds, {steps} steps", columns, rows)
    return 0


def _plot(options: Options, results: dict[str, Any], config: Config) -> None:
    pyplot = plt()
    figure, axes = pyplot.subplots(len(results), 1, figsize=(9, 10), sharex=True, squeeze=False)
    for axis, (function, row) in zip(axes[:, 0], results.items(), strict=True):
        x = torch.linspace(-1, 1, config.test)[:: max(1, config.test // 500)]
        axis.plot(x, FUNCTIONS[function](x), color="black", linewidth=3, alpha=0.3, label="target")
        for name, result in row.items():
            axis.plot(x, result["curve"], linewidth=1, label=f"{name}: {result['median']:.1e}")
        axis.set_ylabel(function)
        axis.legend(fontsize=7, ncol=2)
    axes[0, 0].set_title("1-Lipschitz networks, the median seed; mean squared error in the legend")
    figure.tight_layout()
    figure.savefig(options.folder / "functions.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
