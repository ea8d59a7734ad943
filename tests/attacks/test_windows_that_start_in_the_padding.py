"""The liar lets shape inference count a window that no runtime makes.

Up to opset 21, ONNX infers a MaxPool with ceil_mode to have windows that start in the padding; verifier and kernels
leave them out. The float64 program was rewritten for the inferred image: a Resize to half of four pixels kept two, of
the three that there are it should keep one. The sum over them had another class than the network, a radius to match,
and the constant 2 in place of √2. Where float32 has no error constants (a Tanh), no session compared the two.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import shape_inference

from lipdeploy import CertifiedSession, Refused
from tests.verify.models import judge, model, run

GRAPH = """g (float[N, 2, 5] x) => (float[N, 2] y) <float[3] s = {{1.0, 1.0, 0.5}}, int64[1] a = {{2}}>
    {{ p = MaxPool<kernel_shape = [3], strides = [2], pads = [1, {end}], ceil_mode = 1>(x)
       r = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(p, , s)
       q = ReduceSum<keepdims = 0>(r, a) y = Tanh(q) }}"""
X = np.array([[[0.1, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.5]]], np.float32)


@pytest.mark.parametrize("certify", ["f64", "adaptive", "network"])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_an_image_of_another_size_has_no_float64_program(opset: int, certify: str) -> None:
    proto = model(GRAPH.format(end=2), opset=opset)
    assert judge(proto).status == "verified"
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(proto.SerializeToString(), certify=certify)


@pytest.mark.parametrize(("opset", "end"), [(22, 2), (21, 1), (21, 0), (13, 1)])
def test_where_both_agree_the_class_is_that_of_the_stored_program(opset: int, end: int) -> None:
    proto = model(GRAPH.format(end=end), opset=opset)
    answer = CertifiedSession(proto.SerializeToString()).predict(X)
    assert answer.logits == pytest.approx(run(proto, X), abs=1e-6)


def test_the_lie_is_real() -> None:
    proto = model(GRAPH.format(end=2), opset=21)
    inferred = next(value for value in shape_inference.infer_shapes(proto).graph.value_info if value.name == "p")
    assert inferred.type.tensor_type.shape.dim[2].dim_value == 4
    proto.graph.output[0].name = "p"
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert run(proto, X).shape == (1, 2, 3)
