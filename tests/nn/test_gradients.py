"""Gradients of every constraint in float64, by finite differences, and chains p → ∞ through export."""

from __future__ import annotations

import deel.torchlip as torchlip
import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

import lipdeploy as lip
from lipdeploy import nn as lipnn
from lipdeploy.nn.linear import bjorck, gram_norm_bound, project_rows_l1
from lipdeploy.nn.spline import INITS
from lipdeploy.nn.training import MARGINS, hinge_margin_loss, offset_cross_entropy


def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(3, 5), (5, 3)])
def test_bjorck(order: int, size: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(lambda w: bjorck(w, 3, order), matrix(*size, 0.2))


def test_gram_bound_and_projection() -> None:
    assert torch.autograd.gradcheck(gram_norm_bound, matrix(4, 3))
    assert torch.autograd.gradcheck(lambda w: project_rows_l1(w, 1.0), matrix(4, 6))


@pytest.mark.parametrize(
    "make",
    [
        lambda: lipnn.SpectralLinear(3, 4),
        lambda: lipnn.LInfLinear(3, 4),
        lambda: lipnn.LInfLinear(3, 4, input_norm="l2"),
        lambda: lipnn.LInfLinear(3, 4, input_norm="l1"),
        lambda: lipnn.AOLConv2d(2, 3, 3, padding=1),
        lambda: lipnn.AOLConv2d(2, 3, 4, stride=2, padding=1),
        lambda: lipnn.SpectralConv2d(2, 3, 3, padding=1, input_size=(5, 5)),
    ],
    ids=["spectral", "linf", "l2 to linf", "l1 to linf", "AOL", "AOL, strided", "spectral conv"],
)
def test_constraints(make) -> None:
    layer = make().double().train()
    (constraint,) = layer.parametrizations.weight
    raw = layer.parametrizations.weight.original
    start = torch.randn(raw.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert parametrize.is_parametrized(layer)
    assert torch.autograd.gradcheck(constraint, start)


@pytest.mark.parametrize("make", [lambda: lipnn.Householder(4), lambda: lipnn.GroupSort(2), lambda: lipnn.MaxMin()])
def test_activations(make) -> None:
    layer = make().double().train()
    assert torch.autograd.gradcheck(layer, matrix(7, 4))


@pytest.mark.parametrize(("first", "norm"), [("l2", "l2-linf"), ("l1", "l1-linf"), ("linf", "linf")])
def test_a_chain_from_p_to_infinity(first: str, norm: str, tmp_path) -> None:
    torch.manual_seed(2)
    network = torch.nn.Sequential(lipnn.LInfLinear(6, 8, input_norm=first), lipnn.GroupSort(2), lipnn.LInfLinear(8, 3))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.parametrizations.weight.original.mul_(10)  # far outside: the projection binds
    result = lip.export(network, torch.zeros(1, 6), tmp_path / "model.onnx", norm=norm)
    assert 0.5 < float(result.verdict.lipschitz_bound.value) <= 1
    # The dual norm of a row of the Jacobian, for every sampled point.
    order = {"l2": 2, "l1": np.inf, "linf": 1}[first]
    baked = lipnn.bake(network).double()
    for x in torch.randn(20, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        rows = torch.autograd.functional.jacobian(baked, x).reshape(3, 6).numpy()
        assert max(np.linalg.norm(row, order) for row in rows) <= 1


@pytest.mark.parametrize("norm", MARGINS)
def test_losses_vanish_exactly_where_the_radius_is_certified(norm: str) -> None:
    # Two logits (t, 0) of a network with constant 1: the certified radius is t / margin constant.
    logits = torch.tensor([[0.3 * MARGINS[norm] + 1e-6, 0.0]])
    assert float(hinge_margin_loss(logits, torch.tensor([0]), epsilon=0.3, norm=norm)) == 0
    assert float(hinge_margin_loss(logits, torch.tensor([0]), epsilon=0.31, norm=norm)) > 0
    offset = float(offset_cross_entropy(logits, torch.tensor([0]), epsilon=0.3, temperature=1.0, norm=norm))
    assert offset == pytest.approx(np.log(2), abs=1e-5)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'l3'"):
        hinge_margin_loss(torch.zeros(1, 2), torch.tensor([0]), epsilon=0.1, norm="l3")


@pytest.mark.parametrize("init", INITS)
def test_splines_from_every_start(init: str) -> None:
    """With slopes up to 2 allowed, no start lies on a kink of the projection; x keeps away from the knots."""
    spline = lipnn.LinearSpline(4, 7, 0.5, init, lipschitz=2.0).double().train()
    generator = torch.Generator().manual_seed(3)
    intervals = torch.randint(-2, 9, (5, 4), generator=generator)
    inside = 0.1 + 0.8 * torch.rand(5, 4, generator=generator, dtype=torch.float64)
    x = (spline.lower + spline.knot_spacing * (intervals + inside)).requires_grad_()
    names, values = zip(*spline.named_parameters(), strict=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(spline, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))
    assert torch.autograd.gradgradcheck(run, (x, *values))


def test_tv2_of_a_network() -> None:
    network = torch.nn.Sequential(lipnn.LinearSpline(2, 6, 0.5), lipnn.LinearSpline(3, 5, 0.5)).double()
    shapes = [layer.coefficients.shape for layer in network]
    starts = [0.3 * matrix(*shape).detach().requires_grad_() for shape in shapes]  # slopes on both sides of the clip

    def run(*coefficients: torch.Tensor) -> torch.Tensor:
        state = {f"{k}.coefficients": values for k, values in enumerate(coefficients)}
        return torch.func.functional_call(_Tv2(network), {f"network.{key}": v for key, v in state.items()}, ())

    assert torch.autograd.gradcheck(run, starts)


class _Tv2(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> torch.Tensor:
        return lipnn.tv2(self.network)


@pytest.mark.parametrize("loss", [hinge_margin_loss, offset_cross_entropy])
@pytest.mark.parametrize("norm", MARGINS)
def test_losses(loss, norm: str) -> None:
    labels = torch.tensor([0, 2, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda y: loss(y, labels, epsilon=0.4, norm=norm), matrix(5, 3))


def test_losses_of_torchlip_on_our_layers() -> None:
    """KR and HKR are deel-torchlip's: their values by hand, and their gradients through a sorting network."""
    torch.manual_seed(0)
    critic = torch.nn.Sequential(lipnn.BjorckLinear(3, 6), lipnn.GroupSort(2), lipnn.BjorckLinear(6, 1)).double()
    x, target = torch.randn(8, 3, dtype=torch.float64), torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None]
    y = critic(x).detach()
    distance = y[target > 0].mean() - y[target < 0].mean()
    hinge = (0.25 - target * y).clamp(min=0).mean()
    assert float(torchlip.KRLoss()(y, target)) == pytest.approx(float(distance))
    assert float(torchlip.HKRLoss(0.9, 0.5)(y, target)) == pytest.approx(float(0.9 * hinge - 0.1 * distance))
    weight = critic[0].parametrizations.weight.original
    torchlip.HKRLoss(0.9, 0.5)(critic(x), target).backward()

    def loss(change: float) -> float:
        with torch.no_grad():
            weight[1, 2] += change
            value = float(torchlip.HKRLoss(0.9, 0.5)(critic(x), target))
            weight[1, 2] -= change
        return value

    assert float(weight.grad[1, 2]) == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-4, abs=1e-8)
