"""Certified radii: the one place where a margin becomes a radius. Everything rounds towards a smaller radius.

With i the served class, e the program's error bound and L_ij the pair constants (design §5):

- ``network``:  r = min_j (y_i − y_j − 2e(x)) / L_ij: the real network keeps class i;
- ``deployed``: r = min_j (y_i − y_j − 2e(x) − 2c0 − 2c1·‖x‖) / (L_ij + 2c1): the program keeps class i at every
  representable point of the ball, where it errs too.

In adaptive mode float32 may answer at x while float64 answers nearby: e(x) is then the answering program's. At x' the
real margin exceeds 2·e64(x') ≥ 0, so the network and the float64 program say i there; if float32 answers x', its own
positive numerator says the network's class, which is i.

One step of ``nextafter`` after each operation is a proof (Lemma R1). The radius is stepped down once more, so that the
closed ball is covered, and is zero unless the numerator exceeds 2⁻¹⁰⁰⁰ (flush-to-zero cannot fake one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.norms import Norm, norm_pair
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, square_sums
from lipdeploy.verify.verdict import ErrorBound

GUARANTEES = ("deployed", "network")
LEAST_NUMERATOR = 2.0**-1000
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class CertifiedRows:
    """Per row: the class (int64), the margin over the runner-up and the certified radius (float64; 0: none)."""

    label: np.ndarray[Any, np.dtype[np.int64]]
    margin: Array
    radius: Array


def input_norm_up(x: np.ndarray[Any, Any], norm: str) -> Array:
    """Upper bounds of the input norm of every row of ``x`` (batch, ...), as float64."""
    rows = np.asarray(x, dtype=np.float64).reshape(len(x), math.prod(np.shape(x)[1:]))
    kind = norm_pair(norm)[0]
    if kind is Norm.LINF:
        return np.asarray(np.abs(rows).max(axis=1, initial=0.0))
    if kind is Norm.L1:
        return absolute_sums(rows, 1)
    return _up(np.sqrt(square_sums(rows, 1)))


def certified_rows(
    logits: np.ndarray[Any, Any],
    input_norms: np.ndarray[Any, Any],
    pairwise: np.ndarray[Any, Any],
    error: ErrorBound,
    guarantee: str,
    *,
    answering: ErrorBound | None = None,
) -> CertifiedRows:
    """Labels, margins and radii for ``logits`` (batch, classes), exact float64 copies of the program's output.

    ``pairwise`` is (classes, classes), or (1, 1) with the constant of y itself for a single logit, whose class is
    y > 0. ``input_norms`` bounds ‖x‖ per row. A row with a tie, a NaN or an infinity gets radius 0.
    ``answering`` is the error of the program that computed ``logits`` where that is another one than the program
    that ``error`` is about (adaptive mode).
    """
    if guarantee not in GUARANTEES:
        raise InputError(f"unknown guarantee '{guarantee}'", hint=f"one of {', '.join(GUARANTEES)}")
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise InputError(f"class scores must have shape (batch, classes), found {list(scores.shape)}")
    at_x, norms, pairs = answering or error, np.asarray(input_norms, np.float64), np.asarray(pairwise, np.float64)
    with np.errstate(all="ignore"):
        if scores.shape[1] == 1:
            return _one_logit(scores[:, 0], norms, float(pairs[0, 0]), _Errors(at_x, error, guarantee, 1))
        return _many_logits(scores, norms, pairs, _Errors(at_x, error, guarantee, 2))


@dataclass(frozen=True)
class _Errors:
    """``at_x`` of the program that answered, ``nearby`` of the programs that answer in the ball.

    ``scores`` of them meet in one gap: two classes, or one logit.
    """

    at_x: ErrorBound
    nearby: ErrorBound
    guarantee: str
    scores: int

    @property
    def slope(self) -> float:
        """What the error adds to the Lipschitz constant of a gap."""
        return self.scores * self.nearby.c1 if self.guarantee == "deployed" else 0.0

    def allowance(self, norms: Array) -> Array:
        """What the errors can take from a gap, without the part that grows with the radius; rounded up."""
        taken = _at(self.at_x, norms)
        if self.guarantee == "deployed":
            taken = 2.0 * taken if self.nearby is self.at_x else _up(taken + _at(self.nearby, norms))
        return self.scores * taken  # one or two: exact

    @property
    def limit(self) -> float:
        """The ‖x‖ up to which the error bounds hold."""
        return min(self.at_x.x_max, self.nearby.x_max)


def _at(error: ErrorBound, norms: Array) -> Array:
    return _up(error.c0 + _up(error.c1 * norms))


def _many_logits(scores: Array, norms: Array, pairs: Array, errors: _Errors) -> CertifiedRows:
    usable = np.all(np.isfinite(scores), axis=1)
    label = np.argmax(scores if usable.all() else np.where(np.isnan(scores), -np.inf, scores), axis=1)
    rows = np.arange(len(scores))
    gaps = _down(scores[rows, label][:, None] - scores)
    gaps[rows, label] = np.inf
    radii = _radii(gaps, norms, pairs[label], (rows, label), errors)
    margin = np.where(usable, np.maximum(gaps.min(axis=1), 0.0), 0.0)
    return CertifiedRows(label, margin, _capped(radii, norms, usable, errors))


def _one_logit(scores: Array, norms: Array, constant: float, errors: _Errors) -> CertifiedRows:
    usable = np.isfinite(scores)
    gaps = np.abs(scores)
    radii = _radii(gaps[:, None], norms, np.full((len(scores), 1), constant), None, errors)
    label, margin = (scores > 0.0).astype(np.int64), np.where(usable, gaps, 0.0)
    return CertifiedRows(label, margin, _capped(radii, norms, usable, errors))


def _radii(gaps: Array, norms: Array, pairs: Array, own: tuple[Any, Any] | None, errors: _Errors) -> Array:
    """Per row the least quotient: numerators down, denominators up, the quotient down and once more.

    Stepping down is monotone, so the least quotient is stepped down after it was chosen. ``own`` are the entries of
    each row's own class, which do not count. Never NaN.
    """
    numerator = _down(gaps - errors.allowance(norms)[:, None])
    denominator = _up(pairs + errors.slope) if errors.slope else pairs
    quotient = np.minimum(numerator / denominator, LARGEST)
    constant = denominator == 0.0  # a gap that never changes
    if constant.any():
        quotient = np.where(constant, np.inf, quotient)
    if own is not None:
        quotient[own] = np.inf
    least = quotient.min(axis=1)
    least = np.where(np.isinf(least), least, _down(_down(least)))
    return np.where(np.all(numerator > LEAST_NUMERATOR, axis=1) & (least > 0.0), least, 0.0)  # no NaN is > 0


def _capped(radii: Array, norms: Array, usable: Any, errors: _Errors) -> Array:
    """No radius beyond where the error bounds end; none for unusable rows."""
    limit = errors.limit
    room = np.maximum(_down(limit - norms), 0.0) if math.isfinite(limit) else np.inf
    return np.where(usable & (norms < limit), np.minimum(radii, room), 0.0)  # no NaN and no infinity is < limit


def float32_down(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 numbers, none above the float64 ``values``; +inf stays +inf."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float32)
    lower = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest.astype(np.float64) > exact, lower, nearest).astype(np.float32)


def _up(values: Any) -> Array:
    stepped: Array = np.nextafter(values, np.inf)
    return stepped


def _down(values: Any) -> Array:
    stepped: Array = np.nextafter(values, -np.inf)
    return stepped
