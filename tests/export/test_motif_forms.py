"""What torch's two exporters make of layers that are 1-Lipschitz as a whole, judged as such."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import lipdeploy as lip
import lipdeploy.nn as lipnn
from lipdeploy.verify import verify

orthogonium = pytest.importorskip("orthogonium.layers")
torchlip = pytest.importorskip("deel.torchlip")

SHAPE = (4, 6, 6)


def strided_maxmin(x: Tensor) -> Tensor:
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


def stacked_maxmin(x: Tensor) -> Tensor:
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([torch.max(a, b), torch.min(a, b)], 2).flatten(1, 2)


def chunked_maxmin(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def viewed_maxmin(x: Tensor) -> Tensor:
    z = x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
    return torch.stack([z.amax(2), z.amin(2)], 2).reshape(x.shape)


def rectified_maxmin(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    d = torch.relu(a - b)
    return torch.cat([b + d, a - d], 1)


def sorted_groups(x: Tensor) -> Tensor:
    return torch.sort(x.view(x.shape[0], -1, 4, *x.shape[2:]), 2, descending=True)[0].view(x.shape)


def householder(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    m = torch.relu(a * 0.6 - b * 0.8)
    return torch.cat([a - 1.2 * m, b + 1.6 * m], 1)


def l2_pool(x: Tensor) -> Tensor:
    return torch.sqrt(nn.functional.avg_pool2d(x * x, 2) * 4 + 1e-6)


def global_l2(x: Tensor) -> Tensor:
    return torch.sqrt((x**2).sum((2, 3)) + 1e-8)


def unshuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, h // 2, w // 2)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "GroupSort2": torchlip.GroupSort2(),
    "GroupSort(4)": torchlip.GroupSort(4),
    "FullSort": torchlip.FullSort(),
    "CReLU of deel-torchlip": torchlip.MaxMin(),
    "MaxMin of orthogonium": orthogonium.MaxMin(),
    "strided slices": strided_maxmin,
    "stack and flatten": stacked_maxmin,
    "chunk": chunked_maxmin,
    "view": viewed_maxmin,
    "rectified difference": rectified_maxmin,
    "sort": sorted_groups,
    "Householder": householder,
    "channel shuffle": orthogonium.ChannelShuffle(2, 2),
    "layer centering": orthogonium.LayerCentering2D(4),
    "batch centering": orthogonium.BatchCentering2D(4),
    "ScaledL2NormPool2d": torchlip.ScaledL2NormPool2d(2),
    "LPPool2d": nn.LPPool2d(2, 2),
    "ℓ2 pool": l2_pool,
    "global ℓ2": global_l2,
    "ScaledAvgPool2d": torchlip.ScaledAvgPool2d(2),
    "InvertibleDownSampling": torchlip.InvertibleDownSampling(2),
    "unshuffle by hand": unshuffled,
}


class Everything(nn.Module):
    """All forms of one tensor, one output each: one export is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(form for form in FORMS.values() if isinstance(form, nn.Module))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        modules = iter(self.layers)
        return tuple(next(modules)(x) if isinstance(form, nn.Module) else form(x) for form in FORMS.values())


@pytest.fixture(scope="module", params=["dynamo", "legacy"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    module, x = Everything().eval(), torch.randn(3, *SHAPE)
    names = [f"y{index}" for index in range(len(FORMS))]
    path = str(tmp_path_factory.mktemp("forms") / "forms.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "dynamo":
            batch = ({0: torch.export.Dim("batch", min=2)},)
            torch.onnx.export(
                module, (x,), path, dynamo=True, opset_version=20, input_names=["x"], output_names=names,
                dynamic_shapes=batch, external_data=False, verbose=False,
            )  # fmt: skip
        else:
            axes = {name: {0: "batch"} for name in ("x", *names)}
            torch.onnx.export(
                module, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=names,
                dynamic_axes=axes,
            )  # fmt: skip
    buffer = io.BytesIO()
    onnx.save(onnx.load(path), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_judged_as_a_whole(exported: bytes, form: str) -> None:
    verdict = verify(exported, output_name=f"y{list(FORMS).index(form)}")
    assert verdict.status == "verified", verdict.refusals
    assert verdict.lipschitz_bound is not None
    assert 1.0 - 1e-12 <= verdict.lipschitz_bound <= 1.0 + 1e-6


@pytest.mark.parametrize("image", [False, True])
def test_a_network_of_splines_without_our_operators_is_as_tight(image: bool, tmp_path: Path) -> None:
    """``--standard-ops`` writes the spline's body into the graph; the verifier recognises it there."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, padding=1) if image else nn.Linear(8, 4)
    last = nn.Linear(4 * 36, 3) if image else nn.Linear(4, 3)
    network = nn.Sequential(first, lipnn.LinearSpline(4), nn.Flatten(), last).eval()
    x = torch.randn(2, 3, 6, 6) if image else torch.randn(2, 8)
    own = lip.export(network, x, tmp_path / "own.onnx")
    plain = lip.export(network, x, tmp_path / "plain.onnx", standard_ops=True)
    assert {node.domain for node in onnx.load(plain.path).graph.node} == {""}
    assert plain.verdict.lipschitz_bound == own.verdict.lipschitz_bound
    assert plain.verdict.numeric_error == own.verdict.numeric_error
    for mode in ("f64", "adaptive", "f32", "network"):
        one, other = (lip.CertifiedSession(str(result.path), certify=mode).predict(x) for result in (plain, own))
        np.testing.assert_array_equal(one.label, other.label)
        np.testing.assert_allclose(one.radius, other.radius, rtol=1e-3)
