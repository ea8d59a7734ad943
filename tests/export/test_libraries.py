"""Every layer of deel-torchlip, before and after ``vanilla_export``, and orthogonium's, through the whole export."""

from __future__ import annotations

import deel.torchlip as torchlip
import numpy as np
import pytest
import torch
from deel.torchlip.modules import LayerCentering, LipResidual, LPReLU
from orthogonium import layers
from orthogonium.layers.conv.AOL.aol import AOLConv2D, AOLConvTranspose2D
from orthogonium.layers.conv.SLL import (
    AOCLipschitzResBlock,
    SDPBasedLipschitzDense,
    SDPBasedLipschitzResBlock,
    SLLxAOCLipschitzResBlock,
)
from orthogonium.layers.residual import AdditiveResidual, PrescaledAdditiveResidual
from torch import Tensor, nn

import lipdeploy as lip
from lipdeploy.errors import InputError
from tests.export.running import export_and_compare, jacobian_norm, operators

MAPS, FLAT = (4, 8, 8), (8,)


def bound(result: lip.ExportResult) -> float:
    return float(result.verdict.lipschitz_bound.value)


class Residual(nn.Module):
    """torchlip's LipResidual takes both branches as arguments."""

    def __init__(self, inner: nn.Module, sum_of: nn.Module) -> None:
        super().__init__()
        self.inner, self.sum_of = inner, sum_of

    def forward(self, x: Tensor) -> Tensor:
        return self.sum_of(x, self.inner(x))


# name: (layer, shape of one sample, largest bound that its documentation promises)
TORCHLIP = {
    "SpectralLinear": (lambda: torchlip.SpectralLinear(8, 6), FLAT, 1),
    "SpectralLinear, spectral norm only": (lambda: torchlip.SpectralLinear(8, 6, eps_bjorck=None), FLAT, 1),
    "FrobeniusLinear": (lambda: torchlip.FrobeniusLinear(8, 1), FLAT, 1),
    "SpectralConv1d": (lambda: torchlip.SpectralConv1d(4, 4, 3, padding=1), (4, 8), 1.2),
    "SpectralConv2d": (lambda: torchlip.SpectralConv2d(4, 4, 3, padding=1), MAPS, 1.3),
    "SpectralConv2d, circular": (
        lambda: torchlip.SpectralConv2d(4, 4, 3, padding=1, padding_mode="circular"), MAPS, 1.3,
    ),
    "SpectralConv2d, symmetric": (
        lambda: torchlip.SpectralConv2d(4, 4, 3, padding=1, padding_mode="symmetric"), MAPS, 1.5,
    ),
    "SpectralConvTranspose2d": (lambda: torchlip.SpectralConvTranspose2d(4, 4, 2, stride=2), MAPS, 1),
    "FrobeniusConv2d": (lambda: torchlip.FrobeniusConv2d(4, 4, 3, padding=1), MAPS, 1),
    "GroupSort": (lambda: torchlip.GroupSort(4, k_coef_lip=0.5), FLAT, 0.5),
    "GroupSort2": (torchlip.GroupSort2, MAPS, 1),
    "FullSort": (torchlip.FullSort, FLAT, 1),
    "MaxMin": (lambda: torchlip.MaxMin(), FLAT, 1),
    "LPReLU": (lambda: LPReLU(), FLAT, 1),
    "HouseHolder": (lambda: torchlip.HouseHolder(4), MAPS, 1),
    "BatchCentering": (lambda: torchlip.BatchCentering(4), MAPS, 1),
    "BatchLipNorm": (lambda: torchlip.BatchLipNorm(4), MAPS, 1),
    "LayerCentering": (lambda: LayerCentering(4), MAPS, 1),
    "ScaledAvgPool2d": (lambda: torchlip.ScaledAvgPool2d(2), MAPS, 1),
    "ScaledAdaptiveAvgPool2d": (lambda: torchlip.ScaledAdaptiveAvgPool2d((1, 1)), MAPS, 1),
    "ScaledL2NormPool2d": (lambda: torchlip.ScaledL2NormPool2d(2), MAPS, 1),
    "ScaledAdaptativeL2NormPool2d": (torchlip.ScaledAdaptativeL2NormPool2d, MAPS, 1),
    "InvertibleDownSampling": (lambda: torchlip.InvertibleDownSampling(2), MAPS, 1),
    "InvertibleUpSampling": (lambda: torchlip.InvertibleUpSampling(2), MAPS, 1),
    "LipResidual": (lambda: Residual(torchlip.SpectralLinear(8, 8), LipResidual()), FLAT, 1),
}  # fmt: skip


def trained(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Two forward passes in training mode on data that is not centred, so that statistics and caches matter."""
    generator = torch.Generator().manual_seed(4)
    layer.train()
    for _ in range(2):
        layer(2 * torch.randn(4, *shape, generator=generator) + 1)
    return layer.eval()


@pytest.mark.parametrize("vanilla", [False, True], ids=["", "vanilla_export"])
@pytest.mark.parametrize("name", TORCHLIP)
@pytest.mark.filterwarnings("ignore")
def test_every_layer_of_torchlip(name, vanilla, tmp_path):
    torch.manual_seed(1)
    make, shape, limit = TORCHLIP[name]
    layer = trained(make(), shape)
    if vanilla and not hasattr(layer, "vanilla_export"):
        layer = torchlip.vanilla_model(nn.Sequential(layer)) or nn.Sequential(layer)
    elif vanilla:
        layer = layer.vanilla_export()
    result = export_and_compare(layer, shape, tmp_path)
    assert jacobian_norm(layer, shape, points=4) * (1 - 1e-6) <= bound(result) <= limit + 1e-5


@pytest.mark.filterwarnings("ignore")
def test_vanilla_export_of_a_network_in_training_mode_changes_nothing_for_us(tmp_path):
    """Exporting first and ``vanilla_export`` first give one function: the weights that evaluation uses."""
    network = trained(torchlip.Sequential(torchlip.SpectralLinear(8, 8), torchlip.GroupSort2()), FLAT)
    (tmp_path / "vanilla").mkdir()
    direct = export_and_compare(network, FLAT, tmp_path)
    vanilla = export_and_compare(network.vanilla_export(), FLAT, tmp_path / "vanilla")
    assert bound(direct) == pytest.approx(bound(vanilla), rel=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_a_plain_layer_among_them_is_judged_as_it_is(tmp_path):
    """vanilla_export leaves a torch layer that was mixed in unconstrained; the product of the library says 1."""
    network = torchlip.Sequential(torchlip.SpectralLinear(8, 8), nn.Linear(8, 8), torchlip.GroupSort2()).eval()
    with torch.no_grad():
        network[1].weight.mul_(10)
    norm = float(np.linalg.svd(network[1].weight.detach().double().numpy(), compute_uv=False)[0])
    assert bound(export_and_compare(network, FLAT, tmp_path)) > 0.5 * norm


AOC = layers.AdaptiveOrthoConv2d
ORTHOGONIUM = {
    "Abs": (layers.Abs, MAPS, 1, ["Abs"]),
    "MaxMin": (layers.MaxMin, MAPS, 1, ["GroupSort"]),
    "HouseHolder": (lambda: layers.HouseHolder(4), MAPS, 0.7071069, ["Householder", "Mul"]),
    "BatchCentering2D": (lambda: layers.BatchCentering2D(4), MAPS, 1, None),
    "LayerCentering2D": (lambda: layers.LayerCentering2D(4), MAPS, 1, None),
    "ChannelShuffle": (lambda: layers.ChannelShuffle(2, 2), (4,), 1, None),
    "OrthoLinear": (lambda: layers.OrthoLinear(8, 6), FLAT, 1, ["Gemm"]),
    "UnitNormLinear": (lambda: layers.UnitNormLinear(8, 6), FLAT, 2.45, ["Gemm"]),
    "AOC": (lambda: AOC(4, 8, 3, padding=1), MAPS, 1, ["Pad", "Conv"]),
    "AOC, zeros": (lambda: AOC(4, 8, 3, padding=1, padding_mode="zeros"), MAPS, 1, ["Conv"]),
    "AOC, strided": (lambda: AOC(4, 8, 4, stride=2, padding=1), MAPS, 1, ["Pad", "Conv"]),
    "AOC, transposed": (
        lambda: layers.AdaptiveOrthoConvTranspose2d(4, 4, 2, stride=2, padding=0), MAPS, 1, ["ConvTranspose"],
    ),
    "AOL": (lambda: AOLConv2D(4, 8, 3, padding=1), MAPS, 1, ["Conv"]),
    "AOL, transposed": (lambda: AOLConvTranspose2D(4, 4, 2, stride=2, padding=0), MAPS, 1, ["ConvTranspose"]),
    "SLL dense": (lambda: SDPBasedLipschitzDense(8, 8, 12), FLAT, 1, None),
    "SLL": (lambda: SDPBasedLipschitzResBlock(4, 2.0, 3), MAPS, 1, None),
    "SLL x AOC, strided": (lambda: SLLxAOCLipschitzResBlock(4, 8, 2, 3, 2), MAPS, 1, None),
    "SLL x AOC": (lambda: SLLxAOCLipschitzResBlock(4, 4, 2, 3, 1), MAPS, 1, None),
    "SLL x AOC, left fused": (lambda: SLLxAOCLipschitzResBlock(4, 8, 2, 5, 2), MAPS, 4, None),
    "AOC residual": (lambda: AOCLipschitzResBlock(4, 2, 3), MAPS, 1, None),
    "AdditiveResidual": (lambda: AdditiveResidual(layers.OrthoLinear(8, 8)), FLAT, 1, None),
    "PrescaledAdditiveResidual": (lambda: PrescaledAdditiveResidual(layers.OrthoLinear(8, 8)), FLAT, 1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ORTHOGONIUM)
def test_every_layer_of_orthogonium(name, tmp_path):
    torch.manual_seed(1)
    make, shape, limit, expected = ORTHOGONIUM[name]
    layer = trained(make(), shape)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim > 1 and parameter.shape[0] == 1:  # biases and angles that start at constants
                parameter.add_(0.3 * torch.randn_like(parameter))
    layer = trained(layer, shape)
    result = export_and_compare(layer, shape, tmp_path)
    # Its weights are computed in float32 whatever the parameters are, so the Jacobian is, too.
    reference = jacobian_norm(layer, shape, points=4, dtype=torch.float32)
    assert reference * (1 - 1e-5) <= bound(result) <= limit + 1e-5
    assert expected is None or operators(result) == expected


def test_the_reflection_of_order_two_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"layer '0' \(HouseHolder_Order_2\)"):
        lip.export(nn.Sequential(layers.HouseHolder_Order_2(4)), torch.zeros(1, *MAPS), tmp_path / "model.onnx")
