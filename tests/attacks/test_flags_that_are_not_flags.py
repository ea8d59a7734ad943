"""The liar writes 2 where a flag is 0 or 1.

ONNX Runtime asks whether keepdims equals 1, a careless rule whether it is not 0. ReduceMax<keepdims = 2> of (N, 2)
is then (N, 1) for the rule and (N,) for the runtime, and subtracting it from x broadcasts along the batch: with two
samples each one gets the maximum of the other. Any flag that is neither 0 nor 1 is refused. (Found by comparing shapes
on mutated files: tests/properties/test_mutations.py.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.verify.models import codes, model, run, single

TEXT = "g (float[N, 2] x) => (float[N, 2] y) <int64[1] a = {1}> { m = ReduceMax<keepdims = 2>(x, a) y = Sub(x, m) }"


def test_the_lie_mixes_the_batch() -> None:
    x = np.array([[0.0, 0.0], [0.0, 100.0]], np.float32)
    assert run(model(TEXT), x)[0].tolist() == [0.0, -100.0], "sample 0 is all zero; the 100 is sample 1's"
    assert set(codes(model(TEXT))) <= {"LIP002", "LIP013"}


STATISTICS = {name: np.ones(2, np.float32) for name in "sbmv"}
FLAGS: list[tuple[str, tuple[int, ...], dict[str, Any], str, dict[str, Any]]] = [
    ("ReduceSum", (2, 3), {"a": np.array([1])}, "keepdims", {}),
    ("ReduceMean", (2, 3), {"a": np.array([1])}, "keepdims", {}),
    ("ReduceMax", (2, 3), {"a": np.array([1])}, "noop_with_empty_axes", {}),
    ("TopK", (4,), {"k": np.array([2])}, "sorted", {}),
    ("TopK", (4,), {"k": np.array([2])}, "largest", {}),
    ("Reshape", (4,), {"s": np.array([-1, 2, 2])}, "allowzero", {}),
    ("Gemm", (2,), {"W": np.eye(2, dtype=np.float32)}, "transA", {}),
    ("Gemm", (2,), {"W": np.eye(2, dtype=np.float32)}, "transB", {}),
    ("MaxPool", (1, 4), {}, "ceil_mode", {"kernel_shape": [2]}),
    ("MaxPool", (1, 4), {}, "storage_order", {"kernel_shape": [2]}),
    ("AveragePool", (1, 4), {}, "ceil_mode", {"kernel_shape": [2]}),
    ("AveragePool", (1, 4), {}, "count_include_pad", {"kernel_shape": [2], "pads": [1, 1]}),
    ("BatchNormalization", (2,), STATISTICS, "training_mode", {}),
]


@pytest.mark.parametrize("value", [2, -1, 2**31, 2**32])
@pytest.mark.parametrize("case", FLAGS, ids=lambda case: f"{case[0]}.{case[3]}")
def test_a_flag_is_zero_or_one(case: Any, value: int) -> None:
    operator, shape, constants, flag, attributes = case
    proto = single(operator, shape, constants, **attributes, **{flag: value})
    if operator == "TopK":
        proto.graph.node[0].output.append("indices")
    assert set(codes(proto)) <= {"LIP002", "LIP009", "LIP005", "LIP013"}
