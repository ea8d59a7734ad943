"""Gradients of every constraint in float64, by finite differences, and chains p → ∞ through export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

import lipdeploy as lip
from lipdeploy import nn as lipnn
from lipdeploy.nn.linear import bjorck, gram_norm_bound, project_rows_l1
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
