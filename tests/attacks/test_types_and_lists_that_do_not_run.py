"""Files that no runtime loads or runs: an operator on a type that it is not defined for, a list that is a matrix.

Their bounds were proven all the same, and a gate said so of a program that does not exist.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

from lipdeploy.verify import verify


def model(kind: str, body: str, opset: int = 17) -> ModelProto:
    head = f'<ir_version: 8, opset_import: ["": {opset}]> g ({kind}[N,3,4] x) => ({kind} y)'
    return parser.parse_model(f"{head} {{ {body} }}")


def runs(made: ModelProto, dtype: type) -> bool:
    try:
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((2, 3, 4), dtype)})
    except Exception as error:
        assert type(error).__module__.startswith("onnxruntime"), error
        return False
    return True


def refusals(made: ModelProto) -> list[str]:
    return [refusal.code for refusal in verify(made.SerializeToString()).refusals]


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_an_operator_that_is_not_defined_for_the_type(opset: int) -> None:
    in_float, in_double = model("float", "y = Celu(x)", opset), model("double", "y = Celu(x)", opset)
    assert (refusals(in_float), runs(in_float, np.float32)) == ([], True)
    assert (refusals(in_double), runs(in_double, np.float64)) == (["LIP013"], False)


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ("y = ReduceSum(x, list)", [2]),
        ("u = Unsqueeze(x, list) y = Relu(u)", [2]),
        ("y = Reshape(x, list)", [0, 12]),
        ("y = Expand(x, list)", [2, 1, 1]),
        ("y = Tile(x, list)", [1, 2, 1]),
        ("y = Pad(x, list)", [0, 0, 0, 0, 1, 1]),
        ("a, b = Split<axis = 2>(x, list) y = Add(a, b)", [2, 2]),
        ("y = Slice(x, list, two)", [0]),
    ],
)
def test_a_list_that_is_a_matrix(body: str, numbers: list[int]) -> None:
    codes = {}
    for shape in ((-1,), (1, -1)):
        made = model("float", body)
        stored = np.array(numbers, np.int64).reshape(shape)
        made.graph.initializer.append(numpy_helper.from_array(stored, "list"))
        made.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "two"))
        codes[stored.ndim] = refusals(made)
        if stored.ndim == 2:
            assert runs(made, np.float32) == ("Expand" in body)  # that kernel does not look at the shape
    assert "LIP013" not in codes[1]
    assert codes[2] == ["LIP013"]
