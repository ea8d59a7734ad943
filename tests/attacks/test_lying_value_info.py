"""The liar states shapes inside the graph that are not true: a larger pooling window, a shorter axis.

A verifier that trusts value_info divides a mean by the wrong count. Ours computes every shape itself; what the file
states about shapes of its inside or its output changes nothing. (Types that are not true: test_contradicting_types.py.)
"""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from tests.verify.models import bound, codes, model

TEXT = "g (float[N, 4] x) => (float[N, 1] y) <int64[1] a = {1}> { h = Relu(x) y = ReduceMean(h, a) }"


@pytest.mark.parametrize("stated", [[None, 4000000], ["N", 1], [4000000, 4], []])
def test_stated_shapes_change_nothing(stated: list[int | str | None]) -> None:
    proto = model(TEXT)
    honest = bound(proto)
    assert honest == pytest.approx(0.5, rel=1e-12)
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, stated))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, stated))
    assert bound(proto) == honest


@pytest.mark.parametrize("size", [None, "K", 0, -1])
def test_an_input_of_open_size_is_refused(size: int | str | None) -> None:
    proto = model(TEXT)
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size]))
    assert codes(proto) == ["LIP006"]


def test_an_input_of_unknown_rank_is_refused() -> None:
    proto = model(TEXT)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert codes(proto) == ["LIP006"]


def test_a_scalar_input_has_no_batch() -> None:
    proto = model("g (float x) => (float y) { y = Relu(x) }")
    assert codes(proto) == ["LIP005"]
