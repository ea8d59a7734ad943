"""A file holds one function: what draws random numbers, keeps state or has no weights yet is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lipdeploy as lip
from lipdeploy.errors import InputError


class Plus(nn.Module):
    """A linear layer, and something that no input reaches."""

    def __init__(self, extra):
        super().__init__()
        torch.manual_seed(0)
        self.raw, self.linear, self.extra = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8), extra

    def forward(self, x):
        return self.linear(x) + self.extra(self.raw)


def solved(raw):
    """What only the values of folded constants can express."""
    return torch.linalg.matrix_exp(functional.dropout(raw, 0.5, True) / 8)[0]


RANDOM = {
    "weight dropout": lambda raw: functional.dropout(raw, 0.5, True)[0],
    "weight dropout in a folded weight": solved,
    "bernoulli": lambda raw: torch.bernoulli(torch.sigmoid(raw))[0],
    "multinomial": lambda raw: torch.multinomial(torch.sigmoid(raw[0]), 8).float(),
    "normal": lambda raw: torch.randn(8),
    "numpy": lambda raw: torch.tensor(np.random.randn(8).astype(np.float32)),
    "python": lambda raw: random.random(),
}


@pytest.mark.parametrize("extra", RANDOM.values(), ids=RANDOM)
def test_random_numbers_are_refused(extra, tmp_path):
    with pytest.raises(InputError, match="other numbers when it runs again"):
        lip.export(Plus(extra), torch.randn(4, 8), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


def test_a_state_that_moves_is_refused(tmp_path):
    with pytest.raises(InputError, match="other numbers when it runs again"):
        lip.export(Counter(), torch.randn(4, 8), tmp_path / "model.onnx")


class SetByTheFirstBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("shift", torch.zeros(8))
        self.ready = False

    def forward(self, x):
        if not self.ready:
            self.shift.copy_(-x.mean(0))
            self.ready = True
        return self.linear(x + self.shift)


def test_numbers_that_the_first_batch_sets_are_refused_until_they_are_set(tmp_path):
    torch.manual_seed(0)
    network = SetByTheFirstBatch().eval()
    with pytest.raises(InputError, match="in a batch of 1"):
        lip.export(network, torch.randn(4, 8), tmp_path / "model.onnx")
    network(torch.randn(4, 8))
    assert lip.export(network, torch.randn(4, 8), tmp_path / "model.onnx").verdict.status == "verified"


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.Linear(8, 3, device="meta")], ids=["lazy", "meta"])
def test_layers_without_numbers_are_refused(layer, tmp_path):
    with pytest.raises(InputError, match=rf"layer '0' \({type(layer).__name__}\) has no numbers yet"):
        lip.export(nn.Sequential(layer), torch.randn(4, 8), tmp_path / "model.onnx")
