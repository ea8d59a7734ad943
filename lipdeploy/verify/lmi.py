"""Lipschitz certificates by diagonal multipliers, tighter than the product of norms.

An ellipsoid travels along the chain: Δv Δvᵀ ⪯ ‖Δx‖²·Y for the pre-activations v of each layer (lemmas M1 to M4 in
docs/mathematics.md). A step from one layer to the next costs one Cholesky factorisation that nobody has to trust. The
multipliers, one number τ ≥ 0 per neuron or sorted group (the reciprocal of LipSDP's λ), are claims of unknown origin:
any τ ≥ 0 is sound, better ones give smaller bounds. There is no place for coupled multipliers, which are unsound, and
what an activation is comes from the graph alone. Checked on the CPU in binary64 (assumptions A1, A2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting, parts_of
from lipdeploy.verify.operator_norm.psd import BLOCK, ProofFailed, largest_eigenvalue_up, mirror_lower, residual_up
from lipdeploy.verify.operator_norm.sums import Array, square_sum
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, add_up, gamma_up, mul_up, sqrt_up

ATTEMPTS = 8
EXPONENT = 200  # scales, multipliers, slopes and weights are 0 or within 2^±200: what underflows then is below TINY
TINY = 2.0**-400


@dataclass(frozen=True)
class Certified:
    """‖f(x) − f(y)‖₂ ≤ bound·‖x − y‖₂, and upper bounds of Lip(y_i − y_j), (n, n) with a zero diagonal."""

    bound: Bound
    pairwise: np.ndarray[Any, np.dtype[np.float64]]


def multiplier_count(activation: Activation) -> int:
    """How many multipliers an activation takes: one per neuron that bends, one per sorted group."""
    return sum(_bends_of(part)[0] for part, _ in parts_of(activation))


def entry_multipliers(activation: Activation, tau: Array) -> Array:
    """The multiplier of every entry of e: neurons and sorted pairs have one entry each, a group of s > 2 has s."""
    counts = [_bends_of(part) for part, _ in parts_of(activation)]
    pieces = np.split(tau, np.cumsum([count for count, _ in counts])[:-1])
    return np.concatenate([np.repeat(piece, repeat) for piece, (_, repeat) in zip(pieces, counts, strict=True)])


def _bends_of(part: Slopes | Sorting) -> tuple[int, int]:
    """(multipliers, entries of e for each)."""
    if isinstance(part, Slopes):
        return int(np.count_nonzero(_halves(part)[1])), 1
    size = part.groups.shape[1]
    return len(part.groups), size if size > 2 else 1


def certify(chain: Chain, multipliers: Sequence[Array], rho: float | None = None) -> Certified | None:
    """Prove an ℓ2 → ℓ2 bound from ``multipliers``, one float64 vector τ ≥ 0 per activation of the chain.

    ``None`` when they prove nothing: wrong shapes, negative or non-finite numbers, no factorisation, or more than the
    claimed ``rho`` (a squared constant). Whatever the multipliers are, what is returned is proven.
    """
    if not _acceptable(chain, multipliers):
        return None
    try:
        with np.errstate(all="ignore"):
            state: _State | None = _start(chain)
            for layer, tau in enumerate(multipliers):
                state = None if state is None else _advance(state, chain, layer, tau)
            return None if state is None else _conclusion(state, rho, chain.front)
    except (ProofFailed, np.linalg.LinAlgError):
        return None


def _acceptable(chain: Chain, multipliers: Sequence[Array]) -> bool:
    if len(multipliers) != len(chain.activations):
        return False
    for activation, tau in zip(chain.activations, multipliers, strict=True):
        if not isinstance(tau, np.ndarray) or tau.dtype != np.float64 or tau.shape != (multiplier_count(activation),):
            return False
        if not _in_range(tau):
            return False
    parts = [part for activation in chain.activations for part, _ in parts_of(activation)]
    slopes = [half for part in parts if isinstance(part, Slopes) for half in _halves(part)]
    return all(_in_range(np.abs(matrix)) for matrix in (*chain.weights, *slopes))


def _in_range(values: Array) -> bool:
    return bool(np.all((values == 0.0) | ((values >= 2.0**-EXPONENT) & (values <= 2.0**EXPONENT))))


@dataclass(frozen=True)
class _State:
    """Δv̂ Δv̂ᵀ ⪯ ‖Δx‖²·reach for v̂ = scale ∘ v; ``scale`` holds powers of two."""

    reach: Array
    scale: Array


def _start(chain: Chain) -> _State:
    """Y₁ = W₁W₁ᵀ, computed, plus the largest error of its computation."""
    weight = chain.weights[0]
    scale = _scale(weight, uniform=len(chain.weights) == 1)
    rows = weight * scale[:, None]
    error = add_up(mul_up(2.0, _product_gamma(rows.shape[1]), square_sum(rows)), TINY)
    return _State(_lifted(mirror_lower(_product(rows, rows.T)), error), scale)


def _advance(state: _State, chain: Chain, layer: int, tau: Array) -> _State | None:
    """One step of lemma M2: from Y to the Y' of the next layer's pre-activations."""
    activation, weight = chain.activations[layer], chain.weights[layer + 1]
    tau = entry_multipliers(activation, tau)
    inner = _powers_of_two(np.where(tau > 0.0, 1.0 / np.sqrt(np.where(tau > 0.0, tau, 1.0)), 1.0))
    through, through_error, bend, bend_error = _split(activation, weight)
    through, through_error = through / state.scale, through_error / state.scale
    bend, bend_error = bend / inner, bend_error / inner
    scale = _scale(np.concatenate([through, bend], axis=1), uniform=layer + 2 == len(chain.weights))
    through, through_error, bend, bend_error = (
        matrix * scale[:, None] for matrix in (through, through_error, bend, bend_error)
    )
    system = _assemble(state, activation, through, bend, (inner, tau * inner * inner))
    error = add_up(system.error, _split_error(system, through_error, bend, bend_error))
    reach = _eliminate(system, error)
    return None if reach is None else _State(reach, scale)


@dataclass(frozen=True)
class _System:
    """The matrix [[K, Mᵀ], [M, Y' − N]] of lemma M2 without Y', and how far its parts may be from the exact ones."""

    corner: Array  # K = T − QYQᵀ
    side: Array  # M = LYQᵀ
    known: Array  # N = LYLᵀ + FTFᵀ
    error: float
    reach_norm: float  # ‖Y‖_F
    image_norm: float  # at least ‖LY‖_F for the computed L
    drive_norm: float  # at least ‖QY‖_F
    largest: float  # max T


def _assemble(
    state: _State, activation: Activation, through: Array, bend: Array, inner: tuple[Array, Array]
) -> _System:
    """The system from the computed L and F (what their own rounding adds: ``_split_error``)."""
    scale, weights = inner
    reach, largest = state.reach, float(weights.max(initial=0.0))
    sums = _product_gamma(len(reach))
    driven, driven_error = _drive(activation, reach, np.zeros_like(reach), state.scale, scale)
    square, square_error = _drive(activation, driven.T, driven_error.T, state.scale, scale)
    corner = mirror_lower(np.diag(weights) - square)
    image = _product(through, reach)
    weighted = bend * weights
    known = mirror_lower(_product(image, through.T) + _product(weighted, bend.T))
    side = _product(through, driven.T)
    norm = {name: _norm(m) for name, m in (("L", through), ("Y", reach), ("LY", image), ("QY", driven))}
    bends = _product_gamma(bend.shape[1] + 2)
    error = add_up(
        _norm(square_error),
        mul_up(_norm(driven_error), norm["L"]),
        mul_up(sums, norm["L"], add_up(norm["QY"], mul_up(norm["L"], norm["Y"]), norm["LY"])),
        mul_up(bends, _norm(weighted), _norm(bend)),
        mul_up(4 * UNIT_ROUNDOFF, add_up(_norm(corner), _norm(known))),
    )
    image_norm = add_up(norm["LY"], mul_up(sums, norm["L"], norm["Y"]))
    drive_norm = add_up(norm["QY"], _norm(driven_error))
    return _System(corner, side, known, mul_up(2.0, error), norm["Y"], image_norm, drive_norm, largest)


def _split_error(system: _System, through_error: Array, bend: Array, bend_error: Array) -> float:
    """How much the rounding of L and F moves M and N: |Δ(LYLᵀ)| ≤ 2‖ΔL‖‖LY‖ + ‖ΔL‖²‖Y‖, and so on."""
    moved, bent = _norm(through_error), _norm(bend_error)
    return add_up(
        mul_up(moved, add_up(mul_up(2.0, system.image_norm), mul_up(moved, system.reach_norm), system.drive_norm)),
        mul_up(bent, system.largest, add_up(mul_up(2.0, _norm(bend)), bent)),
        TINY,
    )


def _eliminate(system: _System, error: float) -> Array | None:
    """A Y' that makes the system positive semidefinite, proven by the residual of a factor (lemma C1)."""
    corner, side, known = system.corner, system.side, system.known
    size, bends = len(known), len(corner)
    if bends == 0:
        return _finite(_lifted(known, error))
    shift = mul_up(2.0, error)
    for _ in range(ATTEMPTS):
        shifted = corner - shift * np.eye(bends)
        factor = np.linalg.cholesky(shifted)
        lower = np.linalg.solve(factor, side.T).T
        schur = mirror_lower(_product(lower, lower.T))
        whole = np.block([[shifted, side.T], [side, schur]])
        padded = np.block([[factor, np.zeros((bends, size))], [lower, np.zeros((size, size))]])
        rounding = mul_up(4 * UNIT_ROUNDOFF, add_up(_norm(known), _norm(whole), shift * size))
        needed = add_up(float(residual_up(whole, np.tril(padded))), error, rounding)
        if needed <= shift:
            return _finite(_lifted(known + schur, shift))
        if not math.isfinite(needed):
            return None
        shift = 1.5 * needed
    return None


def _conclusion(state: _State, rho: float | None, front: Bound) -> Certified | None:
    """ρ = λ_max(Y_L); for a pair, (e_i − e_j)ᵀY_L(e_i − e_j); both for the chain alone, then times ``front``."""
    top = _largest_eigenvalue(state.reach)
    if top is None:
        return None
    inverse = 1.0 / float(state.scale[0])  # one power of two for all outputs
    if rho is not None and not mul_up(top, inverse, inverse) <= rho:
        return None
    diagonal = np.diag(state.reach)
    sums = diagonal[:, None] + diagonal[None, :]
    squares = sums - 2.0 * state.reach + 4 * UNIT_ROUNDOFF * (np.abs(sums) + 2.0 * np.abs(state.reach)) + TINY
    pairwise = np.nextafter(np.sqrt(np.maximum(squares * (1.0 + 4 * UNIT_ROUNDOFF), 0.0)), math.inf) * inverse
    if front.value != 1.0:
        pairwise = np.nextafter(pairwise * front.value, math.inf)
    np.fill_diagonal(pairwise, 0.0)
    return Certified(Bound(mul_up(sqrt_up(top), inverse)) * front, pairwise)


def _largest_eigenvalue(matrix: Array) -> float | None:
    guess, margin = float(np.linalg.eigvalsh(matrix)[-1]), 1e-13 * len(matrix)
    for _ in range(ATTEMPTS):
        upper = largest_eigenvalue_up(max(guess, 0.0) * (1.0 + margin) + TINY, matrix, np.zeros(()))
        if upper is not None:
            return float(upper)
        margin *= 8.0
    return None


def _halves(activation: Slopes) -> tuple[Array, Array]:
    """(m, r) with [low, high] ⊆ [m − r, m + r]; r = 0 only where the activation is linear."""
    middle = (activation.low + activation.high) / 2.0
    radius = np.nextafter(np.maximum(activation.high - middle, middle - activation.low), math.inf)
    return middle, np.where(activation.low == activation.high, 0.0, radius)


def _split(activation: Activation, weight: Array) -> tuple[Array, Array, Array, Array]:
    """W'σ(v) = Lv + Fe with |e_k| ≤ |(Qv)_k| (in groups: ‖e_g‖ ≤ ‖(Qv)_g‖), lemma M3: L, error, F, error."""
    pieces = [_split_part(part, weight[:, entries]) for part, entries in parts_of(activation)]
    through, through_error, bend, bend_error = (np.concatenate(p, axis=1) for p in zip(*pieces, strict=True))
    return through, through_error, bend, bend_error


def _split_part(activation: Slopes | Sorting, weight: Array) -> tuple[Array, Array, Array, Array]:
    if isinstance(activation, Slopes):
        middle, radius = _halves(activation)
        bends = radius > 0.0
        through, bend = weight * middle, weight[:, bends] * radius[bends]
        return through, 2.0 * UNIT_ROUNDOFF * np.abs(through), bend, 2.0 * UNIT_ROUNDOFF * np.abs(bend)
    groups, size = activation.groups, activation.groups.shape[1]
    columns = weight[:, groups]
    means = columns.sum(axis=2, keepdims=True) / size
    rounding = 2.0 * gamma_up(size + 2) * (np.abs(columns).sum(axis=2, keepdims=True) / size)
    through, through_error = np.empty_like(weight), np.empty_like(weight)
    through[:, groups], through_error[:, groups] = means, rounding
    if size == 2:
        bend = (columns[:, :, 1] - columns[:, :, 0]) / 2.0
        return through, through_error, bend, 2.0 * UNIT_ROUNDOFF * np.abs(bend)
    bend = ((columns - means) / size).reshape(len(weight), -1)
    bend_error = ((np.abs(columns - means) * (4.0 * UNIT_ROUNDOFF) + 2.0 * rounding) / size).reshape(bend.shape)
    return through, through_error, bend, bend_error


def _drive(activation: Activation, rows: Array, error: Array, outer: Array, inner: Array) -> tuple[Array, Array]:
    """Q·rows in scaled coordinates, and a bound of the entries' errors when ``rows`` errs by ``error``.

    (Qv)_k = v_k for slopes, v_p − v_q for a sorted pair, s·v_i − Σv for the entries of a larger group.
    """
    rows, error = rows / outer[:, None], error / outer[:, None]
    pieces = [_drive_part(part, rows[entries], error[entries]) for part, entries in parts_of(activation)]
    driven, spread = (np.concatenate(p) for p in zip(*pieces, strict=True))
    return driven * inner[:, None], spread * inner[:, None]


def _drive_part(activation: Slopes | Sorting, rows: Array, error: Array) -> tuple[Array, Array]:
    if isinstance(activation, Slopes):
        bends = _halves(activation)[1] > 0.0
        return rows[bends], error[bends]
    groups, size = activation.groups, activation.groups.shape[1]
    values, errors = rows[groups], error[groups] + gamma_up(2 * size + 2) * np.abs(rows[groups])
    if size == 2:
        driven, spread = values[:, 0] - values[:, 1], errors.sum(axis=1)
    else:
        driven = (size * values - values.sum(axis=1, keepdims=True)).reshape(-1, rows.shape[1])
        spread = (size * errors + errors.sum(axis=1, keepdims=True)).reshape(-1, rows.shape[1])
    return driven, spread * (1.0 + gamma_up(4 * size + 8))


def _product(left: Array, right: Array) -> Array:
    """left·right, summed in blocks, so that rounding grows with the block length and not with the dimension."""
    total = left[:, :BLOCK] @ right[:BLOCK]
    for start in range(BLOCK, left.shape[1], BLOCK):
        total += left[:, start : start + BLOCK] @ right[start : start + BLOCK]
    return total


def _product_gamma(inner: int) -> float:
    """|fl(AB) − AB| ≤ γ·|A||B| for ``_product``, with two roundings to spare."""
    return gamma_up(min(inner, BLOCK) + -(-inner // BLOCK) + 2)


def _powers_of_two(values: Array) -> Array:
    exponents = np.clip(np.frexp(values)[1], -EXPONENT, EXPONENT)
    return np.asarray(np.ldexp(1.0, exponents.astype(np.int32)))


def _scale(matrix: Array, *, uniform: bool) -> Array:
    """Powers of two that bring the rows to a length near 1 (``uniform``: one for all)."""
    lengths = np.sqrt(np.square(matrix).sum(axis=1))
    lengths = np.full_like(lengths, lengths.max(initial=0.0)) if uniform else lengths
    usable = (lengths > 0.0) & np.isfinite(lengths)
    return _powers_of_two(np.where(usable, 0.5 / np.where(usable, lengths, 1.0), 0.5))


def _lifted(matrix: Array, shift: float) -> Array:
    """matrix + shift·I, never below it on the diagonal."""
    result = matrix.copy()
    index = np.arange(len(matrix))
    result[index, index] = np.nextafter(result[index, index] + shift, math.inf)
    return result


def _norm(matrix: Array) -> float:
    """Upper bound of the Frobenius norm."""
    return sqrt_up(square_sum(matrix))


def _finite(matrix: Array) -> Array | None:
    return matrix if np.all(np.isfinite(matrix)) else None
