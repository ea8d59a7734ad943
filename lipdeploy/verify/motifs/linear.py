"""Linear maps written with several nodes: centering, circular padding, residuals without an activation."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import Norm, per_norm
from lipdeploy.verify.operator_norm import Convolution, spectral_norm_up
from lipdeploy.verify.rounding import fraction_up
from lipdeploy.verify.rules.pooling import reduced
from lipdeploy.verify.rules.structure import pads_per_axis
from lipdeploy.verify.rules.windows import windows
from lipdeploy.verify.step import Step

ULPS = Bound(2.0**-50)


def centering(call: Call, values: Values) -> Found | None:
    """x − mean(x) is an orthogonal projection: 1 in ℓ2, 2(1 − 1/n) in ℓ1 and ℓ∞."""
    if len(call.input_names) != 2:
        return None
    mean = judged_inputs(call.producer(call.input_names[1]), "ReduceMean", values)
    source, output = values(call.input_names[0]), output_of(call, values)
    if mean is None or output is None or not isinstance(source, Flow) or mean.input_names[0] != call.input_names[0]:
        return None
    shape, count = reduced(mean)
    if len(shape) != len(source.shape) or output.shape != source.shape:
        return None
    outer = Bound(fraction_up(2 - Fraction(2, count))) if count > 1 else ZERO
    return source, Step(source.shape, (per_norm(outer, ONE, outer),), "centering", rounding=None)


def circular_convolution(call: Call, values: Values) -> Found | None:
    """Pad(wrap) → Conv is part of a circulant on the image itself (Lemma D6): its symbol on the image's own grid.

    Holds per axis when the wrapped entries do not exceed the kernel's reach, (k − 1)·dilation, and the stride divides
    the image: then the kept windows are distinct windows of the circulant.
    """
    padding = judged_inputs(call.producer(call.input_names[0]), "Pad", values)
    if padding is None or padding.string("mode", "constant") != "wrap" or Norm.L2 not in call.norms:
        return None
    source, output = padding.flow(0), output_of(call, values)
    kernel, groups = call.required_constant(1).float64(), call.integer("group", 1)
    if output is None or call.integers("pads", (0,) * 2 * len(source.shape[1:])) != (0,) * 2 * len(source.shape[1:]):
        return None
    pads = pads_per_axis(padding, len(source.shape) + 1)
    if call.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[0] != (0, 0):
        return None
    axes = len(source.shape) - 1
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    for size, pad, taps, stride, dilation in zip(
        source.shape[1:], pads[1:], kernel.shape[2:], strides, dilations, strict=True
    ):
        if min(pad) < 0 or sum(pad) > (taps - 1) * dilation or size % stride:
            return None
    operator = Convolution(kernel, source.shape[1:], ((0, 0),) * axes, strides, dilations, groups, output.shape[1:])
    gain = operator.circulant_norm_up()
    return source, Step(output.shape, ({(Norm.L2, Norm.L2): gain},), "circular convolution", rounding=None)


def linear_residual(call: Call, values: Values) -> Found | None:
    """x ± W·x is one linear map: the norm of I ± W, or of the convolution with ±1 added to its centre tap."""
    if len(call.input_names) != 2 or Norm.L2 not in call.norms:
        return None
    for straight, branch in (call.input_names, call.input_names[::-1]):
        source, output = values(straight), output_of(call, values)
        if not isinstance(source, Flow) or output is None or output.shape != source.shape:
            continue
        sign = -1.0 if call.op == "Sub" else 1.0
        gain = _identity_plus(call, branch, straight, sign, values)
        if gain is not None:
            # 1 + w rounds once per entry of the diagonal, by at most 2⁻⁵³ relative.
            step = Step(source.shape, ({(Norm.L2, Norm.L2): gain + gain * ULPS + ULPS},), "linear residual")
            return source, replace(step, rounding=None)
    return None


def _identity_plus(call: Call, branch: str, source: str, sign: float, values: Values) -> Bound | None:
    """‖I + sign·W‖ for the Gemm, MatMul or Conv from ``source`` to ``branch``."""
    node = call.producer(branch)
    if node is None or not isinstance(values(branch), Flow) or not node.input_names or node.input_names[0] != source:
        return None
    convolution = judged_inputs(node, "Conv", values)
    if convolution is not None:
        return _identity_plus_convolution(convolution, sign)
    for op in ("Gemm", "MatMul"):
        linear = judged_inputs(node, op, values)
        if linear is not None and len(linear.flow(0).shape) == 1 and linear.real("alpha", 1.0) == 1.0:
            weight = linear.required_constant(1).float64()
            square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
            return spectral_norm_up(np.eye(len(weight)) + sign * weight) if square else None
    return None


def _identity_plus_convolution(call: Call, sign: float) -> Bound | None:
    """Tap a reads pixel o·s + a·d − p, so the identity is the tap with a·d = p on every axis, for stride 1."""
    kernel, image = call.required_constant(1).float64(), call.flow(0).shape[1:]
    window = windows(call, image, kernel.shape[2:])
    centre = tuple(begin // d for (begin, _), d in zip(window.pads, window.dilations, strict=True))
    fits = all(
        c * d == begin and c < taps
        for c, d, (begin, _), taps in zip(centre, window.dilations, window.pads, kernel.shape[2:], strict=True)
    )
    square = call.integer("group", 1) == 1 and kernel.shape[0] == kernel.shape[1] and window.outputs == image
    if not fits or not square or set(window.strides) != {1}:
        return None
    shifted = np.moveaxis(sign * kernel, (0, 1), (-2, -1))
    shifted[centre] += np.eye(len(kernel))
    shifted = np.ascontiguousarray(np.moveaxis(shifted, (-2, -1), (0, 1)))
    operator = Convolution(shifted, image, window.pads, window.strides, window.dilations, 1, window.outputs)
    return operator.spectral_norm_up()
