"""Householder's constants against exact fractions, chords and rounding errors of the stored numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.ops import OPERATORS
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.rules.operators import reflection_gains
from tests.verify.models import bound, codes, judge, model

Array = np.ndarray[Any, Any]


def reflections(sine: Array, cosine: Array, layout: int = 1, channels: int | None = None) -> onnx.ModelProto:
    kind = "double" if sine.dtype == np.float64 else "float"
    proto = model(
        f"g ({kind}[N, {channels or 2 * len(sine)}] x) => ({kind}[N, K] y) "
        f"{{ y = lipdeploy.Householder<axis = 1, layout = {layout}>(x, s, c) }}",
        imports={"lipdeploy": 1},
    )
    proto.graph.initializer.extend([numpy_helper.from_array(sine, "s"), numpy_helper.from_array(cosine, "c")])
    return proto


def exact_constants(sine: Array, cosine: Array) -> dict[str, Fraction]:
    """Norms of I − 2vvᵀ, written down from the 2×2 matrix itself."""
    l2 = rows = Fraction(1)
    for s, c in zip(sine.tolist(), cosine.tolist(), strict=True):
        v = (Fraction(s), -Fraction(c))
        matrix = [[(i == j) - 2 * v[i] * v[j] for j in range(2)] for i in range(2)]
        l2 = max(l2, abs(1 - 2 * (v[0] ** 2 + v[1] ** 2)))
        rows = max(rows, *(sum(map(abs, row)) for row in matrix))
    return {"l2": l2, "l1": rows, "linf": rows}


def angles(rng: np.random.Generator, pairs: int, dtype: Any, scale: float = 1.0) -> tuple[Array, Array]:
    half = rng.uniform(-4, 4, pairs)
    return (scale * np.sin(half)).astype(dtype), (scale * np.cos(half)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_constants_exactly(dtype: type) -> None:
    for seed in range(120):
        rng = np.random.default_rng(seed)
        scale = 1.0 if seed % 3 else 10.0 ** rng.uniform(-3, 3)
        sine, cosine = angles(rng, int(rng.integers(1, 6)), dtype, scale)
        for norm, truth in exact_constants(sine, cosine).items():
            proven = Fraction(bound(reflections(sine, cosine, seed % 2), norm))
            assert truth <= proven <= truth * (1 + Fraction(1, 10**12)), (seed, norm)


def test_thousands_of_pairs_with_nearly_one_constant() -> None:
    """Too many to look at each exactly: still above the truth, and within 1e-12."""
    sine, cosine = angles(np.random.default_rng(0), 6000, np.float64)
    for norm, truth in exact_constants(sine, cosine).items():
        proven = Fraction(bound(reflections(sine, cosine), norm))
        assert truth <= proven <= truth * (1 + Fraction(1, 10**12))


def test_a_sum_of_squares_just_above_one_is_not_rounded_away() -> None:
    tiny = np.array([2.0**-40])
    assert Fraction(bound(reflections(np.array([1.0]), tiny))) >= 1 + Fraction(1, 2**79)


def test_sorting_is_one_in_every_norm_and_a_half_turn_is_not() -> None:
    exactly = np.array([0.5])
    assert bound(reflections(np.array([0.6]), np.array([0.8])), "l2") <= 1 + 1e-15
    for norm in ("l1", "linf"):
        assert bound(reflections(exactly, exactly), norm) == 1.0
        eighth = np.pi / 8
        assert bound(reflections(np.array([np.sin(eighth)]), np.array([np.cos(eighth)])), norm) == pytest.approx(2**0.5)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1), ("linf", np.inf)])
def test_the_bound_is_attained_by_a_chord_and_beaten_by_none(norm: str, order: float) -> None:
    rng = np.random.default_rng(5)
    for scale in (0.5, 1.0, 1.3):
        sine, cosine = angles(rng, 1, np.float64, scale)
        limit = bound(reflections(sine, cosine), norm)
        x = rng.standard_normal((20000, 2)) * 3
        y = np.where(rng.random((20000, 1)) < 0.5, rng.standard_normal((20000, 2)) * 3, x + rng.normal(size=x.shape))
        evaluate = OPERATORS["Householder"].evaluate
        moved = np.linalg.norm(evaluate(x, sine, cosine) - evaluate(y, sine, cosine), order, axis=1)
        quotients = moved / np.linalg.norm(x - y, order, axis=1)
        assert limit * 0.98 <= quotients.max() <= limit * (1 + 1e-9)


def test_never_above_the_square_root_of_two_times_the_euclidean_constant() -> None:
    for seed in range(50):
        sine, cosine = angles(np.random.default_rng(seed), 3, np.float64, 0.5 + seed / 40)
        gains = reflection_gains(np.abs(np.stack([sine, cosine], axis=1)))
        limit = 2**0.5 * gains[Norm.L2, Norm.L2].value * (1 + 1e-12)
        assert gains[Norm.L1, Norm.L1].value == gains[Norm.LINF, Norm.LINF].value <= limit


@pytest.mark.parametrize("mode", ["f32", "f64"])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_program_errs_less_than_the_constants_say(mode: str, norm: str) -> None:
    order = {"l2": 2, "linf": np.inf, "l1": 1}[norm]
    dtype, work = (np.float32, np.float32) if mode == "f32" else (np.float64, np.float64)
    rng = np.random.default_rng(7)
    for scale in (1.0, 0.4, 3.0):
        sine, cosine = angles(rng, 3, dtype, scale)
        verdict = judge(reflections(sine, cosine), norm)
        constants = verdict.numeric_error[mode]
        x = (rng.standard_normal((300, 6)) * 10.0 ** rng.uniform(-3, 3, (300, 1))).astype(work)
        got = OPERATORS["Householder"].evaluate(x, sine.astype(work), cosine.astype(work))
        for row, result in zip(x, got, strict=True):
            error = max(abs(Fraction(float(r)) - e) for r, e in zip(result, exactly(row, sine, cosine), strict=True))
            size = np.linalg.norm(row.astype(np.float64), order)
            assert error <= constants.c0 + constants.c1 * size


def exactly(row: Array, sine: Array, cosine: Array) -> list[Fraction]:
    pairs = len(sine)
    z = [Fraction(float(value)) for value in row]
    for i in range(pairs):
        s, c = Fraction(float(sine[i])), Fraction(float(cosine[i]))
        m = max(Fraction(0), z[i] * s - z[i + pairs] * c)
        z[i], z[i + pairs] = z[i] - 2 * s * m, z[i + pairs] + 2 * c * m
    return z


HALF = np.array([0.5, 0.6], np.float32)


@pytest.mark.parametrize(
    ("sine", "cosine", "channels", "code"),
    [
        (HALF, HALF[:1], 4, "LIP013"),
        (HALF[:1], HALF, 4, "LIP013"),
        (HALF[:1], HALF[:1], 4, "LIP013"),
        (HALF[:, None], HALF, 4, "LIP013"),
        (HALF, HALF, 5, "LIP002"),
        (np.array([np.nan, 0.5], np.float32), HALF, 4, "LIP003"),
        (HALF, np.array([np.inf, 0.5], np.float32), 4, "LIP003"),
        (np.array([1e200, 0.5]), np.array([1.0, 0.5]), 4, "LIP014"),
    ],
)
def test_near_misses_are_refused(sine: Array, cosine: Array, channels: int, code: str) -> None:
    assert code in codes(reflections(sine, cosine, channels=channels))


def test_angles_that_depend_on_the_input_are_refused() -> None:
    proto = model(
        "g (float[N, 4] x) => (float[N, 4] y) <float[2] c = {0.5, 0.5}> "
        "{ s = ReduceMax<keepdims = 0>(x) y = lipdeploy.Householder(x, s, c) }",
        imports={"lipdeploy": 1},
    )
    assert judge(proto).status == "refused"


def test_the_batch_axis_is_refused() -> None:
    proto = model(
        "g (float[4, 4] x) => (float[4, 4] y) <float[2] c = {0.5, 0.5}> "
        "{ y = lipdeploy.Householder<axis = 0>(x, c, c) }",
        imports={"lipdeploy": 1},
    )
    assert codes(proto) == ["LIP005"]
