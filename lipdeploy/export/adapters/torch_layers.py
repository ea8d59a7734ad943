"""Plain torch layers whose usual translation the verifier could not judge, or that would be folded in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipdeploy.errors import InputError, Refusal, Refused

EXPORT_DOMAIN = "lipdeploy.export"  # exists between capture and tidy only; never in a file
UNSEEN = 1e-8  # largest jump of a Softplus that is passed over, in units of the larger of 1 and 1/β


class Emitted(nn.Module):
    """Base of stand-ins: the original layer in eager mode, one chosen ONNX operator under the exporter."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        """The original's value; its shape and dtype under the exporter."""
        if torch.onnx.is_in_onnx_export():
            return self.emit(x)
        value: Tensor = self.original(x)
        return value

    def emit(self, x: Tensor) -> Tensor:
        """What the exporter writes instead of tracing the original."""
        raise NotImplementedError


class EmittedBatchNorm(Emitted):
    """BatchNorm in evaluation mode, kept whole so that tidy can fold it in float64 and round once."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, original: nn.Module) -> None:
        super().__init__(original)
        norm: Any = original
        mean = norm.running_mean
        weight = torch.ones_like(mean) if norm.weight is None else norm.weight
        bias = torch.zeros_like(mean) if norm.bias is None else norm.bias
        for name, value in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", norm.running_var)):
            self.register_buffer(name, value.detach().clone())
        # As text, because an ONNX float attribute is float32 and epsilon enters a float64 fold.
        self.epsilon = float(norm.eps).hex()

    def emit(self, x: Tensor) -> Tensor:
        """One node that carries weight, bias, running mean, running variance and epsilon."""
        inputs = (x, self.weight, self.bias, self.mean, self.variance)
        return torch.onnx.ops.symbolic(
            f"{EXPORT_DOMAIN}::BatchNorm", inputs, {"epsilon": self.epsilon}, dtype=x.dtype, shape=x.shape, version=1
        )


class EmittedSoftplus(Emitted):
    """Softplus without torch's switch to the identity above a threshold (``softplus`` has judged it)."""

    def emit(self, x: Tensor) -> Tensor:
        """softplus(beta·x)/beta."""
        beta = float(self.original.beta)  # type: ignore[arg-type]
        scaled = x if beta == 1 else x * beta
        y = torch.onnx.ops.symbolic("Softplus", (scaled,), dtype=x.dtype, shape=x.shape)
        return y if beta == 1 else y / beta


class EmittedLogSigmoid(Emitted):
    """−softplus(−x): torch writes Log(Sigmoid(x)), which is −∞ below −20 in ONNX Runtime, where its sigmoid is 0."""

    def emit(self, x: Tensor) -> Tensor:
        """Softplus between two changes of sign."""
        return -torch.onnx.ops.symbolic("Softplus", (-x,), dtype=x.dtype, shape=x.shape)


class EmittedL2Pool(Emitted):
    """L2 pooling over disjoint windows as the one operator LpPool: op by op its square root has infinite slope."""

    def __init__(self, original: nn.Module, kernel: Callable[[Tensor], tuple[int, ...]], factor: float = 1.0) -> None:
        super().__init__(original)
        self.kernel = kernel
        self.factor = factor

    def emit(self, x: Tensor) -> Tensor:
        """LpPool(p = 2), then the layer's factor."""
        kernel = self.kernel(x)
        if any(size % width for size, width in zip(x.shape[2:], kernel, strict=True)):
            value: Tensor = self.original(x)
            return value
        shape = [*x.shape[:2], *(size // width for size, width in zip(x.shape[2:], kernel, strict=True))]
        attributes: dict[str, Any] = {"p": 2, "kernel_shape": list(kernel), "strides": list(kernel)}
        y = torch.onnx.ops.symbolic("LpPool", (x,), attributes, dtype=x.dtype, shape=shape)
        return y if self.factor == 1 else y * self.factor


def l2_pool(layer: nn.Module) -> nn.Module:
    """A stand-in for ``LPPool`` with norm 2 and stride = kernel; other pools stay as they are."""
    pool: Any = layer
    kernel, stride = _tuple(pool.kernel_size), _tuple(pool.kernel_size if pool.stride is None else pool.stride)
    if float(pool.norm_type) != 2 or kernel != stride:
        return layer
    return EmittedL2Pool(layer, lambda x: _repeat(kernel, x.ndim - 2), float(getattr(pool, "_coefficient_lip", 1.0)))


def batch_norm(layer: nn.Module) -> nn.Module:
    """A stand-in for a BatchNorm that has running statistics; one without uses the batch's and is refused later."""
    return layer if getattr(layer, "running_mean", None) is None else EmittedBatchNorm(layer)


def softplus(layer: nn.Module) -> nn.Module:
    """A stand-in for a ``Softplus`` whose threshold cannot be seen; raises ``InputError`` for any other.

    Where βx > threshold torch returns x, which is less than softplus(βx)/β by at most log(1 + e^(−threshold))/β.
    """
    given: Any = layer
    beta, threshold = float(given.beta), float(given.threshold)
    if not np.logaddexp(0.0, -threshold) < UNSEEN * max(1.0, abs(beta)):
        raise InputError(
            f"threshold={threshold:g} makes it jump, and ONNX's Softplus has no threshold",
            hint="leave threshold at its default, 20",
        )
    return EmittedSoftplus(layer)


def no_attention(layer: nn.Module) -> nn.Module:
    """Dot-product attention: softmax(QKᵀ)·V of one input has no Lipschitz constant (Kim et al. 2021, theorem 3.1)."""
    message = "attention multiplies what depends on the input by itself: it has no Lipschitz constant"
    raise Refused([Refusal("LIP004", "", type(layer).__name__, message)])


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _repeat(kernel: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return kernel * rank if len(kernel) == 1 else kernel


ADAPTERS: Mapping[tuple[str, str], Callable[[nn.Module], nn.Module]] = {
    **{("torch", f"BatchNorm{rank}d"): batch_norm for rank in (1, 2, 3)},
    ("torch", "_BatchNorm"): batch_norm,
    ("torch", "SyncBatchNorm"): batch_norm,
    ("torch", "MultiheadAttention"): no_attention,
    ("torch", "Softplus"): softplus,
    ("torch", "LogSigmoid"): EmittedLogSigmoid,
    ("torch", "LPPool1d"): l2_pool,
    ("torch", "LPPool2d"): l2_pool,
}
