"""The norms of a statement ‖f(x) − f(y)‖_q ≤ L·‖x − y‖_p, and bounds indexed by norms."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from lipdeploy.errors import InputError
from lipdeploy.verify.bound import Bound, euclidean, total
from lipdeploy.verify.rounding import sqrt_up


class Norm(enum.Enum):
    """ℓ1, ℓ2 or ℓ∞ of one sample, flattened."""

    L1 = "l1"
    L2 = "l2"
    LINF = "linf"


#: Norm names of the contract: (norm of the input, norm of the output).
PAIRS: Mapping[str, tuple[Norm, Norm]] = {
    "l2": (Norm.L2, Norm.L2),
    "linf": (Norm.LINF, Norm.LINF),
    "l1": (Norm.L1, Norm.L1),
    "l2-linf": (Norm.L2, Norm.LINF),
    "l1-linf": (Norm.L1, Norm.LINF),
}

PerNorm = Mapping[Norm, Bound]
#: Operator gains: (norm in, norm out) → bound. A missing pair means that nothing was proven for it.
Gains = Mapping[tuple[Norm, Norm], Bound]


def norm_pair(name: str) -> tuple[Norm, Norm]:
    """The pair behind a norm's name; ``InputError`` lists the names otherwise."""
    if name not in PAIRS:
        raise InputError(f"unknown norm '{name}'", hint=f"one of {', '.join(PAIRS)}")
    return PAIRS[name]


def carried_norms(name: str) -> tuple[Norm, ...]:
    """The norms in which a proof for ``name`` carries bounds from node to node.

    ℓ∞ always travels along: it is implied by the others, costs little, and bounds each logit by itself.
    """
    return tuple(dict.fromkeys((*norm_pair(name), Norm.LINF)))


def diagonal(bound: Bound) -> Gains:
    """Gains of an operator that multiplies distances by at most ``bound`` in every norm."""
    return {(norm, norm): bound for norm in Norm}


def per_norm(l1: Bound, l2: Bound, linf: Bound) -> Gains:
    """Gains norm by norm, from the same norm to the same norm."""
    return {(Norm.L1, Norm.L1): l1, (Norm.L2, Norm.L2): l2, (Norm.LINF, Norm.LINF): linf}


def replication(count: int) -> Gains:
    """Every entry occurs at most ``count`` times in the output: √count in ℓ2, 1 in ℓ∞, count in ℓ1."""
    return per_norm(Bound(float(count)), Bound(sqrt_up(float(count))), Bound(1.0))


def apply(gains: Gains, bounds: PerNorm, norms: Iterable[Norm]) -> dict[Norm, Bound]:
    """Best composition: for each output norm the least of gain × bound over the input norms; ‖·‖∞ ≤ ‖·‖2 ≤ ‖·‖1."""
    composed: dict[Norm, Bound] = {}
    for out in norms:
        options = [gain * bounds[q] for (q, target), gain in gains.items() if target is out and q in bounds]
        if options:
            composed[out] = min(options)
    return relax(composed)


def relax(bounds: dict[Norm, Bound]) -> dict[Norm, Bound]:
    """Use ‖·‖∞ ≤ ‖·‖2 ≤ ‖·‖1 to tighten or fill in the weaker norms that a stronger one implies."""
    strongest: Bound | None = None
    for norm in (Norm.L1, Norm.L2, Norm.LINF):
        if norm in bounds:
            strongest = bounds[norm] if strongest is None else min(strongest, bounds[norm])
            bounds[norm] = strongest
    return bounds


def stack(norm: Norm, bounds: Iterable[Bound]) -> Bound:
    """Norm of several pieces laid side by side: Σ in ℓ1, √Σ² in ℓ2, max in ℓ∞."""
    if norm is Norm.L1:
        return total(bounds)
    return euclidean(bounds) if norm is Norm.L2 else max(bounds, default=Bound(0.0))


def constant_norm(norm: Norm, largest: Bound, count: int) -> Bound:
    """Norm of a vector of ``count`` entries, none above ``largest`` in absolute value."""
    factor = {Norm.L1: float(count), Norm.L2: sqrt_up(float(count)), Norm.LINF: 1.0}[norm]
    return Bound(factor) * largest if count else Bound(0.0)
