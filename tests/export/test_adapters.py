"""Layers of papers, exported: parity on random weights, and the proven bound against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.errors import InputError, LimitExceeded
from lipdeploy.export.adapters.copied import find
from tests.export.foreign import papers
from tests.export.running import export_and_compare, jacobian_norm, operators

pytestmark = pytest.mark.filterwarnings("ignore:.*parametrize.*")


def bound(result: lip.ExportResult) -> float:
    return float(result.verdict.lipschitz_bound.value)


def spectral(weight: torch.Tensor) -> float:
    return float(np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)[0])


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (papers.GroupSort(2), (6,), ["GroupSort"]),
        (papers.GroupSort(1), (6,), ["GroupSort"]),
        (papers.GroupSort(4, axis=1), (8, 3, 5), ["GroupSort"]),
        (papers.MaxMin(3), (6,), ["GroupSort", "Gather"]),
        (papers.MaxMin(4, axis=1), (8, 3, 3), ["GroupSort", "Gather"]),
    ],
    ids=["pairs of three", "full sort", "maps", "maxmin", "maxmin on maps"],
)
def test_sorting_of_lnets(layer, shape, expected, tmp_path):
    result = export_and_compare(layer, shape, tmp_path)
    assert operators(result) == expected
    assert bound(result) == 1


def test_a_class_that_only_shares_the_name_is_left_alone(tmp_path):
    class MaxMin(nn.Module):  # minima first: no layout that any stand-in has
        def __init__(self):
            super().__init__()
            self.num_units, self.axis = 3, -1

        def forward(self, x):
            pairs = x.reshape(-1, 3, 2)
            return torch.cat((pairs.amin(2), pairs.amax(2)), dim=1)

    assert "GroupSort" not in operators(export_and_compare(MaxMin(), (6,), tmp_path))


@pytest.mark.parametrize("change", [lambda y: y.clamp(-20, 20), lambda y: torch.where(y.abs() < 0.02, 0.0, y)])
def test_a_layer_that_differs_for_large_or_small_numbers_only_is_left_alone(change):
    """Numbers that parity's rows do not have."""

    class MaxMin(papers.MaxMin):
        def forward(self, x):
            return change(super().forward(x))

    layer = MaxMin(3)
    assert find(("elsewhere", "MaxMin"), papers.MaxMin(3)) is not None
    assert find(("elsewhere", "MaxMin"), layer) is None


@pytest.mark.parametrize("factor", [1.0, 2**-0.5])
@pytest.mark.parametrize(("mode", "shape"), [("fc", (8,)), ("conv", (8, 3, 3))])
def test_householder_with_and_without_the_root_of_two(mode, shape, factor, tmp_path):
    layer = papers.HouseHolder(mode, 8)
    layer.factor = factor
    nn.init.normal_(layer.theta)
    result = export_and_compare(layer, shape, tmp_path)
    assert operators(result)[0] == "Householder"
    assert bound(result) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("size", [20, 21])
@pytest.mark.parametrize(("mode", "shape"), [("fc", (6,)), ("conv", (6, 4, 4))])
def test_raw_coefficients_are_projected(mode, shape, size, tmp_path):
    layer = papers.LinearSpline(mode, 6, size, 0.5, "identity", True)
    with torch.no_grad():
        layer.coefficients_vect.add_(0.2 * torch.randn_like(layer.coefficients_vect))
        layer.scaling_coeffs_vect.copy_(torch.tensor([0.3, 1.0, 2.5, -1.5, 1.0, 0.7]).view(1, 6, 1, 1))
    raw = layer.coefficients_vect.detach().view(6, size).diff(dim=1).abs().max() / layer.grid
    assert raw > 2  # what an exporter would ship that reads the checkpoint
    result = export_and_compare(layer, shape, tmp_path)
    assert "LinearSpline" in operators(result)
    assert bound(result) <= 1


@pytest.mark.parametrize(
    "layer",
    [
        papers.LinearSpline("fc", 5, 21, 0.5, "absolute_value", False),
        papers.DeepBSpline("fc", 5, 11, 2.0),
        papers.DeepBSplineExplicitLinear("fc", 5, size=11, range_=2.0),
    ],
    ids=["DSNN", "DeepBSpline", "explicit linear"],
)
def test_splines_without_a_projection_keep_their_slopes(layer, tmp_path):
    with torch.no_grad():
        values = next(layer.parameters())
        values.add_(0.3 * torch.randn_like(values))
    result = export_and_compare(layer, (5,), tmp_path)
    assert operators(result) == ["LinearSpline"]
    x = torch.linspace(-4, 4, 4001, dtype=torch.float32)[:, None].expand(-1, 5)
    with torch.no_grad():
        slopes = (layer(x).double().diff(dim=0) / x.double().diff(dim=0)).abs()
    assert bound(result) > 1.5
    assert bound(result) == pytest.approx(float(slopes.max()), rel=2e-2)


def test_a_whole_dsnn_network(tmp_path):
    torch.manual_seed(3)
    network = nn.Sequential(
        papers.BjorckLinear(6, 8),
        papers.LinearSpline("fc", 8, 21, 0.5, "absolute_value", True),
        papers.BjorckLinear(8, 8),
        papers.GroupSort(4),
        papers.BjorckLinear(8, 3),
    )
    result = export_and_compare(network, (6,), tmp_path)
    assert operators(result) == ["Gemm", "LinearSpline", "Gemm", "GroupSort", "Gemm"]
    assert jacobian_norm(nn.Sequential(network[0]), (6,), points=1) <= bound(result) + 1e-6 <= 1 + 2e-6


def test_bjorck_weights_are_those_that_forward_computes(tmp_path):
    layer = papers.BjorckLinear(6, 5)
    result = export_and_compare(layer, (6,), tmp_path)
    assert bound(result) == pytest.approx(1, abs=1e-4)
    # LNets' converter copies the raw weight into a standard layer: another function, and no longer 1-Lipschitz.
    converted = nn.Linear(6, 5)
    converted.load_state_dict(layer.state_dict())
    assert bound(export_and_compare(converted, (6,), tmp_path)) == pytest.approx(spectral(layer.weight), rel=1e-6)
    with pytest.raises(LimitExceeded):
        lip.export(converted, torch.zeros(1, 6), tmp_path / "raw.onnx", max_lipschitz=1.0)


def test_rows_in_the_l1_ball(tmp_path):
    layer = papers.LInfProjectedLinear(6, 5)
    result = export_and_compare(nn.Sequential(layer, papers.GroupSort(1)), (6,), tmp_path, norm="linf")
    assert bound(result) == pytest.approx(1, abs=1e-6)


BLOCKS = {
    "SandwichFc": (lambda: papers.SandwichFc(6, 8), (6,), 1.0),
    "SLLLinear": (lambda: papers.SLLLinear(6, 9), (6,), 1.0),
    "SLLConv2d": (lambda: papers.SLLConv2d(3, 5, 3), (3, 6, 6), 1.0),
    # The norm of the circular operator, which the proof uses, is a little above the zero-padded one.
    "CPLConv2d": (lambda: papers.CPLConv2d(3, 3), (3, 6, 6), 1.01),
    "AOLConv2d": (lambda: papers.AOLConv2d(3, 4, 3, padding=1), (3, 6, 6), 1.0),
    "NormalizedHead": (lambda: papers.NormalizedHead(6, 4), (6,), 2.0),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_1_lipschitz_by_design_and_proven_so(name, tmp_path):
    torch.manual_seed(5)
    make, shape, limit = BLOCKS[name]
    network = make()
    with torch.no_grad():
        network(torch.randn(2, *shape))  # a step of training fills the caches
    result = export_and_compare(network, shape, tmp_path)
    assert bound(result) <= limit + 1e-3
    fresh = make()
    fresh.load_state_dict(network.state_dict())
    assert jacobian_norm(fresh, shape) <= bound(result) * (1 + 1e-5)


def test_what_is_proven_is_what_a_stale_cache_holds(tmp_path):
    """Sandwich layers keep Q of the last training step: evaluation uses it, and so must the file."""
    layer = papers.SandwichFc(6, 8)
    layer(torch.randn(2, 6))
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    export_and_compare(layer, (6,), tmp_path)


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (papers.HouseHolder_Order_2(6), (6,), "order 2"),
        (papers.GloroNet(nn.Linear(6, 3), 0.1, 1.0), (6,), "extra logit"),
        (papers.SandwichConv(), (3, 6, 6), "Fourier"),
    ],
    ids=["second order", "gloro head", "Fourier"],
)
def test_refused_by_name_with_a_hint(network, shape, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        lip.export(nn.Sequential(network), torch.zeros(2, *shape), tmp_path / "model.onnx")
    assert f"layer '0' ({type(network).__name__})" in str(error.value)
    assert error.value.hint
    assert not list(tmp_path.iterdir())


def test_the_network_inside_a_gloro_head_exports(tmp_path):
    inner = nn.Sequential(nn.Linear(6, 5), papers.GroupSort(1), nn.Linear(5, 3))
    network = papers.GloroNet(inner, 0.1, 0.5)
    assert bound(export_and_compare(network.network, (6,), tmp_path)) > network.estimate
