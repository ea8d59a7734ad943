"""Networks trained with the libraries' own layers and losses, then exported: the classes that they give, and the bound.

Trained weights of others cannot be had offline, so these train for a moment on scikit-learn's digits: long enough that
caches, statistics and raw parameters are no longer those of the start.
"""

from __future__ import annotations

from collections.abc import Callable

import deel.torchlip as torchlip
import numpy as np
import pytest
import torch
from orthogonium import layers
from sklearn.datasets import load_digits
from torch import nn

import lipdeploy as lip
from tests.export.foreign import papers
from tests.export.running import jacobian_norm, run_onnxruntime

pytestmark = pytest.mark.filterwarnings("ignore")


def torchlip_network() -> nn.Module:
    return torchlip.Sequential(
        torchlip.SpectralLinear(64, 32), torchlip.GroupSort2(), torchlip.SpectralLinear(32, 32),
        torchlip.HouseHolder(32), torchlip.SpectralLinear(32, 10),
    )  # fmt: skip


def orthogonium_network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), layers.AdaptiveOrthoConv2d(1, 4, 3, padding=1), layers.MaxMin(),
        nn.Flatten(), layers.OrthoLinear(256, 32), layers.MaxMin(), layers.OrthoLinear(32, 10),
    )  # fmt: skip


def dsnn_network() -> nn.Module:
    return nn.Sequential(
        papers.BjorckLinear(64, 32), papers.LinearSpline("fc", 32, 21, 0.5, "absolute_value", True),
        papers.BjorckLinear(32, 32), papers.GroupSort(16), papers.BjorckLinear(32, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "deel-torchlip": (torchlip_network, torch.float64),
    "orthogonium": (orthogonium_network, torch.float32),  # computes its weights in float32 in every case
    "LNets and Lipschitz_DSNN": (dsnn_network, torch.float64),
}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    source = load_digits()
    return torch.from_numpy((source.data / 16).astype(np.float32)), torch.from_numpy(source.target)


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    network.train()
    loss = torchlip.HKRMulticlassLoss(alpha=0.9, min_margin=0.2)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(60):
        batch = slice(64 * (step % 20), 64 * (step % 20) + 64)
        optimiser.zero_grad()
        loss(network(images[batch]), nn.functional.one_hot(labels[batch], 10)).backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_keeps_its_classes_and_gets_its_bound(name, tmp_path):
    torch.manual_seed(11)
    make, dtype = NETWORKS[name]
    images, labels = digits()
    network = train(make(), images[:1280], labels[:1280])
    result = lip.export(network, images[:8], tmp_path / "model.onnx")
    with torch.no_grad():
        expected = network(images[1280:]).numpy()
    (actual,) = run_onnxruntime(result.path, {"input": images[1280:].numpy()})
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))
    assert (actual.argmax(1) == labels[1280:].numpy()).mean() > 0.7  # far from chance: training took place
    bound = float(result.verdict.lipschitz_bound.value)
    assert jacobian_norm(network, (64,), points=20, dtype=dtype) * (1 - 1e-5) <= bound <= 1 + 1e-4
