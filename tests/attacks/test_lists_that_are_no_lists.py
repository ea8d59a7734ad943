"""Lists of axes or sizes that are stored as matrices or single numbers, flags that are lists: files that do not run.

Their bounds were proven all the same, and a gate said so of a program that does not exist.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

from lipdeploy.verify import verify

TWO = np.array([2], np.int64)
#: What is given as a list (a flag: as a number) in a body that is proven and runs.
BODIES: dict[str, tuple[str, Any]] = {
    "axes": ("y = ReduceSum(x, given)", [2]),
    "a new axis": ("y = Unsqueeze(x, given)", [2]),
    "a lost axis": ("u = Unsqueeze(x, two) y = Squeeze(u, given)", [2]),
    "a shape": ("f = Reshape(x, given) y = Flatten(f)", [0, 3, -1]),
    "a larger shape": ("y = Expand(x, given)", [4]),
    "repeats": ("y = Tile(x, given)", [1, 2, 1]),
    "pads": ("y = Pad(x, given)", [0, 0, 0, 0, 1, 1]),
    "pieces": ("a, b = Split<axis = 2>(x, given) y = Add(a, b)", [2, 2]),
    "starts": ("y = Slice(x, given, two, two)", [0]),
    "ends": ("y = Slice(x, two, given, two)", [3]),
    "sliced axes": ("y = Slice(x, two, three, given)", [2]),
    "how many": ("y, i = TopK(x, given)", [2]),
    "in a motif": ("q = Mul(x, x) s = ReduceSum(q, given) y = Sqrt(s)", [2]),
    "a flag": ("y = Dropout(x, , given)", False),
    "a ratio": ("y = Dropout(x, given)", np.float32(0.5)),
}
SHAPES = {"number": (), "list": (-1,), "matrix": (1, -1)}
#: ONNX Runtime runs these all the same. torch writes the first, which is proven; to the others a kernel does not look.
LENIENT = {("a new axis", "number"), ("a larger shape", "number"), ("a larger shape", "matrix")}


def model(body: str, given: Any) -> ModelProto:
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3,4] x) => (float y) {{ {body} }}')
    stored = {"given": np.asarray(given), "two": TWO, "three": TWO + 1}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return made


def runs(made: ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((1, 3, 4), np.float32)})
    except Exception as error:
        assert type(error).__module__.startswith("onnxruntime"), error
        return False
    return True


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BODIES)
def test_only_what_runs_is_proven(name: str, shape: str) -> None:
    body, numbers = BODIES[name]
    given = np.asarray(numbers)
    if given.size > 1 and shape == "number":
        given = given[-1:]
    made = model(body, given.reshape(SHAPES[shape]))
    verdict = verify(made.SerializeToString())
    right = shape == ("list" if np.ndim(numbers) else "number")
    assert (verdict.status == "verified") == (right or (name, shape) == ("a new axis", "number"))
    assert runs(made) == (right or (name, shape) in LENIENT)
    if verdict.status == "refused":
        assert {refusal.code for refusal in verdict.refusals} <= {
            "LIP013",
            "LIP010",
        }  # the latter for a part of a motif


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.5, 1.0, 1.5])
def test_a_ratio_that_is_none(ratio: float) -> None:
    made = model("y = Dropout(x, given, off)", np.float32(ratio))
    made.graph.initializer.append(numpy_helper.from_array(np.array(False), "off"))
    assert (verify(made.SerializeToString()).status == "verified") == (0 <= ratio < 1) == runs(made)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_one_number_to_pad_with(count: int) -> None:
    made = model("y = Pad(x, pads, given)", np.ones(count, np.float32))
    made.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1]), "pads"))
    assert (verify(made.SerializeToString()).status == "verified") == (count == 1) == runs(made)
