"""Every source that must export: the file's operators, its values against torch, and a proven bound."""

from __future__ import annotations

import deel.torchlip as torchlip
import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipdeploy as lip
import lipdeploy.nn as lipnn
from tests.export.capturing import captured
from tests.export.running import export_and_compare, operators, randomize_norms, run_onnxruntime


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x + self.inner(x), x * 0.5 - 1], dim=1)


def torchlip_centering() -> nn.Module:
    layer = torchlip.BatchCentering(4)
    nn.init.normal_(layer.bias)
    for _ in range(3):
        layer(torch.randn(4, 4, 8, 8) + 1)
    return layer


def torchlip_batch_norm() -> nn.Module:
    layer = torchlip.BatchLipNorm(4)
    nn.init.normal_(layer.bias)
    for _ in range(3):
        layer(torch.randn(4, 4, 8, 8) * 3 + 1)
    return layer


def householder(channels: int) -> nn.Module:
    layer = torchlip.HouseHolder(channels)
    nn.init.normal_(layer.theta)
    return layer


SMOOTH = (nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(2.0), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU())
KINKED = (nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(4), nn.Hardtanh(), Function(torch.abs), nn.ReLU6())

# name: (network, shape of one sample, operator types in order)
CASES = {
    "linear": lambda: (
        nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.Identity(), nn.Linear(6, 3, bias=False)),
        (8,),
        ["Gemm", "Gemm"],
    ),
    "linear on sequences": lambda: (
        nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4, bias=False)),
        (3, 12),
        ["MatMul", "Add", "Relu", "MatMul"],
    ),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.AvgPool1d(2), nn.MaxPool1d(2)),
        (4, 12),
        ["Conv", "AveragePool", "MaxPool"],
    ),
    "conv2d": lambda: (
        nn.Sequential(
            nn.Conv2d(4, 8, 3, padding="same"),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
            nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(4, 4, 2, dilation=2, bias=False),
        ),
        (4, 8, 8),
        ["Conv", "Conv", "Pad", "Conv", "Conv"],
    ),
    "transposed conv": lambda: (nn.ConvTranspose2d(4, 3, 2, stride=2), (4, 8, 8), ["ConvTranspose"]),
    "batch norm, folded": lambda: (
        randomize_norms(
            nn.Sequential(
                nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4),
                nn.Flatten(), nn.Linear(576, 5, bias=False), nn.BatchNorm1d(5),
            )
        ),
        (4, 8, 8),
        ["Conv", "ConvTranspose", "Reshape", "Gemm"],
    ),
    "batch norm, alone": lambda: (
        randomize_norms(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))),
        (4, 8, 8),
        ["Mul", "Add", "Relu", "Mul", "Add"],
    ),
    "smooth activations": lambda: (
        nn.Sequential(*SMOOTH),
        (4, 6),
        ["Tanh", "Sigmoid", "Softplus", "Mul", "Softplus", "Div", "Gelu", "Gelu", "Sigmoid", "Mul", "Elu"],
    ),
    "kinked activations": lambda: (
        nn.Sequential(*KINKED),
        (4, 6),
        ["Relu", "LeakyRelu", "PRelu", "PRelu", "Clip", "Abs", "Clip"],
    ),
    "pooling": lambda: (
        nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
        (4, 8, 8),
        ["AveragePool", "MaxPool", "AveragePool", "ReduceMean"],
    ),
    "shapes": lambda: (
        nn.Sequential(
            nn.PixelUnshuffle(2), nn.ChannelShuffle(4), nn.PixelShuffle(2), nn.ZeroPad2d(1), nn.CircularPad2d(1),
            Function(lambda x: x.permute(0, 2, 3, 1)), Function(lambda x: x[:, [3, 1, 0]]), nn.Flatten(),
            nn.Unflatten(1, (3, 4, 12)),
        ),
        (4, 8, 8),
        ["Reshape", "Transpose", "Reshape", "Transpose", "Reshape", "DepthToSpace", "Pad", "Pad", "Transpose", "Gather",
         "Reshape"],
    ),
    "branches": lambda: (Residual(), (8,), ["Gemm", "Add", "Mul", "Sub", "Concat"]),
    "sort": lambda: (Function(lambda x: x.sort(1).values), (6,), ["TopK"]),
    "torch parametrizations": lambda: (
        nn.Sequential(
            parametrizations.orthogonal(nn.Linear(8, 8)),
            parametrizations.spectral_norm(nn.Linear(8, 6)),
            parametrizations.weight_norm(nn.Linear(6, 5)),
        ),
        (8,),
        ["Gemm", "Gemm", "Gemm"],
    ),
    "old hooks": lambda: (
        nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), nn.utils.weight_norm(nn.Conv2d(4, 4, 3))),
        (4, 8, 8),
        ["Conv", "Conv"],
    ),
    "lipdeploy.nn dense": lambda: (
        nn.Sequential(
            lipnn.BjorckLinear(8, 8), lipnn.MaxMin(), lipnn.SpectralLinear(8, 8), lipnn.LinearSpline(8),
            lipnn.Scale(2.0), lipnn.LInfLinear(8, 6), lipnn.Scale(0.5), lipnn.FullSort(),
        ),
        (8,),
        ["Gemm", "GroupSort", "Gemm", "LinearSpline", "Mul", "Gemm", "GroupSort"],
    ),
    "lipdeploy.nn conv": lambda: (
        nn.Sequential(
            lipnn.SpectralConv2d(4, 8, 3, padding=1), lipnn.GroupSort(4, layout="strided"),
            lipnn.AOLConv2d(8, 8, 3, padding=1), lipnn.LinearSpline(8), nn.Flatten(), lipnn.SpectralLinear(512, 3),
        ),
        (4, 8, 8),
        ["Conv", "GroupSort", "Conv", "LinearSpline", "Reshape", "Gemm"],
    ),
    "torchlip dense": lambda: (
        torchlip.Sequential(
            torchlip.SpectralLinear(8, 8), torchlip.GroupSort2(), torchlip.SpectralLinear(8, 8),
            torchlip.GroupSort(4, k_coef_lip=2.0), torchlip.SpectralLinear(8, 8), torchlip.FullSort(),
            torchlip.MaxMin(), torchlip.GroupSort(100), torchlip.FrobeniusLinear(16, 1), torchlip.LPReLU(),
        ),
        (8,),
        ["Gemm", "GroupSort", "Gemm", "GroupSort", "Gemm", "GroupSort", "Relu", "Neg", "Relu", "Concat", "GroupSort",
         "Gemm", "PRelu"],
    ),
    "torchlip conv": lambda: (
        nn.Sequential(
            torchlip.SpectralConv2d(4, 4, 3, padding=1), torchlip_centering(), torchlip.GroupSort2(),
            torchlip.SpectralConv2d(4, 4, 3), torchlip_batch_norm(), torchlip.InvertibleUpSampling(2),
            torchlip.InvertibleDownSampling(2), torchlip.ScaledAvgPool2d(2), torchlip.FrobeniusConv2d(4, 4, 2),
            torchlip.ScaledAdaptiveAvgPool2d((1, 1)),
        ),
        (4, 8, 8),
        ["Conv", "GroupSort", "Conv", "DepthToSpace", "Reshape", "Transpose", "Reshape", "AveragePool", "Mul", "Conv",
         "ReduceMean", "Mul"],
    ),
    "torchlip centering": lambda: (
        nn.Sequential(torchlip_centering(), nn.ReLU(), torchlip_batch_norm(), torchlip.LayerCentering(4)),
        (4, 8, 8),
        ["Add", "Relu", "Mul", "Add", "ReduceMean", "Sub", "Add"],
    ),
    "l2 pooling": lambda: (
        nn.Sequential(nn.LPPool2d(2, 2), torchlip.ScaledL2NormPool2d(2), torchlip.ScaledAdaptativeL2NormPool2d()),
        (4, 8, 8),
        ["LpPool", "LpPool", "LpPool"],
    ),
    "torchlip transposed conv": lambda: (
        torchlip.SpectralConvTranspose2d(4, 4, 2, stride=2), (4, 8, 8), ["ConvTranspose"],
    ),
    "torchlip conv1d": lambda: (torchlip.SpectralConv1d(4, 4, 3, padding=1), (4, 12), ["Conv"]),
    "torchlip householder": lambda: (
        householder(8),
        (8,),
        ["Householder"],
    ),
    "torchlip vanilla export": lambda: (
        torchlip.Sequential(torchlip.SpectralLinear(8, 8), torchlip.GroupSort2()).eval().vanilla_export(),
        (8,),
        ["Gemm", "GroupSort"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Sequential model contains:UserWarning")
def test_source_exports_and_verifies(name, tmp_path):
    torch.manual_seed(0)
    network, shape, expected = CASES[name]()
    result = export_and_compare(network, shape, tmp_path)
    assert operators(result) == expected


@pytest.mark.parametrize(
    ("pool", "kernel"),
    [
        (nn.LPPool2d(2, 2), [2, 2]),
        (torchlip.ScaledL2NormPool2d((2, 4)), [2, 4]),
        (torchlip.ScaledAdaptativeL2NormPool2d((1, 1)), [8, 8]),
    ],
    ids=["LPPool2d", "ScaledL2NormPool2d", "ScaledAdaptativeL2NormPool2d"],
)
def test_l2_pooling_is_one_operator(pool, kernel, tmp_path):
    model = captured(pool, torch.randn(2, 4, 8, 8), tmp_path)
    (node,) = model.graph.node
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert node.op_type == "LpPool"
    assert attributes == {"p": 2, "kernel_shape": kernel, "strides": kernel}
    x = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        expected = pool(x).numpy()
    np.testing.assert_allclose(run_onnxruntime(model, {"input": x.numpy()})[0], expected, rtol=1e-5)


def test_householder_matches_torchlip_for_every_angle(tmp_path):
    layer = torchlip.HouseHolder(8)
    layer.theta.data = torch.tensor([0.0, torch.pi / 2, -2.5, 3 * torch.pi])
    result = export_and_compare(layer, (8,), tmp_path)
    assert float(result.verdict.lipschitz_bound.value) < 1 + 1e-6
    (tmp_path / "maps").mkdir()
    export_and_compare(layer, (8, 3, 5), tmp_path / "maps")


def test_log_sigmoid_is_finite_wherever_torch_is(tmp_path):
    x = torch.linspace(-200, 200, 4001)[:, None]
    result = lip.export(nn.LogSigmoid(), x, tmp_path / "model.onnx", samples=x, run=run_onnxruntime)
    (actual,) = run_onnxruntime(result.path, {"input": x.numpy()})
    np.testing.assert_allclose(actual, nn.functional.logsigmoid(x).numpy(), rtol=4 * 2**-23, atol=1e-44)
    assert operators(result) == ["Neg", "Softplus", "Neg"] and result.verdict.lipschitz_bound.value == 1


@pytest.mark.parametrize(("beta", "threshold"), [(1, 20), (1, 19), (0.1, 20), (50, 15), (2, float("inf")), (-1, 20)])
def test_softplus_whose_jump_cannot_be_seen(beta, threshold, tmp_path):
    x = torch.linspace(-2, 2, 401)[:, None] * min(threshold, 20) / beta
    network = nn.Softplus(beta, threshold)
    result = lip.export(network, x, tmp_path / "model.onnx", samples=x, run=run_onnxruntime)
    (actual,) = run_onnxruntime(result.path, {"input": x.numpy()})
    np.testing.assert_allclose(actual, network(x).numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("beta", "threshold"), [(1, 1), (1, 18), (0.1, 18), (50, 10), (1, -1000)])
def test_softplus_that_jumps_is_refused_by_name(beta, threshold, tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.Softplus(beta, threshold))
    with pytest.raises(lip.InputError, match=rf"layer '1' \(Softplus\): threshold={threshold}") as caught:
        lip.export(network, torch.zeros(2, 4), tmp_path / "model.onnx")
    assert "20" in caught.value.hint and list(tmp_path.iterdir()) == []
