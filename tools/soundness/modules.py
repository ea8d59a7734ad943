"""The same networks in torch, for tools that do not read ONNX files. torch is imported when one is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def _torch() -> Any:
    import torch

    return torch


def _function(forward: Callable[[Any, Any], Any], **parts: Any) -> Any:
    """A module whose ``forward`` is given; ``parts`` become its sub-modules (``self.name``)."""
    torch = _torch()

    class Network(torch.nn.Module):  # type: ignore[misc,name-defined]
        """One forward function."""

        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Network().eval()


def _linear(weight: Sequence[Sequence[float]], bias: Sequence[float] | None = None) -> Any:
    """``weight`` is (inputs, outputs) as in a MatMul; the bias is 0 unless given (eclipse-nn wants one)."""
    torch = _torch()
    matrix = torch.tensor(weight).T
    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
    layer.weight.data = matrix.contiguous()
    layer.bias.data = torch.zeros(matrix.shape[0]) if bias is None else torch.tensor(bias)
    return layer


def _conv(kernel: Any, axes: int = 1, transpose: bool = False, **options: Any) -> Any:
    torch = _torch()
    groups = options.get("groups", 1)
    kind = getattr(torch.nn, f"Conv{'Transpose' if transpose else ''}{axes}d")
    outputs, inputs = kernel.shape[0], kernel.shape[1] * groups
    if transpose:
        outputs, inputs = kernel.shape[1] * groups, kernel.shape[0]
    layer = kind(inputs, outputs, tuple(kernel.shape[2:]), bias=False, **options)
    layer.weight.data = kernel
    return layer


def _ones(*shape: int) -> Any:
    return _torch().ones(shape)


def _diagonal(*entries: float) -> list[list[float]]:
    return [[e if i == j else 0.0 for j in range(len(entries))] for i, e in enumerate(entries)]


def residual_relu() -> Any:
    return _function(lambda self, x: x + _torch().relu(x))


def twice_relu() -> Any:
    return _function(lambda self, x: 2 * _torch().relu(x))


def difference_of_relus() -> Any:
    return _function(lambda self, x: _torch().relu(x) - (-_torch().relu(x)))


def doubled_twice() -> Any:
    return _function(lambda self, x: (x + x) + (x + x))


def twin() -> Any:
    return _function(lambda self, x: _torch().cat([x, x], 1))


def concat_branches() -> Any:
    return _function(lambda self, x: _torch().cat([x, _torch().relu(x)], 1))


def swapped_halves() -> Any:
    return _function(lambda self, x: _torch().cat([x[:, 2:], x[:, :2]], 1))


def shared_weight() -> Any:
    return _function(lambda self, x: self.layer(_torch().relu(self.layer(x))), layer=_linear(_diagonal(2.0, 1.0)))


def linear_residual() -> Any:
    return _function(lambda self, x: x + self.layer(x), layer=_linear(_diagonal(-0.5, 1.0)))


def relu_residual(factor: float) -> Any:
    return _function(
        lambda self, x: x + self.last(_torch().relu(self.first(x))),
        first=_linear(_diagonal(1.0, 1.0)),
        last=_linear(_diagonal(factor, factor)),
    )


def residual_between_layers() -> Any:
    nn = _torch().nn
    return nn.Sequential(_linear(_diagonal(1.0, 1.0)), residual_relu(), _linear(_diagonal(1.0, 1.0)))


def broadcast_add() -> Any:
    return _function(lambda self, x: x + _torch().tensor([1.0, 2.0, 3.0]))


def broadcast_mul() -> Any:
    return _function(lambda self, x: x * _torch().tensor([1.0, 2.0, 2.0]))


def repeated_index() -> Any:
    return _function(lambda self, x: x[:, [0, 0, 0, 1]])


def centering() -> Any:
    return _function(lambda self, x: x - x.mean(1, keepdim=True))


def grouped(taps: tuple[float, float]) -> Any:
    return _conv(_torch().tensor(taps).reshape(2, 1, 1), groups=2)


def pointwise() -> Any:
    return _conv(_torch().tensor([3.0, 4.0]).reshape(1, 2, 1))


def ones(taps: int, **options: Any) -> Any:
    return _conv(_ones(1, 1, taps), **options)


def difference() -> Any:
    return _conv(_torch().tensor([1.0, -1.0]).reshape(1, 1, 2))


def ones_3x3() -> Any:
    return _conv(_ones(1, 1, 3, 3), axes=2, padding=1)


def cube() -> Any:
    return _conv(_ones(1, 1, 2, 2, 2), axes=3)


def circular() -> Any:
    return _conv(_ones(1, 1, 3), padding=1, padding_mode="circular")


def circular_2d() -> Any:
    kernel = _torch().tensor([[-1.0, 1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]]).reshape(1, 1, 3, 3)
    return _conv(kernel, axes=2, padding=1, padding_mode="circular")


def reflected() -> Any:
    return _conv(_ones(1, 1, 1), padding=2, padding_mode="reflect")


def convolution_residual() -> Any:
    return _function(lambda self, x: x + self.layer(x), layer=ones(3, padding=1))


def transposed(taps: int, **options: Any) -> Any:
    return _conv(_ones(1, 1, taps), transpose=True, **options)


def two_convolutions() -> Any:
    return _torch().nn.Sequential(ones(3, padding=1), ones(3, padding=1))


def average_2x2() -> Any:
    return _torch().nn.AvgPool2d(2)


def average(taps: int, stride: int, **options: Any) -> Any:
    return _torch().nn.AvgPool1d(taps, stride, **options)


def maximum(taps: int, stride: int, **options: Any) -> Any:
    return _torch().nn.MaxPool1d(taps, stride, **options)


def maximum_3x3() -> Any:
    return _torch().nn.MaxPool2d(3, 1, 1)


def l2_pool(taps: int, stride: int) -> Any:
    return _torch().nn.LPPool1d(2, taps, stride)


def global_average() -> Any:
    return _torch().nn.AdaptiveAvgPool1d(1)


def edge() -> Any:
    return _torch().nn.ReplicationPad1d((2, 0))


def upsampled() -> Any:
    return _torch().nn.Upsample(scale_factor=2, mode="nearest")


def unshuffled() -> Any:
    return _torch().nn.PixelUnshuffle(2)


def leaky(slope: float) -> Any:
    return _torch().nn.LeakyReLU(slope)


def prelu() -> Any:
    layer = _torch().nn.PReLU(2)
    layer.weight.data = _torch().tensor([-2.0, 0.5])
    return layer


def elu(alpha: float) -> Any:
    return _torch().nn.ELU(alpha)


def selu() -> Any:
    return _torch().nn.SELU()


def gelu() -> Any:
    return _torch().nn.GELU()


def gelu_tanh() -> Any:
    return _torch().nn.GELU(approximate="tanh")


def silu() -> Any:
    return _torch().nn.SiLU()


def mish() -> Any:
    return _torch().nn.Mish()


def hard_swish() -> Any:
    return _torch().nn.Hardswish()


def softplus() -> Any:
    return _torch().nn.Softplus()


def sigmoid() -> Any:
    return _torch().nn.Sigmoid()


def tanh() -> Any:
    return _torch().nn.Tanh()


def softmax() -> Any:
    return _torch().nn.Softmax(1)


def clip() -> Any:
    return _torch().nn.Hardtanh()


def sort_pairs() -> Any:
    return _function(lambda self, x: x.reshape(len(x), -1, 2).sort(2).values.reshape(x.shape))


def sorting_chain() -> Any:
    def forward(self: Any, x: Any) -> Any:
        h = self.first(x)
        return self.last(h.reshape(len(h), -1, 2).sort(2).values.reshape(h.shape))

    return _function(forward, first=_linear(_diagonal(1.0, 0.01), [10.0, -10.0]), last=_linear(_diagonal(0.01, 1.0)))


def max_min() -> Any:
    return _function(
        lambda self, x: _torch().cat([_torch().maximum(x[:, :2], x[:, 2:]), _torch().minimum(x[:, :2], x[:, 2:])], 1)
    )


def max_max() -> Any:
    return _function(
        lambda self, x: _torch().cat([_torch().maximum(x[:, :2], x[:, 2:]), _torch().maximum(x[:, 2:], x[:, :2])], 1)
    )


def crelu() -> Any:
    return _function(lambda self, x: _torch().cat([_torch().relu(x), _torch().relu(-x)], 1))


def rounded() -> Any:
    return _function(lambda self, x: x.round())


def full_sort() -> Any:
    return _function(lambda self, x: x.sort(1, descending=True).values)


def deep_relu() -> Any:
    nn, weight = _torch().nn, _diagonal(1.5, 1.0)
    layers = [part for _ in range(3) for part in (_linear(weight), nn.ReLU())]
    return nn.Sequential(*layers, _linear(weight))


def steep_chain() -> Any:
    nn = _torch().nn
    return nn.Sequential(_linear(_diagonal(1.0, 1.0)), twice_relu(), _linear(_diagonal(1.0, 1.0)))


def square() -> Any:
    return _function(lambda self, x: x * x)


def exponential() -> Any:
    return _function(lambda self, x: x.exp())


def attention() -> Any:
    return _function(lambda self, x: (x @ x.transpose(1, 2)).softmax(2) @ x)


def mask() -> Any:
    return _function(lambda self, x: x * _torch().tensor([1.0, 0.0, -3.0, 0.5]))


def batch_norm() -> Any:
    torch = _torch()
    layer = torch.nn.BatchNorm1d(2, eps=0.25)
    layer.weight.data, layer.bias.data = torch.tensor([4.0, 1.0]), torch.tensor([0.0, 5.0])
    layer.running_mean, layer.running_var = torch.tensor([1.0, 2.0]), torch.tensor([3.75, 0.75])
    return layer.eval()


def layer_norm() -> Any:
    return _torch().nn.LayerNorm(2, eps=1e-4)


def unit() -> Any:
    return _function(lambda self, x: _torch().nn.functional.normalize(x, dim=1))


def truncated() -> Any:
    return _function(lambda self, x: x.int().float())


def constant_matrix(size: int, entry: float) -> Any:
    return _torch().nn.Sequential(_linear([[entry] * size for _ in range(size)]))


def cumulative() -> Any:
    return _function(lambda self, x: x.cumsum(1))
