"""Wasserstein-1 distances from their dual: the best 1-Lipschitz function, whose Lipschitz constant is then proven.

Paper B (arXiv 1811.05381): the absolute value (1-D), three cones (2-D) and a cone in 128 dimensions, all of true value
1, and the distance of two sets of digits, whose true value linear programming gives. Paper A compares learned splines
on the same kind of problem. For a network f with the *proven* constant L, (E_P f − E_Q f)/L is a lower bound of the
distance of the two samples, up to the rounding of float32: that is the number in the table.

::

    python tools/reproduce/dual.py --quick    # about three minutes of one core
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    rounded_down,
    rounded_up,
    table,
    write,
)
from torch import Tensor, nn

from lipdeploy.nn import FullSort, GroupSort, LinearSpline, bake, parameter_groups

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda width: nn.ReLU(),
    "GroupSort(2)": lambda width: GroupSort(2),
    "full sort": lambda width: FullSort(),
    "spline": lambda width: LinearSpline(width, 21, 0.15, init="absolute_value"),
}
Sampler = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """Two distributions and the network that tells them apart, of paper B's widths but for the digits.

    Paper B takes 3,600, 9,600 and 19,200 steps: ``--steps``.
    """

    size: int
    true_value: float | None
    hidden: tuple[int, ...]
    steps: int
    quick_hidden: tuple[int, ...]
    quick_steps: int
    batch: int = 256
    learning_rate: float = 2e-3


PROBLEMS = {
    "absolute value": Problem(1, 1.0, (128, 128), 1500, (64, 64), 1500),
    "three cones": Problem(2, 1.0, (312, 312, 312), 3000, (64, 64), 1000),
    "high-dimensional cone": Problem(128, 1.0, (256,) * 6, 1000, (256,) * 3, 1000),
    "digits, 0 against 1": Problem(64, None, (256, 256, 256), 1500, (128, 128), 500),
}


def sphere(count: int, size: int) -> Tensor:
    """Points of the unit sphere, uniform."""
    return nn.functional.normalize(torch.randn(count, size), dim=1)


def sampler(name: str) -> Sampler:
    """Draws equally many points of both distributions."""
    if name == "digits, 0 against 1":
        zeros, ones = digit_sets()
        return lambda n: (zeros[torch.randint(len(zeros), (n,))], ones[torch.randint(len(ones), (n,))])
    if name == "three cones":
        centres = torch.tensor([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]])

        def cones(count: int) -> tuple[Tensor, Tensor]:
            around = centres[torch.arange(count) % 3]
            return around + sphere(count, 2), around

        return cones
    size = PROBLEMS[name].size
    return lambda n: (sphere(n, size), torch.zeros(n, size))


def digit_sets() -> tuple[Tensor, Tensor]:
    """150 zeros and 150 ones of scikit-learn's digits, grey levels in [0, 1], flat."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images.reshape(-1, 64) / 16).astype(np.float32)
    parts = [torch.from_numpy(images[source.target == digit][:150]) for digit in (0, 1)]
    return parts[0], parts[1]


def exact_distance(first: Tensor, second: Tensor) -> float:
    """W1 of two samples of equal size, by the assignment problem (SciPy)."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    cost = cdist(first.double().numpy(), second.double().numpy())
    return float(cost[linear_sum_assignment(cost)].mean())


def evaluation(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """The samples that the reported value is taken on: all digits, or 9,999 fresh points."""
    torch.manual_seed(10_000 + seed)
    return digit_sets() if name == "digits, 0 against 1" else sampler(name)(9999)


def network(hidden: Sequence[int], size: int, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Dense layers that start orthonormal, and one number out."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [_dense(size, width), activation(width)]
        size = width
    return nn.Sequential(*layers, _dense(size, 1))


def _dense(size: int, width: int) -> nn.Linear:
    layer = nn.Linear(size, width)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)  # torch's start, ±1/√size, puts the kinks of pairs and splines outside of the data
    return layer


@torch.no_grad()
def retract(network: nn.Module, iterations: int) -> None:
    """Dense layers back to orthonormal rows or columns; the last iterations run in float64."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(orthonormal(layer.weight.double() if iterations > 1 else layer.weight, iterations))


def train(name: str, activation: str, options: Options, title: str) -> nn.Module:
    """Maximise E_P f − E_Q f over networks of orthonormal layers."""
    problem = PROBLEMS[name]
    torch.manual_seed(options.seed)
    hidden = problem.quick_hidden if options.quick else problem.hidden
    critic = network(hidden, problem.size, ACTIVATIONS[activation])
    steps = options.budget(problem.quick_steps, problem.steps)
    optimiser = torch.optim.Adam(parameter_groups(critic, problem.learning_rate), betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    draw = sampler(name)
    with progress(title, steps) as advance:
        for _ in range(steps):
            first, second = draw(problem.batch)
            optimiser.zero_grad()
            (critic(second).mean() - critic(first).mean()).backward()
            along_the_constraint(critic)
            optimiser.step()
            schedule.step()
            retract(critic, 1)
            advance()
    retract(critic, 12)
    return bake(critic)


def run(options: Options, name: str, activation: str) -> dict[str, Any]:
    """One critic: trained, exported, proven, and its value divided by what was proven."""
    stem = f"dual_{name}_{activation}".replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")

    def make() -> dict[str, Any]:
        critic = train(name, activation, options, f"{name}, {activation}")
        first, second = evaluation(name, options.seed)
        with torch.no_grad():
            value = float(critic.double()(first.double()).mean() - critic(second.double()).mean())
        proven = prove(critic.float(), first[:16], options.folder / f"{stem}.onnx")
        return {"value": value, "proven": proven, "lower_bound": value / proven, "true_value": true_value(name)}

    config = [PROBLEMS[name].__dict__, activation, options.seed, options.quick, options.steps]
    return once(options, stem, config, make)


def true_value(name: str) -> float:
    """1 for the synthetic problems, the assignment problem's for the digits."""
    known = PROBLEMS[name].true_value
    return exact_distance(*digit_sets()) if known is None else known


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    options = parse(__doc__, arguments)
    results = {name: {a: run(options, name, a) for a in ACTIVATIONS} for name in PROBLEMS}
    write(options, "dual", {name: problem.__dict__ for name, problem in PROBLEMS.items()}, results)
    _plot(options, results)
    rows = [
        (name, a, r["true_value"], rounded_up(r["proven"]), rounded_down(r["lower_bound"]), r["cpu_seconds"])
        for name, row in results.items()
        for a, r in row.items()
    ]
    columns = ("problem", "activation", "true W1", "proven L", "(E_P f − E_Q f) / proven L", "CPU s")
    table("Wasserstein-1 distances", columns, rows)
    return 0


def _plot(options: Options, results: dict[str, Any]) -> None:
    pyplot = plt()
    figure, axis = pyplot.subplots(figsize=(9, 4))
    names = list(ACTIVATIONS)
    for k, activation in enumerate(names):
        shares = [row[activation]["lower_bound"] / row[activation]["true_value"] for row in results.values()]
        axis.bar(np.arange(len(results)) + 0.2 * (k - 1.5), shares, 0.18, label=activation)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xticks(range(len(results)), results)
    axis.set_ylabel("value divided by the proven L, over true W1")
    axis.legend(ncol=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(options.folder / "dual.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
