"""A probability is read as a score.

One number per sample is a score: its sign is the class. A network that ends in a sigmoid answers with a probability,
and the sign of a probability is the same for every input: each would be "class 1", with a radius that nothing can
shrink, also where the probability is 0.01. Such outputs have values and a band, and no labels.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from lipdeploy.errors import Refused
from lipdeploy.runtime import CertifiedSession
from tests.verify.models import model

X = np.float32([[-2.0], [-0.25], [0.5], [3.0]])
TWO = "n = Neg(x) c = Concat<axis = 1>(x, n) p = Sigmoid(c)"
ENDS = {
    "Sigmoid": "y = Sigmoid(x)",
    "Sigmoid, reshaped": "s = Sigmoid(x) y = Flatten(s)",
    "Sigmoid, scaled": "k = Constant<value_float = -0.5>() s = Sigmoid(x) y = Mul(k, s)",
    "Sigmoid, negated": "s = Sigmoid(x) y = Neg(s)",
    "logarithm of Sigmoid": "s = Sigmoid(x) y = Log(s)",
    "HardSigmoid": "y = HardSigmoid(x)",
    "Softplus": "y = Softplus(x)",
    "Softmax of one score": "y = Softmax(x)",
    "Clip to [0, 1]": "a = Constant<value_float = 0.0>() b = Constant<value_float = 1.0>() y = Clip(x, a, b)",
    "Clip to [-1, 0]": "a = Constant<value_float = -1.0>() b = Constant<value_float = 0.0>() y = Clip(x, a, b)",
    "Relu": "y = Relu(x)",
    "length": "axis = Constant<value_ints = [1]>() y = ReduceL2(x, axis)",
    "inside a function": "y = f.Head(x)",
    "column of a Softmax": "n = Neg(x) c = Concat<axis = 1>(x, n) p = Softmax(c) i = Constant<value_ints = [1]>() "
    "y = Gather<axis = 1>(p, i)",
    "mean of two Sigmoids": f"{TWO} w = Constant<value = float[2,1] {{0.5, 0.5}}>() y = MatMul(p, w)",
    "head of positive weights": f"{TWO} w = Constant<value = float[1,2] {{0.5, 2.0}}>() "
    "b = Constant<value = float[1] {0.25}>() y = Gemm<transB = 1>(p, w, b)",
    "largest of Sigmoids": f"{TWO} axis = Constant<value_ints = [1]>() y = ReduceMax(p, axis)",
    "Sigmoid, and a little": "e = Constant<value_float = 0.1>() s = Sigmoid(x) y = Add(s, e)",
    "one less Sigmoid": "one = Constant<value_float = 1.0>() s = Sigmoid(x) y = Sub(one, s)",
    "larger than 0": "zero = Constant<value_float = 0.0>() y = Max(x, zero)",
    "sum of Relu and Abs": "r = Relu(x) a = Abs(x) y = Add(r, a)",
    "sum of features": f"{TWO} axis = Constant<value_ints = [1]>() y = ReduceSum(p, axis)",
    "Tanh of Sigmoid": "s = Sigmoid(x) y = Tanh(s)",
    "LeakyRelu of Sigmoid": "s = Sigmoid(x) y = LeakyRelu<alpha = -1.0>(s)",
    "Elu of a norm": "axis = Constant<value_ints = [1]>() n = ReduceL2(x, axis) y = Elu(n)",
    "Gelu of the negative of Softplus": "s = Softplus(x) n = Neg(s) y = Gelu(n)",
    "negative head of Relu": "r = Relu(x) w = Constant<value = float[1,1] {-2.0}>() y = MatMul(r, w)",
}
HEAD = '<domain: "f", opset_import: ["": 20]> Head (X) => (Y) { Y = Sigmoid(X) }'
SCORES = {
    "the score itself": "y = Identity(x)",
    "Tanh": "y = Tanh(x)",
    "LeakyRelu": "y = LeakyRelu(x)",
    "Clip around 0": "a = Constant<value_float = -1.0>() b = Constant<value_float = 1.0>() y = Clip(x, a, b)",
    "Sigmoid, less one half": "h = Constant<value_float = 0.5>() s = Sigmoid(x) y = Sub(s, h)",
    "head with a bias below": "w = Constant<value = float[1,1] {1.0}>() "
    "b = Constant<value = float[1] {-0.25}>() s = Sigmoid(x) y = Gemm(s, w, b)",
    "difference of two Sigmoids": f"{TWO} w = Constant<value = float[2,1] {{1.0, -1.0}}>() y = MatMul(p, w)",
    "Elu of the score": "y = Elu(x)",
    "LeakyRelu of numbers below 0, and more": "s = Sigmoid(x) n = Neg(s) l = LeakyRelu<alpha = -2.0>(n) "
    "one = Constant<value_float = 1.0>() y = Sub(l, one)",
    "head of Tanh": "w = Constant<value = float[1,1] {2.0}>() t = Tanh(x) y = MatMul(t, w)",
    "head of Relu and its mirror": "r = Relu(x) n = Neg(x) m = Relu(n) y = Sub(r, m)",
}


def network(end: str) -> ModelProto:
    return model(f"g (float[N, 1] x) => (float[N, 1] y) {{ {end} }}{HEAD}", imports={"f": 1})


@pytest.mark.parametrize("end", ENDS)
def test_it_gets_no_label(end: str) -> None:
    session = CertifiedSession(network(ENDS[end]).SerializeToString(), certify="network")
    assert not session.classes
    with pytest.raises(Refused, match="LIP019") as refused:
        session.predict(X)
    assert "never changes sign" in refused.value.refusals[0].message
    assert session.output_band(1.0) >= session.lipschitz_bound


@pytest.mark.parametrize("end", SCORES)
def test_a_score_keeps_its_label(end: str) -> None:
    session = CertifiedSession(network(SCORES[end]).SerializeToString(), certify="network")
    prediction = session.predict(X)
    (values,) = session.run(None, {"x": X})
    np.testing.assert_array_equal(prediction.label, values[:, 0] > 0)


def test_of_several_probabilities_the_largest_is_the_class() -> None:
    rows = np.float32([[0.0, 1.0, -1.0], [2.0, 0.5, 0.25]])
    proto = model("g (float[N, 3] x) => (float[N, 3] y) { y = Softmax(x) }")
    prediction = CertifiedSession(proto.SerializeToString()).predict(rows)
    np.testing.assert_array_equal(prediction.label, rows.argmax(axis=1))
    assert prediction.certified.all()
