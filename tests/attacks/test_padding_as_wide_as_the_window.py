"""The liar pads a pool as far as its window reaches, and stores the network in float64.

With ceil_mode, a window that starts in the padding is left out, by the verifier's rule. Where the padding is as wide as
the window, rounding down counts one, too, and so do ONNX's shape inference and the float64 program that was written for
it. ONNX Runtime's own pools refuse such padding; of float64 it has none, and the program written for them is all that
runs. A mean over the images that follow had a window of zeros more: another class than the network's, with a radius.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import shape_inference

from lipdeploy import CertifiedSession, Refused
from lipdeploy.runtime.double import double_model
from tests.verify.models import judge, model, run

GRAPH = """g ({kind}[N, 2, 4] x) => ({kind}[N, 2] y) <int64[1] a = {{2}}, {kind}[2] c = {{0.0, 0.75}}>
    {{ p = {pool}, kernel_shape = [1], strides = [{stride}], pads = [0, {end}], ceil_mode = 1>(x)
       r = ReduceMean<keepdims = 0>(p, a) y = Add(r, c) }}"""
POOLS = ["AveragePool<count_include_pad = 1", "AveragePool<count_include_pad = 0", "LpPool<p = 1", "LpPool<p = 2"]
X = np.array([[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])


@pytest.mark.parametrize("certify", ["f64", "adaptive", "network"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_window_in_the_padding_has_no_float64_program(pool: str, certify: str) -> None:
    proto = model(GRAPH.format(kind="double", pool=pool, stride=4, end=1), opset=19)
    verdict = judge(proto)
    assert verdict.status == "verified"
    assert next(node.shape for node in verdict.nodes if len(node.shape) == 3) == (None, 2, 1)
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(proto.SerializeToString(), certify=certify)
    with pytest.raises(Refused, match="LIP018"):
        double_model(proto, verified=verdict.sizes)


@pytest.mark.parametrize("pool", POOLS)
def test_without_the_padding_the_class_is_the_networks(pool: str) -> None:
    proto = model(GRAPH.format(kind="double", pool=pool, stride=3, end=0), opset=19)
    answer = CertifiedSession(proto.SerializeToString()).predict(X)
    assert answer.logits.tolist() == [[1.0, 0.75]]


def test_the_lie_is_real() -> None:
    proto = model(GRAPH.format(kind="float", pool=POOLS[0], stride=4, end=1), opset=19)
    inferred = next(value for value in shape_inference.infer_shapes(proto).graph.value_info if value.name == "p")
    assert inferred.type.tensor_type.shape.dim[2].dim_value == 2
    with pytest.raises(Exception, match="Pad should be smaller than kernel"):
        run(proto, X.astype(np.float32))
