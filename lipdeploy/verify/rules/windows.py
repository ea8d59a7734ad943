"""Sliding windows of convolutions and pooling: padding, stride, dilation and output size, resolved once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipdeploy.verify.graph import Call
from lipdeploy.verify.limits import LONGEST_LISTED, check_listed, check_shape

#: Pixels behind the last window up to which ONNX Runtime's Conv with auto_pad SAME pads nothing; then it crops.
MOST_PASSED = 2


@dataclass(frozen=True)
class Windows:
    """Windows over an image: sizes per spatial axis, ``pads`` as (begin, end)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    def passed_over(self, kernel: tuple[int, ...]) -> int:
        """How many pixels of one axis, at most, lie behind the last window when nothing is padded."""
        axes = zip(self.inputs, self.outputs, self.strides, self.dilations, kernel, strict=True)
        return max(n - (count - 1) * s - (k - 1) * d - 1 for n, count, s, d, k in axes)


@dataclass(frozen=True)
class TransposedWindows:
    """Windows of a ConvTranspose: an image of size n becomes one of n·stride + ``grows``; ``pads`` as (begin, end)."""

    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    grows: tuple[int, ...]


def transposed_windows(call: Call, kernel: tuple[int, ...]) -> TransposedWindows:
    """Read the window attributes of a ConvTranspose, whatever the image's size."""
    if "output_shape" in call.attributes or call.string("auto_pad", "NOTSET") != "NOTSET":
        raise call.refuse("LIP002", "state pads and output_padding instead of output_shape or auto_pad")
    axes = len(kernel)
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    pads, extra = call.integers("pads", (0,) * 2 * axes), call.integers("output_padding", (0,) * axes)
    if {len(strides), len(dilations), len(extra), len(pads) / 2} != {axes}:
        raise call.refuse("LIP013", f"strides, dilations, pads and output_padding do not fit {axes} axes")
    if min((*pads, *extra, *(s - 1 for s in strides), *(d - 1 for d in dilations)), default=0) < 0:
        raise call.refuse("LIP002", "negative pads, strides or dilations")
    pairs = tuple((pads[i], pads[i + axes]) for i in range(axes))
    grows = tuple(
        (k - 1) * d + 1 - s + e - sum(pair)
        for s, k, d, e, pair in zip(strides, kernel, dilations, extra, pairs, strict=True)
    )
    return TransposedWindows(pairs, strides, dilations, grows)


def windows(call: Call, image: tuple[int, ...], kernel: tuple[int, ...], *, ceil: bool = False) -> Windows:
    """Read the window attributes of a Conv or a pooling node for one image size.

    ``ceil`` lets a last window reach past the padding; one that would start there is left out (torch, ONNX Runtime,
    ONNX's reference evaluator, and the text of opset 22 agree).
    """
    axes = len(image)
    strides = call.integers("strides", (1,) * axes)
    dilations = call.integers("dilations", (1,) * axes)
    if len(strides) != axes or len(dilations) != axes or len(kernel) != axes:
        raise call.refuse("LIP013", f"strides, dilations and kernel must have {axes} entries")
    if min((*strides, *dilations, *kernel)) < 1:
        raise call.refuse("LIP013", "strides, dilations and kernel sizes must be positive")
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    pads = _pads(call, image, extents, strides)
    check_listed(call, (*strides, *extents, *(max(pad) for pad in pads)), LONGEST_LISTED)
    outputs = tuple(map(_ceiled if ceil else _floored, image, pads, extents, strides))
    if min(outputs) < 1:
        raise call.refuse("LIP013", f"an image of {list(image)} is smaller than the window {list(extents)}")
    check_shape(call, outputs)
    found = Windows(image, outputs, pads, strides, dilations)
    if call.string("auto_pad", "NOTSET").startswith("SAME") and found.passed_over(kernel) > MOST_PASSED:
        raise call.refuse("LIP002", "runtimes disagree about auto_pad where strides pass over pixels; state the pads")
    return found


def _floored(size: int, pad: tuple[int, int], extent: int, stride: int) -> int:
    return (size + sum(pad) - extent) // stride + 1


def _ceiled(size: int, pad: tuple[int, int], extent: int, stride: int) -> int:
    count = -(-(size + sum(pad) - extent) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pad[0] else count


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
