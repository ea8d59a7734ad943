"""The liar multiplies one number by four stored ones: Mul([N, 1], [1, 4]).

max |c| = 1 says constant 1, but the number is copied four times: the output moves twice as far in ℓ2, four times in ℓ1.
The same with Add (a constant shift that copies), with Expand, Gather of one index, Max, and two activations of
different size.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, matrix, model, operator_norm

X = "g (float[N, 1] x) => (float[N, 4] y)"
COPIES = {
    "Mul": "<float[4] c = {1, 1, 1, 1}> { y = Mul(x, c) }",
    "Mul with a row": "<float[1, 4] c = {1, 1, 1, 1}> { y = Mul(x, c) }",
    "Div": "<float[4] c = {1, 1, 1, 1}> { y = Div(c2, c) }",
    "Add": "<float[4] c = {1, 2, 3, 4}> { y = Add(c, x) }",
    "Sub": "<float[4] c = {1, 2, 3, 4}> { y = Sub(c, x) }",
    "Expand": "<int64[2] s = {1, 4}> { y = Expand(x, s) }",
    "Gather": "<int64[4] i = {0, -1, 0, 0}> { y = Gather<axis = 1>(x, i) }",
    "Concat": "{ y = Concat<axis = 1>(x, x, x, x) }",
    "Pad": '<int64[4] p = {0, 1, 0, 2}> { y = Pad<mode = "edge">(x, p) }',
    "MatMul": "<float[1, 4] W = {1, 1, 1, 1}> { y = MatMul(x, W) }",
}


@pytest.mark.parametrize("graph", COPIES.values(), ids=COPIES.keys())
def test_copies_are_counted(graph: str) -> None:
    proto = model(f"{X} {graph}".replace("c2", "x"))
    truth, _ = matrix(proto, (1,))
    for norm, factor in (("l2", 2.0), ("l1", 4.0), ("linf", 1.0)):
        assert operator_norm(truth, norm) == factor
        assert factor <= bound(proto, norm) <= factor * (1 + 1e-9)


def test_two_activations_of_different_size() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) <int64[1] a = {1}> { m = ReduceMax(x, a) y = Sub(x, m) }"
    # the maximum is copied four times: 2·|Δmax| in ℓ2
    proto = model(text)
    step = np.array([1.0, 0.0, 0.0, 0.0])
    y = lambda x: x - x.max()
    ratio = np.linalg.norm(y(step) - y(0 * step)) / 1.0
    assert bound(proto) >= ratio
    assert bound(proto) >= 1.0 + 2.0 - 1e-9, "1 for x and √4 for the copied maximum"


def test_maximum_with_a_copied_operand() -> None:
    proto = model("g (float[N, 1] x, float[N, 4] z) => (float[N, 4] y) { y = Max(x, z) }")
    assert bound(proto) >= 2.0
