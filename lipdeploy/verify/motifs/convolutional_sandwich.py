"""Convolutional sandwich layers (Wang and Manchester 2023), as far as they reach ONNX: two convolutions in space.

Their authors multiply in the Fourier domain of the whole image. Exported, that is a pair of circular convolutions
whose kernels may be as large as the image; zero-padded pairs that satisfy the same equation are judged, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipdeploy.errors import Refused
from lipdeploy.verify.bound import Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.layers import Layer, as_adjoint, behind, loose_up, products, read_layer
from lipdeploy.verify.motifs.linear import circulant
from lipdeploy.verify.motifs.matching import Found, Values, output_of
from lipdeploy.verify.motifs.residual import monotone_input
from lipdeploy.verify.motifs.sandwich import MOST_NEURONS, weights_of
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import Convolution, ProofFailed
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import div_up, mul_up
from lipdeploy.verify.step import Step

PROBES = 5  # frequencies at which the structure is looked for before anything is proven
ALIKE = 1.05  # how far from 2I the probes may be
WORTH = 1.05  # how much less than the product of the norms the layer must promise
ROUNDINGS = 6  # of one entry of the joint kernel, beside those of the layers' own factors


@dataclass(frozen=True)
class _Half:
    """One of the two convolutions, hidden channels first: (hidden, others, *taps), from the tensor ``source``.

    ``norm_up`` bounds the norm of any kernel of this kind on the same images; ``angles`` (probes, axes) are
    frequencies, per tap, at which such a norm may be attained.
    """

    source: str
    kernel: Array
    roundings: int
    place: object
    angles: Array
    norm_up: Callable[[Array], Bound]


def sandwich_convolution(call: Call, values: Values) -> Found | None:
    """y = G·σ(F·x + b), slopes of σ in [0, 1]: s·ℓ where ‖[G·E⁻¹; ℓ⁻¹·Fᵀ·E]‖² ≤ 2s for a diagonal E > 0 (Lemma E4).

    For a sandwich G = √2·Aᵀ·Ψ, F = √2·Ψ⁻¹·B, A·Aᵀ + B·Bᵀ = I, so E = Ψ, ℓ = s = 1. E is one number per hidden channel,
    read off the kernels at a few frequencies; nothing depends on whether it is right. Stride 1, one group.
    """
    output = output_of(call, values)
    if output is None or Norm.L2 not in call.norms:
        return None
    outer = _half(call, call.output_names[0], values, of_outputs=False)
    inner = None if outer is None else monotone_input(call, outer.source, values)
    first = None if inner is None else _half(call, inner, values, of_outputs=True)
    if outer is None or first is None or outer.place != first.place:
        return None
    source = values(first.source)
    gain = _proven(call, first, outer) if isinstance(source, Flow) else None
    if gain is None or not isinstance(source, Flow):
        return None
    return source, Step(output.shape, ({(Norm.L2, Norm.L2): gain},), "convolutional sandwich", rounding=None)


def _half(call: Call, name: str, values: Values, *, of_outputs: bool) -> _Half | None:
    """The convolution that ends in ``name``; the hidden channels are its outputs, or its inputs."""
    circular = _circular(call, name, values)
    if circular is not None:
        source, layer, operator = circular
        image = operator.image
        if set(operator.strides) != {1} or operator.groups != 1 or (of_outputs and operator.outputs != image):
            return None

        def norm_up(kernel: Array) -> Bound:
            nothing = ((0, 0),) * len(image)
            whole = Convolution(kernel, image, nothing, operator.strides, operator.dilations, 1, image)
            return whole.circulant_norm_up()

        kernel = layer.kernel if of_outputs else _turned(layer.kernel)
        chosen = np.random.default_rng(0).integers(0, image, (PROBES, len(image)))
        angles = 2.0 * np.pi * chosen * np.array(operator.dilations) / np.array(image)
        return _Half(source, kernel, layer.roundings, ("circular", image, operator.dilations), angles, norm_up)
    plain = read_layer(call, name, values)
    if plain is None or plain.geometry is None:
        return None
    layer = plain if of_outputs else as_adjoint(plain)
    geometry = layer.geometry
    if geometry is None or layer.adjoint == of_outputs or geometry.groups != 1 or set(geometry.window.strides) != {1}:
        return None
    place = ("padded", geometry, layer.kernel.shape[2:])
    angles = np.random.default_rng(0).uniform(0.0, 2.0 * np.pi, (PROBES, layer.kernel.ndim - 2))

    def padded_norm_up(kernel: Array) -> Bound:
        return geometry.operator(kernel).spectral_norm_up()

    return _Half(layer.source, layer.kernel, layer.roundings, place, angles, padded_norm_up)


def _circular(call: Call, name: str, values: Values) -> tuple[str, Layer, Convolution] | None:
    """(source, kernel with its channel factors, geometry) of a Conv behind circular padding."""
    _, node, after = behind(call, name, values)
    if node is None or (node.domain, node.op) != ("", "Conv"):
        return None
    try:
        found = circulant(node.with_inputs((), guide=call.guide), values)
    except Refused:
        return None
    if found is None:
        return None
    flow, operator = found
    source, _, before = behind(call, flow.name, values)
    layer = Layer(source, operator.kernel, None, adjoint=False)
    for factors, outputs in ((after, True), (before, False)):
        for factor in factors:
            layer = layer.scaled(factor, outputs=outputs)
    return source, layer, operator


def _turned(kernel: Array) -> Array:
    """The adjoint's kernel: channels exchanged, taps reversed."""
    swapped = np.swapaxes(kernel, 0, 1)
    return np.ascontiguousarray(swapped[(slice(None), slice(None), *([slice(None, None, -1)] * (kernel.ndim - 2)))])


def _proven(call: Call, first: _Half, outer: _Half) -> Bound | None:
    size = len(first.kernel)
    if not 3 <= size == len(outer.kernel) <= MOST_NEURONS or first.kernel.ndim != outer.kernel.ndim:
        return None
    found = _scales(first.kernel, outer.kernel, first.angles)
    source = call.flow(0)
    work = float(np.prod(source.shape[1:])) * size**2 * (first.kernel.shape[1] + outer.kernel.shape[1])
    if found is None or not call.guide.effort.take(work):
        return None
    scale, length = found
    joint = _joint(first.kernel, outer.kernel, scale, length)
    if joint is None:
        return None
    try:
        loose = loose_up(joint, ROUNDINGS + first.roundings + outer.roundings)
        norm = (first.norm_up(joint) + loose).value
    except ProofFailed:
        return None
    return Bound(mul_up(div_up(mul_up(norm, norm), 2.0), length))


def _joint(first: Array, outer: Array, scale: Array, length: float) -> Array | None:
    """[G·E⁻¹; ℓ⁻¹·Fᵀ·E]ᵀ as one kernel, hidden channels first; E⁻¹ is exactly ``1/scale``."""
    taps = tuple(max(a, b) for a, b in zip(first.shape[2:], outer.shape[2:], strict=True))
    shape = (-1, *[1] * (first.ndim - 1))
    back, there = (1.0 / scale).reshape(shape), (scale / length).reshape(shape)
    parts = (products(outer, np.broadcast_to(back, outer.shape)), products(first, np.broadcast_to(there, first.shape)))
    padded = [np.pad(p, [(0, 0), (0, 0), *((0, t - n) for t, n in zip(taps, p.shape[2:], strict=True))]) for p in parts]
    joint = np.concatenate(padded, axis=1)
    return joint if np.all(np.isfinite(joint)) else None


def _scales(first: Array, outer: Array, angles: Array) -> tuple[Array, float] | None:
    """(E, ℓ) as the kernels suggest them at a few frequencies; ``None`` where they do not look like a sandwich."""
    inner, back = ([_symbol(kernel, angle) for angle in angles] for kernel in (first, outer))
    below, above = (np.stack([m @ m.conj().T for m in maps]) for maps in (inner, back))
    with np.errstate(all="ignore"):
        quotients = -(above * below.conj()).real.sum(axis=0) / (np.abs(below) ** 2).sum(axis=0)
        off = ~np.eye(len(first), dtype=bool)
        usable = off & np.isfinite(quotients) & (quotients > 0.0)
        if np.count_nonzero(usable) < 0.9 * np.count_nonzero(off):
            return None
        middle = float(np.median(quotients[usable]))
        scale = np.sqrt(weights_of(np.where(off, np.log(np.where(usable, quotients, middle)), 0.0)))
        joint = above / np.multiply.outer(scale, scale) + below * np.multiply.outer(scale, scale)
        length = float(np.mean(np.einsum("kii->ki", joint).real)) / 2.0
        if not (np.all(np.isfinite(scale)) and np.all(scale > 0.0) and 0.0 < length < np.inf):
            return None
        largest = float(np.linalg.eigvalsh(joint)[:, -1].max())
        product = float(np.sqrt(np.linalg.eigvalsh(above)[:, -1].max() * np.linalg.eigvalsh(below)[:, -1].max()))
    if largest > 2.0 * length * ALIKE or product < WORTH * length:
        return None
    return scale * np.sqrt(length), length


def _symbol(kernel: Array, angle: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
    """Σ_t K_t·e^{i⟨angle, t⟩}, (hidden, others)."""
    for value in angle[::-1]:
        kernel = kernel @ np.exp(1j * value * np.arange(kernel.shape[-1]))
    return kernel.astype(np.complex128)


__all__ = ["sandwich_convolution"]
