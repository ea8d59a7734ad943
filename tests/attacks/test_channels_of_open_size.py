"""The liar reduces the channels away, so that an image's open height stands where channels are.

What a rule is asked about images of one size must not come back as the size of an axis: the mean over seven channels
is at most 1/√7, the mean over a height that the file leaves open is 1 for an image of one row.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, model, run

GRAPH = """g (float[N, 2, H, W] x) => (float[N, M] y) <int64[1] axis = {{1}}>
    {{ row = ReduceMax<keepdims = 0>(x, axis) pooled = {pool}(row) y = ReduceMean<keepdims = 0>(pooled, axis) }}"""


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("pool", ["GlobalMaxPool", "GlobalAveragePool"])
def test_a_mean_over_an_open_height(pool: str, norm: str) -> None:
    proto = model(GRAPH.format(pool=pool))
    pixel = np.zeros((1, 2, 1, 1), np.float32)
    pixel[0, 0] = 1.0  # of norm 1 in every norm
    moved = run(proto, pixel) - run(proto, np.zeros_like(pixel))
    assert moved.item() == 1.0
    assert bound(proto, norm) >= 1.0
