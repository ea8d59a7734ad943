"""Lower estimates: never above the truth, and close to it where the truth is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipdeploy.errors import InputError
from lipdeploy.prove import lower_estimate
from lipdeploy.verify.bound import Estimate

RANDOM = np.random.default_rng(5)
TRUTHS = {
    "l2": lambda w: np.linalg.norm(w, 2),
    "linf": lambda w: np.abs(w).sum(axis=1).max(),
    "l1": lambda w: np.abs(w).sum(axis=0).max(),
    "l2-linf": lambda w: np.linalg.norm(w, axis=1).max(),
    "l1-linf": lambda w: np.abs(w).max(),
}


@pytest.mark.parametrize("norm", TRUTHS)
@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (20, 20)])
def test_linear_maps_are_found_exactly(norm, shape):
    weight = RANDOM.standard_normal(shape)
    estimate = lower_estimate(lambda x: x @ weight.T, (shape[1],), norm, samples=2)
    truth = TRUTHS[norm](weight)
    assert isinstance(estimate, Estimate)
    assert truth * (1 - 1e-6) <= estimate.value <= truth


@pytest.mark.parametrize("norm", TRUTHS)
def test_too_many_inputs_for_a_jacobian_still_give_a_lower_estimate(norm):
    weight = RANDOM.standard_normal((5, 2000))
    estimate = lower_estimate(lambda x: x @ weight.T, (2000,), norm, samples=1, evaluations=2000)
    assert 0.1 * TRUTHS[norm](weight) < estimate.value <= TRUTHS[norm](weight)


def test_images_keep_their_shape():
    seen = set()

    def run(x):
        seen.add(x.shape[1:])
        return 2.0 * x

    assert lower_estimate(run, (2, 3, 4)).value == pytest.approx(2.0)
    assert seen == {(2, 3, 4)}


def test_the_steep_region_is_found():
    # |x| has slope 1 everywhere; clipping leaves slope only near the origin.
    estimate = lower_estimate(lambda x: np.clip(3.0 * x.sum(axis=1, keepdims=True), -0.5, 0.5), (2,), samples=64)
    assert estimate.value == pytest.approx(3.0 * np.sqrt(2.0), rel=1e-6)


def test_given_points_are_tried():
    needle = lambda x: np.where(np.abs(x - 7.0) < 0.01, 50.0 * (x - 7.0), 0.0)
    assert lower_estimate(needle, (1,), points=np.array([[7.0]])).value == pytest.approx(50.0, rel=1e-6)


def test_a_constant_has_estimate_zero():
    assert lower_estimate(lambda x: np.ones((len(x), 3)), (4,)).value == 0.0


def test_nan_is_no_slope():
    assert lower_estimate(lambda x: np.full((len(x), 3), np.nan), (4,)).value == 0.0


def test_rounding_in_float32_adds_nothing():
    weight = RANDOM.standard_normal((10, 10)).astype(np.float32)
    estimate = lower_estimate(lambda x: x.astype(np.float32) @ weight.T, (10,), step=1e-2)
    assert Fraction(estimate.value) <= Fraction(float(np.linalg.norm(weight.astype(float), 2)))
    assert estimate.value > 0.99 * np.linalg.norm(weight, 2)


def test_the_same_seed_gives_the_same_estimate():
    weight = RANDOM.standard_normal((4, 300))
    run = lambda x: np.tanh(x @ weight.T)
    assert lower_estimate(run, (300,), seed=3) == lower_estimate(run, (300,), seed=3)


def test_the_budget_is_kept():
    rows = []

    def run(x):
        rows.append(len(x))
        return x

    lower_estimate(run, (10,), samples=1000, evaluations=500)
    assert sum(rows) <= 500 + 2 * 10 + 2
    assert max(rows) <= 256


@pytest.mark.parametrize(("norm", "samples", "message"), [("l3", 1, "unknown norm 'l3'"), ("l2", 0, "samples must be")])
def test_wrong_options(norm, samples, message):
    with pytest.raises(InputError, match=message):
        lower_estimate(lambda x: x, (2,), norm, samples=samples)
