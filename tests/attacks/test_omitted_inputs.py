"""The liar leaves an optional input out, so that a careless reader shifts the next one into its place.

Slice(W, starts, ends, , steps): without axes the slice is along axis 0. A reader that drops the gap takes the steps
[1] for the axes and slices along axis 1: a row of small numbers instead of a column with a hundred in it.
"""

from __future__ import annotations

import numpy as np

from tests.verify.models import judge, model, run

TEXT = """g (float[N, 1] x) => (float[N, 2] y)
  <float[2, 2] W = {1, 100, 0, 1}, int64[1] s = {0}, int64[1] e = {1}, int64[1] one = {1}, int64[2] row = {1, 2}>
  { r = Slice(W, s, e, , one) q = Reshape(r, row) y = MatMul(x, q) }"""


def test_the_gap_stays_a_gap() -> None:
    proto = model(TEXT)
    assert run(proto, np.ones((1, 1), np.float32)).tolist() == [[1.0, 100.0]]
    verdict = judge(proto)
    assert verdict.status == "refused" or (verdict.lipschitz_bound and verdict.lipschitz_bound.value >= 100.0)


def test_activations_with_a_gap() -> None:
    text = (
        "g (float[N, 3, 3] x) => (float[N, A, B] y) <int64[1] s = {0}, int64[1] e = {1}, int64[1] "
        "one = {1}> { y = Slice(x, s, e, , one) }"
    )
    assert judge(model(text)).status == "refused", "without axes the slice is along the batch"
