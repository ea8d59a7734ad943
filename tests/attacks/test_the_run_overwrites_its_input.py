"""The float32 program computes in place, and the length of x is measured after it has run.

The library measures ‖x‖ and turns margins into radii in one call behind the program. A first operator that wrote its
result over the caller's array would leave a shorter x behind, and c1·‖x‖ would be taken from the gap of another point.
ONNX Runtime never reuses the buffer of an input; that is tried here with operators that it does compute in place
elsewhere, and with ours. A runtime that does overwrite shows that the comparison below would notice.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lipdeploy.runtime import CertifiedSession, engine
from tests.verify.models import model

FIRST = {
    "Relu": "h = Relu(x)",
    "Clip": "low = Constant<value = float {-1.0}>() high = Constant<value = float {1.0}>() h = Clip(x, low, high)",
    "Abs and Neg": "a = Abs(x) h = Neg(a)",
    "Flatten, Relu": "a = Flatten(x) h = Relu(a)",
    "Identity, LeakyRelu": "a = Identity(x) h = LeakyRelu<alpha = 0.5>(a)",
    "GroupSort": "h = lipdeploy.GroupSort<group_size = 2>(x)",
    "LinearSpline": "h = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 1.0>(x, c)",
}


def network(first: str) -> bytes:
    text = f"""g (float[N, 4] x) => (float[N, 2] y)
        <float[4, 2] w = {{0.5, -0.5, 0.25, 0.125, -0.5, 0.5, 0.125, 0.25}}, float[1, 3] c = {{0.5, 0.0, 0.75}},
         float[2] b = {{0.0, -2.0}}>
        {{ {first} m = MatMul(h, w) y = Add(m, b) }}"""
    imports = {"lipdeploy": 1} if "lipdeploy" in first else {}
    proto = model(text, imports=imports)
    if "LinearSpline" not in first:
        proto.graph.initializer.remove(next(tensor for tensor in proto.graph.initializer if tensor.name == "c"))
    return proto.SerializeToString()


def worst_excess(session: CertifiedSession, x: np.ndarray[Any, Any]) -> Fraction:
    """How far a float32 answer's radius is above (gap − 2e) / L, and above 0, with the length of x as it was given."""
    error, pairs = session.verdict.numeric_error["f32"], session.verdict.pairwise
    assert error is not None and pairs is not None
    lengths = [sum(Fraction(float(value)) ** 2 for value in row) for row in x.copy()]
    answers = session.predict(x)
    excess = Fraction(-(10**9))
    assert (answers.program == "f32").any()
    for row in np.flatnonzero(answers.program == "f32"):
        label = int(answers.label[row])
        gap = Fraction(float(answers.logits[row, label])) - Fraction(float(answers.logits[row, 1 - label]))
        short = Fraction(float(np.sqrt(float(lengths[row])))) * (1 - Fraction(1, 10**9))  # below ‖x‖
        taken = 2 * (Fraction(error.c0) + Fraction(error.c1) * short)
        exact = max(Fraction(0), (gap - taken) / Fraction(float(pairs[label, 1 - label])))
        excess = max(excess, Fraction(float(answers.radius[row])) - exact)
    return excess


def points() -> np.ndarray[Any, Any]:
    random = np.random.default_rng(7)
    return (random.standard_normal((64, 4)) * 10.0 ** random.uniform(-1, 3, (64, 1))).astype(np.float32)


@pytest.mark.parametrize("certify", ["adaptive", "f32"])
@pytest.mark.parametrize("first", FIRST)
def test_the_length_is_that_of_the_point_that_was_given(first: str, certify: str) -> None:
    session = CertifiedSession(network(FIRST[first]), certify=certify, threads=1)
    x = points()
    before = x.tobytes()
    assert worst_excess(session, x) <= 0
    assert x.tobytes() == before


def test_a_runtime_that_overwrites_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = CertifiedSession(network(FIRST["Relu"]), certify="f32", threads=1)
    if session._at_once is None:
        pytest.skip("the operator library was not built")
    run = engine.run

    def overwriting(program: Any, output: str, feeds: dict[str, Any]) -> Any:
        result = run(program, output, feeds)
        for array in feeds.values():
            array[...] = 0.0
        return result

    monkeypatch.setattr(engine, "run", overwriting)
    assert worst_excess(session, points()) > 0
