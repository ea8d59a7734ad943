"""A hundred thousand radii against exact rationals, in every regime of binary64: none reaches the exact quotient.

Regimes: ordinary sizes; scores a few units apart; subnormal and huge scores; constants that are zero, subnormal or
huge; large error constants; ties, NaN and infinities sprinkled in; a second program that answered at x (adaptive
mode); and arithmetic that flushes subnormal numbers to zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch

from lipdeploy.verify import ErrorBound
from lipdeploy.verify.radius import CertifiedRows, radius_rule

CASES, CLASSES = 2100, 3
Rng = np.random.Generator
Array = np.ndarray
SPECIAL = (0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, -5e-324, 2.0**-1022, 1.7e308, -1.7e308, 1.0)


def ordinary(rng: Rng) -> Array:
    return rng.standard_normal((CASES, CLASSES)) * 10.0 ** rng.uniform(-3, 3, (CASES, 1))


def close(rng: Rng) -> Array:
    return rng.standard_normal((CASES, 1)) * (1.0 + rng.integers(-4, 5, (CASES, CLASSES)) * 2.0**-52)


def subnormal(rng: Rng) -> Array:
    return rng.integers(-9, 10, (CASES, CLASSES)) * 5e-324 * 2.0 ** rng.integers(0, 70, (CASES, 1))


def huge(rng: Rng) -> Array:
    return rng.uniform(-1.0, 1.0, (CASES, CLASSES)) * 1.7e308


def special(rng: Rng) -> Array:
    scores = ordinary(rng)
    chosen = rng.random(scores.shape) < 0.3
    scores[chosen] = rng.choice(SPECIAL, int(chosen.sum()))
    return scores


SCORES = (ordinary, close, subnormal, huge, special)
CONSTANTS: dict[str, Callable[[Rng], Array]] = {
    "ordinary": lambda rng: rng.uniform(0.1, 3.0, (CLASSES, CLASSES)),
    "tiny": lambda rng: rng.choice([5e-324, 1e-310, 2.0**-1000, 1e-290], (CLASSES, CLASSES)),
    "huge": lambda rng: rng.choice([1e300, 1.7e308, 1.0], (CLASSES, CLASSES)),
    "some zero": lambda rng: rng.choice([0.0, 0.0, 1.0, 1e-300], (CLASSES, CLASSES)),
}
ERRORS = (
    (0.0, 0.0, np.inf),
    (1e-12, 1e-14, 1e30),
    (0.1, 0.05, 1e4),
    (5e-324, 5e-324, 1e300),
    (0.0, 1e-16, np.inf),
)


def exact(rule_of: tuple[Array, ErrorBound, ErrorBound, str], scores: list[float], label: int, norm: float) -> Fraction:
    """The formula of the contract over the rationals; +∞ (a huge number) where no class can be reached."""
    pairs, at_x, nearby, guarantee = rule_of
    single = len(scores) == 1
    meet = 1 if single else 2
    size = Fraction(norm)
    taken = meet * (Fraction(at_x.c0) + Fraction(at_x.c1) * size)
    added = Fraction(0)
    if guarantee == "deployed":
        taken += meet * (Fraction(nearby.c0) + Fraction(nearby.c1) * size)
        added = meet * Fraction(nearby.c1)
    limits = [Fraction(error.x_max) - size for error in (at_x, nearby) if np.isfinite(error.x_max)]
    least = min([*limits, Fraction(10) ** 700])
    gaps = [abs(Fraction(scores[0]))] if single else [Fraction(scores[label]) - Fraction(s) for s in scores]
    for j, gap in enumerate(gaps):
        if single or j != label:
            constant = Fraction(float(pairs[0 if single else label, j])) + added
            numerator = gap - taken
            if numerator <= 0:
                return Fraction(0)
            least = min(least, numerator / constant) if constant else least
    return max(least, Fraction(0))


def check(rows: CertifiedRows, parts: tuple[Array, ErrorBound, ErrorBound, str], scores: Array, norms: Array) -> int:
    """Every radius is below the exact one, or both are zero; returns how many are positive."""
    assert not np.isnan(rows.radius).any() and (rows.radius >= 0.0).all()
    for row, label, radius, norm in zip(
        scores.tolist(), rows.label.tolist(), rows.radius.tolist(), norms.tolist(), strict=True
    ):
        if radius == 0.0:
            continue
        assert np.isfinite(row).all() and np.isfinite(norm), "ties, NaN and infinities certify nothing"
        assert label == (int(row[0] > 0) if len(row) == 1 else int(np.argmax(row)))
        bound = exact(parts, row, label, norm)
        assert Fraction(radius) < bound if np.isfinite(radius) else bound > Fraction(10) ** 600
    return int((rows.radius > 0.0).sum())


@contextlib.contextmanager
def arithmetic(flushing: bool) -> Iterator[None]:
    if flushing and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("flushing", [False, True])
@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("guarantee", ["deployed", "network"])
@pytest.mark.parametrize("constants", CONSTANTS)
def test_no_radius_reaches_the_exact_one(
    make: Callable[[Rng], Array], guarantee: str, constants: str, flushing: bool
) -> None:
    rng = np.random.default_rng([*map(ord, make.__name__ + guarantee + constants)])
    scores, pairs = make(rng), CONSTANTS[constants](rng)
    pairs = np.maximum(pairs, pairs.T)
    norms = np.abs(rng.standard_normal(CASES)) * 10.0 ** rng.uniform(-2, 2)
    norms[:20] = rng.choice([0.0, np.inf, np.nan, 1e300, 5e-324], 20)
    positive, part = 0, CASES // (2 * len(ERRORS))
    for k, given in enumerate(ERRORS):
        error, other = ErrorBound(*given), ErrorBound(*ERRORS[(k + 1) % len(ERRORS)])
        for step, answering in enumerate((None, other)):
            rule = radius_rule(pairs, error, guarantee, answering=answering)
            here = slice((2 * k + step) * part, (2 * k + step + 1) * part)
            with arithmetic(flushing):
                rows = rule.rows(scores[here], norms[here])
            positive += check(rows, (pairs, answering or error, error, guarantee), scores[here], norms[here])
    if make in (ordinary, special) and constants == "ordinary":
        assert positive > 100, "a test in which nothing is certified proves nothing"


@pytest.mark.parametrize("guarantee", ["deployed", "network"])
@pytest.mark.parametrize("constant", [0.0, 5e-324, 0.7, 1.7e308])
def test_one_logit(guarantee: str, constant: float) -> None:
    rng = np.random.default_rng(9)
    for make in SCORES:
        scores, pairs = make(rng)[:, :1], np.array([[constant]])
        for given in ERRORS:
            error = ErrorBound(*given)
            rule = radius_rule(pairs, error, guarantee)
            norms = np.abs(rng.standard_normal(400))
            check(rule.rows(scores[:400], norms), (pairs, error, error, guarantee), scores[:400], norms)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A NaN in one row sends the whole batch another way; the other rows' answers stay bit for bit the same."""
    rng = np.random.default_rng(4)
    scores, norms = ordinary(rng), np.ones(CASES)
    rule = radius_rule(rng.uniform(0.1, 3.0, (CLASSES, CLASSES)), ErrorBound(1e-12, 1e-14, 1e30), "deployed")
    clean = rule.rows(scores, norms)
    scores[7, 1], scores[8] = np.nan, np.inf
    mixed = rule.rows(scores, norms)
    others = np.delete(np.arange(CASES), [7, 8])
    for name in ("label", "margin", "radius"):
        assert np.array_equal(getattr(clean, name)[others], getattr(mixed, name)[others])
    assert mixed.radius[[7, 8]].tolist() == [0.0, 0.0] and mixed.margin[[7, 8]].tolist() == [0.0, 0.0]
