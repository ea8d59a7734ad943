"""LinearSpline: a learnable piecewise-linear activation per channel (arXiv 2210.16222, JMLR 25(65)).

The values at K uniform knots t_k = lower + k·knot_spacing are the coefficients; between knots the function is
linear, and the end slopes continue outside. The Lipschitz constant is max |c_{k+1} − c_k| / knot_spacing exactly.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lipdeploy.nn import spline_kernels

INITS = ("identity", "relu", "absolute_value", "maxmin")
# Float32 sums of K ≤ 1000 steps miss a bound on the slopes by less than this many coefficients per knot spacing.
PROJECTED_SLACK = 4e-6


def _float32(value: float) -> float:
    """The nearest float32, widened: what the ONNX attribute will hold."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class _Interpolate(torch.autograd.Function):
    """y = c_k + ((x − t_k)·Δ_k)/h, rounded step by step as the operator's specification pins it.

    Memory is what this costs, so results are overwritten where that is safe, and masks are made only where a value is
    not finite.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, lower: float, knot_spacing: float) -> Tensor:
        index, knot, spacing = _locate(x, coefficients.shape[-1], lower, knot_spacing)
        index = index.add_(_channel_offsets(x, coefficients))
        value, step = _gather(coefficients, index), _gather(_steps(coefficients), index)
        ctx.save_for_backward(x, coefficients, index, knot, step, spacing)
        y = (x - knot).mul_(step).div_(spacing).add_(value)
        return y if _surely_finite(y) else torch.where(torch.isinf(x) & (step == 0), value, y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs
        x, coefficients, index, knot, step, spacing = ctx.saved_tensors
        once = not torch.is_grad_enabled()  # else a gradient penalty will differentiate what is computed here
        grad_x: Tensor | None = None
        grad_coefficients: Tensor | None = None
        if ctx.needs_input_grad[0]:
            # The saved step is a constant to autograd; a second derivative needs one that depends on the coefficients.
            grad_x = (grad * step).div_(spacing) if once else grad * _gather(_steps(coefficients), index) / spacing
        if ctx.needs_input_grad[1]:
            right = (x - knot).div_(spacing).mul_(grad) if once else grad * ((x - knot) / spacing)
            bins, flat = torch.zeros_like(coefficients).flatten(), index.flatten()
            # c_k has the weight 1 − u in its own interval, where c_{k+1} has u.
            whole, shares = bins.index_add(0, flat, grad.flatten()), bins.index_add(0, flat, right.flatten())
            grad_coefficients = (whole - shares + nn.functional.pad(shares[:-1], (1, 0))).view_as(coefficients)
        return grad_x, grad_coefficients, None, None


def _locate(x: Tensor, num_knots: int, lower: float, knot_spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the interval, its left knot, and h as a tensor (dividing by a number multiplies by 1/h on CUDA)."""
    spacing = torch.full((), knot_spacing, dtype=x.dtype, device=x.device)
    position = (x - lower).div_(spacing).floor_().clamp_(0, num_knots - 2).nan_to_num_(0.0)
    return position.int(), position.mul_(spacing).add_(lower), spacing


def _surely_finite(y: Tensor) -> bool:
    """Whether one cheap sum shows that no value is NaN or infinite; not asked where asking stalls a device."""
    return not torch.compiler.is_compiling() and y.device.type == "cpu" and bool(torch.isfinite(y.sum()))


def _channel_offsets(x: Tensor, coefficients: Tensor) -> Tensor:
    rows, num_knots = coefficients.shape
    return (torch.arange(rows, device=x.device, dtype=torch.int32) * num_knots).view(-1, *[1] * (x.ndim - 2))


def _steps(coefficients: Tensor) -> Tensor:
    """Δ_k = c_{k+1} − c_k, with an unused last column, so that one index serves both tables."""
    return nn.functional.pad(coefficients.diff(dim=-1), (0, 1))


def _gather(table: Tensor, index: Tensor) -> Tensor:
    return table.flatten().index_select(0, index.flatten()).view_as(index)  # four times as fast as table[index]


def interpolate(x: Tensor, coefficients: Tensor, lower: float, knot_spacing: float) -> Tensor:
    """The spline's value: x (N, C, …), coefficients (C or 1, K); float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, coefficients.dtype), torch.float32)
    y = _Interpolate.apply(x.to(dtype), coefficients.to(dtype), lower, knot_spacing)  # type: ignore[no-untyped-call]
    return cast(Tensor, y).to(x.dtype)


@dataclass(frozen=True)
class _Formula:
    """A spline with a scale around it, in torch's operations (``spline_kernels.Formula``)."""

    lower: float
    knot_spacing: float
    limit: Tensor | None = None

    def projected(self, coefficients: Tensor) -> Tensor:
        return coefficients if self.limit is None else _project(coefficients, self.limit)

    def __call__(self, x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None) -> Tensor:
        values = self.projected(coefficients)
        return _around(x, scale, inverse, lambda z: interpolate(z, values, self.lower, self.knot_spacing))


def _run(formula: _Formula, x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None) -> Tensor:
    if spline_kernels.serves(x, coefficients, scale, inverse):
        return spline_kernels.apply(formula, x, coefficients, scale, inverse)
    return formula(x, coefficients, scale, inverse)


class LinearSpline(nn.Module):
    """A learnable linear spline per channel, 1-Lipschitz by projection inside ``forward``.

    f(x) = s(α·x)/α with s the spline and α a learnable scale per channel, which changes the spline's range but not
    its Lipschitz constant.

    Args:
        channels: size of axis 1.
        num_knots: K ≥ 2.
        limit: the knots cover [−limit, limit].
        init: ``"identity"``, ``"relu"``, ``"absolute_value"``, or ``"maxmin"`` (even channels |x|, odd identity).
        shared: one spline for all channels.
        lipschitz: bound on the slopes.
        learnable_scaling: learn α; otherwise α = 1.

    ``coefficients`` is the raw parameter, (channels, K) or (1, K) when shared; ``scaling`` the raw α, (channels,) or
    (1,). ``lower`` and ``knot_spacing`` are float32 numbers, as the ONNX attributes are; they travel in the
    ``state_dict``, because a checkpoint without them does not determine the function.

    Raises:
        ValueError: an argument is out of range, or the input's axis 1 is not ``channels``.
    """

    def __init__(
        self,
        channels: int,
        num_knots: int = 51,
        limit: float = 0.1,
        init: str = "identity",
        shared: bool = False,
        lipschitz: float = 1.0,
        learnable_scaling: bool = True,
    ) -> None:
        super().__init__()
        if channels < 1 or num_knots < 2:
            raise ValueError(f"LinearSpline needs channels ≥ 1 and num_knots ≥ 2, got {channels} and {num_knots}")
        if not (math.isfinite(limit) and limit > 0 and math.isfinite(lipschitz) and lipschitz > 0):
            raise ValueError(f"limit and lipschitz must be finite and positive, got {limit} and {lipschitz}")
        if init not in INITS:
            raise ValueError(f"init is {init!r}; choose one of {', '.join(INITS)}")
        if shared and init == "maxmin":
            raise ValueError("init 'maxmin' differs between even and odd channels; it needs shared=False")
        self.channels, self.shared, self.lipschitz = channels, shared, float(lipschitz)
        self.lower, self.knot_spacing = _float32(-limit), _float32(2 * limit / (num_knots - 1))
        rows = 1 if shared else channels
        self.coefficients = nn.Parameter(self._initial(init, rows, num_knots))
        self.scaling = nn.Parameter(torch.ones(rows)) if learnable_scaling else None

    @property
    def num_knots(self) -> int:
        """K, the number of coefficients per channel."""
        return self.coefficients.shape[1]

    def _initial(self, init: str, rows: int, num_knots: int) -> Tensor:
        knots = self.lower + self.knot_spacing * torch.arange(num_knots, dtype=torch.float64)
        shapes = {"identity": knots, "relu": knots.clamp(min=0), "absolute_value": knots.abs()}
        pattern = [shapes["absolute_value"], knots] if init == "maxmin" else [shapes[init]]
        return torch.stack([pattern[row % len(pattern)] for row in range(rows)]).to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, …) to the same shape."""
        _check_channels(x, self.channels)
        if not self.training:
            return _run(_Formula(self.lower, self.knot_spacing), x, self.projected_coefficients(), *self._scales())
        return _run(_Formula(self.lower, self.knot_spacing, self._limit()), x, self.coefficients, *self._scales())

    def projected_coefficients(self) -> Tensor:
        """The values at the knots with all slopes in [−lipschitz, lipschitz] and the mean of the raw ones.

        Differences are clipped to ±lipschitz·knot_spacing and summed again, then shifted to the old mean (the map
        of the paper's reference code; not the least-squares projection). In evaluation mode this happens in float64
        and is rounded so that the *stored* slopes are within the bound in exact arithmetic.
        """
        if self.training:
            return _project(self.coefficients, self._limit())
        return _project_inward(self.coefficients, self.lipschitz * self.knot_spacing)

    def _scales(self) -> tuple[Tensor | None, Tensor | None]:
        if self.scaling is None:
            return None, None
        return self.scaling, None if self.training else _differentiable_inverse(self.scaling)

    def _limit(self) -> Tensor:
        return torch.tensor(self.lipschitz * self.knot_spacing)

    def tv2(self) -> Tensor:
        """Σ_channels Σ_k |c_{k+1} − 2c_k + c_{k−1}| / knot_spacing of the projected coefficients, a scalar."""
        return self.projected_coefficients().diff(n=2, dim=-1).abs().sum() / self.knot_spacing

    @torch.no_grad()
    def load_coefficients(
        self, array: ArrayLike, lower: float, knot_spacing: float, *, projected: bool = False
    ) -> None:
        """Take over a spline trained elsewhere.

        Args:
            array: values at the knots, (channels, K), or (1, K) or (K,) when shared; any K ≥ 2. Raw values, which
                ``forward`` projects, unless ``projected``.
            lower: first knot. Kept as float32.
            knot_spacing: distance of the knots, > 0. Kept as float32.
            projected: the values were projected before; slopes beyond the bound (by more than float32 rounding can
                explain) say that they were not, and that the function would change.

        Raises:
            ValueError: wrong shape, a value that is not finite, ``knot_spacing`` not positive, or values that
                cannot be ``projected`` ones.
        """
        values = torch.as_tensor(array, dtype=torch.float64)
        values = values[None] if values.ndim == 1 else values
        rows = 1 if self.shared else self.channels
        if values.ndim != 2 or values.shape[0] != rows or values.shape[1] < 2:
            raise ValueError(f"coefficients must have shape ({rows}, K ≥ 2), got {tuple(values.shape)}")
        lower, knot_spacing = _float32(lower), _float32(knot_spacing)
        if not (values.isfinite().all() and math.isfinite(lower) and math.isfinite(knot_spacing) and knot_spacing > 0):
            raise ValueError("coefficients and lower must be finite, and knot_spacing finite and positive")
        if projected:
            self._require_projected(values, knot_spacing)
        self.lower, self.knot_spacing = lower, knot_spacing
        self.coefficients = nn.Parameter(values.to(self.coefficients), self.coefficients.requires_grad)

    def _require_projected(self, values: Tensor, knot_spacing: float) -> None:
        steepest = float(values.diff(dim=-1).abs().max()) / knot_spacing
        rounding = PROJECTED_SLACK * max(1.0, float(values.abs().max()) / knot_spacing)
        if steepest > self.lipschitz + rounding:
            raise ValueError(
                f"these coefficients have slopes up to {steepest:.6g}, above {self.lipschitz:g}: they are raw, not "
                "projected; load them with projected=False"
            )

    def get_extra_state(self) -> dict[str, float]:
        """The grid, for ``state_dict``."""
        return {"lower": self.lower, "knot_spacing": self.knot_spacing}

    def set_extra_state(self, state: Mapping[str, float]) -> None:
        """The grid, from ``state_dict``."""
        self.lower, self.knot_spacing = _float32(state["lower"]), _float32(state["knot_spacing"])

    @torch.no_grad()
    def stored(self) -> StoredLinearSpline:
        """This spline as evaluation mode uses it, as constants.

        Raises:
            ValueError: a scale is zero or not finite, or a coefficient is not finite.
        """
        coefficients = _project_inward(self.coefficients, self.lipschitz * self.knot_spacing)
        if not coefficients.isfinite().all():
            raise ValueError("LinearSpline has coefficients that are not finite")
        scale = None if self.scaling is None or bool((self.scaling == 1).all()) else self.scaling.detach().clone()
        return StoredLinearSpline(self.channels, coefficients, self.lower, self.knot_spacing, scale)

    def extra_repr(self) -> str:
        """The shape, for ``print(module)``."""
        grid = f"num_knots={self.num_knots}, lower={self.lower:.6g}, knot_spacing={self.knot_spacing:.6g}"
        return f"{self.channels}, {grid}, shared={self.shared}, lipschitz={self.lipschitz}"


class StoredLinearSpline(nn.Module):
    """A spline whose numbers are constants: what ``bake`` leaves of a LinearSpline, and what is written to ONNX.

    Args:
        channels: size of axis 1.
        coefficients: (channels or 1, K).
        lower: first knot (a float32 number).
        knot_spacing: distance of the knots (a float32 number).
        scale: α, (channels,) or (1,), or None for 1.

    Raises:
        ValueError: a scale is zero or not finite, or too small for its inverse to be finite.
    """

    coefficients: Tensor
    scale: Tensor | None
    inverse_scale: Tensor | None

    def __init__(
        self, channels: int, coefficients: Tensor, lower: float, knot_spacing: float, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.channels, self.lower, self.knot_spacing = channels, _float32(lower), _float32(knot_spacing)
        self.register_buffer("coefficients", coefficients.detach().clone())
        self.register_buffer("scale", scale)
        self.register_buffer("inverse_scale", None if scale is None else _inverse_inward(scale))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, …) to the same shape."""
        _check_channels(x, self.channels)
        if torch.onnx.is_in_onnx_export():
            return _around(x, self.scale, self.inverse_scale, self._emit)
        return _run(_Formula(self.lower, self.knot_spacing), x, self.coefficients, self.scale, self.inverse_scale)

    def _emit(self, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {"lower": self.lower, "knot_spacing": self.knot_spacing, "axis": 1}
        inputs = (x, self.coefficients)
        return torch.onnx.ops.symbolic(
            "lipdeploy::LinearSpline", inputs, attributes, dtype=x.dtype, shape=x.shape, version=1
        )

    def extra_repr(self) -> str:
        """The shape, for ``print(module)``."""
        grid = f"num_knots={self.coefficients.shape[1]}, lower={self.lower:.6g}, knot_spacing={self.knot_spacing:.6g}"
        return f"{self.channels}, {grid}, scaled={self.scale is not None}"


def _check_channels(x: Tensor, channels: int) -> None:
    if x.ndim < 2 or x.shape[1] != channels:
        raise ValueError(f"LinearSpline for {channels} channels on axis 1 got an input of shape {tuple(x.shape)}")


def _around(x: Tensor, scale: Tensor | None, inverse: Tensor | None, spline: Callable[[Tensor], Tensor]) -> Tensor:
    if scale is None:
        return spline(x)
    inverse = 1 / scale if inverse is None else inverse
    shape = (-1, *[1] * (x.ndim - 2))
    return spline(x * scale.view(shape).to(x.dtype)) * inverse.view(shape).to(x.dtype)


def _project(coefficients: Tensor, limit: Tensor) -> Tensor:
    limit = limit.to(coefficients)
    steps = torch.minimum(torch.maximum(coefficients.diff(dim=-1), -limit), limit)
    summed = nn.functional.pad(steps.cumsum(dim=-1), (1, 0))
    return summed + (coefficients.mean(dim=-1, keepdim=True) - summed.mean(dim=-1, keepdim=True))


def _project_inward(coefficients: Tensor, limit: float) -> Tensor:
    """Project in float64 to slightly smaller steps, so that rounding to the stored type cannot exceed ``limit``."""
    exact = coefficients.double()
    largest = _project(exact, exact.new_tensor(limit)).abs().amax(dim=-1, keepdim=True)
    # Each of two neighbours moves by at most half an ulp; one more eps64 term pays for the float64 sums.
    rounding = 1.01 * (torch.finfo(coefficients.dtype).eps + 4 * coefficients.shape[-1] * 2.0**-52) * largest
    return _project(exact, (limit - rounding).clamp(min=0)).to(coefficients.dtype)


@torch.no_grad()
def _inverse_inward(scale: Tensor) -> Tensor:
    """1/scale rounded so that |scale · inverse| ≤ 1 in exact arithmetic."""
    if not (scale.isfinite().all() and (scale != 0).all()):
        raise ValueError("LinearSpline scaling holds a zero or a value that is not finite")
    inverse = (1 / scale.double()).to(scale.dtype)
    if not inverse.isfinite().all():
        raise ValueError("LinearSpline scaling is too small: its inverse overflows")
    inward = torch.nextafter(inverse, torch.zeros_like(inverse))
    if scale.dtype == torch.float64:
        return inward
    return torch.where((inverse.double() * scale.double()).abs() > 1, inward, inverse)


def _differentiable_inverse(scale: Tensor) -> Tensor:
    """``_inverse_inward`` bit for bit, with the derivatives of 1/scale: what is added is zero."""
    inverse, reciprocal = _inverse_inward(scale), 1 / scale
    return inverse + (reciprocal - reciprocal.detach())
