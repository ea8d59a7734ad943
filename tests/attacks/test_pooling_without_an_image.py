"""The liar pools features that are no image: GlobalAveragePool of (N, C).

By onnx's reference evaluator the mean of no axes changes nothing, so the constant is 1. ONNX Runtime's own kernel wants
an image and fails when it runs, which a session never asks of it where the rounding of float32 is unknown (a Tanh
behind it). The float64 program wrote the pool as a reduction over "all axes from 2 on"; without any, ReduceMean takes
all axes, the batch too. A neighbour then chose the class of a row, and the radius was positive.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from lipdeploy import CertifiedSession, Refused
from lipdeploy.runtime.double import double_model
from tests.verify.models import codes, model, run

POOLS = ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]
GRAPH = """g (float[N, 2] x) => (float[N, 2] y) <float[2] c = {{-4.0, 0.0}}>
    {{ p = {pool}(x) z = Mul(p, c) s = Add(x, z) y = Tanh(s) }}"""


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_a_pool_needs_an_image(pool: str, opset: int) -> None:
    proto = model(GRAPH.format(pool=pool), opset=opset)
    assert set(codes(proto)) == {"LIP013"}
    for certify in ("f64", "adaptive", "f32", "network"):
        with pytest.raises(Refused, match="LIP013"):
            CertifiedSession(proto.SerializeToString(), certify=certify)


@pytest.mark.parametrize("pool", POOLS)
def test_nor_is_one_without_an_image_written_as_a_reduction(pool: str) -> None:
    with pytest.raises(Refused, match="LIP018"):
        double_model(model(GRAPH.format(pool=pool)))


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
def test_an_image_whose_height_is_reduced_away_is_none(pool: str) -> None:
    body = f"{{ c = ReduceMax<keepdims = 0>(x, a) y = {pool}(c) }}"
    assert "LIP013" in codes(f"g (float[N, 3, H] x) => (float[N, M] y) <int64[1] a = {{1}}> {body}")


def test_the_lie_is_real() -> None:
    x = np.array([[1.0, 0.0], [-10.0, -10.0]], np.float32)
    pool = model("g (float[N, 2] x) => (float[N, 2] y) { y = GlobalAveragePool(x) }")
    assert np.array_equal(ReferenceEvaluator(pool).run(None, {"x": x})[0], x)
    with pytest.raises(Exception, match="less than 3"):
        run(pool, x)
    reduction = model("g (float[N, 2] x) => (float[N, 2] y) <int64[0] a = {}> { y = ReduceMean(x, a) }")
    together, alone = run(reduction, x), run(reduction, x[:1])
    # The class of x is 1, because tanh(x₀ − 4x₀) < 0; what ReduceMean makes of the batch says 0.
    assert alone.item() == 0.5
    assert together.item() == -4.75
