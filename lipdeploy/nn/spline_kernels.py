"""The operator library's loops for LinearSpline in training: y = s(α·x)/α and all its gradients, one pass each.

In torch's operations every step is a pass over memory, a dozen of them. The meaning stays with those operations
(``spline.py``): these loops give the same bits forward, and gradients whose sums are rounded once. They serve eager
mode on the CPU; whatever traces, transforms or compiles the program sees torch's operations, as second derivatives do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from lipdeploy.ops import VERSION
from lipdeploy.ops.installed import DIGEST_VARIABLE, ENVIRONMENT_VARIABLE, INSTALLED

TYPES = {torch.float32: "f32", torch.float64: "f64"}
POINTER, WHOLE, SINGLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIZES = [*[WHOLE] * 5, SINGLE, SINGLE]  # outer, channels, inner, rows, knots, lower, knot_spacing
ARGUMENTS = {
    "scaled": [*[POINTER] * 5, *SIZES, WHOLE],  # threads
    "gradient": [*[POINTER] * 10, *SIZES, ctypes.c_double, WHOLE, WHOLE],  # limit, reciprocal, threads
}


class Formula(Protocol):
    """A spline in torch's operations: what the loops must equal, and what second derivatives are made of."""

    @property
    def lower(self) -> float:
        """The first knot, a float32 number."""

    @property
    def knot_spacing(self) -> float:
        """The distance of the knots, a float32 number."""

    @property
    def limit(self) -> Tensor | None:
        """Of the projected steps, in absolute value; None where coefficients are used as they are."""

    def projected(self, coefficients: Tensor) -> Tensor:
        """(rows, K) to the values at the knots."""

    def __call__(self, x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None) -> Tensor:
        """``inverse`` (None: 1/scale) times the spline of scale·x."""


def serves(x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None) -> bool:
    """Whether ``apply`` may stand for torch's operations: a derivative is wanted, and nothing looks at operations."""
    tensors = [tensor for tensor in (x, coefficients, scale, inverse) if tensor is not None]
    if watched() or not torch.is_grad_enabled() or not all([_ordinary(tensor, x.dtype) for tensor in tensors]):
        return False
    rows = coefficients.shape[0]
    fits = coefficients.ndim == 2 and rows in (1, x.shape[1]) and all([t.shape == (rows,) for t in tensors[2:]])
    in_order = _around_channels(x) is not None and all([tensor.is_contiguous() for tensor in tensors[1:]])
    return fits and in_order and any([tensor.requires_grad for tensor in tensors]) and _functions() is not None


def apply(formula: Formula, x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None) -> Tensor:
    """What ``formula`` gives, for what ``serves`` accepts.

    Args:
        formula: the spline.
        x: (N, C, …), float32 or float64.
        coefficients: (C or 1, K), raw where the formula projects.
        scale: (C,) or (1,) as ``coefficients``, or None for 1.
        inverse: as ``scale``; None for its reciprocal.
    """
    return cast(Tensor, _Scaled.apply(formula, x, coefficients, scale, inverse))  # type: ignore[no-untyped-call]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, formula: Formula, x: Tensor, coefficients: Tensor, scale: Tensor | None, inverse: Tensor | None
    ) -> Tensor:
        ctx.formula, ctx.reciprocal = formula, scale is not None and inverse is None
        values = formula.projected(coefficients)
        factor = 1 / scale if scale is not None and inverse is None else inverse
        ctx.save_for_backward(x, coefficients, scale, inverse, values, factor)
        y = torch.empty_like(x)
        _call("scaled", x, [x, values, scale, factor, y], [*values.shape, formula.lower, formula.knot_spacing])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        formula, wanted = ctx.formula, ctx.needs_input_grad[1:]
        x, coefficients, scale, inverse, values, factor = ctx.saved_tensors
        given = [x, coefficients, scale, inverse]
        if torch.is_grad_enabled():  # a gradient penalty will differentiate what is computed here
            return None, *_differentiable(formula, given, wanted, grad_outputs[0])
        results = [torch.empty_like(tensor) if want else None for tensor, want in zip(given, wanted, strict=True)]
        raw, limit = (None, 0.0) if formula.limit is None else (coefficients, float(formula.limit.to(x.dtype)))
        tensors = [x, _laid_out_as(x, grad_outputs[0]), raw, values, scale, factor, *results]
        numbers = [*values.shape, formula.lower, formula.knot_spacing, limit, int(ctx.reciprocal)]
        _call("gradient", x, tensors, numbers)
        return None, *results


def _differentiable(
    formula: Formula, given: Sequence[Tensor | None], wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    inputs = [tensor for tensor, want in zip(given, wanted, strict=True) if want and tensor is not None]
    x, coefficients, scale, inverse = given
    y = formula(cast(Tensor, x), cast(Tensor, coefficients), scale, inverse)
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
    return [next(found) if want else None for want in wanted]


def watched() -> bool:
    """Whether something records, compiles or transforms operations: it must not meet a pointer."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.onnx.is_in_onnx_export()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _ordinary(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether these are numbers of the type in the processor's memory, as the program itself sees them."""
    plain = (type(tensor) is Tensor or type(tensor) is Parameter) and tensor.layout is torch.strided
    return plain and tensor.device.type == "cpu" and tensor.dtype == dtype and dtype in TYPES and not tensor.is_neg()


def _around_channels(x: Tensor) -> tuple[int, int, int] | None:
    """(outer, channels, inner) of what lies in memory, or None where that is not three sizes."""
    if x.is_contiguous():
        return x.shape[0], x.shape[1], x.shape[2:].numel()
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.shape[0] * x.shape[2:].numel(), x.shape[1], 1
    return None


def _laid_out_as(x: Tensor, grad: Tensor) -> Tensor:
    order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return grad.contiguous(memory_format=order).resolve_neg()


def _call(name: str, x: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[float]) -> None:
    functions, sizes = _functions(), _around_channels(x)
    if functions is None or sizes is None:
        raise RuntimeError("LinearSpline: the operator library went away between forward and backward")
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    status = functions[name, TYPES[x.dtype]](*addresses, *sizes, *numbers, torch.get_num_threads())
    if status != 0:
        reason = "there is not enough memory" if status == -2 else f"the operator library refuses it ({status})"
        raise RuntimeError(f"LinearSpline on an input of shape {tuple(x.shape)}: {reason}")


def _functions() -> dict[tuple[str, str], Any] | None:
    """The entry points, or None without a library: torch's operations then do the same."""
    return _load(os.environ.get(ENVIRONMENT_VARIABLE), os.environ.get(DIGEST_VARIABLE))


@cache
def _load(asked: str | None, pinned: str | None) -> dict[tuple[str, str], Any] | None:
    path = INSTALLED if asked is None else Path(asked).resolve()
    if asked == "" or not path.is_file() or (pinned and _digest(path) != pinned.lower()):
        return None
    try:
        library = ctypes.CDLL(str(path))
        version = library.lipdeploy_ops_version()
        functions = {
            (name, T): getattr(library, f"lipdeploy_linear_spline_{name}_{T}_cpu")
            for name in ARGUMENTS
            for T in TYPES.values()
        }
    except (OSError, AttributeError):  # another platform's file, or an older library
        return None
    for (name, _), function in functions.items():
        function.argtypes, function.restype = ARGUMENTS[name], ctypes.c_int32
    return functions if version == VERSION else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
