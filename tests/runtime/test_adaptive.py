"""Adaptive mode: float32 answers only what its own error bound certifies, and every radius covers both programs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipdeploy.runtime import CertifiedSession

RANDOM = np.random.default_rng(5)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def network(parse):
    return parse(
        """g (float[N,24] x) => (float[N,4] y) {
            h = Gemm<transB=1>(x, w1, b1)
            a = lipdeploy.GroupSort<group_size=2>(h)
            y = Gemm<transB=1>(a, w2)
        }""",
        w1=normal(16, 24), b1=normal(16), w2=normal(4, 16),
    ).SerializeToString()  # fmt: skip


@pytest.fixture(scope="module")
def cancelling(parse):
    """A linear net whose large weights cancel: its float32 error is as large as its margins."""
    weight = np.array([[1e4, -1e4, 1.0], [1e4, -1e4, -1.0]], np.float32)
    return parse(
        "g (float[N,3] x) => (float[N,2] y) { y = Gemm<transB=1>(x, w) }", w=weight
    ).SerializeToString(), weight  # fmt: skip


def near_the_boundary(model):
    """Points between two classes, closer than float32's error bound can tell apart."""
    session = CertifiedSession(model)
    first, second = normal(200, 24), normal(200, 24)
    labels = session.predict(first).label
    differ = labels != session.predict(second).label
    first, second, labels = first[differ], second[differ], labels[differ]
    for _ in range(18):
        middle = ((first + second) / 2).astype(np.float32)
        same = (session.predict(middle).label == labels)[:, None]
        first, second = np.where(same, middle, first), np.where(same, second, middle)
    return first


def test_float32_answers_what_it_certifies_and_float64_the_rest(network):
    x = np.concatenate([normal(40, 24), near_the_boundary(network)])
    adaptive = CertifiedSession(network, certify="adaptive").predict(x)
    single = CertifiedSession(network, certify="f32").predict(x)
    double = CertifiedSession(network, certify="f64").predict(x)
    escalated = adaptive.program == "f64"
    assert 0 < np.count_nonzero(escalated) < len(x)
    assert np.all(adaptive.radius[~escalated] > 0)
    assert np.array_equal(adaptive.radius[escalated], double.radius[escalated])
    assert np.array_equal(adaptive.logits[escalated], double.logits[escalated])
    assert np.all(adaptive.radius >= single.radius), "the ball pays for float64's error only"
    assert np.array_equal(adaptive.label, double.label)
    assert adaptive.guarantee == "deployed"


def test_a_request_escalates_rows_that_float32_cannot_meet(network):
    x = normal(64, 24)
    session = CertifiedSession(network, certify="adaptive")
    free = session.predict(x)
    between = np.nextafter(free.radius.max(), np.inf)
    asked = session.predict(x, epsilon=between)
    assert np.all(asked.program == "f64")
    reached = session.predict(x, epsilon=float(np.median(free.radius)))
    assert np.all(reached.radius[reached.program == "f32"] >= np.median(free.radius))


def test_radius_never_beats_the_exact_one(cancelling):
    """A linear classifier's exact radius is a rational square root away: compare squares."""
    model, weight = cancelling
    x = np.stack([normal(400), normal(400), normal(400) * np.float32(1e-2)], axis=1)
    answer = CertifiedSession(model, certify="adaptive").predict(x)
    difference = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(weight[0], weight[1], strict=True)]
    length = sum(d * d for d in difference)
    assert set(answer.program) == {"f32", "f64"}
    for row, label, radius in zip(x, answer.label, answer.radius, strict=True):
        margin = sum(d * Fraction(float(v)) for d, v in zip(difference, row, strict=True))
        if radius > 0:
            assert label == (0 if margin > 0 else 1)
            assert Fraction(float(radius)) ** 2 * length <= margin**2


def test_no_point_of_a_ball_changes_the_answer_of_either_program(cancelling):
    """The attack: walk to the edge of each ball and ask the adaptive session there."""
    model, weight = cancelling
    session = CertifiedSession(model, certify="adaptive")
    x = np.stack([normal(300), normal(300), normal(300) * np.float32(1e-2)], axis=1)
    answer = session.predict(x)
    direction = (weight[1] - weight[0]).astype(np.float64)
    direction /= np.linalg.norm(direction)
    sign = np.where(answer.label == 0, 1.0, -1.0)[:, None]
    for share in (0.5, 0.999, 1.0):
        moved = (x + sign * share * answer.radius[:, None] * direction).astype(np.float32)
        inside = np.linalg.norm(moved.astype(np.float64) - x, axis=1) <= answer.radius
        there = session.predict(moved)
        assert np.array_equal(there.label[inside], answer.label[inside])


def test_a_fixed_batch_is_escalated_as_a_whole(parse):
    model = parse("g (float[4,3] x) => (float[4,2] y) { y = Gemm<transB=1>(x, w) }", w=normal(2, 3))
    x = normal(4, 3)
    x[1] = 0
    answer = CertifiedSession(model.SerializeToString(), certify="adaptive").predict(x)
    assert list(answer.program) == ["f32", "f64", "f32", "f32"]
    assert answer.radius[1] == 0
