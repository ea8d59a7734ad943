"""Residual layers that are 1-Lipschitz by design: SLL and CPL, x − 2·W·T⁻¹·σ(Wᵀx + b), dense and convolutional."""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.layers import Layer, as_adjoint, loose_up, operator_norm_up, read_layer, rough_norm_up
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import ProofFailed
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.step import Step

#: Activations whose every slope lies in [0, 1]; only for them does Lemma E1 hold.
MONOTONE = frozenset({"Relu", "Clip", "Tanh", "Sigmoid", "Softplus"})


def residual_layer(call: Call, values: Values) -> Found | None:
    """y = x + G·σ(F·x + b), slopes of σ in [0, 1]: 1 + ‖G + 2FᵀT⁻¹‖·‖F‖ for any diagonal T ⪰ F·Fᵀ (Lemma E1).

    T is read off the stored G and F, one number per inner channel, and raised until ‖T^(−½)·F‖ ≤ 1 is proven. F and G
    may be matrices, or a convolution and a transposed one over the same windows, with shifts and channel factors.
    """
    output = output_of(call, values)
    if len(call.input_names) != 2 or Norm.L2 not in call.norms or output is None:
        return None
    for straight, branch in (call.input_names, call.input_names[::-1]):
        if call.op == "Sub" and branch != call.input_names[1]:
            continue
        source = values(straight)
        layers = _branch(call, branch, straight, values) if isinstance(source, Flow) else None
        if layers is None or not isinstance(source, Flow) or source.shape != output.shape:
            continue
        inner, outer = layers
        gain = _gain(inner, outer, -1.0 if call.op == "Sub" else 1.0)
        if gain is not None:
            step = Step(source.shape, ({(Norm.L2, Norm.L2): gain},), "1-Lipschitz residual", rounding=None)
            return source, step
    return None


def _branch(call: Call, branch: str, source: str, values: Values) -> tuple[Layer, Layer] | None:
    """(F, G) of Linear → σ → Linear from ``source`` to ``branch``, G as an adjoint over F's windows."""
    last = read_layer(call, branch, values)
    inner = monotone_input(call, last.source, values) if last is not None else None
    first = read_layer(call, inner, values, stop=source) if inner is not None else None
    if last is None or first is None or first.source != source or first.adjoint:
        return None
    outer = as_adjoint(last)
    fits = outer.adjoint and outer.kernel.shape == first.kernel.shape and outer.geometry == first.geometry
    return (first, outer) if fits else None


def monotone_input(call: Call, name: str, values: Values) -> str | None:
    """What an activation with slopes in [0, 1] is applied to."""
    node = call.producer(name)
    if node is None or not isinstance(values(name), Flow):
        return None
    bound = judged_inputs(node, node.op, values)
    if bound is None or bound.op not in MONOTONE | {"Max", "LeakyRelu"} or len(bound.flows()) != 1:
        return None
    if bound.op == "LeakyRelu" and not 0.0 <= bound.real("alpha", 0.009999999776482582) <= 1.0:
        return None
    (source,), result = bound.flows(), values(name)
    return source.name if isinstance(result, Flow) and source.shape == result.shape else None


def _gain(first: Layer, outer: Layer, sign: float) -> Bound | None:
    inner, back = (layer.kernel.reshape(len(layer.kernel), -1) for layer in (first, outer))
    roots = _inverse_roots(inner, sign * back)
    if roots is None:
        return None
    shape = (-1, *[1] * (first.kernel.ndim - 1))
    try:
        shrunk = first.kernel * roots.reshape(shape)
        reach = max(operator_norm_up(shrunk, first.geometry) + loose_up(shrunk, first.roundings + 1), ONE)
        # T⁻¹ = roots²/reach² makes T ⪰ F·Fᵀ. Squares, quotients, products and the sum below round ten times at most.
        pull = 2.0 * (roots / float(reach)) ** 2
        wanted = first.kernel * pull.reshape(shape)
        mismatch = sign * outer.kernel + wanted
        roundings = 10 + first.roundings + outer.roundings
        loose = loose_up(outer.kernel, roundings) + loose_up(wanted, roundings)
        return ONE + (rough_norm_up(mismatch) + loose) * first.norm_up()
    except ProofFailed:
        return None


def _inverse_roots(inner: Array, outer: Array) -> Array | None:
    """T^(−½) per inner channel, from G = −2FᵀT⁻¹ as far as the stored numbers say so; 0 where G is zero."""
    projections, squares = (np.einsum("ij,ij->i", inner, part) for part in (outer, inner))
    alive = np.any(outer != 0.0, axis=1) & (squares > 0.0)
    with np.errstate(all="ignore"):
        inverse = np.where(alive, -projections / (2.0 * squares), 0.0)
    if not np.all(np.isfinite(inverse)) or np.any(inverse < 0.0):
        return None
    return np.sqrt(inverse)
