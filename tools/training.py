"""Seeded training of the demo's networks: one with sorting activations, one with learned splines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    """How one network is made. ``epsilon`` is the radius trained for, in units of the full scale (images in [0, 1])."""

    title: str
    stem: str
    build: Callable[[], nn.Module]
    epochs: int
    learning_rate: float
    epsilon: float
    temperature: float = 0.1
    batch_size: int = 64
    tv2_weight: float = 0.0


def sorting_mlp(pixels: int, width: int) -> nn.Module:
    """Three orthonormal dense layers with GroupSort(2) between them."""
    return nn.Sequential(
        nn.Flatten(),
        _dense(pixels, width),
        GroupSort(2),
        _dense(width, width),
        GroupSort(2),
        _dense(width, 10),
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


def spline_conv_28x28() -> nn.Module:
    """Strided convolutions 28 × 28 → 14 × 14 → 7 × 7 → 4 × 4 and two dense layers, splines between them."""
    return nn.Sequential(
        AOLConv2d(1, 16, 4, stride=2, padding=1),
        _spline(16),
        AOLConv2d(16, 32, 4, stride=2, padding=1),
        _spline(32),
        AOLConv2d(32, 64, 3, stride=2, padding=1),
        _spline(64),
        nn.Flatten(),
        _dense(1024, 128),
        _spline(128),
        _dense(128, 10),
    )


DIGITS = (
    Recipe("GroupSort MLP", "digits_group_sort", lambda: sorting_mlp(64, 128), 40, 3e-3, 0.5),
    Recipe("spline conv net", "digits_spline", spline_conv_8x8, 30, 1e-2, 0.5, tv2_weight=1e-6),
)
FASHION = (
    Recipe("GroupSort MLP", "fashion_group_sort", lambda: sorting_mlp(784, 256), 8, 3e-3, 0.4, batch_size=256),
    Recipe("spline conv net", "fashion_spline", spline_conv_28x28, 8, 1e-2, 0.4, batch_size=256, tv2_weight=1e-6),
)


def _dense(size: int, width: int) -> nn.Module:
    return BjorckLinear(size, width, iterations=4, order=2)


def _spline(channels: int) -> nn.Module:
    return LinearSpline(channels, num_knots=21, limit=1.0, init="absolute_value")


def steps(recipe: Recipe, samples: int) -> int:
    """Optimiser steps that ``train`` will take: the length of a progress bar."""
    return recipe.epochs * (samples // recipe.batch_size)


def train(recipe: Recipe, images: np.ndarray, labels: np.ndarray, on_step: Callable[[], None]) -> nn.Module:
    """Train ``recipe`` on images (N, 1, H, W) in [0, 1]; the same arguments give the same network.

    Returns the network with all constraints baked into constants, in evaluation mode.
    """
    _seed()
    network = recipe.build().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(parameter_groups(network, recipe.learning_rate))
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps(recipe, len(x)))
    for batch in _batches(len(x), recipe):
        optimiser.zero_grad()
        _loss(recipe, network, x[batch], y[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        on_step()
    return bake(network)


def _loss(recipe: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = offset_cross_entropy(network(x), y, epsilon=recipe.epsilon, temperature=recipe.temperature)
    return loss + recipe.tv2_weight * tv2(network) if recipe.tv2_weight else loss


def _batches(samples: int, recipe: Recipe) -> Iterator[Tensor]:
    for _ in range(recipe.epochs):
        order = torch.randperm(samples)
        yield from order[: samples // recipe.batch_size * recipe.batch_size].split(recipe.batch_size)


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in one order, and no spinning threads on a busy machine
