"""Householder: a learned reflection for each pair of channels (Singla, Singla, Feizi 2021), 1-Lipschitz in ℓ2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.nn.sorting import LAYOUTS

# In evaluation mode sine and cosine shrink by this many unit roundoffs: more than what rounding them to the stored type
# (1) and computing them in float64 (2) can add.
SHRINK = 4


class Householder(nn.Module):
    """Reflect each pair of channels (a, b) across a learned line, where the pair lies on its far side.

    With s = sin(θ/2), c = cos(θ/2) and m = max(0, a·s − b·c), the pair becomes (a − 2s·m, b + 2c·m). θ = π/2, where
    training starts, sorts the pair: smaller value first. In evaluation mode s and c are computed in float64 and rounded
    so that s² + c² ≤ 1 in the stored numbers, which makes the constant in ℓ2 exactly 1.

    Args:
        channels: size of the channel axis, even.
        axis: the channel axis; negative counts from the end.
        layout: ``"strided"`` (pairs i and i + channels/2) or ``"adjacent"`` (pairs 2i and 2i + 1).
        theta: the angle θ to start with, in radians.

    Input and output: any shape, any floating type. A NaN makes its whole pair NaN.

    Raises:
        ValueError: ``channels`` is odd, an argument is out of range, or the input has another number of channels.
    """

    def __init__(self, channels: int, axis: int = 1, layout: str = "strided", theta: float = math.pi / 2) -> None:
        super().__init__()
        if channels < 0 or channels % 2:
            raise ValueError(f"channels is {channels}; pairs need an even number")
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}")
        self.channels, self.axis, self.layout = int(channels), int(axis), layout
        self.theta = nn.Parameter(torch.full((channels // 2,), float(theta)))

    def forward(self, x: Tensor) -> Tensor:
        """Reflect; the shape stays."""
        if not self.training:
            return stored_reflections(self.theta, axis=self.axis, layout=self.layout).forward(x)
        return _reflected(x, torch.sin(self.theta / 2), torch.cos(self.theta / 2), self.axis, self.layout)

    @torch.no_grad()
    def stored(self) -> StoredHouseholder:
        """These reflections as evaluation mode uses them, as constants.

        Raises:
            ValueError: an angle is not finite.
        """
        return stored_reflections(self.theta, axis=self.axis, layout=self.layout)

    def extra_repr(self) -> str:
        """The attributes, for ``print(module)``."""
        return f"{self.channels}, axis={self.axis}, layout={self.layout!r}"


class StoredHouseholder(nn.Module):
    """Reflections whose numbers are constants: what ``bake`` leaves of a Householder, and what is written to ONNX.

    Args:
        sine: sin(θ/2) of each pair, (channels/2,).
        cosine: cos(θ/2) of each pair, of the same shape and type.
        axis: the channel axis.
        layout: ``"strided"`` or ``"adjacent"``.
    """

    sine: Tensor
    cosine: Tensor

    def __init__(self, sine: Tensor, cosine: Tensor, axis: int = 1, layout: str = "strided") -> None:
        super().__init__()
        self.axis, self.layout = axis, layout
        self.register_buffer("sine", sine)
        self.register_buffer("cosine", cosine)

    def forward(self, x: Tensor) -> Tensor:
        """Reflect; the shape stays."""
        if torch.onnx.is_in_onnx_export():
            _checked_axis(x, self.sine.shape[0], self.axis)
            return self._emit(x)
        return _reflected(x, self.sine, self.cosine, self.axis, self.layout)

    def _emit(self, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {"axis": self.axis, "layout": LAYOUTS[self.layout]}
        inputs = (x, self.sine, self.cosine)
        return torch.onnx.ops.symbolic(
            "lipdeploy::Householder", inputs, attributes, dtype=x.dtype, shape=x.shape, version=1
        )

    def extra_repr(self) -> str:
        """The attributes, for ``print(module)``."""
        return f"{2 * self.sine.shape[0]}, axis={self.axis}, layout={self.layout!r}"


def stored_reflections(theta: Tensor, *, axis: int = 1, layout: str = "strided") -> StoredHouseholder:
    """Reflections by the angles ``theta`` (channels/2,), their sines and cosines rounded inward: s² + c² ≤ 1.

    Raises:
        ValueError: an angle is not finite.
    """
    if not theta.isfinite().all():
        raise ValueError("Householder has an angle that is not finite")
    half = theta.double() / 2
    inward = 1 - SHRINK * torch.finfo(theta.dtype).eps / 2
    sine, cosine = ((inward * wave(half)).to(theta.dtype) for wave in (torch.sin, torch.cos))
    return StoredHouseholder(sine, cosine, axis, layout)


def _checked_axis(x: Tensor, pairs: int, axis: int) -> int:
    counted = axis + x.ndim if axis < 0 else axis
    if not 0 <= counted < x.ndim or x.shape[counted] != 2 * pairs:
        raise ValueError(f"Householder for {2 * pairs} channels on axis {axis} got an input of shape {tuple(x.shape)}")
    return counted


def _reflected(x: Tensor, sine: Tensor, cosine: Tensor, axis: int, layout: str) -> Tensor:
    """The operator's own formula, in float32 for 16-bit inputs."""
    axis = _checked_axis(x, sine.shape[0], axis)
    work = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    strided = layout == "strided"
    pairs = sine.shape[0]
    split = (2, pairs) if strided else (pairs, 2)
    grouped = x.to(work).reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
    halves = axis if strided else axis + 1
    a, b = grouped.unbind(halves)
    column = (-1, *[1] * (x.ndim - 1 - axis))
    s, c = sine.to(work).view(column), cosine.to(work).view(column)
    beyond = a * s - b * c
    twice = 2 * torch.where(beyond <= 0, torch.zeros_like(beyond), beyond)  # a NaN stays
    pair = torch.stack((a - s * twice, b + c * twice), dim=halves)
    return pair.flatten(axis, axis + 1).to(x.dtype)
