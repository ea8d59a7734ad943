"""Linear maps written with several nodes: centering, circular padding, residuals without an activation."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.layers import UNDERFLOW, Factor, Layer, behind, operator_norm_up, products, read_layer
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.motifs.tracing import Cut, Trace, bases
from lipdeploy.verify.norms import Norm, per_norm
from lipdeploy.verify.operator_norm import Convolution
from lipdeploy.verify.operator_norm.sums import Array, largest
from lipdeploy.verify.rounding import fraction_up
from lipdeploy.verify.rules.pooling import reduced
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
    """Circular padding, then Conv, is part of a circulant on the image itself (Lemma D6), however it is written.

    Holds per axis when the wrapped entries do not exceed the kernel's reach, (k − 1)·dilation, and the stride divides
    the image: then the kept windows are distinct windows of the circulant, whose symbol lives on the image's own grid.
    """
    output = output_of(call, values)
    found = circulant(call, values) if output is not None and Norm.L2 in call.norms else None
    if output is None or found is None:
        return None
    source, operator = found
    gains = {(Norm.L2, Norm.L2): operator.circulant_norm_up()}
    return source, Step(output.shape, (gains,), "circular convolution", rounding=None)


class _Circulants(dict[str, "tuple[Flow, Convolution] | None"]):
    """Convolutions that were looked at, by what they make: the next motif asks for them again."""


def circulant(call: Call, values: Values) -> tuple[Flow, Convolution] | None:
    """(image, convolution on it without padding) of a Conv behind circular padding."""
    effort, name = call.guide.effort, call.output_names[0]
    if not isinstance(effort.kept, _Circulants):
        effort.kept = _Circulants()
    if name not in effort.kept:
        effort.kept[name] = _circulant(call, values)
    found: tuple[Flow, Convolution] | None = effort.kept[name]
    return found


def _circulant(call: Call, values: Values) -> tuple[Flow, Convolution] | None:
    output = output_of(call, values)
    if output is None:
        return None
    call = call.with_inputs([values(name) if name else None for name in call.input_names])
    kernel, groups, image = call.required_constant(1).float64(), call.integer("group", 1), call.flow(0).shape[1:]
    window = windows(call, image, kernel.shape[2:])
    if any(pad != (0, 0) for pad in window.pads):
        return None
    reaches = [(taps - 1) * d for taps, d in zip(kernel.shape[2:], window.dilations, strict=True)]
    chosen = None
    for base in bases(call, values):  # the farthest one that fits: axes may be padded one after the other
        source = values(base.name)
        pads = _wrapped(call, base, source, values) if isinstance(source, Flow) else None
        if pads is None or not isinstance(source, Flow):
            continue
        fits = all(sum(pad) <= reach for pad, reach in zip(pads, reaches, strict=True))
        if fits and not any(size % stride for size, stride in zip(source.shape[1:], window.strides, strict=True)):
            chosen = source
    if chosen is None:
        return None
    none, sizes = ((0, 0),) * len(reaches), (chosen.shape[1:], output.shape[1:])
    return chosen, Convolution(kernel, sizes[0], none, window.strides, window.dilations, groups, sizes[1])


def _wrapped(call: Call, base: Cut, source: Flow, values: Values) -> list[tuple[int, int]] | None:
    """(begin, end) per image axis when the convolution's input is the base with circular padding, exactly."""
    padded = call.flow(0)
    if len(padded.shape) != len(source.shape) or padded.shape[0] != source.shape[0]:
        return None
    traced = Trace(call, base, values).of(padded.name)
    if traced is None or not traced.single or padded.name == base.name:
        return None
    entries = traced.members.reshape(padded.shape)
    first = np.unravel_index(int(entries.reshape(-1)[0]), source.shape)[1:]
    begins = [-int(index) % size for index, size in zip(first, source.shape[1:], strict=True)]
    pads = [
        (begin, out - size - begin) for begin, out, size in zip(begins, padded.shape[1:], source.shape[1:], strict=True)
    ]
    if any(end < 0 for _, end in pads):
        return None
    expected = np.pad(np.arange(source.size).reshape(source.shape), [(0, 0), *pads], mode="wrap")
    return pads if np.array_equal(entries, expected) else None


def linear_residual(call: Call, values: Values) -> Found | None:
    """a·x ± W·x is one linear map: the norm of diag(a) ± W, or of the convolution with ±a added to its centre tap."""
    output = output_of(call, values)
    if len(call.input_names) != 2 or Norm.L2 not in call.norms or output is None:
        return None
    for index, (straight, branch) in enumerate((call.input_names, call.input_names[::-1])):
        signs = (1.0, 1.0) if call.op == "Add" else (-1.0, 1.0) if index else (1.0, -1.0)
        for base, factors in _scaled_identities(call, straight, values):
            source, layer = values(base), read_layer(call, branch, values, stop=base)
            if layer is None or layer.source != base or not isinstance(source, Flow) or source.shape != output.shape:
                continue
            gain = _identity_plus(layer, factors, signs, source)
            if gain is not None:
                return source, Step(output.shape, ({(Norm.L2, Norm.L2): gain},), "linear residual", rounding=None)
    return None


def _scaled_identities(call: Call, name: str, values: Values) -> list[tuple[str, list[Factor]]]:
    """(base, factors) of a tensor that is its base, but for shifts and channel factors; the nearest base first."""
    far, _, factors = behind(call, name, values)
    return [(name, [])] if far == name else [(name, []), (far, factors)]


def _identity_plus(layer: Layer, factors: list[Factor], signs: tuple[float, float], source: Flow) -> Bound | None:
    """‖±diag(a) ± W‖ for W = ``layer`` and a the product of the factors."""
    identity = np.full(source.shape[0], signs[0])
    for factor in factors:
        identity = products(identity, factor.numbers)
    roundings = sum(factor.roundings + 1 for factor in factors)
    layer = replace(layer, kernel=signs[1] * layer.kernel)
    kernel = _with_diagonal(layer, identity)
    if kernel is None or not np.all(np.isfinite(kernel)):
        return None
    gain = operator_norm_up(kernel, layer.geometry)
    # The sum rounds once per entry of the diagonal, the factors as often as counted.
    own = Bound(largest(identity)) * Bound((roundings + 2.0) * 2.0**-52)
    return gain + gain * ULPS + own + layer.slack() + UNDERFLOW


def _with_diagonal(layer: Layer, identity: Array) -> Array | None:
    """The layer's kernel with ``identity`` added where an entry meets itself."""
    kernel = layer.kernel
    if layer.geometry is None:
        square = kernel.shape[0] == kernel.shape[1] == len(identity)
        return kernel + np.diag(identity) if square else None
    window, taps = layer.geometry.window, kernel.shape[2:]
    # Tap a reads pixel o·s + a·d − p, so the identity is the tap with a·d = p on every axis, for stride 1.
    centre = tuple(begin // d for (begin, _), d in zip(window.pads, window.dilations, strict=True))
    fits = all(
        c * d == begin and c < t
        for c, d, (begin, _), t in zip(centre, window.dilations, window.pads, taps, strict=True)
    )
    square = layer.geometry.groups == 1 and kernel.shape[0] == kernel.shape[1] and window.outputs == window.inputs
    if layer.adjoint or not fits or not square or set(window.strides) != {1}:
        return None
    moved = np.moveaxis(kernel, (0, 1), (-2, -1)).copy()
    moved[centre] += np.diag(identity)
    return np.ascontiguousarray(np.moveaxis(moved, (-2, -1), (0, 1)))
