"""Sliding windows of convolutions and pooling: padding, stride, dilation and output size, resolved once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipdeploy.verify.graph import Call


@dataclass(frozen=True)
class Windows:
    """Windows over an image: sizes per spatial axis, ``pads`` as (begin, end)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]


def windows(call: Call, image: tuple[int, ...], kernel: tuple[int, ...]) -> Windows:
    """Read the window attributes of a Conv or a pooling node for one image size."""
    axes = len(image)
    strides = call.integers("strides", (1,) * axes)
    dilations = call.integers("dilations", (1,) * axes)
    if len(strides) != axes or len(dilations) != axes or len(kernel) != axes:
        raise call.refuse("LIP013", f"strides, dilations and kernel must have {axes} entries")
    if min((*strides, *dilations, *kernel)) < 1:
        raise call.refuse("LIP013", "strides, dilations and kernel sizes must be positive")
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    pads = _pads(call, image, extents, strides)
    outputs = tuple(
        (n + sum(pad) - extent) // stride + 1
        for n, pad, extent, stride in zip(image, pads, extents, strides, strict=True)
    )
    if min(outputs) < 1:
        raise call.refuse("LIP013", f"an image of {list(image)} is smaller than the window {list(extents)}")
    return Windows(image, outputs, pads, strides, dilations)


def _pads(
    call: Call, image: tuple[int, ...], extents: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    mode, axes = call.string("auto_pad", "NOTSET"), len(image)
    if mode == "VALID":
        return ((0, 0),) * axes
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(_same(mode, n, k, s) for n, k, s in zip(image, extents, strides, strict=True))
    if mode != "NOTSET":
        raise call.refuse("LIP002", f"auto_pad='{mode}'")
    pads = call.integers("pads", (0,) * (2 * axes))
    if len(pads) != 2 * axes or min(pads) < 0:
        raise call.refuse("LIP002", f"pads {list(pads)} must be {2 * axes} numbers, none negative")
    return tuple((pads[i], pads[i + axes]) for i in range(axes))


def _same(mode: str, size: int, extent: int, stride: int) -> tuple[int, int]:
    missing = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
    small, large = missing // 2, missing - missing // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)
