"""deel-torchlip's layers. Its Linear and Conv layers need nothing here once their parametrisations are baked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.export.adapters.torch_layers import EmittedL2Pool, l2_pool
from lipdeploy.nn import GroupSort
from lipdeploy.nn.householder import stored_reflections


class TorchlipGroupSort(nn.Module):
    """torchlip's GroupSort (axis 1, adjacent, ascending, times its coefficient) as lipdeploy's operator."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        source: Any = layer
        self.group_size: int | None = source.group_size
        self.factor = float(source._coefficient_lip)

    def forward(self, x: Tensor) -> Tensor:
        """A group larger than the axis means the whole axis, as in torchlip."""
        size = self.group_size
        y: Tensor = GroupSort(0 if size is None or size > x.shape[1] else size)(x)
        return y if self.factor == 1 else y * self.factor


def householder(layer: nn.Module) -> nn.Module:
    """torchlip's HouseHolder, pairs (i, i + C/2), as lipdeploy's operator.

    Its two branches jump across their line once sines and cosines are rounded; the operator is continuous.
    """
    return stored_reflections(layer.theta.detach())  # type: ignore[operator]


class ChannelAffine(nn.Module):
    """x·scale + shift per channel: a torchlip normalisation with its running statistics baked."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.only_shifts = bool((scale == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        scaled = x if self.only_shifts else x * self.scale.view(shape)
        return scaled + self.shift.view(shape)


@torch.no_grad()
def batch_lip_norm(layer: nn.Module) -> nn.Module:
    """BatchLipNorm and BatchCentering: dynamo cannot trace their statistics, evaluation only uses two constants."""
    norm: Any = layer
    norm.update_running_values()
    mean = norm._get_mean(training=False).double()
    scale = norm.get_scaling(training=False).double()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    dtype = norm.running_sum_bmean.dtype
    shift = (bias - mean * scale).to(dtype)
    return ChannelAffine(scale.expand_as(mean).to(dtype).clone(), shift)


def adaptive_l2_pool(layer: nn.Module) -> nn.Module:
    """Pooling over the whole map."""
    factor = float(layer._coefficient_lip)  # type: ignore[arg-type]
    return EmittedL2Pool(layer, lambda x: tuple(x.shape[2:]), factor)


ADAPTERS: Mapping[tuple[str, str], Callable[[nn.Module], nn.Module]] = {
    **{("deel.torchlip", name): TorchlipGroupSort for name in ("GroupSort", "GroupSort2", "FullSort")},
    ("deel.torchlip", "HouseHolder"): householder,
    ("deel.torchlip", "BatchLipNorm"): batch_lip_norm,
    ("deel.torchlip", "BatchCentering"): batch_lip_norm,
    ("deel.torchlip", "ScaledL2NormPool2d"): l2_pool,
    ("deel.torchlip", "ScaledAdaptativeL2NormPool2d"): adaptive_l2_pool,
}
