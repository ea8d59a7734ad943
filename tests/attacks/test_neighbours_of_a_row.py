"""A row's answer is made from its neighbours in the batch.

The kernel of LinearSpline works on several vectors at once, each in another stage, and short rows share a vector with
the rows beside them. A stage that took up what another vector had left, or a last vector that was stored one place off,
would answer one client with the gap of another: a certified radius around a point at which nobody looked. Hostile rows
(huge, tiny, signed zeros, on the knots) stand around the honest ones, in batches from one row to many.

All numbers are dyadic and small, so that float32 computes honest rows without rounding and the truth is a fraction.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from lipdeploy.runtime import CertifiedSession
from tests.verify.models import model

Array = np.ndarray[Any, Any]
CHANNELS, KNOTS, CLASSES = 19, 6, 3
LOWER, SPACING = Fraction(-1), Fraction(1, 2)
RANDOM = np.random.default_rng(11)
# Every slope in [-1, 1], none flat: where a flat end meets infinity, the kernel goes another way.
RISES = RANDOM.choice([-32, -24, -9, -1, 1, 7, 16, 32], (CHANNELS, KNOTS - 1)) / 64.0
COEFFICIENTS = np.concatenate([np.zeros((CHANNELS, 1)), RISES.cumsum(axis=1)], axis=1).astype(np.float32)
WEIGHTS = (RANDOM.integers(-8, 9, (CHANNELS, CLASSES)) / 32).astype(np.float32)


def network(inner: int) -> bytes:
    """Splines of 19 neighbours, or of runs of ``inner``, then a linear layer."""
    width = CHANNELS * inner
    proto = model(
        f"""g (float[N, {width}] x) => (float[N, {CLASSES}] y) {{
            to = Constant<value_ints = [-1, {CHANNELS}, {inner}]>() back = Constant<value_ints = [-1, {width}]>()
            r = Reshape(x, to) s = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 0.5>(r, c)
            f = Reshape(s, back) y = MatMul(f, w) }}""",
        imports={"lipdeploy": 1},
    )
    weights = np.repeat(WEIGHTS, inner, axis=0)
    proto.graph.initializer.extend([numpy_helper.from_array(COEFFICIENTS, "c"), numpy_helper.from_array(weights, "w")])
    return proto.SerializeToString()


def honest(rows: int, inner: int) -> Array:
    return (RANDOM.integers(-96, 97, (rows, CHANNELS * inner)) / 64).astype(np.float32)


def among_hostile(rows: Array) -> tuple[Array, Array]:
    """The rows with hostile ones between them, and their places."""
    hostile = RANDOM.choice(
        np.array([3e38, -3e38, 1e-40, -1e-40, 0.0, -0.0, -1.0, 1.5, 2.0**30], np.float32), rows.shape
    )
    batch, places = np.empty((2 * len(rows), rows.shape[1]), np.float32), RANDOM.integers(0, 2, len(rows))
    places += 2 * np.arange(len(rows))
    batch[:] = np.repeat(hostile, 2, axis=0)
    batch[places] = rows
    return batch, places


def true_scores(row: Array, inner: int) -> list[Fraction]:
    """The network's outputs in rational arithmetic."""
    scores = [Fraction(0)] * CLASSES
    for i, value in enumerate(row):
        table, x = COEFFICIENTS[i // inner], Fraction(float(value))
        interval = min(max((x - LOWER) // SPACING, 0), KNOTS - 2)
        left, right = (Fraction(float(table[interval + k])) for k in (0, 1))
        spline = left + (x - LOWER - interval * SPACING) * (right - left) / SPACING
        for k in range(CLASSES):
            scores[k] += spline * Fraction(float(WEIGHTS[i // inner, k]))
    return scores


def worst_excess(session: CertifiedSession, radius: Array, label: Array, rows: Array, inner: int) -> Fraction:
    """How far a radius is above the exact gap of its own row over the proven constant of the pair, and above 0."""
    excess = Fraction(-(10**9))
    assert session.verdict.pairwise is not None
    for row, answer, chosen in zip(rows, radius, label, strict=True):
        if answer <= 0:
            continue
        scores = true_scores(row, inner)
        ratios = [
            (scores[chosen] - scores[k]) / Fraction(float(session.verdict.pairwise[chosen, k]))
            for k in range(CLASSES)
            if k != chosen
        ]
        excess = max(excess, Fraction(float(answer)) - max(Fraction(0), min(ratios)))
    return excess


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32"])
@pytest.mark.parametrize("inner", [1, 3])
def test_hostile_neighbours_change_no_answer(certify: str, inner: int) -> None:
    session = CertifiedSession(network(inner), certify=certify, threads=1)
    certified = 0
    for rows in (*range(1, 24), 40):
        given = honest(rows, inner)
        batch, places = among_hostile(given)
        answers = session.predict(batch)
        radius, label = answers.radius[places], answers.label[places]
        assert worst_excess(session, radius, label, given, inner) <= 0, f"{rows} rows"
        certified += int((radius > 0).sum())
    assert certified > 200  # of 316


def test_an_answer_of_the_row_beside_would_be_noticed() -> None:
    session = CertifiedSession(network(1), certify="f64", threads=1)
    given = honest(24, 1)
    answers = session.predict(given)
    assert worst_excess(session, answers.radius, answers.label, given, 1) <= 0
    beside = np.roll(np.arange(len(given)), 1)
    assert worst_excess(session, answers.radius[beside], answers.label[beside], given, 1) > 0
