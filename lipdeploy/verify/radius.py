"""Certified radii: the one place where a margin becomes a radius. Everything rounds towards a smaller radius.

With i the served class, e the program's error bound and L_ij the pair constants (design §5):

- ``network``:  r = min_j (y_i − y_j − 2e(x)) / L_ij: the real network keeps class i;
- ``deployed``: r = min_j (y_i − y_j − 2e(x) − 2c0 − 2c1·‖x‖) / (L_ij + 2c1): the program keeps class i at every
  representable point of the ball, where it errs too.

In adaptive mode float32 may answer at x while float64 answers nearby: e(x) is then the answering program's. At x' the
real margin exceeds 2·e64(x') ≥ 0, so the network and the float64 program say i there; if float32 answers x', its own
positive numerator says the network's class, which is i.

What does not change from call to call (denominators, error constants) is rounded once, into a ``RadiusRule``. The few
operations per call err by less than the head-room that the rule holds (Lemma R3 in docs/mathematics.md), a radius is
always below the exact quotient, so that the closed ball is covered, and 2⁻¹⁰⁰⁰ is taken off at the end, so that it is
zero where the quotient is that small (flush-to-zero cannot fake one).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.norms import Norm, norm_pair
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, square_sums
from lipdeploy.verify.rounding import add_up, div_up, down, gamma_up, mul_up, sqrt_up
from lipdeploy.verify.verdict import ErrorBound

GUARANTEES = ("deployed", "network")
LEAST = 2.0**-1000
HEAD_ROOM = 2.0**-51  # four unit roundoffs; no chain of operations below has more than three
SHRINK = 1.0 - HEAD_ROOM
LARGEST = float(np.finfo(np.float64).max) * SHRINK


@dataclass(frozen=True)
class CertifiedRows:
    """Per row: the class (int64), the margin over the runner-up and the certified radius (float64; 0: none)."""

    label: np.ndarray[Any, np.dtype[np.int64]]
    margin: Array
    radius: Array


def input_norm_up(x: np.ndarray[Any, Any], norm: str, *, single: bool = False) -> Array:
    """Upper bounds of the input norm of every row of ``x`` (batch, ...), as float64; NaN or infinite for such rows.

    ``single`` says that every value is a float32 number: then no square underflows or overflows in float64.
    """
    rows = np.asarray(x, dtype=np.float64).reshape(len(x), math.prod(np.shape(x)[1:]))
    kind = norm_pair(norm)[0]
    if kind is Norm.LINF:
        return np.asarray(np.abs(rows).max(axis=1, initial=0.0))
    if kind is Norm.L1:
        return absolute_sums(rows, 1)
    if single:
        lengths: Array = np.sqrt(_squares(rows))
        lengths *= length_factor(rows.shape[1])
        return lengths
    return _up(np.sqrt(square_sums(rows, 1)))


def _squares(rows: Array) -> Array:
    sums: Array = np.vecdot(rows, rows) if hasattr(np, "vecdot") else np.einsum("ij,ij->i", rows, rows)
    return sums


@functools.lru_cache(maxsize=256)
def length_factor(terms: int) -> float:
    """What a computed length of ``terms`` numbers can fall short by: √(1/(1 − γ)), and the roundings of √ and ×."""
    return mul_up(sqrt_up(div_up(1.0, down(1.0 - gamma_up(terms + 1)))), 1.0 + HEAD_ROOM)


def certified_rows(
    logits: np.ndarray[Any, Any],
    input_norms: np.ndarray[Any, Any],
    pairwise: np.ndarray[Any, Any],
    error: ErrorBound,
    guarantee: str,
    *,
    answering: ErrorBound | None = None,
) -> CertifiedRows:
    """``RadiusRule(pairwise, error, guarantee, answering).rows(logits, input_norms)``, for a single use."""
    return radius_rule(pairwise, error, guarantee, answering=answering).rows(logits, input_norms)


@dataclass(frozen=True)
class RadiusRule:
    """Everything about a radius that does not depend on the input, rounded towards a smaller radius.

    ``denominators`` (classes, classes) are above L_ij + 2c1, 1 on the diagonal, and zero only for a gap that never
    changes; (1, 1) for a single logit. ``own`` is zero with +inf on the diagonal: a class does not compete with itself.
    ``offset`` + ``slope``·‖x‖ is above what the errors take from a gap, with head-room for its two roundings.
    ``ceiling`` is below the ‖x‖ up to which the error bounds hold.
    """

    denominators: Array
    own: Array
    offset: float
    slope: float
    ceiling: float
    can_be_constant: bool

    def rows(self, logits: np.ndarray[Any, Any], input_norms: np.ndarray[Any, Any]) -> CertifiedRows:
        """Labels, margins and radii for ``logits`` (batch, classes), exact float64 copies of the program's output.

        One column is a single logit, whose class is y > 0. ``input_norms`` bounds ‖x‖ per row. A row with a tie, a
        NaN or an infinity gets radius 0.
        """
        scores, norms = np.asarray(logits, dtype=np.float64), np.asarray(input_norms, np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(self.denominators):
            raise InputError(f"class scores must have shape (batch, classes), found {list(scores.shape)}")
        with np.errstate(all="ignore"):
            if math.isfinite(np.add.reduce(scores, axis=None)):
                return self._finite(scores, norms)
            usable = np.isfinite(scores).all(axis=1)  # a sum may overflow without any infinity
            rows = self._finite(np.where(np.isnan(scores), -np.inf, scores), norms)
            kept = np.where(usable, rows.margin, 0.0), np.where(usable, rows.radius, 0.0)
            return CertifiedRows(rows.label, *kept)

    def _finite(self, scores: Array, norms: Array) -> CertifiedRows:
        if scores.shape[1] == 1:
            gaps = np.abs(scores)
            label = (scores[:, 0] > 0.0).astype(np.int64)
            radii = self._radii(gaps, self.denominators[0], norms)
            return CertifiedRows(label, gaps[:, 0], radii)
        label = scores.argmax(axis=1)
        gaps = _down(np.maximum.reduce(scores, axis=1, keepdims=True) - scores)
        gaps += self.own.take(label, axis=0)
        margin = np.maximum(np.minimum.reduce(gaps, axis=1), 0.0)
        return CertifiedRows(label, margin, self._radii(gaps, self.denominators.take(label, axis=0), norms))

    def _radii(self, gaps: Array, denominators: Array, norms: Array) -> Array:
        """Per row the least quotient, below the exact one and within the ceiling; never NaN."""
        taken = norms * self.slope
        taken += self.offset
        numerators = gaps - taken[:, None]
        quotients = numerators / denominators
        if self.can_be_constant:
            quotients = np.where((denominators == 0.0) | (gaps == np.inf), quotients, np.minimum(quotients, LARGEST))
        radii = np.minimum.reduce(quotients, axis=1) * SHRINK
        radii = np.minimum(radii, self.ceiling - norms) - LEAST
        positive: Array = np.fmax(radii, 0.0)  # which drops a NaN
        return positive


def radius_rule(
    pairwise: np.ndarray[Any, Any], error: ErrorBound, guarantee: str, *, answering: ErrorBound | None = None
) -> RadiusRule:
    """The rule for a network's class differences.

    ``pairwise`` is (classes, classes), or (1, 1) with the constant of y itself for a single logit.
    ``answering`` is the error of the program that computed the logits where that is another one than the program
    that ``error`` is about (adaptive mode).
    """
    if guarantee not in GUARANTEES:
        raise InputError(f"unknown guarantee '{guarantee}'", hint=f"one of {', '.join(GUARANTEES)}")
    pairs = np.array(pairwise, np.float64)
    if pairs.ndim != 2 or pairs.shape[0] != pairs.shape[1] or not pairs.size:
        raise InputError(f"pair constants must have shape (classes, classes), found {list(pairs.shape)}")
    meet = float(min(len(pairs), 2))  # scores that meet in one gap: two classes, or one logit
    at_x, nearby = answering or error, error if guarantee == "deployed" else ErrorBound(0.0, 0.0, error.x_max)
    slope, offset = mul_up(meet, add_up(at_x.c1, nearby.c1)), mul_up(meet, add_up(at_x.c0, nearby.c0))
    tiny = LEAST if slope or offset else 0.0  # more than an underflow of slope · ‖x‖ loses
    with np.errstate(all="ignore"):
        denominators = _up(pairs + mul_up(meet, nearby.c1)) if nearby.c1 else pairs
        denominators = np.where(denominators > 0.0, np.maximum(denominators, LEAST), denominators)
    if len(pairs) > 1:
        np.fill_diagonal(denominators, 1.0)
    can_be_constant = not bool(np.all(denominators > 0.0))
    limit = min(at_x.x_max, nearby.x_max)
    return RadiusRule(
        denominators=denominators,
        own=np.diag(np.full(len(pairs), np.inf)) if len(pairs) > 1 else np.zeros((1, 1)),
        offset=add_up(mul_up(offset, 1.0 + HEAD_ROOM), tiny),
        slope=mul_up(slope, 1.0 + HEAD_ROOM),
        ceiling=limit * SHRINK if can_be_constant and limit == math.inf else min(limit * SHRINK, LARGEST),
        can_be_constant=can_be_constant,
    )


def float32_down(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 numbers, none above the float64 ``values``; +inf stays +inf."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float32)
    above = nearest > exact  # compared in float64
    if above.any():
        nearest[above] = np.nextafter(nearest[above], np.float32(-np.inf))
    return nearest


def _up(values: Any) -> Array:
    stepped: Array = np.nextafter(values, np.inf)
    return stepped


def _down(values: Any) -> Array:
    stepped: Array = np.nextafter(values, -np.inf)
    return stepped
