"""The library's radii are NumPy's, bit for bit, and a library whose radii are not is found out before it answers."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from lipdeploy.errors import IntegrityError
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.native import NativeRule, native_answers, native_of, native_rule
from lipdeploy.verify import ErrorBound
from lipdeploy.verify.radius import radius_rule

ERROR = ErrorBound(1e-12, 1e-14, 1e30)


@pytest.fixture
def native():
    found = native_of(find_library())
    if found is None:
        pytest.skip("the operator library was not built")
    return found


def rule(classes=5, error=ERROR, guarantee="deployed", scale=1.0):
    random = np.random.default_rng(classes)
    return radius_rule(scale * random.uniform(0.1, 3.0, (classes, classes)), error, guarantee)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("guarantee", ["deployed", "network"])
def test_radii_are_the_same_bits(native, classes, guarantee):
    random = np.random.default_rng(1)
    made = rule(classes, guarantee=guarantee)
    fast = native_rule(made, native)
    assert isinstance(fast, NativeRule)
    count = 200_000 // classes
    scores = random.standard_normal((count, classes)) * 10.0 ** random.uniform(-200, 200, (count, 1))
    scores[::3] = np.round(scores[::3] % 7)  # ties
    scores[1::7, 0] = scores[1::7, 1] * (1.0 + 2.0**-52)
    norms = np.abs(random.standard_normal(count)) * 10.0 ** random.uniform(-300, 40, count)
    norms[:4] = 0.0, np.inf, np.nan, 1e308
    one, other = made.rows(scores, norms), fast.rows(scores, norms)
    for name in ("label", "margin", "radius"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert (one.radius > 0).any() and (one.radius == 0).any()


def test_what_is_not_plain_goes_the_other_way(native):
    fast = native_rule(rule(3), native)
    norms = np.ones(4)
    scores = np.array([[3.0, 1.0, 0.0], [np.nan, 1.0, 0.0], [np.inf, 1.0, 0.0], [2.0, 2.0, 1.0]])
    for given in (scores, np.asfortranarray(scores), scores.astype(np.float32), scores[:0]):
        one, other = rule(3).rows(given, norms[: len(given)]), fast.rows(given, norms[: len(given)])
        assert np.array_equal(one.radius, other.radius) and np.array_equal(one.label, other.label)
    assert fast.rows(scores, norms).radius[1:].tolist() == [0.0, 0.0, 0.0]
    for special in (rule(3, scale=0.0, error=ErrorBound(0.0, 0.0, np.inf)), rule(3, scale=np.nan)):
        assert native_rule(special, native) is special
    assert native_rule(None, native) is None and native_rule(special, None) is special


@pytest.mark.parametrize("columns", [1, 5, 16, 100, 784])
def test_lengths_are_upper_bounds_and_values_stay(native, columns):
    random = np.random.default_rng(2)
    x = (random.standard_normal((40, columns)) * 10.0 ** random.uniform(-44, 37, (40, 1))).astype(np.float32)
    x[0], x[1] = 0.0, np.float32(1e-45)
    wide, lengths = native.widened(x)
    assert np.array_equal(wide, x.astype(np.float64))
    for row, length in zip(x, lengths.tolist(), strict=True):
        exact = sum(Fraction(float(v)) ** 2 for v in row)
        assert exact <= Fraction(length) ** 2 <= exact * (1 + Fraction(1, 10**10))
    x[3, 0], x[4, 0] = np.nan, np.inf
    _, lengths = native.widened(x)
    assert np.isnan(lengths[3]) and np.isinf(lengths[4])
    assert native.widened(x[:0])[1].shape == (0,)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("wanted", [0.0, 0.5])
def test_answers_in_one_call_are_the_two_calls(native, classes, wanted):
    random = np.random.default_rng(3)
    made = rule(classes, error=ErrorBound(1e-4, 1e-6, 1e30))
    fast = native_answers(native_rule(made, native), 37)
    scores = np.round(random.standard_normal((5000, classes)) * 4.0, 1).astype(np.float32)
    x = (random.standard_normal((5000, 37)) * 10.0 ** random.uniform(-30, 30, (5000, 1))).astype(np.float32)
    rows, lengths, unsure = fast.rows(x, scores, wanted)
    expected = made.rows(scores, native.widened(x)[1])
    for name in ("label", "margin", "radius"):
        assert getattr(rows, name).tobytes() == getattr(expected, name).tobytes()
    assert lengths.tobytes() == native.widened(x)[1].tobytes()
    sure = expected.radius >= wanted if wanted else expected.radius > 0.0
    assert unsure == (~sure).sum() and sure.any() and unsure


@pytest.mark.parametrize("place", ["x", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_call_declines_what_is_not_finite_or_of_another_size(native, place, value):
    fast = native_answers(native_rule(rule(3), native), 4)
    given = {"x": np.ones((2, 4), np.float32), "scores": np.eye(2, 3, dtype=np.float32)}
    assert fast.rows(**given, wanted=0.0) is not None
    assert fast.rows(given["x"][:, :3].copy(), given["scores"], 0.0) is None
    assert fast.rows(given["x"][:, ::-1], given["scores"], 0.0) is None
    assert fast.rows(given["x"], given["scores"][:, :2].copy(), 0.0) is None
    assert fast.rows(given["x"].astype(np.float64), given["scores"], 0.0) is None
    given[place][1, 1] = value
    assert fast.rows(**given, wanted=0.0) is None


LIES = {
    "a radius that is one unit too large": "radius[r] = n > 0 ? nextafter(n, 1e308) : n;",
    "a radius for a tie": "radius[r] = n > 0 ? n : 1e-300;",
}
SOURCE = """
#include <math.h>
#include <stdint.h>
int32_t lipdeploy_f64_widen(const float* x, int64_t rows, int64_t columns, double factor, double* w, double* l) {
  for (int64_t r = 0; r < rows; ++r) {
    double t = 0;
    for (int64_t c = r * columns; c < (r + 1) * columns; ++c) { w[c] = x[c]; t += w[c] * w[c]; }
    l[r] = sqrt(t) * factor;
  }
  return 0;
}
int32_t lipdeploy_f64_radii(const double* s, const double* norms, const double* d, int64_t rows, int64_t k,
    double slope, double offset, double ceiling, int64_t* label, double* margin, double* radius) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t b = 0;
    for (int64_t j = 0; j < k; ++j) { if (!isfinite(s[r*k+j])) return 1; if (s[r*k+j] > s[r*k+b]) b = j; }
    double g = INFINITY, q = INFINITY, taken = norms[r] * slope + offset;
    for (int64_t j = 0; j < k; ++j) if (j != b) {
      double gap = nextafter(s[r*k+b] - s[r*k+j], -INFINITY), v = (gap - taken) / d[b*k+j];
      if (gap < g) g = gap; if (v < q) q = v;
    }
    double n = fmin(q * (1 - 0x1p-51), ceiling - norms[r]) - 0x1p-1000;
    label[r] = b; margin[r] = g > 0 ? g : 0; n = isfinite(norms[r]) && n > 0 ? n : 0;
    LIE
  }
  return 0;
}
int64_t lipdeploy_f32_answers(const void* constants, const float* x, const float* s, int64_t rows, double wanted,
    double* answers) {
  const struct { const double* d; int64_t k, columns; double factor, slope, offset, ceiling; } *rule = constants;
  double scores[64 * 64], w[64 * 64];
  int64_t unsure = 0;
  for (int64_t i = 0; i < rows * rule->k; ++i) scores[i] = s[i];
  lipdeploy_f64_widen(x, rows, rule->columns, rule->factor, w, answers + 3 * rows);
  lipdeploy_f64_radii(scores, answers + 3 * rows, rule->d, rows, rule->k, rule->slope, rule->offset, rule->ceiling,
                      (int64_t*)(answers + 2 * rows), answers, answers + rows);
  ANSWER
  for (int64_t r = 0; r < rows; ++r) unsure += !(answers[rows + r] > 0 && answers[rows + r] >= wanted);
  return unsure;
}
"""
LIES_AT_ONCE = {
    "a length that is too short": "answers[3 * rows] *= 0.5;",
    "a radius that is one unit too large": "answers[rows] = nextafter(answers[rows], 1e308);",
    "a margin that is one unit too large": "answers[0] = nextafter(answers[0], 1e308);",
    "another label": "((int64_t*)(answers + 2 * rows))[rows - 1] ^= 1;",
    "nobody is unsure": "return 0;",
    "it always declines": "return -1;",
}


def compiled(tmp_path, lie, answer=""):
    path = tmp_path / "library.so"
    command = [
        shutil.which("gcc") or "cc",
        "-O1",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-x",
        "c",
        "-",
        "-o",
        str(path),
    ]
    subprocess.run(
        [*command, "-lm"],
        input=SOURCE.replace("LIE", lie).replace("ANSWER", answer).encode(),
        check=True,
        capture_output=True,
    )
    library = find_library()
    if library is None:
        pytest.skip("the operator library was not built")
    return native_of(dataclasses.replace(library, path=str(path)))


def test_an_honest_library_of_another_maker_is_believed(tmp_path):
    assert isinstance(native_rule(rule(), compiled(tmp_path, "radius[r] = n;")), NativeRule)


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_library_is_found_out(tmp_path, lie):
    with pytest.raises(IntegrityError, match="its radii are not those of the definition"):
        native_rule(rule(), compiled(tmp_path, LIES[lie]))


@pytest.mark.parametrize("lie", LIES_AT_ONCE)
def test_a_library_that_lies_in_one_call_is_refused(tmp_path, lie):
    fast = native_rule(rule(), compiled(tmp_path, "radius[r] = n;", LIES_AT_ONCE[lie]))
    with pytest.raises(IntegrityError, match="are not those of the definition"):
        native_answers(fast, 16)


def test_an_honest_library_is_believed_in_one_call(tmp_path):
    assert native_answers(native_rule(rule(), compiled(tmp_path, "radius[r] = n;")), 16) is not None
