"""The liar lists a weight among the graph's inputs as well.

Then it is only a default: whoever calls the model may hand in another value, and the certified weight never runs.
Refused (LIP013), like sparse weights and two weights of one name.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.verify.models import codes, run, session, single


def test_a_weight_that_callers_may_replace() -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2]))
    hundred = {"x": np.ones((1, 2), np.float32), "c": np.full(2, 100, np.float32)}
    assert session(proto).run(None, hundred)[0].tolist() == [[100.0, 100.0]]
    assert codes(proto) == ["LIP013"]


def test_two_weights_of_one_name() -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    proto.graph.initializer.append(numpy_helper.from_array(np.full(2, 100, np.float32), "c"))
    assert codes(proto) == ["LIP013"]


def test_a_weight_stored_twice_in_one_tensor() -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    proto.graph.initializer[0].float_data.extend([100.0, 100.0])
    assert codes(proto) == ["LIP013"]


def test_a_sparse_weight() -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    values = numpy_helper.from_array(np.array([100.0], np.float32), "d")
    indices = numpy_helper.from_array(np.array([0], np.int64), "d_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    assert codes(proto) == ["LIP013"]


@pytest.mark.parametrize("twice", ["x", "c"])
def test_a_name_that_a_node_defines_again(twice: str) -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    proto.graph.node.insert(0, helper.make_node("Identity", ["x"], [twice]))
    assert codes(proto) == ["LIP013"]


def test_the_ordinary_weight_runs() -> None:
    assert run(single("Mul", (2,), {"c": np.ones(2, np.float32)}), np.ones((1, 2), np.float32)).tolist() == [[1.0, 1.0]]
