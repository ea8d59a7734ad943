"""orthogonium's layers. Those with parametrised weights need nothing here once their parametrisations are baked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lipdeploy.errors import InputError
from lipdeploy.nn import MaxMin
from lipdeploy.nn.householder import stored_reflections


class Reflections(nn.Module):
    """Householder on the halves of an axis, times a factor (orthogonium divides by √2)."""

    def __init__(self, theta: Tensor, axis: int, factor: float) -> None:
        super().__init__()
        self.reflections = stored_reflections(theta.detach().flatten(), axis=axis)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        y: Tensor = self.reflections(x)
        return y if self.factor == 1 else y * self.factor


class ResidualBlock(nn.Module):
    """SLLxAOC unfused: an orthogonal convolution, the residual layer x − 2Kᵀ relu(Kx + b), a strided orthogonal one.

    The library merges the three into three kernels, and a proof for those can no longer see that the middle is
    1-Lipschitz. All convolutions here are 'valid', after one padding, so both forms are the same function.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        source: Any = block
        self.padding, self.stride = int(source.padding), int(source.stride)
        self.register_buffer("before", source.pre_conv.weight.detach().clone())
        self.register_buffer("kernel", source.kernel.detach().clone())
        self.register_buffer("bias", source.bias.detach().flatten().clone())
        self.register_buffer("after", source.post_conv.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        before, kernel, bias, after = self.before, self.kernel, self.bias, self.after
        outer, inner = (0, self.padding) if self.stride == 1 else (self.padding, 0)
        z = F.conv2d(x, before, padding=outer)  # type: ignore[arg-type]
        inside = F.relu(F.conv2d(z, kernel, bias, padding=inner))  # type: ignore[arg-type]
        z = z - F.conv_transpose2d(inside, 2 * kernel, padding=inner)  # type: ignore[arg-type, operator]
        return F.conv2d(z, after, stride=self.stride)  # type: ignore[arg-type]


def householder(layer: nn.Module) -> nn.Module:
    """orthogonium's HouseHolder: pairs (i, i + C/2), and the result divided by √2."""
    axis: Any = layer.axis
    return Reflections(layer.theta, int(axis), 1 / math.sqrt(2))  # type: ignore[arg-type]


def maxmin(layer: nn.Module) -> nn.Module:
    """orthogonium's MaxMin: maxima of the pairs (i, i + C/2), then their minima."""
    axis: Any = layer.axis
    return MaxMin(int(axis))


def residual_block(layer: nn.Module) -> nn.Module:
    """SLLxAOCLipschitzResBlock where unfusing is exact; others stay fused, with a looser bound."""
    block: Any = layer
    plain = block.stride == 1 or (block.stride == 2 and block.padding == 1 and tuple(block.kernel.shape[2:]) == (2, 2))
    return ResidualBlock(layer) if block.groups == 1 and plain else layer


def no_second_order(layer: nn.Module) -> nn.Module:
    """HouseHolder_Order_2: an angle in sectors, for which there is neither an operator nor a rule."""
    raise InputError(
        "the reflections of order 2 have no operator here, and no constant is known for how they are written",
        hint="train with HouseHolder (order 1), MaxMin or GroupSort instead",
    )


ADAPTERS: Mapping[tuple[str, str], Callable[[nn.Module], nn.Module]] = {
    ("orthogonium", "HouseHolder"): householder,
    ("orthogonium", "HouseHolder_Order_2"): no_second_order,
    ("orthogonium", "MaxMin"): maxmin,
    ("orthogonium", "SLLxAOCLipschitzResBlock"): residual_block,
}
