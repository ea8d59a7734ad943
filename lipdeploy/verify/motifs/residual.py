"""Residual layers that are 1-Lipschitz by design: SLL and CPL, x − 2·W·T⁻¹·σ(Wᵀx + b)."""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import ProofFailed, spectral_norm_up
from lipdeploy.verify.operator_norm.psd import residual_up
from lipdeploy.verify.operator_norm.sums import Array, frobenius, square_sum
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, add_up, gamma_up
from lipdeploy.verify.step import Step

#: Activations whose every slope lies in [0, 1]; only for them does Lemma E1 hold.
MONOTONE = frozenset({"Relu", "Clip", "Tanh", "Sigmoid", "Softplus"})
INFLATIONS = (1e-13, 1e-11, 1e-9, 1e-7, 1e-5)


def residual_layer(call: Call, values: Values) -> Found | None:
    """y = x + G·σ(F·x + b), slopes of σ in [0, 1]: 1 + ‖G + 2FᵀT⁻¹‖·‖F‖ for any diagonal T ⪰ F·Fᵀ (Lemma E1)."""
    if len(call.input_names) != 2 or Norm.L2 not in call.norms:
        return None
    for straight, branch in (call.input_names, call.input_names[::-1]):
        if call.op == "Sub" and branch != call.input_names[1]:
            continue
        source = values(straight)
        layers = _branch(call, branch, straight, values) if isinstance(source, Flow) else None
        if layers is None or not isinstance(source, Flow):
            continue
        inner, outer = layers
        gain = _gain(inner, -outer if call.op == "Sub" else outer)
        if gain is not None:
            step = Step(source.shape, ({(Norm.L2, Norm.L2): gain},), "1-Lipschitz residual", rounding=None)
            return source, step
    return None


def _branch(call: Call, branch: str, source: str, values: Values) -> tuple[Array, Array] | None:
    """(F, G) of Linear → σ → Linear from ``source`` to ``branch``; biases do not matter for F, and G has none here."""
    last = _linear(call, branch, values)
    if last is None:
        return None
    activation = call.producer(last[1])
    if activation is None or activation.domain or activation.op not in MONOTONE:
        return None
    if not isinstance(values(activation.output_names[0]), Flow):
        return None
    first = _linear(call, activation.input_names[0], values)
    return (first[0], last[0]) if first is not None and first[1] == source else None


def _linear(call: Call, name: str, values: Values) -> tuple[Array, str] | None:
    """(matrix, input) of the Gemm, or MatMul with an optional constant Add, that produces ``name``."""
    node = call.producer(name)
    if not isinstance(values(name), Flow):
        return None
    if node is not None and not node.domain and node.op == "Add":
        data = [n for n in node.input_names if isinstance(values(n), Flow)]
        shift = values(name)
        node = call.producer(data[0]) if len(data) == 1 and isinstance(shift, Flow) else None
        inner = values(data[0]) if data else None
        if node is None or not isinstance(inner, Flow) or not isinstance(shift, Flow) or inner.shape != shift.shape:
            return None
    for op in ("Gemm", "MatMul"):
        linear = judged_inputs(node, op, values)
        if linear is None or not isinstance(linear.inputs[0], Flow) or not isinstance(linear.inputs[1], Constant):
            continue
        weight = linear.required_constant(1).float64()
        if len(linear.flow(0).shape) != 1 or weight.ndim != 2 or linear.real("alpha", 1.0) != 1.0:
            return None
        transposed = op == "Gemm" and linear.integer("transB", 0) == 1
        return (weight if transposed else weight.T), linear.input_names[0]
    return None


def _gain(inner: Array, outer: Array) -> Bound | None:
    """The least bound over some T near the one that G was made with; ``None`` when none fits."""
    if inner.shape != outer.T.shape:
        return None
    projections = np.einsum("ij,ji->i", inner, outer)
    squares = np.square(inner).sum(axis=1)
    with np.errstate(all="ignore"):
        guess = -2.0 * squares / projections
    dead = ~np.any(outer, axis=0)
    guess = np.where(dead, 1e9 * np.maximum(np.abs(inner @ inner.T).sum(axis=1), 1.0), guess)
    if not np.all(np.isfinite(guess)) or np.any(guess <= 0.0):
        return None
    candidates = [_gain_for(inner, outer, guess * (1.0 + inflation)) for inflation in INFLATIONS]
    return min((gain for gain in candidates if gain is not None), default=None)


def _gain_for(inner: Array, outer: Array, diagonal: Array) -> Bound | None:
    shift = _deficiency(inner, diagonal)
    if shift is None:
        return None
    dominating = np.nextafter(diagonal + shift, np.inf)
    mismatch = outer + 2.0 * inner.T / dominating
    # Each entry carries two roundings of the quotient and one of the sum.
    slack = Bound(3 * UNIT_ROUNDOFF * 1.01) * (frobenius(outer) + frobenius(2.0 * inner.T / dominating))
    try:
        return ONE + (spectral_norm_up(mismatch) + slack) * spectral_norm_up(inner)
    except ProofFailed:
        return None


def _deficiency(inner: Array, diagonal: Array) -> float | None:
    """A number s ≥ 0 with diag + s·I ⪰ F·Fᵀ, from an untrusted factor (Lemma C1)."""
    gram = inner @ inner.T
    gram = np.tril(gram) + np.tril(gram, -1).T
    difference = np.diag(diagonal) - gram
    try:
        factor = np.linalg.cholesky(difference)
    except np.linalg.LinAlgError:
        return None
    gram_error = gamma_up(inner.shape[1] + 1) * square_sum(inner) * 1.01
    rounding = 2 * UNIT_ROUNDOFF * float(np.abs(np.diag(difference)).max())
    shift = add_up(float(residual_up(difference, None, factor)), gram_error, rounding)
    return shift if np.isfinite(shift) else None
