"""Convolutions whose *operator* norm is bounded, not merely the norm of the flattened kernel (which is up to 3 off)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipdeploy.nn.constraint import Constraint
from lipdeploy.nn.linear import spectral_norm

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "circular"]
ANY_SIZE_GRID = 16


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def polyphase(kernel: Tensor, stride: Pair) -> Tensor:
    """The stride-1 kernel on the space-to-depth input that does the same as ``kernel`` with ``stride``.

    (out, in, kh, kw) to (out, in·s_h·s_w, ⌈kh/s_h⌉, ⌈kw/s_w⌉): zeros are appended and entries permuted, so entries
    and operator norm are those of the strided convolution.
    """
    (high, wide), (out, channels) = stride, kernel.shape[:2]
    rows, columns = -(-kernel.shape[2] // high), -(-kernel.shape[3] // wide)
    filled = nn.functional.pad(kernel, (0, columns * wide - kernel.shape[3], 0, rows * high - kernel.shape[2]))
    phases = filled.view(out, channels, rows, high, columns, wide).permute(0, 1, 3, 5, 2, 4)
    return phases.reshape(out, channels * high * wide, rows, columns)


def unpolyphase(phases: Tensor, stride: Pair, size: Pair) -> Tensor:
    """The inverse of ``polyphase`` for a kernel of spatial ``size``."""
    (high, wide), (out, channels, rows, columns) = stride, phases.shape
    split = phases.view(out, channels // (high * wide), high, wide, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(out, -1, rows * high, columns * wide)[:, :, : size[0], : size[1]]


def conv_norm(kernel: Tensor, grid: Pair) -> Tensor:
    """Largest spectral norm of the symbols of a stride-1 circular convolution on a torus of size ``grid``: a scalar.

    The norm of the zero-padded convolution is at most this when the torus is as large as image plus padding (the
    image embeds into the torus, and what wraps around multiplies zeros). The gradient is that of the top symbol.
    """
    symbols = torch.fft.rfft2(kernel, s=grid).permute(2, 3, 0, 1).flatten(0, 1)  # real kernel: half the frequencies
    with torch.no_grad():
        tall = symbols if symbols.shape[-2] >= symbols.shape[-1] else symbols.mH
        top = int(torch.linalg.eigvalsh(tall.mH @ tall)[:, -1].argmax())
    return spectral_norm(symbols[top])


class _ConvConstraint(Constraint):
    def __init__(self, lipschitz: float, stride: Pair) -> None:
        super().__init__(lipschitz)
        self.stride = stride


class _NormalisedOnTorus(_ConvConstraint):
    def __init__(self, lipschitz: float, stride: Pair, grid: Pair | None) -> None:
        super().__init__(lipschitz, stride)
        self.grid = grid

    def constrain(self, weight: Tensor) -> Tensor:
        kernel = polyphase(weight, self.stride)
        if self.grid is not None:
            bound = conv_norm(kernel, self.grid)
        else:
            # Ehlich & Zeller: a trigonometric polynomial of degree D is at most 1/cos(πD/M) above its M samples.
            degrees = [math.ceil((size - 1) / 2) for size in kernel.shape[2:]]
            grid = [max(ANY_SIZE_GRID, 8 * degree) for degree in degrees]
            factor = math.prod(1 / math.cos(math.pi * d / m) for d, m in zip(degrees, grid, strict=True))
            bound = conv_norm(kernel, (grid[0], grid[1])) * factor
        return weight / bound.clamp(min=torch.finfo(weight.dtype).tiny)


class _AlmostOrthogonal(_ConvConstraint):
    """K·D^(−1/2) with D_j = Σ_i,offsets |KᵀK|: D − KᵀK is diagonally dominant, so the norm is at most 1."""

    def constrain(self, weight: Tensor) -> Tensor:
        kernel = polyphase(weight, self.stride)
        wide = kernel.shape[0] < kernel.shape[1]
        side = kernel if wide else kernel.transpose(0, 1)
        gram = nn.functional.conv2d(side, side, padding=(kernel.shape[2] - 1, kernel.shape[3] - 1))
        # A channel whose sum is zero is zero itself; the clamp only keeps 0/0 away.
        scale = gram.abs().sum(dim=(1, 2, 3)).clamp(min=torch.finfo(weight.dtype).tiny).rsqrt()
        scaled = kernel * (scale[:, None, None, None] if wide else scale[None, :, None, None])
        return unpolyphase(scaled, self.stride, (weight.shape[2], weight.shape[3]))


class SpectralConv2d(nn.Conv2d):
    """A convolution divided by a bound of its operator norm, so that its ℓ2 constant is at most ``lipschitz``.

    Args:
        in_channels: input (N, in_channels, H, W).
        out_channels: output (N, out_channels, H', W').
        kernel_size: one number or a pair.
        stride: one number or a pair.
        padding: one number or a pair, ≤ kernel_size − 1 (zeros) or ≤ (kernel_size − 1)/2 (circular).
        bias: learn a bias.
        padding_mode: ``"zeros"`` or ``"circular"``.
        input_size: (H, W) of the only size that will be used: then the norm is computed on the torus H + padding
            (zeros) or H (circular; the stride must divide it), which is the exact norm for circular padding with
            H/stride outputs. None: valid for every size that ``forward`` takes, a few percent looser.
        lipschitz: the ℓ2 constant of the layer.

    Raises:
        ValueError: an argument is out of range, or an input has another size than ``input_size``, or one of which
            strided windows with circular padding read an entry through both borders.
    """

    plain_class: ClassVar[type[nn.Module]] = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
        *,
        padding_mode: PaddingMode = "zeros",
        input_size: Pair | None = None,
        lipschitz: float = 1.0,
    ) -> None:
        _check_padding(_pair(padding), _pair(kernel_size), padding_mode)
        steps, widths = _pair(stride), _pair(padding)
        super().__init__(in_channels, out_channels, kernel_size, steps, widths, bias=bias, padding_mode=padding_mode)
        grid = None if input_size is None else self._grid(input_size)
        parametrize.register_parametrization(self, "weight", _NormalisedOnTorus(lipschitz, steps, grid))
        if input_size is not None:
            self.register_forward_pre_hook(_SizeGuard(_pair(input_size)))
        elif padding_mode == "circular":
            self.register_forward_pre_hook(_refuse_repeated_entries)

    def _grid(self, input_size: Pair) -> Pair:
        """The torus after space-to-depth, at least as large as the kernel there."""
        sizes = []
        for axis in range(2):
            size, kernel, step = input_size[axis], self.kernel_size[axis], self.stride[axis]
            circular = self.padding_mode == "circular"
            if circular and (size % step or kernel > size):
                raise ValueError(
                    f"circular padding of input_size {size} with kernel {kernel} and stride {step}: the kernel must "
                    "fit and the stride must divide the size"
                )
            torus = size if circular else size + int(self.padding[axis])
            sizes.append(max(-(-torus // step), -(-kernel // step)))
        return sizes[0], sizes[1]


class AOLConv2d(nn.Conv2d):
    """An almost-orthogonal convolution (Prach & Lampert, ECCV 2022): rescaled per channel, ℓ2 constant ≤ ``lipschitz``.

    Valid for every input size that ``forward`` takes; no transform, so cheap to train, and training drives the kernel
    towards orthogonality, where the bound is tight. Strided kernels are rescaled per channel *and phase*.

    Args:
        in_channels: input (N, in_channels, H, W).
        out_channels: output (N, out_channels, H', W').
        kernel_size: one number or a pair.
        stride: one number or a pair.
        padding: one number or a pair, ≤ kernel_size − 1 (zeros) or ≤ (kernel_size − 1)/2 (circular).
        bias: learn a bias.
        padding_mode: ``"zeros"`` or ``"circular"``.
        lipschitz: the ℓ2 constant of the layer.

    Raises:
        ValueError: an argument is out of range, or strided windows with circular padding read an entry of an input
            through both borders.
    """

    plain_class: ClassVar[type[nn.Module]] = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
        *,
        padding_mode: PaddingMode = "zeros",
        lipschitz: float = 1.0,
    ) -> None:
        _check_padding(_pair(padding), _pair(kernel_size), padding_mode)
        steps = _pair(stride)
        super().__init__(
            in_channels, out_channels, kernel_size, steps, _pair(padding), bias=bias, padding_mode=padding_mode
        )
        _init_orthogonal_taps(self.weight, steps)
        parametrize.register_parametrization(self, "weight", _AlmostOrthogonal(lipschitz, steps))
        if padding_mode == "circular":
            self.register_forward_pre_hook(_refuse_repeated_entries)


class _SizeGuard:
    """Refuses images of another size than the one that the norm was computed for."""

    def __init__(self, size: Pair) -> None:
        self.size = size

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if tuple(inputs[0].shape[-2:]) != self.size:
            raise ValueError(
                f"SpectralConv2d was normalised for images of {self.size[0]}×{self.size[1]}, got an input of shape "
                f"{tuple(inputs[0].shape)}; set input_size accordingly, or leave it out"
            )


def _refuse_repeated_entries(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuses images for which circular padding breaks the bound.

    Windows at multiples of a stride that divides the size are windows of the circulant. Otherwise the bound is that of
    the convolution on ℤ, which has one place for each entry: what the windows leave unread of the padded image must be
    at least as long as the padding of both sides.
    """
    layer = cast(nn.Conv2d, module)
    for axis in range(2):
        size, stride, padding = inputs[0].shape[axis - 2], layer.stride[axis], int(layer.padding[axis])
        left = (size + 2 * padding - layer.kernel_size[axis]) % stride
        if padding and size % stride and left < 2 * padding:
            raise ValueError(
                f"circular padding {padding} with stride {stride} on an input of shape {tuple(inputs[0].shape)}: the "
                f"stride must divide the size {size}, or the norm is not bounded"
            )


def _check_padding(padding: Pair, kernel_size: Pair, padding_mode: str) -> None:
    if padding_mode not in ("zeros", "circular"):
        raise ValueError(f"padding_mode is {padding_mode!r}; only 'zeros' and 'circular' keep the norm bound")
    if any(not 0 <= pad < size for pad, size in zip(padding, kernel_size, strict=True)):
        raise ValueError(f"padding {padding} must be at least 0 and below the kernel size {kernel_size} on each axis")
    if padding_mode == "circular" and any(2 * pad >= size for pad, size in zip(padding, kernel_size, strict=True)):
        raise ValueError(f"circular padding {padding} must be below half the kernel size {kernel_size}: windows repeat")


@torch.no_grad()
def _init_orthogonal_taps(weight: Tensor, stride: Pair) -> None:
    """Start with one orthogonal matrix in the middle tap and zeros elsewhere: an orthogonal convolution."""
    phases = polyphase(torch.zeros_like(weight), stride)
    rows, columns = phases.shape[2:]
    nn.init.orthogonal_(middle := torch.empty_like(phases[:, :, 0, 0]))
    phases[:, :, (rows - 1) // 2, (columns - 1) // 2] = middle
    weight.copy_(unpolyphase(phases, stride, (weight.shape[2], weight.shape[3])) + 1e-3 * torch.randn_like(weight))
