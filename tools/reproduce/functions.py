"""One-dimensional functions with slopes in [−1, 1], fitted by 1-Lipschitz networks with six activations.

Paper A (arXiv 2210.16222), first experiment: f1 is a zigzag whose slopes 1 and −1 alternate between nine random places,
f2 one with slopes −1, 0, 1, and f3 = cos(7πx)/(7π), on [−1, 1]. Networks 1-10-10-10-1 with orthonormal weights; every
activation gets the same starts, points, batches and number of steps, and its own learning rate. Everything of one
activation trains side by side, as one network of blocks that do not touch each other.

The rates were chosen with ``--trial`` on the seeds 100 to 104, by a rule fixed before: of `GRID`, the rate with the
smallest geometric mean over f1, f2, f3 of the median error. The seeds of the table, 200 to 224, were not seen before.
``--published`` has the authors' own settings in place of these: one rate for all, and five times as many steps.

::

    python tools/reproduce/functions.py --quick                      # about a minute of one core
    python tools/reproduce/functions.py --published                  # half an hour
    python tools/reproduce/functions.py --trial --output /tmp/trial  # every rate of the grid, on other seeds
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    Options,
    along_the_constraint,
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
from torch import Tensor, nn

from lipdeploy.nn import GroupSort, Householder, LinearSpline, bake, parameter_groups, tv2

WIDTH, DEPTH = 10, 3
Target = Callable[[Tensor], Tensor]

#: The learning rates that a trial compares.
GRID = (0.008, 0.016, 0.032, 0.064)
#: What the trial chose.
RATES = {
    "ReLU": 0.008,
    "absolute value": 0.016,
    "PReLU": 0.032,
    "GroupSort": 0.016,
    "Householder": 0.032,
    "spline": 0.016,
}


@dataclass(frozen=True)
class Config:
    """Ours; `PUBLISHED` has the paper's values.

    ``spline_ratio``: the learning rate of the splines' coefficients, relative to the weights'. Finer knots than these
    see few points each, and learn slowly. ``rate``: one for all, instead of `RATES`; ``decay``: by a cosine, to 0.
    """

    seeds: int = 25
    steps: int = 20_000
    batch: int = 100
    train: int = 1000
    test: int = 10_000
    tv2_weight: float = 0.0
    spline_ratio: float = 1 / 10
    spline_start: str = "absolute_value"
    prelu_start: float = -1.0
    knots: int = 11
    limit: float = 0.5
    rate: float | None = None
    decay: bool = True


#: The authors' configuration for splines, and the same batches, steps and rate for the other activations.
PUBLISHED = Config(
    steps=100_000,
    batch=10,
    tv2_weight=1e-7,
    spline_ratio=1 / 40,
    spline_start="relu",
    knots=101,
    rate=2e-3,
    decay=False,
)


class Block(NamedTuple):
    """One network of those that train side by side: what it fits, from which start and points, how fast."""

    function: str
    seed: int
    rate: float


def zigzag(corners: np.ndarray, slopes: Sequence[float]) -> Target:
    """A piecewise linear function on [−1, 1] with mean 0; slope k holds up to ``corners[k]``, the last to 1."""
    knots = np.array([-1.0, *corners, 1.0])
    values = np.concatenate([[0.0], np.cumsum(np.diff(knots) * slopes)])
    values -= np.trapezoid(values, knots) / 2
    return lambda x: torch.from_numpy(np.interp(x.numpy(), knots, values).astype(np.float32))


def alternating(corners: int, seed: int) -> Target:
    """Slopes 1 and −1 in turns, between places drawn at random."""
    places = np.sort(2 * np.random.RandomState(seed).rand(corners) - 1)
    return zigzag(places, [(-1.0) ** k for k in range(corners + 1)])


def with_flats(corners: int, seed: int) -> Target:
    """Slopes −1, 0, 1, starting with 1, between places drawn at random; at each one of the two others takes over."""
    random = np.random.RandomState(seed)
    places = np.sort(2 * random.rand(2 * corners)[corners:] - 1)
    others = {1: (0, -1), 0: (-1, 1), -1: (0, 1)}
    slopes = [1]
    for _ in range(corners):
        slopes.append(others[slopes[-1]][random.randint(2)])
    return zigzag(places, slopes)


#: The authors' published configuration: nine corners, seed 5, and the order in which their code draws.
FUNCTIONS: dict[str, Target] = {
    "f1": alternating(9, 5),
    "f2": with_flats(9, 5),
    "f3": lambda x: torch.cos(7 * math.pi * x) / (7 * math.pi),
}


class Absolute(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        return x.abs()


class ClippedPReLU(nn.Module):
    """PReLU with its slope clipped to [−1, 1] in ``forward``, as paper A does."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels)."""
        return nn.functional.prelu(x, self.weight.clamp(-1, 1))


def activation(name: str, channels: int, config: Config) -> nn.Module:
    """One layer of the named activation for ``channels`` neurons."""
    if name == "spline":
        return LinearSpline(channels, config.knots, config.limit, init=config.spline_start)
    makers: dict[str, Callable[[], nn.Module]] = {
        "ReLU": nn.ReLU,
        "absolute value": Absolute,
        "PReLU": lambda: ClippedPReLU(channels, config.prelu_start),
        "GroupSort": lambda: GroupSort(5),
        "Householder": lambda: Householder(channels, layout="adjacent"),
    }
    return makers[name]()


ACTIVATIONS = ("ReLU", "absolute value", "PReLU", "GroupSort", "Householder", "spline")


class Blocks(nn.Module):
    """Dense layers side by side, one for each of ``seeds``: (N, count·in) to (N, count·out)."""

    def __init__(self, seeds: Sequence[int], size: int, width: int) -> None:
        super().__init__()
        starts = [_start(seed, size, width) for seed in seeds]
        self.weight = nn.Parameter(torch.stack([weight for weight, _ in starts]))
        self.bias = nn.Parameter(torch.stack([bias for _, bias in starts]))

    def forward(self, x: Tensor) -> Tensor:
        """One matrix product per block."""
        count, width, size = self.weight.shape
        blocks = x.view(-1, count, size).transpose(0, 1)
        return torch.baddbmm(self.bias, blocks, self.weight.mT).transpose(0, 1).reshape(-1, count * width)


def _start(seed: int, size: int, width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return nn.init.orthogonal_(torch.empty(width, size)), 0.2 * torch.randn(1, width)


def network(name: str, seeds: Sequence[int], config: Config) -> nn.Sequential:
    """Networks 1-10-10-10-1, one per entry of ``seeds``, side by side; a seed's start is the same for every name."""
    sizes = [1, *[WIDTH] * DEPTH, 1]
    layers: list[nn.Module] = []
    for depth, (size, width) in enumerate(pairwise(sizes)):
        starts = [1000 * seed + depth for seed in seeds]
        layers += [Blocks(starts, size, width), activation(name, len(seeds) * WIDTH, config)]
    return nn.Sequential(*layers[:-1])


def samples(blocks: Sequence[Block], count: int) -> tuple[Tensor, Tensor]:
    """Training points and values, (count, blocks), the points drawn anew for each seed."""
    columns = [2 * torch.rand(count, generator=torch.Generator().manual_seed(block.seed)) - 1 for block in blocks]
    values = [FUNCTIONS[block.function](column) for block, column in zip(blocks, columns, strict=True)]
    return torch.stack(columns, dim=1), torch.stack(values, dim=1)


def train(name: str, blocks: Sequence[Block], config: Config) -> nn.Sequential:
    """Fit every block: mean squared error plus TV(2), weights kept orthonormal; the same batches for all."""
    nets = network(name, [block.seed for block in blocks], config)
    x, y = samples(blocks, config.train)
    step = adam(nets, [block.rate for block in blocks], config)
    torch.manual_seed(blocks[0].seed)
    with progress(name, config.steps) as advance:
        for _ in range(config.steps):
            batch = torch.randint(config.train, (config.batch,))
            nets.zero_grad()
            loss = (nets(x[batch]) - y[batch]).square().mean(dim=0).sum()
            if config.tv2_weight:
                loss = loss + config.tv2_weight * tv2(nets)
            loss.backward()
            along_the_constraint(nets, Blocks)
            step()
            retract(nets, 1)
            advance()
    retract(nets, 12)
    return nets.eval()


def adam(nets: nn.Module, rates: Sequence[float], config: Config) -> Callable[[], None]:
    """A step of Adam, with a cosine schedule where the rate decays; block k of ``nets`` moves at ``rates[k]``.

    Adam's moments do not depend on the rate, so all blocks make the largest rate's step, of which each keeps its share.
    """
    fastest = max(rates)
    groups = parameter_groups(nets, fastest)
    for group in groups:
        if group["name"] == "splines":
            group["lr"] = fastest * config.spline_ratio
    optimiser = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    shares = torch.tensor([rate / fastest for rate in rates])
    slowed = [] if min(rates) == fastest else [(p, _rows(shares, p)) for p in nets.parameters()]

    @torch.no_grad()
    def step() -> None:
        before = [parameter.clone() for parameter, _ in slowed]
        optimiser.step()
        if config.decay:
            schedule.step()
        for (parameter, share), old in zip(slowed, before, strict=True):
            parameter.copy_(old.lerp(parameter, share))

    return step


def _rows(shares: Tensor, parameter: Tensor) -> Tensor:
    """Each block's entry of ``shares`` for each of its rows of ``parameter``."""
    repeated = shares.repeat_interleave(parameter.shape[0] // len(shares))
    return repeated.view(-1, *[1] * (parameter.ndim - 1))


@torch.no_grad()
def retract(nets: nn.Module, iterations: int) -> None:
    """Keep every block orthonormal; the last iterations run in float64."""
    for layer in nets.modules():
        if isinstance(layer, Blocks):
            weight = layer.weight.double() if iterations > 1 else layer.weight
            layer.weight.copy_(orthonormal(weight, iterations, basin=1.5))


@torch.no_grad()
def single(nets: nn.Sequential, index: int, count: int, name: str, config: Config) -> nn.Module:
    """Network number ``index`` of ``count``, cut out of the blocks, as plain layers."""
    alone = network(name, [0], config).eval()
    state = {}
    for key, value in nets.state_dict().items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] != 1:
            rows = value.shape[0] // count
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


@torch.no_grad()
def squared_errors(nets: nn.Sequential, blocks: Sequence[Block], config: Config) -> list[float]:
    """The mean squared error of every block, on ``config.test`` points."""
    x = torch.linspace(-1, 1, config.test)
    values = nets(x[:, None].expand(-1, len(blocks)))
    targets = torch.stack([FUNCTIONS[block.function](x) for block in blocks], dim=1)
    errors: list[float] = (values - targets).double().square().mean(dim=0).tolist()
    return errors


def run(options: Options, experiment: str, name: str, config: Config) -> dict[str, Any]:
    """Train one activation; per function, export and prove the network with the median error."""
    seeds = range(options.seed, options.seed + config.seeds)
    blocks = [Block(function, seed, config.rate or RATES[name]) for function, seed in product(FUNCTIONS, seeds)]

    def make() -> dict[str, Any]:
        nets = train(name, blocks, config)
        errors = squared_errors(nets, blocks, config)
        results = {}
        for number, function in enumerate(FUNCTIONS):
            mine = range(number * config.seeds, (number + 1) * config.seeds)
            middle = sorted(mine, key=errors.__getitem__)[config.seeds // 2]
            alone = single(nets, middle, len(blocks), name, config)
            found = [errors[index] for index in mine]
            results[function] = {"errors": found, "median": errors[middle], "best": min(found)}
            results[function] |= _exported(options, f"{experiment}_{function}_{_stem(name)}", alone, config)
        return {"functions": results}

    return once(options, f"{experiment}_{_stem(name)}", [config, *blocks], make)


def _stem(name: str) -> str:
    return name.replace(" ", "_")


@torch.no_grad()
def _exported(options: Options, stem: str, net: nn.Module, config: Config) -> dict[str, Any]:
    x = torch.linspace(-1, 1, config.test)[:, None]
    bound = prove(net, x[:16], options.folder / f"{stem}.onnx")
    return {"proven": bound, "curve": net(x[:: max(1, config.test // 500)]).flatten().tolist()}


def trial(options: Options, name: str, config: Config) -> dict[str, Any]:
    """The median error per rate of the grid and function, their geometric mean per rate, and the best rate."""
    seeds = range(options.seed, options.seed + config.seeds)
    blocks = [Block(function, seed, rate) for rate, function, seed in product(GRID, FUNCTIONS, seeds)]

    def make() -> dict[str, Any]:
        errors = squared_errors(train(name, blocks, config), blocks, config)
        shaped = torch.tensor(errors, dtype=torch.float64).view(len(GRID), len(FUNCTIONS), config.seeds)
        medians = shaped.median(dim=2).values
        means = medians.log().mean(dim=1).exp().tolist()
        return {"errors": shaped.tolist(), "medians": medians.tolist(), "means": means}

    result = once(options, f"trial_{_stem(name)}", [config, *blocks], make)
    return {**result, "rate": GRID[min(range(len(GRID)), key=result["means"].__getitem__)]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--trial", action="store_true", help="compare learning rates only")
    own.add_argument("--published", action="store_true", help="the settings of the paper's authors")
    own.add_argument("--only", choices=ACTIVATIONS, help="this activation alone")
    own.add_argument("--seeds", type=int, help="how many, from --seed on")
    own.add_argument("--tv2-weight", type=float, help="of the regularisation")
    own.add_argument("--spline-ratio", type=float, help="learning rate of splines over that of weights")
    own.add_argument("--prelu-start", type=float, help="initial slope of PReLU")
    chosen, _ = own.parse_known_args(arguments)
    options = parse(__doc__, arguments, seed=100 if chosen.trial else 200, own=own)
    config = PUBLISHED if chosen.published else Config()
    changes = {name: getattr(chosen, name) for name in ("tv2_weight", "spline_ratio", "prelu_start")}
    config = replace(
        config,
        seeds=chosen.seeds or (5 if chosen.trial or options.quick else config.seeds),
        steps=options.budget(1000, config.steps),
        test=2000 if options.quick else config.test,
        **{name: value for name, value in changes.items() if value is not None},
    )
    names = (chosen.only,) if chosen.only else ACTIVATIONS
    seeds = f"the seeds {options.seed} to {options.seed + config.seeds - 1}, {config.steps} steps"
    if chosen.trial:
        _compare_rates(options, names, config, seeds)
    else:
        _fill_table(options, "published" if chosen.published else "functions", names, config, seeds)
    return 0


def _compare_rates(options: Options, names: Sequence[str], config: Config, seeds: str) -> None:
    results = {name: trial(options, name, config) for name in names}
    write(options, "functions_trial", config, results)
    rows = [
        (name, rate, *(f"{m:.1e}" for m in medians), f"{mean:.2e}", "best" if rate == result["rate"] else "")
        for name, result in results.items()
        for rate, medians, mean in zip(GRID, result["medians"], result["means"], strict=True)
    ]
    columns = ("activation", "rate", *FUNCTIONS, "geometric mean", "")
    table(f"Median of the mean squared errors of {seeds}", columns, rows)


def _fill_table(options: Options, experiment: str, names: Sequence[str], config: Config, seeds: str) -> None:
    runs = {name: run(options, experiment, name, config) for name in names}
    results = {function: {name: r["functions"][function] for name, r in runs.items()} for function in FUNCTIONS}
    seconds = {name: r["cpu_seconds"] for name, r in runs.items()}
    rates = {name: config.rate or RATES[name] for name in names}
    write(options, experiment, config, {**results, "rates": rates, "cpu_seconds": seconds})
    _plot(options, experiment, results, config)
    rows = [
        (
            name,
            rates[name],
            *(f"{row[name]['median']:.1e} ({row[name]['best']:.1e})" for row in results.values()),
            rounded_up(max(row[name]["proven"] for row in results.values())),
            seconds[name],
        )
        for name in names
    ]
    columns = ("activation", "rate", *results, "largest proven L", "CPU s")
    table(f"Mean squared error, median (best) of {seeds}", columns, rows)


def _plot(options: Options, experiment: str, results: dict[str, Any], config: Config) -> None:
    """Per function the errors along x, which differ by orders of magnitude: curves on top of each other say nothing."""
    pyplot = plt()
    figure, axes = pyplot.subplots(len(results), 2, figsize=(11, 9), sharex=True, squeeze=False)
    x = torch.linspace(-1, 1, config.test)[:: max(1, config.test // 500)]
    for (function, row), (above, below) in zip(results.items(), axes, strict=True):
        above.plot(x, FUNCTIONS[function](x), color="black", linewidth=4, alpha=0.25, label="target")
        for k, (name, result) in enumerate(row.items()):
            gap = torch.tensor(result["curve"]) - FUNCTIONS[function](x)
            above.plot(x, result["curve"], linewidth=0.8, color=f"C{k}")
            below.semilogy(
                x, gap.abs().clamp(min=1e-8), linewidth=0.8, color=f"C{k}", label=f"{name} {result['median']:.1e}"
            )
        above.set_ylabel(function)
        below.legend(
            fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), title="median squared error", title_fontsize=7
        )
    axes[0, 0].set_title("target (grey) and networks, the median seed")
    axes[0, 1].set_title("distance from the target")
    axes[-1, 0].set_xticks([-1, -0.5, 0, 0.5, 1])
    figure.tight_layout()
    figure.savefig(options.folder / f"{experiment}.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
