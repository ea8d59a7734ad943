"""deel-torchlip's layers. Its Linear and Conv layers need nothing here once their parametrisations are baked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.export.adapters.torch_layers import EmittedL2Pool, l2_pool
from lipdeploy.nn import GroupSort


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


class TorchlipHouseHolder(nn.Module):
    """torchlip's HouseHolder as rotation, sort, rotation back, for pairs (i, i + C/2).

    It reflects a pair (a, b) across the line at angle θ/2 when the pair lies below it. Sorting does that for the line
    at π/4, so a rotation by π/4 − θ/2 before and its inverse after make one out of the other. This form is continuous
    (torchlip's two branches jump across the line once sines and cosines are rounded), and each step has norm 1 up to
    the rounding of the rotation, whose entries are computed in float64 and rounded once.
    """

    rotation: Tensor
    inverse: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        theta = layer.theta.detach()  # type: ignore[operator]
        angle = math.pi / 4 - theta.double() / 2
        cosine, sine = torch.cos(angle), torch.sin(angle)
        rows = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], 1)  # (C/2, 2, 2)
        self.register_buffer("rotation", rows.reshape(-1, 2, 1).to(theta.dtype))
        self.register_buffer("inverse", rows.transpose(1, 2).reshape(-1, 2, 1).to(theta.dtype))
        self.sort = GroupSort(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape: pairs side by side, one 2×2 grouped convolution each way."""
        pairs = x.shape[1] // 2
        interleaved = x.reshape(x.shape[0], 2, pairs, -1).transpose(1, 2).flatten(1, 2)
        rotated = nn.functional.conv1d(interleaved, self.rotation, groups=pairs)
        restored = nn.functional.conv1d(self.sort(rotated), self.inverse, groups=pairs)
        return restored.reshape(x.shape[0], pairs, 2, -1).transpose(1, 2).reshape(x.shape)


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
    ("deel.torchlip", "HouseHolder"): TorchlipHouseHolder,
    ("deel.torchlip", "BatchLipNorm"): batch_lip_norm,
    ("deel.torchlip", "BatchCentering"): batch_lip_norm,
    ("deel.torchlip", "ScaledL2NormPool2d"): l2_pool,
    ("deel.torchlip", "ScaledAdaptativeL2NormPool2d"): adaptive_l2_pool,
}
