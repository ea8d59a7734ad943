"""Dense layers with a Lipschitz constant: orthonormal by Björck, normalised by the spectral norm, or in ℓ∞."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipdeploy.nn.constraint import Constraint

# x·p(x²) with p'≥0 on [0, 1]: the Taylor polynomials of 1/sqrt(1 − q) about q = 0, with q = 1 − x².
BJORCK_POLYNOMIALS = {
    1: (3 / 2, -1 / 2),
    2: (15 / 8, -5 / 4, 3 / 8),
    3: (35 / 16, -35 / 16, 21 / 16, -5 / 16),
    4: (315 / 128, -105 / 32, 189 / 64, -45 / 32, 35 / 128),
}
INPUT_NORMS = ("linf", "l2", "l1")


def gram_norm_bound(matrix: Tensor, squarings: int = 4) -> Tensor:
    """An upper bound of the spectral norm (Gram iteration): ‖W‖ ≤ ‖(WᵀW)^(2^k)‖_F^(1/2^(k+1)), k = ``squarings``.

    Above the norm by at most the factor rank^(1/2^(k+2)). Differentiable; 0 for a zero matrix.
    """
    gram = matrix @ matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix.mT @ matrix
    logarithm = gram.new_zeros(())
    for _ in range(squarings):
        size = torch.linalg.matrix_norm(gram).clamp(min=torch.finfo(gram.dtype).tiny)
        gram = gram / size
        gram, logarithm = gram @ gram, 2 * (logarithm + size.log())
    size = torch.linalg.matrix_norm(gram)
    return torch.exp((logarithm + size.log()) / 2 ** (squarings + 1))


def bjorck(matrix: Tensor, iterations: int, order: int = 1) -> Tensor:
    """Björck & Bowie's iteration towards the nearest orthonormal matrix (wide: rows, tall: columns).

    Singular values in [0, 1] stay there and grow towards 1, so a start of spectral norm ≤ 1 stays 1-Lipschitz however
    few the iterations are.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    a = matrix.mT if wide else matrix
    identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        gram = a.mT @ a
        polynomial = BJORCK_POLYNOMIALS[order][-1] * identity
        for coefficient in reversed(BJORCK_POLYNOMIALS[order][:-1]):
            polynomial = polynomial @ gram + coefficient * identity
        a = a @ polynomial
    return a.mT if wide else a


def spectral_norm(matrix: Tensor) -> Tensor:
    """The spectral norm by an eigenvector of the Gram matrix; its gradient is u vᵀ of the top singular pair."""
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mH
    with torch.no_grad():
        top = torch.linalg.eigh(tall.mH @ tall).eigenvectors[..., -1:]
    return cast(Tensor, torch.linalg.vector_norm(tall @ top))


def project_rows_l1(matrix: Tensor, radius: float) -> Tensor:
    """Each row to its nearest point of the ℓ1 ball (Duchi et al., 2008). Differentiable; (m, n) to (m, n)."""
    size = matrix.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, matrix.shape[1] + 1, dtype=matrix.dtype, device=matrix.device)
    excess = (ordered.cumsum(dim=1) - radius) / count
    kept = (ordered > excess).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, kept - 1).clamp(min=0)
    return matrix.sign() * (size - threshold).clamp(min=0)


class _Orthonormal(Constraint):
    def __init__(self, lipschitz: float, iterations: int, order: int) -> None:
        super().__init__(lipschitz)
        if iterations < 0 or order not in BJORCK_POLYNOMIALS:
            raise ValueError(f"Björck needs iterations ≥ 0 and an order from 1 to 4, got {iterations} and {order}")
        self.iterations, self.order = iterations, order

    def constrain(self, weight: Tensor) -> Tensor:
        bound = gram_norm_bound(weight.detach()) * (1 + 1e-6)  # 1e-6 covers the bound's own float32 roundings
        return bjorck(weight / bound.clamp(min=torch.finfo(weight.dtype).tiny), self.iterations, self.order)


class _SpectrallyNormalised(Constraint):
    def constrain(self, weight: Tensor) -> Tensor:
        return weight / spectral_norm(weight).clamp(min=torch.finfo(weight.dtype).tiny)


class _RowsInDualBall(Constraint):
    def __init__(self, lipschitz: float, input_norm: str) -> None:
        super().__init__(lipschitz)
        if input_norm not in INPUT_NORMS:
            raise ValueError(f"input_norm is {input_norm!r}; choose one of {', '.join(INPUT_NORMS)}")
        self.input_norm = input_norm

    def constrain(self, weight: Tensor) -> Tensor:
        if self.input_norm == "linf":
            return project_rows_l1(weight, 1.0)
        if self.input_norm == "l1":
            return weight.clamp(-1, 1)
        size = cast(Tensor, torch.linalg.vector_norm(weight, dim=1, keepdim=True))
        return weight / size.clamp(min=1)

    def rounding_terms(self, weight: Tensor) -> int:
        return 4  # relative rounding of every entry moves a vector norm of a row by no more than that


class BjorckLinear(nn.Linear):
    """A dense layer with orthonormal rows or columns: spectral norm ≤ ``lipschitz``, gradient-norm preserving.

    The raw weight is divided by a proven upper bound of its spectral norm (safe scaling), so that Björck's iteration
    starts in its basin and never exceeds 1.

    Args:
        in_features: input size; input (…, in_features), output (…, out_features).
        out_features: output size.
        bias: learn a bias.
        iterations: of Björck; fewer give singular values below 1, never above.
        order: 1 to 4; a higher order converges in fewer, dearer iterations.
        lipschitz: the ℓ2 constant of the layer.

    Raises:
        ValueError: ``iterations``, ``order`` or ``lipschitz`` is out of range.
    """

    plain_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        iterations: int = 15,
        order: int = 1,
        lipschitz: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        nn.init.orthogonal_(self.weight)
        parametrize.register_parametrization(self, "weight", _Orthonormal(lipschitz, iterations, order))


class SpectralLinear(nn.Linear):
    """A dense layer divided by its spectral norm (computed in full, not by power iteration): ℓ2 constant ``lipschitz``.

    Args:
        in_features: input size; input (…, in_features), output (…, out_features).
        out_features: output size.
        bias: learn a bias.
        lipschitz: the ℓ2 constant of the layer.

    Raises:
        ValueError: ``lipschitz`` is not finite and positive.
    """

    plain_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, lipschitz: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias)
        nn.init.orthogonal_(self.weight)
        parametrize.register_parametrization(self, "weight", _SpectrallyNormalised(lipschitz))


class LInfLinear(nn.Linear):
    """A dense layer with ‖W‖_{p→∞} ≤ ``lipschitz``: each row is projected to the ball of the dual norm.

    For a network in ℓ∞ use ``input_norm="linf"`` throughout (rows in the ℓ1 ball; arXiv 1811.05381). For the mixed
    chains p → ∞, give the first layer ``"l2"`` or ``"l1"`` and the others ``"linf"``.

    Args:
        in_features: input size; input (…, in_features), output (…, out_features).
        out_features: output size.
        bias: learn a bias.
        input_norm: ``"linf"``, ``"l2"`` or ``"l1"``: the norm p of the input.
        lipschitz: the constant of the layer.

    Raises:
        ValueError: ``input_norm`` or ``lipschitz`` is out of range.
    """

    plain_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        input_norm: str = "linf",
        lipschitz: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        parametrize.register_parametrization(self, "weight", _RowsInDualBall(lipschitz, input_norm))
