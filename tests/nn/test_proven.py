"""What the layers promise, the verifier proves: bounds of at most 1 on exported files, without ``normalize``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy import nn as lipnn


def scaled_spline(channels: int) -> lipnn.LinearSpline:
    spline = lipnn.LinearSpline(channels, 21, 1.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        spline.coefficients.copy_(torch.randn(spline.coefficients.shape, generator=generator))
        spline.scaling.copy_(0.2 + 5 * torch.rand(channels, generator=generator))  # type: ignore[union-attr]
    return spline


def shaken(net: nn.Module) -> nn.Module:
    """Raw weights far from their initial, well-behaved values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("weight.original"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def proven(net: nn.Module, shape: tuple[int, ...], path: Path, norm: str) -> float:
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    result = lip.export(shaken(net), x, path / "model.onnx", norm=norm, max_lipschitz=1.0)
    bound = result.verdict.lipschitz_bound
    assert bound is not None
    return bound.value


CONVOLUTIONS = {
    "aol": lambda: lipnn.AOLConv2d(3, 6, 3, padding=1),
    "aol strided": lambda: lipnn.AOLConv2d(3, 6, 4, stride=2, padding=1),
    "sized": lambda: lipnn.SpectralConv2d(3, 6, 3, padding=1, input_size=(8, 8)),
    "sized strided": lambda: lipnn.SpectralConv2d(3, 6, 3, stride=2, padding=1, input_size=(8, 8)),
    "any size": lambda: lipnn.SpectralConv2d(3, 6, 5, padding=2),
}


@pytest.mark.parametrize("build", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions(build, tmp_path: Path) -> None:
    assert 0.1 < proven(nn.Sequential(build()), (3, 8, 8), tmp_path, "l2") <= 1


@pytest.mark.parametrize("build", [lipnn.BjorckLinear, lipnn.SpectralLinear])
def test_dense_layers_are_tight(build, tmp_path: Path) -> None:
    assert 1 - 1e-4 < proven(nn.Sequential(build(20, 30)), (20,), tmp_path, "l2") <= 1


def test_splines_with_scales_cost_nothing(tmp_path: Path) -> None:
    """Judged node by node the scales would cost max α / min α, here about 20."""
    for name, shape in (("dense", (40,)), ("image", (40, 3, 3))):
        (folder := tmp_path / name).mkdir()
        assert 1 - 1e-4 < proven(nn.Sequential(scaled_spline(40)), shape, folder, "l2") <= 1


@pytest.mark.parametrize(("first", "norm"), [("linf", "linf"), ("l2", "l2-linf"), ("l1", "l1-linf")])
def test_chains_that_end_in_linf(first: str, norm: str, tmp_path: Path) -> None:
    net = nn.Sequential(
        lipnn.LInfLinear(20, 16, input_norm=first), lipnn.FullSort(), lipnn.LInfLinear(16, 16), scaled_spline(16)
    )
    assert 1 - 1e-4 < proven(net, (20,), tmp_path, norm) <= 1


def test_a_deep_network_of_everything(tmp_path: Path) -> None:
    net = nn.Sequential(
        lipnn.AOLConv2d(1, 8, 3, padding=1),
        lipnn.GroupSort(4),
        lipnn.SpectralConv2d(8, 12, 2, stride=2, input_size=(8, 8)),
        scaled_spline(12),
        nn.Flatten(),
        lipnn.BjorckLinear(192, 32),
        lipnn.MaxMin(),
        lipnn.SpectralLinear(32, 32),
        lipnn.FullSort(),
        lipnn.BjorckLinear(32, 10),
    )
    assert proven(net, (1, 8, 8), tmp_path, "l2") <= 1
