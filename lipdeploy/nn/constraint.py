"""What all constrained weights share: computed as they are while training, in float64 and rounded inward otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def inward(weight: Tensor, stored: torch.dtype, terms: int) -> Tensor:
    """A float64 weight in its stored type, shrunk first so that rounding cannot lift the operator norm.

    ``terms`` bounds (‖|W|‖_F/‖W‖)² and the like: rounding moves the norm by at most eps/2·sqrt(terms), relatively.
    """
    slack = torch.finfo(stored).eps * math.sqrt(terms) + 64 * max(weight.shape) * 2.0**-52
    return (weight * (1 - slack)).to(stored)


class Constraint(nn.Module):
    """A parametrisation: in the parameter's type while training, in float64 and rounded inward in evaluation mode."""

    def __init__(self, lipschitz: float) -> None:
        super().__init__()
        if not (math.isfinite(lipschitz) and lipschitz > 0):
            raise ValueError(f"lipschitz must be finite and positive, got {lipschitz}")
        self.lipschitz = float(lipschitz)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight of the raw one."""
        if self.training:
            return self.lipschitz * self.constrain(weight)
        return inward(self.lipschitz * self.constrain(weight.double()), weight.dtype, self.rounding_terms(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to ``layer.weight`` sets the raw weight."""
        return weight

    def constrain(self, weight: Tensor) -> Tensor:
        """The weight with constant 1, differentiably, in its own type."""
        raise NotImplementedError

    def rounding_terms(self, weight: Tensor) -> int:
        """See ``inward``; for an operator norm in ℓ2, smaller side × taps."""
        return min(weight.shape[:2]) * math.prod(weight.shape[2:])

    def extra_repr(self) -> str:
        """The constant, for ``print(module)``."""
        return f"lipschitz={self.lipschitz}"
