"""Sliding windows over images of open size: what holds for every size that a file may be given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call
from lipdeploy.verify.limits import check_convolution
from lipdeploy.verify.norms import Gains, Norm, per_norm
from lipdeploy.verify.open_sizes import OpenSize, stated
from lipdeploy.verify.operator_norm import Convolution, ProofFailed
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.operator_norm.symbol import Symbol, every_frequency_up
from lipdeploy.verify.rounding import div_up, sqrt_up
from lipdeploy.verify.rules.windows import transposed_windows
from lipdeploy.verify.step import Step


@dataclass(frozen=True)
class _Window:
    """A sliding window over an image some of whose sizes are open; ``shape`` is the output's.

    ``overhangs``: on which axes an image may be smaller than the window, and some runtime still makes an output.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padded: bool
    shape: tuple[int, ...]
    overhangs: tuple[bool, ...]


def _window(call: Call, image: tuple[Any, ...], kernel: tuple[int, ...]) -> _Window:
    axes = len(image)
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    if not len(strides) == len(dilations) == len(kernel) == axes or min((*strides, *dilations, *kernel)) < 1:
        raise call.refuse("LIP013", f"strides, dilations and kernel must be {axes} positive numbers")
    if call.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refuse("LIP006", "auto_pad depends on the image's size, which is open; state the pads")
    pads = call.integers("pads", (0,) * 2 * axes)
    if len(pads) != 2 * axes or min(pads) < 0 or (any(pads) and call.string("auto_pad", "NOTSET") == "VALID"):
        raise call.refuse("LIP002", f"pads {list(pads)} must be {2 * axes} numbers, none negative")
    sizes, overhangs = [], []
    for i, (size, k, s, d) in enumerate(zip(image, kernel, strides, dilations, strict=True)):
        grows = pads[i] + pads[i + axes] - (k - 1) * d - 1
        overhangs.append(isinstance(size, OpenSize) and s > 1 and 1 + grows < 0)
        if not isinstance(size, OpenSize):
            if size + grows < 0:
                raise call.refuse("LIP013", f"an axis of {size} is smaller than the window")
            sizes.append((size + grows) // s + 1)
        else:
            sizes.append(size if (grows, s) == (-1, 1) else size.after("window", grows, s))
    return _Window(kernel, strides, dilations, any(pads), cast("tuple[int, ...]", tuple(sizes)), tuple(overhangs))


def convolution(call: Call) -> list[Step]:
    """‖conv‖ ≤ sup_w ‖K̂(w)‖ on images of every size (Lemma D7)."""
    flow, kernel, groups = call.flow(0), call.required_constant(1).float64(), call.integer("group", 1)
    _check_kernel(call, kernel, groups)
    if kernel.shape[0] % groups or kernel.shape[1] * groups != flow.shape[0]:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {list(stated(flow.shape))}")
    _check_bias(call, kernel.shape[0])
    window = _window(call, flow.shape[1:], kernel.shape[2:])
    gains = _any_size(call, kernel, groups, window.strides, window.dilations, adjoint=False)
    return [Step((kernel.shape[0], *window.shape), (gains,), "convolution, any size", rounding=None)]


def transposed_convolution(call: Call) -> list[Step]:
    """The adjoint of a convolution on ℤ^d, of an image that is zero elsewhere, cut to the output: sup_w ‖K̂(w)‖."""
    flow, kernel, groups = call.flow(0), call.required_constant(1).float64(), call.integer("group", 1)
    _check_kernel(call, kernel, groups)
    if kernel.shape[0] != flow.shape[0] or kernel.shape[0] % groups:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {list(stated(flow.shape))}")
    channels, layout = kernel.shape[1] * groups, transposed_windows(call, kernel.shape[2:])
    _check_bias(call, channels)
    shape = tuple(map(_stretched, flow.shape[1:], layout.strides, layout.grows))
    if min((size for size in shape if not isinstance(size, OpenSize)), default=1) < 1:
        raise call.refuse("LIP013", f"the output would have size {list(stated(shape))}")
    gains = _any_size(call, kernel, groups, layout.strides, layout.dilations, adjoint=True)
    return [Step((channels, *shape), (gains,), "convolution, any size", rounding=None)]


def _stretched(size: Any, stride: int, grows: int) -> Any:
    """size·stride + grows."""
    return size.stretched(stride, grows) if isinstance(size, OpenSize) else size * stride + grows


def _check_kernel(call: Call, kernel: Array, groups: int) -> None:
    shape = call.flow(0).shape
    if kernel.ndim != len(shape) + 1 or len(shape) < 2 or 0 in kernel.shape or groups < 1:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {list(stated(shape))}")
    if call.integers("kernel_shape", kernel.shape[2:]) != kernel.shape[2:]:
        raise call.refuse("LIP013", "kernel_shape is not the kernel's")


def _check_bias(call: Call, channels: int) -> None:
    bias = call.constant(2)
    if bias is not None and bias.array.shape != (channels,):
        raise call.refuse("LIP013", f"the bias has shape {list(bias.array.shape)}, not [{channels}]")


def _any_size(
    call: Call, kernel: Array, groups: int, strides: tuple[int, ...], dilations: tuple[int, ...], *, adjoint: bool
) -> Gains:
    """Gains of the convolution on ℤ^d with this kernel, or of its adjoint."""
    check_convolution(call, kernel.shape, groups, (1,) * len(strides), strides, dilations)
    # Without a stride, dilation only repeats the symbol, which a supremum over all frequencies does not notice.
    dilations = tuple(1 if s == 1 else d for s, d in zip(strides, dilations, strict=True))
    nothing = (0,) * len(strides)
    operator = Convolution(kernel, nothing, ((0, 0),) * len(strides), strides, dilations, groups, nothing)
    others = tuple(norm for norm in call.norms if norm is not Norm.L2)
    try:
        gains = dict(operator.adjoint_gains(others) if adjoint else operator.gains(others))
        if Norm.L2 in call.norms:
            gains[Norm.L2, Norm.L2] = every_frequency_up(Symbol(np.stack(operator.blocks)), call.guide)
    except ProofFailed as error:
        raise call.refuse("LIP014", str(error)) from error
    return gains


def _pool(call: Call) -> _Window:
    window = _window(call, call.flow().shape[1:], call.integers("kernel_shape"))
    if call.integer("ceil_mode", 0):
        raise call.refuse("LIP006", "ceil_mode depends on the image's size, which is open")
    if window.padded and any(
        2 * pad > k for pad, k in zip(call.integers("pads"), (*window.kernel, *window.kernel), strict=True)
    ):
        raise call.refuse("LIP002", "a window may lie wholly in the padding")
    if window.padded and max(window.dilations) > 1:
        raise call.refuse("LIP006", "padding with dilation: a window of a small image may see only padding")
    return window


def _copies(window: _Window) -> list[int]:
    """In how many windows an entry can lie, per axis."""
    axes = zip(window.kernel, window.strides, window.dilations, strict=True)
    return [-(-k // (s // math.gcd(s, d))) for k, s, d in axes]


def max_pool(call: Call) -> list[Step]:
    """An entry lies in at most Π⌈k / (s / gcd(s, d))⌉ windows, whatever the size: √Πc, 1, Πc."""
    window = _pool(call)
    copies = float(math.prod(_copies(window)))
    gains = per_norm(Bound(copies), Bound(sqrt_up(copies)), ONE)
    return [Step((call.flow().shape[0], *window.shape), (gains,), "window coverage", rounding=None)]


def average_pool(call: Call) -> list[Step]:
    """Weights 1/k: row sums ≤ 1, column sums ≤ Πc/Πk, and ‖A‖₂ ≤ √(‖A‖₁‖A‖∞) (Schur's test).

    Of an image that is smaller than the window a runtime whose division rounds towards zero still makes one mean, of
    what is there: on such an axis an entry may count 1.
    """
    window = _pool(call)
    if window.padded and not call.integer("count_include_pad", 0):
        raise call.refuse(
            "LIP006", "the weights at the border depend on the image's size; count_include_pad=1 does not"
        )
    counted = [
        (c, k) for c, k, small in zip(_copies(window), window.kernel, window.overhangs, strict=True) if not small
    ]
    column = Bound(div_up(float(math.prod(c for c, _ in counted)), float(math.prod(k for _, k in counted))))
    gains = per_norm(column, Bound(sqrt_up(column.value)), ONE)
    return [Step((call.flow().shape[0], *window.shape), (gains,), "averaging, any size", rounding=None)]
