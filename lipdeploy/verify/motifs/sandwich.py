"""Sandwich layers of Wang and Manchester 2023: two dense layers around an activation, 1-Lipschitz together.

√2·Aᵀ·Ψ·σ(√2·Ψ⁻¹·B·x + b) with A·Aᵀ + B·Bᵀ = I and Ψ a positive diagonal. The product of the two norms is far from 1.
"""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.chain import Chain, Slopes
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.lmi import certify
from lipdeploy.verify.motifs.layers import Layer, loose_up, read_layer
from lipdeploy.verify.motifs.matching import Found, Values, output_of
from lipdeploy.verify.motifs.residual import monotone_input
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import ProofFailed
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.step import Step

PROBE = 6  # neurons that are looked at before anything is computed for all
MOST_NEURONS = 2048


def sandwich(call: Call, values: Values) -> Found | None:
    """y = G·σ(F·x + b), slopes of σ in [0, 1], by one multiplier per neuron (Lemmas M1 to M4) of a closed form.

    For a sandwich −(GᵀG)_ij/(FFᵀ)_ij = p_i·p_j for i ≠ j, and the multipliers are proportional to p. They are only
    tried where the signs fit, and nothing depends on whether they are right.
    """
    output = output_of(call, values)
    if output is None or Norm.L2 not in call.norms:
        return None
    outer = read_layer(call, call.output_names[0], values)
    inner = None if outer is None else monotone_input(call, outer.source, values)
    first = None if inner is None else read_layer(call, inner, values)
    if outer is None or first is None or not _dense(outer, first):
        return None
    source, multipliers = values(first.source), _multipliers(first.kernel, outer.kernel)
    if multipliers is None or not isinstance(source, Flow):
        return None
    gain = _proven(first, outer, multipliers)
    if gain is None:
        return None
    return source, Step(output.shape, ({(Norm.L2, Norm.L2): gain},), "sandwich", rounding=None)


def _dense(outer: Layer, first: Layer) -> bool:
    plain = all(layer.geometry is None and not layer.adjoint for layer in (outer, first))
    return plain and 3 <= outer.kernel.shape[1] == len(first.kernel) <= MOST_NEURONS


def _proven(first: Layer, outer: Layer, multipliers: Array) -> Bound | None:
    size = len(first.kernel)
    weights = (np.ascontiguousarray(first.kernel), np.ascontiguousarray(outer.kernel))
    chain = Chain(weights, (Slopes(np.zeros(size), np.ones(size)),))
    proven = [certify(chain, (multipliers * factor,)) for factor in (1.0, 2.0, 4.0)]
    bounds = [one.bound for one in proven if one is not None]
    if not bounds:
        return None
    try:
        # Roundings of the factors: ‖G·D·F‖ moves by at most ‖ΔG‖·‖F‖ + ‖G‖·‖ΔF‖ for every D between 0 and 1.
        moved = loose_up(outer.kernel, outer.roundings) * first.norm_up()
        return min(bounds) + moved + loose_up(first.kernel, first.roundings) * outer.norm_up()
    except ProofFailed:
        return None


def _multipliers(inner: Array, outer: Array) -> Array | None:
    """τ per neuron (1/λ), from the off-diagonal entries of GᵀG and FFᵀ; ``None`` when they do not look right."""
    if _logarithms(inner[:PROBE], outer[:, :PROBE]) is None:
        return None
    logarithms = _logarithms(inner, outer)
    if logarithms is None:
        return None
    p = weights_of(logarithms)
    lengths, widths = np.square(inner).sum(axis=1), np.square(outer).sum(axis=0)
    with np.errstate(all="ignore"):
        # f·p/2 + g/(2p) = 1/κ for every neuron, and λ = p/κ.
        scale = float(np.median(lengths * p / 2.0 + widths / (2.0 * p)))
        multipliers = 1.0 / (p * scale)
    return multipliers if np.all(np.isfinite(multipliers)) and np.all(multipliers > 0.0) else None


def weights_of(logarithms: Array) -> Array:
    """p > 0 from log p_i·p_j off the diagonal (n, n), 0 on it; n ≥ 3."""
    size, rows = len(logarithms), logarithms.sum(axis=1)
    result: Array = np.exp((rows - rows.sum() / (2.0 * (size - 1))) / (size - 2))
    return result


def _logarithms(inner: Array, outer: Array) -> Array | None:
    """log(−(GᵀG)_ij/(FFᵀ)_ij) off the diagonal, 0 on it; ``None`` unless (nearly) all have the right sign."""
    size = len(inner)
    if size < 3:
        return None
    below, above = inner @ inner.T, outer.T @ outer
    with np.errstate(all="ignore"):
        quotients = -above / below
    off = ~np.eye(size, dtype=bool)
    usable = off & np.isfinite(quotients) & (quotients > 0.0)
    if np.count_nonzero(usable) < 0.9 * np.count_nonzero(off):
        return None
    middle = float(np.median(quotients[usable]))
    return np.where(off, np.log(np.where(usable, quotients, middle)), 0.0)
