"""The liar hides a pool under a square root, where the proof judges the root as a whole.

What lies under it has no bound of its own, so its size was not among those that the float64 program is compared with:
with padding as wide as the window, shape inference counts a window more than the verifier, and a mean behind the pool
hides it again. Stored in float64 nothing else runs: the session answered another class than the network's.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy import CertifiedSession, Refused
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.library import ENVIRONMENT_VARIABLE
from tests.verify.models import judge, model

GRAPH = """g (double[N, 2, 4] x) => (double[N, 2] y) <double[2] c = {{0.0, 0.75}}>
    {{ q = Mul(x, x)
       p = AveragePool<
           count_include_pad = 1, kernel_shape = [1], strides = [{stride}], pads = [0, {end}], ceil_mode = 1>(q)
       m = ReduceMean<axes = [2], keepdims = 0>(p) r = Sqrt(m) y = Add(r, c) }}"""
X = np.array([[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
ROOT_MEAN_SQUARE = [[1.0, 0.75]]  # of the pixels that the strides meet, and of nothing in the padding


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("certify", ["f64", "adaptive", "network"])
def test_a_pool_under_a_root_is_written_for_the_image_that_was_proven(
    certify: str, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    proto = model(GRAPH.format(stride=4, end=1), opset=17)
    verdict = judge(proto)
    assert verdict.status == "verified" and "p" not in verdict.sizes
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(proto.SerializeToString(), certify=certify)
    with pytest.raises(Refused, match="LIP018"):
        double_model(proto)


def test_without_the_padding_the_class_is_the_networks() -> None:
    proto = model(GRAPH.format(stride=3, end=0), opset=17)
    answer = CertifiedSession(proto.SerializeToString()).predict(X)
    assert answer.logits.tolist() == ROOT_MEAN_SQUARE
    assert answer.label.tolist() == [0]
