"""Householder against deel-torchlip, the operator's NumPy meaning, and exact fractions of what it stores."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from deel import torchlip
from torch import nn

import lipdeploy as lip
from lipdeploy import nn as lipnn
from lipdeploy.nn import Householder, StoredHouseholder, bake
from lipdeploy.ops import OPERATORS

LAYOUTS = {"adjacent": 0, "strided": 1}


def turned(channels: int, layout: str = "strided", axis: int = 1, dtype: torch.dtype = torch.float32) -> Householder:
    layer = Householder(channels, axis, layout)
    with torch.no_grad():
        layer.theta.copy_(4 * torch.randn(channels // 2, generator=torch.Generator().manual_seed(0)))
    return layer.to(dtype)


@pytest.mark.parametrize("shape", [(5, 12), (2, 12, 3, 4)])
def test_agrees_with_deel_torchlip(shape: tuple[int, ...]) -> None:
    ours, theirs = turned(12), torchlip.HouseHolder(12)
    theirs.theta.data = ours.theta.data.clone()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs(x), atol=4e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["strided", "adjacent"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 12), 1), ((2, 12, 3, 4), 1), ((3, 4, 12), -1), ((0, 12), 1)])
def test_agrees_with_the_operator(shape: tuple[int, ...], axis: int, layout: str, dtype: torch.dtype) -> None:
    layer = turned(12, layout, axis, dtype).eval().stored()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    wide = [t.double().numpy() for t in (x, layer.sine, layer.cosine)]
    kind = {torch.float16: np.float16, torch.float64: np.float64}.get(dtype, np.float32)
    if dtype == torch.bfloat16:
        import ml_dtypes

        kind = ml_dtypes.bfloat16
    want = OPERATORS["Householder"].evaluate(*(a.astype(kind) for a in wide), axis=axis, layout=LAYOUTS[layout])
    np.testing.assert_array_equal(layer(x).double().numpy(), want.astype(np.float64))


def test_starts_as_a_sort() -> None:
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Householder(8)(x), lipnn.GroupSort(2, layout="strided")(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_stored_never_exceeds_length_one(dtype: torch.dtype) -> None:
    theta = torch.cat([torch.linspace(-20, 20, 4001, dtype=torch.float64), torch.tensor([math.pi / 2, math.pi, 1e-20])])
    layer = Householder(2 * len(theta)).to(dtype)
    layer.theta.data = theta.to(dtype)
    stored = layer.eval().stored()
    eps = Fraction(torch.finfo(dtype).eps)
    for s, c in zip(stored.sine.double().tolist(), stored.cosine.double().tolist(), strict=True):
        length = Fraction(s) ** 2 + Fraction(c) ** 2
        assert 1 - 8 * eps <= length <= 1


def test_gradients_reach_the_angle_and_the_input() -> None:
    layer = turned(6).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda given: layer(given), (x,))
    layer(x).square().sum().backward()
    assert layer.theta.grad is not None
    layer(x)[:, 0].sum().backward()
    assert layer.theta.grad.abs().max() > 0


def test_baking_leaves_constants_and_the_original_alone() -> None:
    network = nn.Sequential(nn.Linear(6, 6), turned(6))
    baked = bake(network)
    assert isinstance(baked[1], StoredHouseholder)
    assert isinstance(network[1], Householder)
    x = torch.randn(4, 6)
    assert torch.equal(baked(x), network.eval()(x))


@pytest.mark.parametrize("layout", ["strided", "adjacent"])
def test_exports_as_one_operator_with_a_proven_constant_of_one(layout: str, tmp_path: Path) -> None:
    network = nn.Sequential(lipnn.SpectralLinear(8, 8), turned(8, layout), lipnn.SpectralLinear(8, 3))
    result = lip.export(network, torch.randn(4, 8), tmp_path / "model.onnx", max_lipschitz=1.0)
    assert [node.op for node in result.verdict.nodes] == ["Gemm", "lipdeploy.Householder", "Gemm"]
    session = lip.CertifiedSession(tmp_path / "model.onnx", max_lipschitz=1.0)
    x = torch.randn(6, 8)
    with torch.no_grad():
        want = network.eval()(x).numpy()
    prediction = session.predict(x.numpy())
    np.testing.assert_allclose(prediction.logits, want, atol=1e-6)
    assert (prediction.radius > 0).all()


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match="channels is 5; pairs need an even number"):
        Householder(5)
    with pytest.raises(ValueError, match="layout is 'mixed'"):
        Householder(4, layout="mixed")
    with pytest.raises(ValueError, match=r"Householder for 4 channels on axis 1 got an input of shape \(2, 6\)"):
        Householder(4)(torch.zeros(2, 6))
    layer = Householder(4)
    layer.theta.data[0] = math.nan
    with pytest.raises(ValueError, match="angle that is not finite"):
        bake(layer)
