"""Seeded training of networks with sorting activations and learned splines: the demo and docs/results.md."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipdeploy.nn import (
    AOLConv2d,
    BjorckLinear,
    GroupSort,
    LinearSpline,
    bake,
    offset_cross_entropy,
    parameter_groups,
    tv2,
)

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How one network is made. ``epsilon`` is the radius trained for, in units of the full scale (images in [0, 1]).

    ``shift``: training images move by up to so many pixels each way. Dense layers are ``BjorckLinear``, or plain ones
    that ``retract`` keeps orthonormal: see there.
    """

    title: str
    stem: str
    build: Callable[[], nn.Module]
    epochs: int
    learning_rate: float
    epsilon: float
    temperature: float = 0.1
    batch_size: int = 64
    tv2_weight: float = 0.0
    shift: int = 0


def sorting_mlp(pixels: int, width: int, dense: Callable[[int, int], nn.Module] | None = None) -> nn.Module:
    """Three orthonormal dense layers with GroupSort(2) between them."""
    dense = dense or _dense
    return nn.Sequential(
        nn.Flatten(),
        dense(pixels, width),
        GroupSort(2),
        dense(width, width),
        GroupSort(2),
        dense(width, 10),
    )


def spline_conv_8x8() -> nn.Module:
    """Convolutions 8 × 8 → 8 × 8 → 4 × 4 and two dense layers, a learned spline per channel between them."""
    return nn.Sequential(
        AOLConv2d(1, 16, 3, padding=1),
        _spline(16),
        AOLConv2d(16, 64, 2, stride=2),
        _spline(64),
        nn.Flatten(),
        _dense(1024, 128),
        _spline(128),
        _dense(128, 10),
    )


def spline_conv_28x28(dense: Callable[[int, int], nn.Module] | None = None) -> nn.Module:
    """Strided convolutions 28 × 28 → 14 × 14 → 7 × 7 → 4 × 4 and two dense layers, splines between them."""
    dense = dense or _dense
    return nn.Sequential(
        AOLConv2d(1, 16, 4, stride=2, padding=1),
        _spline(16),
        AOLConv2d(16, 32, 4, stride=2, padding=1),
        _spline(32),
        AOLConv2d(32, 64, 3, stride=2, padding=1),
        _spline(64),
        nn.Flatten(),
        dense(1024, 128),
        _spline(128),
        dense(128, 10),
    )


DIGITS = (
    Recipe("GroupSort MLP", "digits_group_sort", lambda: sorting_mlp(64, 128), 40, 3e-3, 0.5),
    Recipe("spline conv net", "digits_spline", spline_conv_8x8, 30, 1e-2, 0.5, tv2_weight=1e-6),
)
FASHION = (
    Recipe("GroupSort MLP", "fashion_group_sort", lambda: sorting_mlp(784, 256), 8, 3e-3, 0.4, batch_size=256),
    Recipe("spline conv net", "fashion_spline", spline_conv_28x28, 8, 1e-2, 0.4, batch_size=256, tv2_weight=1e-6),
)


def _retracted(size: int, width: int) -> nn.Module:
    """A dense layer that starts orthonormal and that ``retract`` brings back after every step."""
    layer = nn.Linear(size, width)
    nn.init.orthogonal_(layer.weight)
    return layer


def _results(data: str, mlp_epochs: int, conv_epochs: int) -> tuple[Recipe, Recipe]:
    return (
        Recipe(
            "GroupSort MLP 784-512-512-10", f"{data}_group_sort", lambda: sorting_mlp(784, 512, _retracted), mlp_epochs,
            2e-3, 0.5, batch_size=256, shift=1,
        ),
        Recipe(
            "spline conv net 16-32-64-128", f"{data}_spline", lambda: spline_conv_28x28(_retracted), conv_epochs, 1e-2,
            0.5, batch_size=256, shift=1,
        ),
    )  # fmt: skip


#: The networks of docs/results.md.
MNIST_RESULTS = _results("mnist", 30, 10)
FASHION_RESULTS = _results("fashion", 20, 10)


def _dense(size: int, width: int) -> nn.Module:
    return BjorckLinear(size, width, iterations=4, order=2)


def _spline(channels: int) -> nn.Module:
    return LinearSpline(channels, num_knots=21, limit=1.0, init="absolute_value")


def steps(recipe: Recipe, samples: int) -> int:
    """Optimiser steps that ``train`` will take: the length of a progress bar."""
    return recipe.epochs * (samples // recipe.batch_size)


def train(
    recipe: Recipe, images: np.ndarray, labels: np.ndarray, on_step: Callable[[], None], checkpoint: Path | None = None
) -> nn.Module:
    """Train ``recipe`` on images (N, 1, H, W) in [0, 1]; the same arguments give the same network.

    With ``checkpoint``, a file is kept from epoch to epoch, and training goes on from it where it is there; the
    network is the same as without a break.
    Returns the network with all constraints baked into constants, in evaluation mode.
    """
    _seed()
    network = recipe.build().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(parameter_groups(network, recipe.learning_rate))
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps(recipe, len(x)))
    state = _State(recipe, network, optimiser, schedule, checkpoint)
    for _ in range(state.load() * (len(x) // recipe.batch_size)):
        on_step()
    for epoch in range(state.epoch, recipe.epochs):
        for batch in _batches(len(x), recipe):
            optimiser.zero_grad()
            _loss(recipe, network, _shifted(x[batch], recipe.shift), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            retract(network)
            on_step()
        state.save(epoch + 1)
    retract(network, iterations=10)
    return bake(network)


@torch.no_grad()
def retract(network: nn.Module, iterations: int = 1) -> None:
    """Bring plain dense layers back to orthonormal rows or columns: W ← (3W − W Wᵀ W)/2, Björck's iteration.

    One iteration after a step of the optimiser costs a tenth of what differentiating through it costs, and the
    distance that is left is below the next step's. A training device only: the verifier judges what is exported.
    """
    for layer in network.modules():
        if type(layer) is nn.Linear:
            weight = layer.weight.double() if iterations > 1 else layer.weight
            for _ in range(iterations):
                wide = weight.shape[0] <= weight.shape[1]
                cubed = (weight @ weight.mT) @ weight if wide else weight @ (weight.mT @ weight)
                weight = 1.5 * weight - 0.5 * cubed
            layer.weight.copy_(weight)


class _State:
    """What training needs to go on as if it had never stopped; a file of another recipe is ignored."""

    def __init__(self, recipe: Recipe, network: nn.Module, optimiser: Any, schedule: Any, path: Path | None) -> None:
        self.parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
        self.path, self.epoch = path, 0
        self.seconds = -time.process_time()  # of processor time, over all the processes that had a part in it
        self.recipe = repr(dataclasses.replace(recipe, build=None))  # type: ignore[arg-type]

    def load(self) -> int:
        """The number of epochs that are done."""
        if self.path is None or not self.path.is_file():
            return 0
        saved = torch.load(self.path, weights_only=True)
        if saved["recipe"] != self.recipe:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        self.epoch = int(saved["epoch"])
        self.seconds += float(saved["seconds"])
        return self.epoch

    def save(self, epoch: int) -> None:
        """Replace the file whole."""
        if self.path is None:
            return
        content = {name: part.state_dict() for name, part in self.parts.items()}
        temporary = self.path.with_suffix(".part")
        facts = {"epoch": epoch, "recipe": self.recipe, "seconds": self.seconds + time.process_time()}
        torch.save({**content, **facts, "random": torch.get_rng_state()}, temporary)
        temporary.replace(self.path)


def _shifted(images: Tensor, pixels: int) -> Tensor:
    """Each eighth of a batch moved by up to ``pixels`` in both directions, zeros moving in."""
    if not pixels:
        return images
    padded, parts = nn.functional.pad(images, (pixels,) * 4), []
    for part in padded.chunk(8):
        down, right = torch.randint(0, 2 * pixels + 1, (2,)).tolist()
        parts.append(part[:, :, down : down + images.shape[2], right : right + images.shape[3]])
    return torch.cat(parts)


def _loss(recipe: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = offset_cross_entropy(network(x), y, epsilon=recipe.epsilon, temperature=recipe.temperature)
    return loss + recipe.tv2_weight * tv2(network) if recipe.tv2_weight else loss


def _batches(samples: int, recipe: Recipe) -> Iterator[Tensor]:
    """One epoch."""
    order = torch.randperm(samples)
    yield from order[: samples // recipe.batch_size * recipe.batch_size].split(recipe.batch_size)


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in one order, and no spinning threads on a busy machine
