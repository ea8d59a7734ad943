"""Linear maps written with several nodes: centering, and convolutions with circular padding."""

from __future__ import annotations

from fractions import Fraction

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import Norm, per_norm
from lipdeploy.verify.operator_norm.convolution import Convolution
from lipdeploy.verify.rounding import fraction_up
from lipdeploy.verify.rules.pooling import reduced
from lipdeploy.verify.rules.structure import pads_per_axis
from lipdeploy.verify.step import Step


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
