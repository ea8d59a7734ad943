"""What other tools say about a probe. Each is asked the way its documentation shows, at its own precision."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tools.soundness.probe import Probe


class DoesNotApply(Exception):
    """The tool has nothing to say about this kind of network."""


@dataclass(frozen=True)
class Peer:
    """A tool: its distribution, the module it is imported as, and how to ask it for a constant in ℓ2."""

    name: str
    distribution: str
    imported: str
    ask: Callable[[Probe], float]
    note: str

    def version(self) -> str | None:
        """The version, or why there is none."""
        try:
            version = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None
        return version

    def failure(self) -> str:
        """Why the tool cannot be used here; empty when it can."""
        if self.version() is None:
            return "not installed"
        try:
            with _quiet():
                importlib.import_module(self.imported)
        except Exception as error:  # whatever a foreign package raises while it is imported
            return f"does not import ({type(error).__name__}: {error})".splitlines()[0]
        return ""

    def claim(self, probe: Probe) -> float | str:
        """Its number, or why there is none."""
        if probe.norm != "l2" or probe.module is None:
            return "–"
        try:
            with _quiet():
                return float(self.ask(probe))
        except DoesNotApply:
            return "–"
        except Exception as error:  # a foreign tool may raise anything; an error is an honest answer
            return f"error ({type(error).__name__})"


@contextlib.contextmanager
def _quiet() -> Any:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def input_shape(probe: Probe) -> tuple[int, ...]:
    """Shape of one sample of the probe's first input."""
    dims = probe.build().graph.input[0].type.tensor_type.shape.dim
    if any(not dim.dim_value for dim in dims[1:]):
        raise DoesNotApply
    return tuple(dim.dim_value for dim in dims[1:])


def _torchlip(probe: Probe) -> float:
    import torch
    from deel.torchlip.utils import evaluate_lip_const

    torch.manual_seed(0)
    assert probe.module is not None
    points = torch.randn(64, *input_shape(probe))
    return float(evaluate_lip_const(probe.module(), points, "jacobian_norm"))


def _orthogonium(probe: Probe) -> float:
    import torch
    from orthogonium.layers.conv.singular_values import get_conv_sv

    assert probe.module is not None
    layer, size = probe.module(), None
    if not isinstance(layer, (torch.nn.Conv2d, torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
        raise DoesNotApply  # it judges single convolutions
    if isinstance(layer, torch.nn.Conv1d) and not isinstance(layer, torch.nn.ConvTranspose1d):
        layer = _as_2d(layer)
    elif isinstance(layer, torch.nn.ConvTranspose1d):
        raise DoesNotApply
    if layer.padding_mode == "circular":
        size = input_shape(probe)[-1]
    return float(get_conv_sv(layer, n_iter=6, return_stab_rank=False, imsize=size))


def _as_2d(layer: Any) -> Any:
    """A convolution along rows as one of images that are one pixel high: orthogonium judges only those."""
    import torch

    if layer.padding_mode != "zeros":
        raise DoesNotApply
    flat = torch.nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (1, *layer.kernel_size),
        stride=(1, *layer.stride),
        padding=(0, *layer.padding),
        dilation=(1, *layer.dilation),
        groups=layer.groups,
        bias=False,
    )
    flat.weight.data = layer.weight.data.unsqueeze(2)
    return flat


def _eclipse(probe: Probe) -> float:
    from eclipse_nn import LipConstEstimator

    assert probe.module is not None
    return float(LipConstEstimator(model=probe.module().double()).estimate("ECLipsE_Fast"))


def _auto_lirpa(probe: Probe) -> float:
    """Half the width that it proves for the outputs over an ℓ2 ball, per unit of radius, around the probe's points.

    It states no constant. Over a ball of radius r the outputs of an L-Lipschitz network lie within L·r of the
    centre's, and any one output's range that is narrower than what two points of the ball show is false.
    """
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    if isinstance(probe.shown, str):
        raise DoesNotApply
    assert probe.module is not None
    first, second = (torch.tensor(points, dtype=torch.float32) for points in probe.shown)
    centre, radius = (first + second) / 2, float(torch.linalg.vector_norm(second - first)) / 2
    network = BoundedModule(probe.module(), centre)
    ball = BoundedTensor(centre, PerturbationLpNorm(norm=2, eps=radius))
    lower, upper = network.compute_bounds((ball,), method="CROWN")
    return float(torch.linalg.vector_norm(upper - lower)) / (2 * radius)


PEERS: tuple[Peer, ...] = (
    Peer("deel-torchlip", "deel-torchlip", "deel.torchlip", _torchlip,
         "`evaluate_lip_const(…, \"jacobian_norm\")` at 64 normal points: an estimate from below, and says so"),
    Peer("orthogonium", "orthogonium", "orthogonium.layers.conv.singular_values", _orthogonium,
         "`get_conv_sv(layer, n_iter=6)`: single convolutions"),
    Peer("eclipse-nn", "eclipse-nn", "eclipse_nn", _eclipse, "`LipConstEstimator(model).estimate(\"ECLipsE_Fast\")`"),
    Peer("auto_LiRPA", "auto-lirpa", "auto_LiRPA", _auto_lirpa,
         "CROWN's output range over the ball around the two points that show the constant, divided by its radius"),
)  # fmt: skip
