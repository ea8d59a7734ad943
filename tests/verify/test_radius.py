"""Radii against exact fractions: ten thousand pairs of scores in each guarantee, none above the exact quotient."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipdeploy.errors import InputError
from lipdeploy.verify import ErrorBound
from lipdeploy.verify.radius import CertifiedRows, certified_rows, float32_down, input_norm_up

ROWS, CLASSES = 3400, 4
NO_ERROR = ErrorBound(0.0, 0.0, np.inf)


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, ErrorBound]:
    """Scores, input norms, pair constants and an error bound, all of very different sizes."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-6, 6)
    logits = rng.standard_normal((ROWS, CLASSES)) * scale
    close = rng.random(ROWS) < 0.3
    logits[close, 1] = logits[close, 0] * (1 + rng.integers(-3, 4, close.sum()) * 2.0**-52)
    pairs = np.abs(rng.standard_normal((CLASSES, CLASSES))) * 10.0 ** rng.uniform(-3, 3)
    pairs = np.maximum(pairs, pairs.T)
    np.fill_diagonal(pairs, 0.0)
    error = ErrorBound(scale * 10.0 ** rng.uniform(-12, -2), scale * 10.0 ** rng.uniform(-12, -2), np.inf)
    return logits, np.abs(rng.standard_normal(ROWS)) * 10.0 ** rng.uniform(-2, 2), pairs, error


def exact_radius(
    scores: np.ndarray, label: int, norm: float, pairs: np.ndarray, error: ErrorBound, deployed: bool
) -> Fraction:
    """min_j (y_i − y_j − k·(c0 + c1‖x‖)) / (L_ij [+ 2c1]), k = 4 for the program and 2 for the network."""
    c0, c1 = Fraction(error.c0), Fraction(error.c1)
    allowance = (4 if deployed else 2) * (c0 + c1 * Fraction(norm))
    return min(
        (Fraction(scores[label]) - Fraction(score) - allowance)
        / (Fraction(pairs[label, j]) + (2 * c1 if deployed else 0))
        for j, score in enumerate(scores.tolist())
        if j != label
    )


@pytest.mark.parametrize("guarantee", ["deployed", "network"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_radius_is_above_the_exact_one(guarantee: str, seed: int) -> None:
    logits, norms, pairs, error = problem(seed)
    rows = certified_rows(logits, norms, pairs, error, guarantee)
    deployed = guarantee == "deployed"
    for k in range(0, ROWS, 3):
        label = int(rows.label[k])
        exact = exact_radius(logits[k], label, float(norms[k]), pairs, error, deployed)
        radius = Fraction(float(rows.radius[k]))
        if exact <= 0:
            assert radius == 0, "a margin that the errors swallow certifies nothing"
        else:
            assert radius < exact, "the closed ball must be covered, so even an exact quotient is stepped down"
            cancelled = exact * Fraction(float(pairs.max())) < Fraction(float(np.abs(logits[k]).max())) / 10**3
            assert cancelled or radius >= exact * (1 - Fraction(1, 10**9))


def test_the_naive_quotient_does_exceed_the_exact_one() -> None:
    """Why every operation is stepped: plain division rounds up about half of the time."""
    rng = np.random.default_rng(0)
    gaps, constants = rng.uniform(0.1, 1, 500).tolist(), rng.uniform(0.1, 2, 500).tolist()
    above = sum(Fraction(g / c) > Fraction(g) / Fraction(c) for g, c in zip(gaps, constants, strict=True))
    assert above > 100


def rows_of(*scores: float, constant: float = 1.0, error: ErrorBound = NO_ERROR, norm: float = 1.0) -> CertifiedRows:
    logits = np.array([scores], np.float64)
    pairs = np.full((len(scores),) * 2, constant)
    np.fill_diagonal(pairs, 0.0)
    return certified_rows(logits, np.array([norm]), pairs, error, "deployed")


@pytest.mark.parametrize(
    "scores",
    [(1.0, 1.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (-np.inf, 1.0), (np.nan, np.nan), (0.0, -0.0)],
)
def test_ties_and_non_finite_scores_certify_nothing(scores: tuple[float, ...]) -> None:
    assert rows_of(*scores).radius.tolist() == [0.0]


def test_a_power_of_two_quotient_is_stepped_down() -> None:
    radius = float(rows_of(3.0, 1.0, constant=1.0).radius[0])
    assert 2.0 * (1 - 1e-15) < radius < 2.0


@pytest.mark.parametrize("constant", [np.nan, np.inf])
def test_an_unknown_constant_certifies_nothing(constant: float) -> None:
    assert rows_of(3.0, 1.0, constant=constant).radius.tolist() == [0.0]


def test_a_constant_difference_has_an_infinite_radius() -> None:
    logits, norms = np.array([[2.0, 1.0]]), np.array([1.0])
    assert certified_rows(logits, norms, np.zeros((2, 2)), NO_ERROR, "network").radius.tolist() == [np.inf]


def test_x_max_caps_the_radius() -> None:
    error = ErrorBound(0.0, 0.0, 5.0)
    assert float(rows_of(100.0, 0.0, error=error, norm=3.0).radius[0]) <= 2.0
    assert float(rows_of(100.0, 0.0, error=error, norm=5.0).radius[0]) == 0.0
    assert float(rows_of(100.0, 0.0, error=error, norm=7.0).radius[0]) == 0.0


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_a_non_finite_input_norm_certifies_nothing(norm: float) -> None:
    assert float(rows_of(100.0, 0.0, error=ErrorBound(0.0, 1e-9, 1e30), norm=norm).radius[0]) == 0.0
    assert float(rows_of(100.0, 0.0, norm=norm).radius[0]) == 0.0


def test_a_margin_too_small_to_be_a_number_certifies_nothing() -> None:
    assert float(rows_of(5e-324, 0.0).radius[0]) == 0.0


def test_overflowing_margins_stay_sound() -> None:
    radius = float(rows_of(1.7e308, -1.7e308, constant=4.0).radius[0])
    assert Fraction(radius) < 2 * Fraction(1.7e308) / 4


def test_one_logit() -> None:
    error = ErrorBound(0.125, 0.0, np.inf)
    rows = certified_rows(np.array([[1.0], [-1.0], [0.0], [np.nan]]), np.ones(4), np.array([[2.0]]), error, "deployed")
    assert rows.label.tolist() == [1, 0, 0, 0]
    # (1 − 2·0.125) / 2: the error at x and the error at x'
    assert rows.radius[0] == pytest.approx(0.375, rel=1e-12) and rows.radius[0] < 0.375
    assert rows.radius[1] == rows.radius[0]
    assert rows.radius[2:].tolist() == [0.0, 0.0]


def test_unknown_guarantees_and_shapes_are_input_errors() -> None:
    with pytest.raises(InputError, match="guarantee"):
        certified_rows(np.ones((1, 2)), np.ones(1), np.ones((2, 2)), NO_ERROR, "mostly")
    with pytest.raises(InputError, match="shape"):
        certified_rows(np.ones(3), np.ones(1), np.ones((2, 2)), NO_ERROR, "network")


@pytest.mark.parametrize(("name", "power"), [("l2", 2), ("l2-linf", 2), ("l1", 1), ("l1-linf", 1), ("linf", 0)])
def test_input_norms_are_upper_bounds(name: str, power: int) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((400, 3, 5)) * 10.0 ** rng.uniform(-30, 30, (400, 1, 1))).astype(np.float32)
    x[0], x[1] = 0.0, np.float32(1e-45)
    for row, proven in zip(x.reshape(400, -1), input_norm_up(x, name).tolist(), strict=True):
        exact = [abs(Fraction(float(v))) for v in row]
        if power == 2:
            assert Fraction(proven) ** 2 >= sum(v**2 for v in exact)
        else:
            assert Fraction(proven) >= (sum(exact) if power else max(exact))
        assert Fraction(proven) <= sum(exact) * (1 + Fraction(1, 10**12)) + Fraction(1, 10**150)


def test_input_norms_of_an_empty_batch() -> None:
    assert input_norm_up(np.zeros((0, 4), np.float32), "l2").shape == (0,)


def test_float32_is_never_above() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate(
        [
            rng.standard_normal(20_000) * 10.0 ** rng.uniform(-50, 45, 20_000),
            [0.0, -0.0, np.inf, -np.inf, 3.5e38, -3.5e38, 1e-46, -1e-46, 1e-320, 2.0**128, 1 / 3],
        ]
    )
    lowered = float32_down(values)
    assert lowered.dtype == np.float32
    assert np.all(lowered.astype(np.float64) <= values)
    following = np.nextafter(lowered, np.float32(np.inf)).astype(np.float64)
    assert np.all((following > values) | (values == np.inf))
    assert np.isnan(float32_down(np.array([np.nan]))[0])
