"""Layers as LNets, Lipschitz_DSNN, DeepSplines, LipConvnet, LBDN and their kin define them, with their quirks.

None of these repositories can be installed, so these classes stand in for theirs: the same class names, attributes,
state-dict keys and arithmetic, not their code.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ---- LNets and Lipschitz_DSNN: sorting, with a check that looks at the values --------------------------------------


class GroupSort(nn.Module):
    """``num_units`` is the number of groups; every call copies the result to NumPy and asserts its order."""

    def __init__(self, num_units: int, axis: int = -1) -> None:
        super().__init__()
        self.num_units, self.axis = num_units, axis

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis % x.ndim
        shape = [*x.shape[:axis], self.num_units, x.shape[axis] // self.num_units, *x.shape[axis + 1 :]]
        ordered = x.reshape(shape).sort(dim=axis + 1).values
        assert not (np.diff(ordered.detach().numpy(), axis=axis + 1) < 0).any()
        return ordered.reshape(x.shape)


class MaxMin(nn.Module):
    """Pairs of neighbours; all maxima, then all minima, concatenated on axis 1."""

    def __init__(self, num_units: int, axis: int = -1) -> None:
        super().__init__()
        self.num_units, self.axis = num_units, axis

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis % x.ndim
        shape = [*x.shape[:axis], self.num_units, x.shape[axis] // self.num_units, *x.shape[axis + 1 :]]
        grouped = x.reshape(shape)
        return torch.cat((grouped.max(axis + 1).values, grouped.min(axis + 1).values), dim=1)


class HouseHolder(nn.Module):
    """Lipschitz_DSNN: pairs (j, j + C/2), theta of shape (1, C/2) or (1, C/2, 1, 1)."""

    factor = 1.0

    def __init__(self, mode: str, channels: int) -> None:
        super().__init__()
        shape = (1, channels // 2, 1, 1) if mode == "conv" else (1, channels // 2)
        self.theta = nn.Parameter(0.5 * math.pi * torch.ones(shape))

    def forward(self, z: Tensor) -> Tensor:
        t = self.theta
        x, y = z.chunk(2, dim=1)
        beyond = x * torch.sin(0.5 * t) - y * torch.cos(0.5 * t) > 0
        a = torch.where(beyond, x * torch.cos(t) + y * torch.sin(t), x)
        b = torch.where(beyond, x * torch.sin(t) - y * torch.cos(t), y)
        return torch.cat([a, b], dim=1) * self.factor


class HouseHolder_Order_2(nn.Module):  # noqa: N801
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta0 = nn.Parameter(torch.rand(channels // 2))

    def forward(self, z: Tensor) -> Tensor:
        return z


class BjorckLinear(nn.Module):
    """LNets: a raw weight, orthonormalised in every forward pass, safe scaling by sqrt(in·out)."""

    def __init__(self, size: int, width: int, iterations: int = 30) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, size))
        self.bias = nn.Parameter(torch.zeros(width))
        self.iterations = iterations

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight / math.sqrt(self.weight.numel()) / self.weight.abs().max()
        for _ in range(self.iterations):
            w = 1.5 * w - 0.5 * w @ (w.t() @ w)
        return F.linear(x, w, self.bias)


class LInfProjectedLinear(nn.Module):
    """LNets: rows projected to the ℓ1 ball in every forward pass."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.abs()
        ordered = size.sort(dim=1, descending=True).values
        excess = (ordered.cumsum(dim=1) - 1) / torch.arange(1, size.shape[1] + 1)
        threshold = excess.max(dim=1, keepdim=True).values.clamp(min=0)
        return F.linear(x, torch.sign(self.weight) * (size - threshold).clamp(min=0), self.bias)


# ---- Lipschitz_DSNN and DeepSplines: splines ------------------------------------------------------------------------


class _Hats(torch.autograd.Function):
    """A custom Function with a clamp and a floor: not what an exporter can trace into one operator."""

    @staticmethod
    def forward(ctx, x, coefficients, grid, zero_knots, size, even):
        half = grid / 2 if even else torch.zeros(1)
        last = grid.item() * (size // 2 - (2 if even else 1))
        z = x - half
        left = torch.floor(z.clamp(min=-grid.item() * (size // 2), max=last) / grid)
        index = (zero_knots.view(1, -1, 1, 1) + left).long()
        fraction = z / grid - left
        ctx.save_for_backward(coefficients, index, fraction, grid)
        return coefficients[index + 1] * fraction + coefficients[index] * (1 - fraction) + half

    @staticmethod
    def backward(ctx, gradient):
        coefficients, index, fraction, grid = ctx.saved_tensors
        along_x = gradient * (coefficients[index + 1] - coefficients[index]) / grid
        shares = torch.zeros_like(coefficients)
        shares.index_put_((index + 1,), gradient * fraction, accumulate=True)
        shares.index_put_((index,), gradient * (1 - fraction), accumulate=True)
        return along_x, shares, None, None, None, None


def _four_axes(x: Tensor) -> Tensor:
    return x.view(*x.shape, 1, 1) if x.ndim == 2 else x


class LinearSpline(nn.Module):
    """Lipschitz_DSNN: raw coefficients in one vector, projected in ``forward``; grid and zero knots are no buffers."""

    def __init__(self, mode, num_activations, size, range_, init, lipschitz_constraint):
        super().__init__()
        self.mode, self.num_activations, self.size, self.even = mode, num_activations, size, size % 2 == 0
        self.grid = torch.Tensor([2 * range_ / (size - 1)])
        self.zero_knot_indexes = torch.arange(num_activations) * size + size // 2
        self.lipschitz_constraint = lipschitz_constraint
        knots = torch.linspace(-range_, range_, size).expand(num_activations, size)
        values = {"identity": knots, "relu": knots.relu(), "absolute_value": knots.abs()}[init]
        self.coefficients_vect = nn.Parameter(values.reshape(-1).clone())
        self.scaling_coeffs_vect = nn.Parameter(torch.ones(1, num_activations, 1, 1))

    @property
    def lipschitz_coefficients(self) -> Tensor:
        values, spacing = self.coefficients_vect.view(self.num_activations, self.size), self.grid.item()
        steps = (values[:, 1:] - values[:, :-1]).clamp(-spacing, spacing)
        summed = F.pad(steps.cumsum(1), (1, 0))
        return summed + (values - summed).mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        if (self.mode == "fc") != (x.ndim == 2):
            raise ValueError("rank does not fit the mode")
        values = self.lipschitz_coefficients.reshape(-1) if self.lipschitz_constraint else self.coefficients_vect
        z = _four_axes(x) * self.scaling_coeffs_vect
        y = _Hats.apply(z, values, self.grid, self.zero_knot_indexes, self.size, self.even)
        return (y / self.scaling_coeffs_vect).view(x.shape)


class DeepBSpline(nn.Module):
    """DeepSplines: odd K, no projection, no scale; clamps and then extrapolates."""

    def __init__(self, mode: str, num_activations: int, size: int = 51, range_: float = 4.0) -> None:
        super().__init__()
        self.mode, self.num_activations, self.size = mode, num_activations, size
        self.grid = torch.Tensor([range_ / (size // 2)])
        self.zero_knot_indexes = torch.arange(num_activations) * size + size // 2
        knots = self.grid * torch.arange(-(size // 2), size // 2 + 1)
        self._coefficients_vect = nn.Parameter(knots.relu().repeat(num_activations))

    @property
    def coefficients_vect(self) -> Tensor:
        return self._coefficients_vect

    def forward(self, x: Tensor) -> Tensor:
        if (self.mode == "fc") != (x.ndim == 2):
            raise ValueError("rank does not fit the mode")
        z, spacing, reach = _four_axes(x), self.grid, self.grid * (self.size // 2)
        values = self.coefficients_vect.view(self.num_activations, self.size)
        inside = z.clamp(-reach.item(), (reach - spacing).item())
        left = ((values[:, 1] - values[:, 0]) / spacing).view(1, -1, 1, 1)
        right = ((values[:, -1] - values[:, -2]) / spacing).view(1, -1, 1, 1)
        y = _Hats.apply(inside, self.coefficients_vect, spacing, self.zero_knot_indexes, self.size, False)
        y = y + (z + reach).clamp(max=0) * left + (z - reach + spacing).clamp(min=0) * right
        return y.view(x.shape)


class DeepBSplineExplicitLinear(DeepBSpline):
    def __init__(self, mode: str, num_activations: int, **sizes) -> None:
        super().__init__(mode, num_activations, **sizes)
        self.spline_weight = nn.Parameter(torch.randn(num_activations) * 0.3)
        self.spline_bias = nn.Parameter(torch.randn(num_activations))

    def forward(self, x: Tensor) -> Tensor:
        line = self.spline_bias.view(1, -1, 1, 1) + self.spline_weight.view(1, -1, 1, 1) * _four_axes(x)
        return super().forward(x) + line.view(x.shape)


# ---- Sandwich (LBDN), SLL, CPL, AOL: caches that evaluation keeps ---------------------------------------------------


def cayley(w: Tensor) -> Tensor:
    """A matrix with orthonormal columns (tall) or rows (wide)."""
    if w.shape[1] > w.shape[0]:
        return cayley(w.t()).t()
    u, v = w[: w.shape[1]], w[w.shape[1] :]
    a = u - u.t() + v.t() @ v
    identity = torch.eye(w.shape[1])
    inverse = torch.linalg.inv(identity + a)
    return torch.cat((inverse @ (identity - a), -2 * v @ inverse))


class SandwichFc(nn.Linear):
    """√2 Aᵀ Ψ relu(√2 Ψ⁻¹ B x + b); Q = [A B] is kept from the last training step."""

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0) -> None:
        super().__init__(in_features + out_features, out_features)
        self.alpha = nn.Parameter(self.weight.detach().norm())
        self.psi = nn.Parameter(0.3 * torch.randn(out_features))
        self.scale, self.Q = scale, None

    def forward(self, x: Tensor) -> Tensor:
        width = self.weight.shape[0]
        if self.training or self.Q is None:
            self.Q = cayley(self.alpha * self.weight / self.weight.norm())
        q = self.Q if self.training else self.Q.detach()
        x = F.linear(self.scale * x, q[:, width:]) * torch.exp(-self.psi) * 2**0.5 + self.bias
        return 2**0.5 * F.linear(F.relu(x) * torch.exp(self.psi), q[:, :width].t())


class SandwichConv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x))


class SLLLinear(nn.Module):
    """x − W T relu(Wᵀx + b) with T from row sums; the weights' name is ``weights``."""

    def __init__(self, size: int, inner: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(inner, size) * 0.3)
        self.bias, self.q, self.epsilon = nn.Parameter(torch.randn(inner)), nn.Parameter(torch.rand(inner)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        q = self.q.abs()
        rows = (1 / (q + self.epsilon))[:, None] * self.weights @ self.weights.t() * q[None, :]
        t = 2 / (rows.abs().sum(1) + self.epsilon)
        return x - F.linear(t * F.relu(F.linear(x, self.weights, self.bias)), self.weights.t())


class SLLConv2d(nn.Module):
    """The convolutional one, with its rescaling cached by evaluation mode."""

    def __init__(self, channels: int, inner: int, size: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inner, channels, size, size) * 0.2)
        self.bias, self.q = nn.Parameter(torch.randn(inner)), nn.Parameter(torch.randn(inner))
        self.val_rescaling_cached = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.val_rescaling_cached = None
        if self.val_rescaling_cached is None:
            product = F.conv2d(self.kernel, self.kernel, padding=self.kernel.shape[-1] - 1)
            q = self.q.abs() + 1e-6
            self.val_rescaling_cached = 2 / ((product * q[None, :, None, None]).abs().sum((1, 2, 3)) / q + 1e-6)
        around = self.kernel.shape[-1] // 2
        inside = F.relu(F.conv2d(x, self.kernel, self.bias, padding=around))
        inside = self.val_rescaling_cached[None, :, None, None] * inside
        return x - F.conv_transpose2d(inside, self.kernel, padding=around)


class CPLConv2d(nn.Module):
    """x − (2/‖K‖²) Kᵀ relu(Kx + b), the norm by power iteration: an estimate from below."""

    def __init__(self, channels: int, size: int, iterations: int = 100) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, channels, size, size) * 0.2)
        self.bias = nn.Parameter(torch.randn(channels))
        self.iterations, self.cached = iterations, None

    def forward(self, x: Tensor) -> Tensor:
        around = self.kernel.shape[-1] // 2
        if self.cached is None:
            with torch.no_grad():
                u = torch.ones(1, *x.shape[1:], dtype=self.kernel.dtype)
                for _ in range(self.iterations):
                    v = F.normalize(F.conv2d(u, self.kernel, padding=around), dim=(1, 2, 3))
                    u = F.normalize(F.conv_transpose2d(v, self.kernel, padding=around), dim=(1, 2, 3))
                size = (F.conv2d(u, self.kernel, padding=around) * v).sum()
            self.cached = 2 / (size**2 + 1e-6)
        inside = F.relu(F.conv2d(x, self.kernel, self.bias, padding=around))
        return x - self.cached * F.conv_transpose2d(inside, self.kernel, padding=around)


class AOLRescaling(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        t = weight.transpose(0, 1)
        product = F.conv2d(t, t, padding=(weight.shape[2] - 1, weight.shape[3] - 1))
        return weight / (product.abs().sum(dim=(1, 2, 3), keepdim=True).transpose(0, 1) + 1e-6).sqrt()


class AOLConv2d(nn.Conv2d):
    def __init__(self, *sizes: int, **options) -> None:
        super().__init__(*sizes, **options)
        nn.init.normal_(self.weight)
        nn.utils.parametrize.register_parametrization(self, "weight", AOLRescaling())


# ---- heads ----------------------------------------------------------------------------------------------------------


class NormalizedHead(nn.Linear):
    """The last-layer normalisation of certified nets: every row of norm 1, so each logit is 1-Lipschitz by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class GloroNet(nn.Module):
    """Logits and one more: the largest that another class could reach within epsilon, by an estimated constant."""

    def __init__(self, network: nn.Module, epsilon: float, estimate: float) -> None:
        super().__init__()
        self.network, self.epsilon, self.estimate = network, epsilon, estimate

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        other = y.masked_fill(y == y.amax(1, keepdim=True), -torch.inf).amax(1, keepdim=True)
        return torch.cat((y, other + self.epsilon * self.estimate), dim=1)
