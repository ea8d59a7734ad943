"""Convolutions against the true operator: its explicit matrix, and power iteration through torch itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipdeploy.nn import AOLConv2d, SpectralConv2d, bake
from lipdeploy.nn.conv import conv_norm, polyphase, unpolyphase


def explicit_norm(layer: nn.Conv2d, size: tuple[int, int]) -> float:
    """The largest singular value of the layer's matrix, read off its action on unit images (float64)."""
    layer = bake(layer).double()
    layer.bias = None
    count = layer.in_channels * size[0] * size[1]
    images = torch.eye(count, dtype=torch.float64).view(count, layer.in_channels, *size)
    return float(np.linalg.norm(layer(images).flatten(1).numpy(), 2))


def power_iteration(layer: nn.Conv2d, size: tuple[int, int], steps: int = 300) -> float:
    """A lower bound of the operator's norm from x ↦ AᵀAx, with the adjoint taken from autograd."""
    layer = bake(layer).double()
    layer.bias = None
    shape = (1, layer.in_channels, *size)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        x = (x / x.norm()).requires_grad_()
        y = layer(x)
        (x,) = torch.autograd.grad(y, x, y.detach())
    return float(x.norm().sqrt())


def noisy(layer: nn.Conv2d, scale: float = 1.0) -> nn.Conv2d:
    raw = layer.parametrizations.weight.original
    with torch.no_grad():
        raw.copy_(scale * torch.randn(raw.shape, generator=torch.Generator().manual_seed(3)))
    return layer


CASES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 5, "stride": 3, "padding": 4},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 4, "stride": 2, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [(3, 6), (6, 3)])
@pytest.mark.parametrize("kind", ["sized", "any size", "aol"])
def test_the_operator_norm_is_at_most_one(case: dict[str, Any], channels: tuple[int, int], kind: str) -> None:
    size = (6, 8)
    if kind == "aol":
        layer: nn.Conv2d = AOLConv2d(*channels, **case)
    else:
        layer = SpectralConv2d(*channels, **case, input_size=size if kind == "sized" else None)
    norm = explicit_norm(noisy(layer, 2.0), size)
    assert norm <= 1
    assert norm > (0.25 if kind == "aol" else 0.6)


def test_circular_normalisation_is_exact() -> None:
    layer = noisy(SpectralConv2d(4, 5, 3, padding=1, padding_mode="circular", input_size=(6, 6)))
    assert 1 - 1e-5 < explicit_norm(layer, (6, 6)) <= 1


def test_power_iteration_on_a_larger_map_stays_below_one() -> None:
    sized = noisy(SpectralConv2d(16, 16, 3, padding=1, input_size=(20, 20)))
    anywhere = noisy(SpectralConv2d(16, 16, 3, padding=1))
    for layer in (sized, anywhere, noisy(AOLConv2d(16, 16, 3, padding=1))):
        assert power_iteration(layer, (20, 20)) <= 1
    assert power_iteration(sized, (20, 20)) > 0.98
    assert power_iteration(anywhere, (20, 20)) > 0.94


@pytest.mark.parametrize("kind", ["aol", "any size", "sized"])
def test_circular_padding_is_bounded_by_one_or_refused(kind: str) -> None:
    """Every small case along one axis, with kernels that show what windows repeat."""
    torch.manual_seed(0)
    refused = []
    for kernel, stride, size in product(range(1, 6), range(1, 5), range(1, 8)):
        for padding in range(min(kernel, size + 1)):
            if size + 2 * padding < kernel:
                continue
            try:
                norm = along_one_axis(kind, kernel, stride, padding, size)
            except ValueError:
                refused.append((kernel, stride, padding, size))
                continue
            assert norm <= 1, (kernel, stride, padding, size)
    assert refused and all(padding or kind == "sized" for _, _, padding, _ in refused)


def along_one_axis(kind: str, kernel: int, stride: int, padding: int, size: int) -> float:
    options: dict[str, Any] = {"kernel_size": (kernel, 1), "stride": (stride, 1), "padding": (padding, 0)}
    if kind == "sized":
        options["input_size"] = (size, 1)
    kinds = AOLConv2d if kind == "aol" else SpectralConv2d
    layer = kinds(1, 4, padding_mode="circular", **options)
    nn.init.orthogonal_(layer.parametrizations.weight.original)
    return explicit_norm(layer, (size, 1))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "allowed"),
    [
        (3, 1, 1, 5, True),
        (5, 1, 2, 3, True),  # the kernel wraps around itself
        (3, 3, 1, 6, True),
        (3, 3, 1, 5, False),
        (3, 2, 1, 5, False),
        (3, 4, 1, 7, True),  # reads 6, 0, 1 and 3, 4, 5
        (3, 2, 0, 5, True),  # nothing is padded
    ],
)
def test_sizes_that_circular_padding_allows(kernel: int, stride: int, padding: int, size: int, allowed: bool) -> None:
    for kind in (AOLConv2d, SpectralConv2d):
        layer = kind(1, 2, kernel, stride, padding, padding_mode="circular").eval()
        for net in (layer, bake(layer)):
            if allowed:
                net(torch.zeros(1, 1, size, size))
                continue
            with pytest.raises(ValueError, match=f"the stride must divide the size {size}"):
                net(torch.zeros(1, 1, size, size))


def test_lipschitz_scales_the_norm() -> None:
    layer = noisy(SpectralConv2d(2, 3, 3, padding=1, padding_mode="circular", input_size=(5, 5), lipschitz=2.5))
    assert explicit_norm(layer, (5, 5)) == pytest.approx(2.5, rel=1e-5)


@pytest.mark.parametrize(("stride", "size"), [((2, 2), (3, 3)), ((2, 3), (4, 5)), ((1, 1), (3, 2))])
def test_polyphase_is_the_same_convolution(stride: tuple[int, int], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, *size, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator)
    phases = polyphase(kernel, stride)
    rows, columns = phases.shape[2] * stride[0], phases.shape[3] * stride[1]
    filled = nn.functional.pad(kernel, (0, columns - size[1], 0, rows - size[0]))
    strided = nn.functional.conv2d(x, filled, stride=stride)
    space_to_depth = x.view(2, 3, 12 // stride[0], stride[0], 12 // stride[1], stride[1]).permute(0, 1, 3, 5, 2, 4)
    dense = nn.functional.conv2d(space_to_depth.reshape(2, -1, 12 // stride[0], 12 // stride[1]), phases)
    torch.testing.assert_close(dense, strided)
    assert torch.equal(unpolyphase(phases, stride, size), kernel)


def test_conv_norm_has_the_right_gradient() -> None:
    kernel = torch.randn(
        3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True
    )

    def run(kernel: Tensor) -> Tensor:
        return conv_norm(kernel, (5, 5))

    assert torch.autograd.gradcheck(run, (kernel,))


def test_aol_starts_orthogonal() -> None:
    """One orthogonal tap passes every direction, so a fresh layer preserves norms up to its small noise."""
    assert explicit_norm(AOLConv2d(4, 8, 3, padding=1), (5, 5)) > 0.9


def test_another_image_size_is_refused() -> None:
    layer = SpectralConv2d(1, 2, 3, padding=1, input_size=(8, 8))
    for net in (layer, bake(layer)):
        with pytest.raises(ValueError, match="normalised for images of 8×8"):
            net(torch.zeros(1, 1, 9, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": 3}, "below the kernel size"),
        ({"padding": 2, "padding_mode": "circular"}, "below half the kernel size"),
        ({"padding": (0, 2), "padding_mode": "circular", "input_size": (3, 3)}, "below half the kernel size"),
        ({"padding_mode": "reflect"}, "padding_mode is 'reflect'"),
        ({"stride": 2, "padding_mode": "circular", "input_size": (7, 7)}, "stride must divide the size"),
    ],
)
def test_bad_arguments_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralConv2d(1, 2, 3, **options)
