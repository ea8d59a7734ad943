"""Constants in the graph of which the verifier and ONNX Runtime computed different numbers.

1e20 as text is "1e+20", and as an integer again 1: ONNX Runtime read it so, the verifier kept 1e20. Going backwards,
ONNX Runtime takes the largest integer for an end at the very start, the standard for one at the last entry; and a step
of −2⁶³ overflows there. A bound of 0.1 was proven of a program with the constant 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

from lipdeploy.verify import verify

SMALL_THEN_LARGE = np.float32([0.1, 10.0, 10.0, 10.0])
LAST_OF_BOTH = "s = Slice(W, start, end, zero, step) b = Concat<axis = 0>(F, s) V = Gather(b, last) y = Mul(x, V)"
THROUGH_TEXT = "t = Cast<to = 8>(e) i = Cast<to = 7>(t) V = Slice(W, zero, four, zero, i) y = Mul(x, V)"
STORED: dict[str, Any] = {
    "W": SMALL_THEN_LARGE[::-1].copy(),
    "F": np.float32([0.1]),
    "zero": np.array([0]),
    "four": np.array([4]),
    "last": np.array([-1]),
}
LIES = {
    "a step through text": (THROUGH_TEXT, {"e": np.float32([1e20]), "W": SMALL_THEN_LARGE}),
    "an end of 64 bits": (LAST_OF_BOTH, {"start": np.array([0]), "end": np.array([2**63 - 1]), "step": np.array([-1])}),
    "an end of 32 bits": (LAST_OF_BOTH, {"start": np.array([0]), "end": np.array([2**31 - 1]), "step": np.array([-1])}),
    "the longest step": (
        LAST_OF_BOTH,
        {"start": np.array([0]), "end": np.array([2**63 - 1]), "step": np.array([-(2**63)])},
    ),
}


def model(body: str, stored: dict[str, Any]) -> ModelProto:
    made = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[N,4] x) => (float[N,4] y) {{ {body} }}'
    )
    used = {name for node in made.graph.node for name in node.input}
    kept = {name: value for name, value in {**STORED, **stored}.items() if name in used}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in kept.items())
    return made


def constant(made: ModelProto) -> float:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(np.max(session.run(None, {"x": np.ones((1, 4), np.float32)})[0]))


@pytest.mark.parametrize("name", LIES)
def test_they_are_refused(name: str) -> None:
    made = model(*LIES[name])
    assert constant(made) == pytest.approx(10.0)
    (refusal,) = verify(made.SerializeToString()).refusals
    assert refusal.code in ("LIP013", "LIP017")


@pytest.mark.parametrize(("end", "step"), [(-(2**63), -1), (-5, -1), (-(2**31), -2), (2**63 - 1, 1), (2**31 - 1, 1)])
def test_what_all_read_alike_is_proven(end: int, step: int) -> None:
    stored = {"start": np.array([0]), "end": np.array([end]), "step": np.array([step])}
    made = model(LAST_OF_BOTH, stored)
    bound = verify(made.SerializeToString()).lipschitz_bound
    assert bound == pytest.approx(constant(made), rel=1e-12)


@pytest.mark.parametrize("kind", [8, 14, 15, 17, 19, 20, 21, 22])
def test_no_constant_becomes_text_or_a_number_of_few_bits(kind: int) -> None:
    made = model(f"t = Cast<to = {kind}>(e) c = Cast<to = 1>(t) y = Mul(x, c)", {"e": np.float32([1.0])})
    assert verify(made.SerializeToString()).status == "refused"
