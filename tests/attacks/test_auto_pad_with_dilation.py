"""The liar lets the runtime compute another shape than the verifier: a broadcast appears that nobody judged.

ONNX Runtime pads a pool with auto_pad = SAME_* as if its kernel had no dilation, so it has fewer windows than the
standard says. ``MaxPool<kernel_shape = [2], dilations = [6], auto_pad = SAME_UPPER>`` of six pixels gives one number
there and six by the standard; the Add of six zeros that follows then copies the one number six times. A
convolution with both is not accepted by the runtime.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.verify.models import bound, codes, judge, model, run, single

POOLS = ("MaxPool", "AveragePool", "LpPool")
LIE = """g (float[N, 1, 6] x) => (float[N, 1, 6] y) <float[6] c = {{0, 0, 0, 0, 0, 0}}>
    {{ p = {0}<kernel_shape = [2], dilations = [6], auto_pad = "{1}">(x) y = Add(p, c) }}"""


@pytest.mark.parametrize("operator", POOLS)
@pytest.mark.parametrize(("mode", "pixel"), [("SAME_UPPER", 0), ("SAME_LOWER", 5)])
def test_a_pool_whose_shape_the_runtime_sees_differently(operator: str, mode: str, pixel: int) -> None:
    proto = model(LIE.format(operator, mode))
    points = np.zeros((2, 1, 6), np.float32)
    points[1, 0, pixel] = 1.0
    before, after = run(proto, points)
    assert np.linalg.norm(after - before) == pytest.approx(6**0.5)  # more than any of the verifier's constants
    assert codes(proto) == ["LIP002"]


@pytest.mark.parametrize("operator", (*POOLS, "Conv"))
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_what_is_verified_has_the_shape_that_the_runtime_computes(operator: str, mode: str) -> None:
    judged = 0
    for size, taps, stride, dilation in itertools.product((4, 5), (1, 2, 3), (1, 2, 3), (1, 2)):
        if mode != "VALID" and (stride > taps or (operator == "Conv" and dilation > 1)):
            continue  # which the runtime does not run
        window: dict[str, Any] = {"kernel_shape": [taps], "strides": [stride], "dilations": [dilation]}
        window["auto_pad"] = mode
        stored = {"w": np.ones((1, 1, taps), np.float32)} if operator == "Conv" else {}
        proto = single(operator, (1, size), stored, **window)
        verdict = judge(proto)
        if verdict.status == "verified":
            judged += 1
            assert verdict.output is not None
            assert run(proto, np.zeros((1, 1, size), np.float32)).shape[1:] == verdict.output.shape[1:], window
    assert judged >= 12


def test_without_dilation_both_agree() -> None:
    assert bound(single("MaxPool", (1, 6), kernel_shape=[2], auto_pad="SAME_UPPER")) >= 1.0
