"""The liar lets samples of a batch talk to each other.

Alone, every sample is certified; in a batch, a neighbour moves its answer. Each operator that reaches the batch axis is
refused (LIP005), also when it does so only for some batch sizes, through a negative axis, or through another input's
batch size.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import codes, judge, model, run

GRAPHS = {
    "reshape": "<int64[2] s = {-1, 4}> { y = Reshape(x, s) }",
    "reshape to one row": "<int64[2] s = {1, -1}> { y = Reshape(x, s) }",
    "reshape to one vector": "<int64[1] s = {-1}> { y = Reshape(x, s) }",
    "transpose": "{ y = Transpose<perm = [1, 0]>(x) }",
    "default transpose": "{ y = Transpose(x) }",
    "flatten": "{ y = Flatten<axis = 0>(x) }",
    "flatten from the end": "{ y = Flatten<axis = -2>(x) }",
    "softmax": "{ y = Softmax<axis = 0>(x) }",
    "softmax from the end": "{ y = Softmax<axis = -2>(x) }",
    "sum": "<int64[1] a = {0}> { y = ReduceSum(x, a) }",
    "sum from the end": "<int64[1] a = {-2}> { y = ReduceSum(x, a) }",
    "sum of everything": "{ y = ReduceSum(x) }",
    "max": "<int64[2] a = {1, 0}> { y = ReduceMax(x, a) }",
    "concat": "{ y = Concat<axis = 0>(x, x) }",
    "concat from the end": "{ y = Concat<axis = -2>(x, x) }",
    "split": "<int64[2] s = {1, 1}> { y, z = Split<axis = 0>(x, s) }",
    "slice": "<int64[1] s = {0}, int64[1] e = {1}, int64[1] a = {0}> { y = Slice(x, s, e, a) }",
    "backwards": (
        "<int64[1] s = {-1}, int64[1] e = {-9}, int64[1] a = {-2}, int64[1] t = {-1}> { y = Slice(x, s, e, "
        "a, t) }"
    ),
    "slice without axes": "<int64[1] s = {0}, int64[1] e = {1}> { y = Slice(x, s, e) }",
    "gather": "<int64[1] i = {0}> { y = Gather(x, i) }",
    "gather from the end": "<int64[1] i = {0}> { y = Gather<axis = -2>(x, i) }",
    "pad": '<int64[4] p = {1, 0, 0, 0}> { y = Pad<mode = "edge">(x, p) }',
    "expand": "<int64[3] s = {2, 1, 1}> { y = Expand(x, s) }",
    "batch expanded": "<int64[2] s = {3, 2}> { y = Expand(x, s) }",
    "squeeze": "<int64[1] a = {0}> { y = Squeeze(x, a) }",
    "unsqueeze": "<int64[1] a = {0}> { y = Unsqueeze(x, a) }",
    "unsqueeze from the end": "<int64[1] a = {-3}> { y = Unsqueeze(x, a) }",
    "top k": "<int64[1] k = {1}> { y, i = TopK<axis = 0>(x, k) }",
    "constant as long as the batch": "<float[3, 2] c = {1, 2, 3, 4, 5, 6}> { y = Mul(x, c) }",
    "constant of higher rank": "<float[2, 1, 2] c = {1, 2, 3, 4}> { y = Add(x, c) }",
    "left product": "<float[3, 3] W = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { y = MatMul(W, x) }",
    "transposed product": "<float[3, 2] W = {1, 2, 3, 4, 5, 6}> { y = Gemm<transA = 1>(x, W) }",
    "bias as long as the batch": (
        "<float[2, 2] W = {1, 0, 0, 1}, float[3, 2] c = {1, 2, 3, 4, 5, 6}> { y = Gemm(x, W, c) "
        "}"
    ),
    "sorted over the batch": "{ y = lipdeploy.GroupSort<axis = 0>(x) }",
    "spline over the batch": (
        "<float[1, 2] c = {0, 1}> { y = lipdeploy.LinearSpline<axis = -2, lower = 0.0, knot_spacing = "
        "1.0>(x, c) }"
    ),
    "rank grows by an operand": "<int64[1] a = {1}> { m = ReduceMax<keepdims = 0>(x, a) y = Add(x, m) }",
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_the_batch_axis_stays_untouched(graph: str) -> None:
    proto = model(f"g (float[N, 2] x) => (float[M, K] y) {graph}", imports={"lipdeploy": 1})
    assert set(codes(proto)) <= {"LIP002", "LIP005", "LIP013"}


@pytest.mark.parametrize(("first", "second"), [("4", "2"), ("N", "M"), ("N", "2"), ("N", "")])
def test_the_batch_size_of_another_input(first: str, second: str) -> None:
    """Reshape(a, [batch of b, −1]) keeps samples apart only while both batches have the same size."""
    text = f"""g (float[{first}, 2] a, float[{second or "K"}, 1] b) => (float[M] y)
      <int64[1] one = {{1}}, int64[1] rest = {{-1}}> {{ s = Shape<start = 0, end = 1>(b) t = Concat<axis = 0>(s, rest)
      r = Reshape(a, t) y = ReduceMax<keepdims = 0>(r, one) }}"""
    proto = model(text)
    if not second:
        proto.graph.input[1].type.tensor_type.shape.dim[0].Clear()
    assert judge(proto).status == "refused"


def test_the_lie_is_real() -> None:
    text = """g (float[4, 2] a, float[2, 1] b) => (float[M] y) <int64[1] one = {1}, int64[1] rest = {-1}>
      { s = Shape<start = 0, end = 1>(b) t = Concat<axis = 0>(s, rest) r = Reshape(a, t) y = ReduceMax<keepdims
      = 0>(r, one) }"""
    a, b = np.zeros((4, 2), np.float32), np.zeros((2, 1), np.float32)
    moved = a.copy()
    moved[1] = 100.0
    assert run(model(text), moved, b)[0] == 100.0, "sample 1 moved the answer of sample 0"
