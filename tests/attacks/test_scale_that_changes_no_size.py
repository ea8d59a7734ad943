"""The liar resizes by 1.1 an image that is too small to grow: four pixels stay four.

By the standard the pixels move (the last one shows the third), and so says onnx's reference evaluator. ONNX Runtime
passes an image on unchanged when none of its sizes changes. A session that answers with float32 alone has nothing to
compare it with: its error constants were about another network than the one that ran.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from tests.verify.models import bound, codes, model, run

GRAPH = """g (float[N, 1, {size}] x) => (float[N, 1, M] y) <float[3] s = {{1.0, 1.0, {scale}}}>
    {{ y = Resize<mode = "{mode}", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , s) }}"""


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("size", "scale"), [("4", 1.1), ("2", 1.25), ("1", 1.5)])
def test_a_scale_that_leaves_the_size(size: str, scale: float, mode: str) -> None:
    assert codes(model(GRAPH.format(size=size, scale=scale, mode=mode))) == ["LIP002"]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_beside_an_open_size(mode: str) -> None:
    text = """g (float[N, 1, H, 4] x) => (float[N, 1, M, K] y) <float[4] s = {{1.0, 1.0, 1.0, 1.1}}>
        {{ y = Resize<mode = "{mode}", coordinate_transformation_mode = "asymmetric">(x, , s) }}"""
    assert codes(model(text.format(mode=mode))) == ["LIP002"]


def test_scales_that_change_the_size_and_scales_of_one_stay_accepted() -> None:
    for scale in (1.0, 1.25, 2.0):
        proto = model(GRAPH.format(size="4", scale=scale, mode="linear"))
        matrix = run(proto, np.eye(4, dtype=np.float32)[:, None, :])[:, 0]
        assert bound(proto) >= np.linalg.norm(matrix, 2) * (1.0 - 1e-6)


def test_the_lie_is_real() -> None:
    x = np.array([[[0.0, 0.0, 5.0, -3.0]]], np.float32)
    proto = model(GRAPH.format(size="4", scale=1.1, mode="nearest"))
    assert ReferenceEvaluator(proto).run(None, {"x": x})[0].reshape(-1).tolist() == [0.0, 0.0, 0.0, 5.0]
    assert run(proto, x).reshape(-1).tolist() == [0.0, 0.0, 5.0, -3.0]
