"""Linear operators with stored weights: proven operator norms."""

from __future__ import annotations

import math

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.limits import check_convolution, check_shape, check_work
from lipdeploy.verify.norms import Gains, Norm, PerNorm, diagonal
from lipdeploy.verify.operator_norm import Convolution, ProofFailed, dense_gains
from lipdeploy.verify.operator_norm.dense import absolute_gains
from lipdeploy.verify.operator_norm.sums import Array, largest
from lipdeploy.verify.rounding import add_up, div_up, down, mul_up
from lipdeploy.verify.rules.arithmetic import repeated, scaled, vector_norms
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.rules.windows import Windows, transposed_windows, windows
from lipdeploy.verify.step import Rounding, Step


def matrix_step(
    call: Call, weight: Array, shape: tuple[int, ...], bias: PerNorm, factor: Bound = ONE, extra_terms: int = 0
) -> Step:
    """factor·‖W‖ for an (outputs, inputs) matrix applied to each vector; |fl − exact| ≤ γ_{K+1}(|W||x| + |b|)."""
    if Norm.L2 in call.norms:
        check_work(call, float(max(weight.shape)) * float(min(weight.shape)) ** 2)
    try:
        gains = dense_gains(weight, call.norms, call.guide)
    except ProofFailed as error:
        raise call.refuse("LIP014", str(error)) from error
    rounding = _sums(absolute_gains(weight, gains), weight.shape[1] + 1 + extra_terms, bias, factor)
    return Step(shape, (scaled(gains, factor),), "operator norm", at_zero=bias, rounding=rounding)


def _sums(absolute: Gains, terms: int, offset: PerNorm, factor: Bound = ONE) -> Rounding:
    """Dot products of ``terms`` roundings, times ``factor`` at the end: before it the sums may be larger or smaller."""
    grown = max(factor, ONE)
    peak = (max(absolute[Norm.LINF, Norm.LINF], ONE) * grown, offset.get(Norm.LINF, ZERO))
    underflow = float(terms) if factor == ONE else 2.0 * terms * grown.value
    return Rounding(terms=terms, gains=(scaled(absolute, factor),), offset=offset, underflow=underflow, peak=peak)


@rule("Gemm", attributes=("alpha", "beta", "transA", "transB"), inputs=3)
def gemm(call: Call) -> Step:
    """y = α·x·W + β·c: |α|·‖W‖. x must be (batch, features), c a constant row."""
    flow, weight = call.flow(0), call.required_constant(1).float64()
    if len(flow.shape) != 1 or call.integer("transA", 0) or weight.ndim != 2:
        raise call.refuse("LIP005", "the activation must be (batch, features), not transposed, the weight a matrix")
    matrix = weight if call.integer("transB", 0) else weight.T
    if matrix.shape[1] != flow.shape[0]:
        raise call.refuse("LIP013", f"{matrix.shape[1]} weights per output meet {flow.shape[0]} features")
    alpha, beta = abs(call.real("alpha", 1.0)), abs(call.real("beta", 1.0))
    bias = _row_bias(call, matrix.shape[0], beta)
    extra = 0 if alpha == beta == 1.0 else 2
    return matrix_step(call, matrix, (matrix.shape[0],), bias, Bound(alpha), extra)


def _row_bias(call: Call, features: int, beta: float) -> PerNorm:
    bias = call.constant(2)
    if bias is None or beta == 0.0:
        return {}
    shape = bias.array.shape
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1) or (shape and shape[-1] not in (1, features)):
        raise call.refuse("LIP005", f"the bias of shape {list(shape)} is not one row")
    row = np.broadcast_to(bias.float64().reshape(-1), (features,))
    return {norm: bound * Bound(beta) for norm, bound in vector_norms(row).items()}


@rule("MatMul", inputs=2)
def matmul(call: Call) -> Step:
    """x·W on the last axis, or W·x on the last but one: every vector meets the same matrix, so ‖W‖."""
    first, second = call.optional(0), call.optional(1)
    if isinstance(first, Flow) and isinstance(second, Constant):
        return _matmul_right(call, first, second.float64())
    if isinstance(first, Constant) and isinstance(second, Flow):
        return _matmul_left(call, first.float64(), second)
    raise call.refuse("LIP004", "multiplies two activations")


def _matmul_right(call: Call, flow: Flow, weight: Array) -> Step:
    if weight.ndim not in (1, 2) or not flow.shape or weight.shape[0] != flow.shape[-1]:
        raise call.refuse("LIP002", f"weights of shape {list(weight.shape)} do not act on the last axis")
    matrix = weight.T if weight.ndim == 2 else weight.reshape(1, -1)
    shape = flow.shape[:-1] + weight.shape[1:]
    return matrix_step(call, matrix, shape, {})


def _matmul_left(call: Call, weight: Array, flow: Flow) -> Step:
    if weight.ndim != 2 or len(flow.shape) < 2 or weight.shape[1] != flow.shape[-2]:
        raise call.refuse("LIP002", f"weights of shape {list(weight.shape)} do not act on the last but one axis")
    return matrix_step(call, weight, (*flow.shape[:-2], weight.shape[0], flow.shape[-1]), {})


WINDOW_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@rule("Conv", attributes=WINDOW_ATTRIBUTES, inputs=3)
def conv(call: Call) -> Step:
    """Proven norm of the zero-padded convolution on this image size (Lemma D1): stride, dilation, groups exact."""
    flow, kernel = call.flow(0), call.required_constant(1).float64()
    groups = call.integer("group", 1)
    _check_kernel(call, kernel, flow.shape, groups)
    if kernel.shape[0] % groups or kernel.shape[1] * groups != flow.shape[0]:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {flow.shape[0]} channels")
    window = windows(call, flow.shape[1:], kernel.shape[2:])
    operator = _convolution(call, kernel, window, groups, window.inputs, window.outputs)
    shape = (kernel.shape[0], *window.outputs)
    bias = _channel_bias(call, kernel.shape[0], math.prod(window.outputs))
    return _conv_step(call, operator, shape, bias, math.prod(kernel.shape[1:]), adjoint=False)


@rule("ConvTranspose", attributes=(*WINDOW_ATTRIBUTES, "output_padding", "output_shape"), inputs=3)
def conv_transpose(call: Call) -> Step:
    """The adjoint of a convolution has its norm (ℓ1 and ℓ∞ change places)."""
    flow, kernel = call.flow(0), call.required_constant(1).float64()
    groups = call.integer("group", 1)
    _check_kernel(call, kernel, flow.shape, groups)
    if kernel.shape[0] != flow.shape[0] or kernel.shape[0] % groups:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {flow.shape[0]} channels")
    layout = transposed_windows(call, kernel.shape[2:])
    size = tuple(n * s + grows for n, s, grows in zip(flow.shape[1:], layout.strides, layout.grows, strict=True))
    if min(size, default=1) < 1:
        raise call.refuse("LIP013", f"the output would have size {list(size)}")
    check_shape(call, size)
    window = Windows(size, flow.shape[1:], layout.pads, layout.strides, layout.dilations)
    operator = _convolution(call, kernel, window, groups, size, flow.shape[1:])
    channels = kernel.shape[1] * groups
    bias = _channel_bias(call, channels, math.prod(size))
    terms = kernel.shape[0] // groups * math.prod(kernel.shape[2:])
    return _conv_step(call, operator, (channels, *size), bias, terms, adjoint=True)


def _check_kernel(call: Call, kernel: Array, shape: tuple[int, ...], groups: int) -> None:
    if len(shape) < 2 or kernel.ndim != len(shape) + 1 or groups < 1 or 0 in kernel.shape:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} does not fit an image {list(shape)}")
    stated = call.integers("kernel_shape", kernel.shape[2:])
    if stated != kernel.shape[2:]:
        raise call.refuse("LIP013", f"kernel_shape {list(stated)} is not the kernel's {list(kernel.shape[2:])}")


def _convolution(
    call: Call, kernel: Array, window: Windows, groups: int, image: tuple[int, ...], outputs: tuple[int, ...]
) -> Convolution:
    operator = Convolution(kernel, image, window.pads, window.strides, window.dilations, groups, outputs)
    if call.norms != (Norm.LINF,):
        check_convolution(call, kernel.shape, groups, operator.torus, window.strides, window.dilations)
    return operator


def _conv_step(
    call: Call, operator: Convolution, shape: tuple[int, ...], bias: PerNorm, products: int, *, adjoint: bool
) -> Step:
    try:
        find = operator.adjoint_gains if adjoint else operator.gains
        gains = find(call.norms, call.guide)
    except ProofFailed as error:
        raise call.refuse("LIP014", str(error)) from error
    absolute = operator.absolute_gains(gains)
    return Step(shape, (gains,), "convolution", at_zero=bias, rounding=_sums(absolute, products + 1, bias))


def _channel_bias(call: Call, channels: int, positions: int) -> PerNorm:
    bias = call.constant(2)
    if bias is None:
        return {}
    if bias.array.shape != (channels,):
        raise call.refuse("LIP013", f"the bias has shape {list(bias.array.shape)}, not [{channels}]")
    return repeated(vector_norms(bias.float64()), positions)


#: γ₇ of it is above the spacing of subnormal numbers in every format.
FADED = 2.0**-120


@rule("BatchNormalization", attributes=("epsilon", "momentum", "training_mode", "spatial"), inputs=5)
def batch_normalization(call: Call) -> Step:
    """A diagonal: max |g| / √(var + ε) over the stored statistics."""
    if call.integer("training_mode", 0):
        raise call.refuse("LIP009", "training_mode is 1")
    flow = call.flow(0)
    scale, shift, mean, variance = (call.required_constant(i).float64() for i in range(1, 5))
    if any(values.shape != flow.shape[:1] for values in (scale, shift, mean, variance)):
        raise call.refuse("LIP013", f"statistics do not have one value for each of {flow.shape[:1]} channels")
    epsilon = call.real("epsilon", 9.999999747378752e-06)
    if float(variance.min(initial=1.0)) + epsilon <= 0.0 or epsilon < 0.0:
        raise call.refuse("LIP003", "variance + epsilon is not positive")
    slopes = np.array([_slope_up(g, v, epsilon) for g, v in zip(scale, variance, strict=True)])
    gain = Bound(largest(slopes))
    offsets = _shifts(slopes, mean, shift)
    constant = repeated(vector_norms(offsets), math.prod(flow.shape[1:]))
    # A program that folds g/√(var + ε) first may lose that number below the smallest normal one: a little is added.
    folded = repeated(vector_norms(_shifts(slopes + FADED, mean, shift)), math.prod(flow.shape[1:]))
    growth = max(gain, ONE, Bound(largest(scale)))
    largest_sum = Bound(add_up(float(variance.max(initial=0.0)), epsilon))  # var + ε and g/√(var + ε) are stored too
    peak = folded[Norm.LINF] + growth * Bound(largest(mean)) + gain + largest_sum
    gains = (diagonal(gain + Bound(FADED)),)
    rounding = Rounding(terms=7, gains=gains, offset=folded, underflow=8.0, peak=(growth, peak), stored=7)
    return Step(flow.shape, (diagonal(gain),), "max |g|/√(var + ε)", at_zero=constant, rounding=rounding)


def _shifts(slopes: Array, mean: Array, shift: Array) -> Array:
    return np.array([add_up(mul_up(s, abs(m)), abs(b)) for s, m, b in zip(slopes, mean, shift, strict=True)])


def _slope_up(gain: float, variance: float, epsilon: float) -> float:
    root = down(math.sqrt(down(variance + epsilon)))
    return div_up(abs(float(gain)), root)
