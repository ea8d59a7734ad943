"""Parameter groups and losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lipdeploy.nn import BjorckLinear, LinearSpline, hinge_margin_loss, offset_cross_entropy, parameter_groups


def test_groups_have_the_papers_rates_and_hold_everything_once() -> None:
    shared = LinearSpline(4)
    net = nn.Sequential(BjorckLinear(4, 4), shared, nn.Linear(4, 4), shared, LinearSpline(4, learnable_scaling=False))
    net[2].bias.requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(net, 0.04)}
    assert {name: group["lr"] for name, group in groups.items()} == {"weights": 0.04, "splines": 0.001, "scales": 0.01}
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert [len(groups[name]["params"]) for name in ("weights", "splines", "scales")] == [3, 2, 1]


def test_empty_groups_are_left_out() -> None:
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2), 1.0)] == ["weights"]


def test_hinge_counts_missing_margins() -> None:
    logits = torch.tensor([[2.0, 1.5, 0.0], [0.0, 0.0, 0.0]])
    loss = hinge_margin_loss(logits, torch.tensor([0, 2]), epsilon=1.0)
    missing = [math.sqrt(2) - 0.5, 0.0, math.sqrt(2), math.sqrt(2)]
    assert loss.item() == pytest.approx(sum(missing) / 2)


def test_offset_cross_entropy_by_hand() -> None:
    logits, margin = torch.tensor([[1.0, 0.25]]), math.sqrt(2) * 0.3
    expected = 0.5 * math.log1p(math.exp((0.25 - (1.0 - margin)) / 0.5))
    loss = offset_cross_entropy(logits, torch.tensor([0]), epsilon=0.3, temperature=0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
