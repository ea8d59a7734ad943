"""Multiplication by a constant: how a K-Lipschitz network is made of 1-Lipschitz layers."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Scale(nn.Module):
    """Multiply by a constant: Lipschitz constant |factor| in every norm.

    Args:
        factor: finite. LNets multiplies each of its n layers by K^(1/n); one factor K anywhere is the same function
            for positively homogeneous activations.

    Raises:
        ValueError: ``factor`` is not finite.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not math.isfinite(factor):
            raise ValueError(f"Scale needs a finite factor, got {factor}")
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """The input times the factor."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The factor, for ``print(module)``."""
        return f"factor={self.factor}"
