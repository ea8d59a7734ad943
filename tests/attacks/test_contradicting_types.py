"""Files whose element types contradict one another: float64 weights with float32 activations, int32 axes, Celu(double).

No runtime loads them, and one that converted the numbers would run other weights than those that were proven. A bound
of such a file is a statement about nothing, and a session's float64 program, in which all types are the same, says no
more. What ONNX Runtime makes of every file is asked here, beside what is proven.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from lipdeploy.ops import attach_functions
from lipdeploy.verify import verify

SINGLE = np.arange(24, dtype=np.float32).reshape(12, 2) / 100


def model(body: str, stored: dict[str, Any] | None = None, kind: str = "float", opset: int = 17) -> ModelProto:
    head = f'<ir_version: 8, opset_import: ["": {opset}, "lipdeploy": 1]> g ({kind}[N,3,4] x) => ({kind} y)'
    made = parser.parse_model(f"{head} {{ {body} }}")
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), key) for key, v in (stored or {}).items())
    if "lipdeploy." in body:
        attach_functions(made, {TensorProto.FLOAT})
    return made


def loads(made: ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        assert type(error).__module__.startswith("onnxruntime") and "type" in str(error).lower(), error
        return False
    return True


#: What is stored, in the type in which it means something, and the body that uses it.
USES: dict[str, tuple[str, dict[str, Any], str]] = {
    "weights": ("f = Flatten(x) y = MatMul(f, w)", {"w": SINGLE}, "w"),
    "bias": ("f = Flatten(x) y = Gemm(f, w, b)", {"w": SINGLE, "b": np.float32([1, 2])}, "b"),
    "a factor": ("y = Mul(x, c)", {"c": np.float32(2)}, "c"),
    "a limit": ("y = Clip(x, c)", {"c": np.float32(0.5)}, "c"),
    "an operand": ("y = Max(x, c)", {"c": np.float32([1, 2, 3, 4])}, "c"),
    "in a motif": ("q = Mul(x, x) s = ReduceSum(q, a) y = Sqrt(s)", {"a": np.array([2])}, "a"),
    "axes": ("y = ReduceSum(x, a)", {"a": np.array([2])}, "a"),
    "a shape": ("y = Reshape(x, a)", {"a": np.array([0, 12])}, "a"),
    "sizes of pieces": ("a, b = Split<axis = 2>(x, s) y = Add(a, b)", {"s": np.array([2, 2])}, "s"),
    "repeats": ("y = Tile(x, a)", {"a": np.array([1, 1, 2])}, "a"),
    "pads": ("y = Pad(x, a)", {"a": np.array([0, 0, 0, 0, 0, 1])}, "a"),
    "a fill": ("y = Pad(x, a, c)", {"a": np.array([0, 0, 0, 0, 0, 1]), "c": np.float32(1)}, "c"),
    "one of two limits": ("y = Slice(x, a, b, c)", {"a": np.array([0]), "b": np.array([2]), "c": np.array([2])}, "a"),
    "indices": ("y = Gather<axis = 2>(x, a)", {"a": np.array([1])}, "a"),
    "how many": ("y, i = TopK(x, a)", {"a": np.array([2])}, "a"),
    "scale of integers": (
        "w = DequantizeLinear(q, s) f = Flatten(x) y = MatMul(f, w)",
        {"q": np.ones((12, 2), np.int8), "s": np.float32(0.5)},
        "s",
    ),
    "zero point": (
        "w = DequantizeLinear(q, s, z) f = Flatten(x) y = MatMul(f, w)",
        {"q": np.ones((12, 2), np.int8), "s": np.float32(0.5), "z": np.int8(1)},
        "z",
    ),
    "a computed constant": ("i = Identity(c) y = Mul(x, i)", {"c": np.float32(2)}, "c"),
    "a running mean": (
        "y = BatchNormalization(x, s, s, m, v)",
        {"s": np.ones(3, np.float32), "m": np.zeros(3, np.float32), "v": np.ones(3, np.float32)},
        "v",
    ),
    "coefficients of a spline": (
        "y = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 1.0>(x, c)",
        {"c": np.float32([[-1, 0, 1]])},
        "c",
    ),
}
TYPES = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_)


@pytest.mark.parametrize("stored_as", TYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("use", USES)
def test_proven_only_what_a_runtime_loads(use: str, stored_as: type) -> None:
    body, stored, name = USES[use]
    assert verify(model(body, stored).SerializeToString()).status == "verified"
    made = model(body, {**stored, name: stored[name].astype(stored_as)})
    verdict = verify(made.SerializeToString())
    assert (verdict.status == "verified") <= loads(made)
    if not loads(made):
        assert [refusal.code for refusal in verdict.refusals] == ["LIP013"]


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
@pytest.mark.parametrize("scale", [np.float16, np.float32])
def test_dequantised_weights_have_the_type_of_their_scale(opset: int, scale: type) -> None:
    body, stored, name = USES["scale of integers"]
    made = model(body, {**stored, name: scale(0.5)}, opset=opset)
    assert (verify(made.SerializeToString()).status == "verified") == loads(made) == (scale is np.float32)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_an_operator_that_is_not_defined_for_the_type(opset: int) -> None:
    for kind, status in (("float", "verified"), ("double", "refused")):
        made = model("y = Celu(x)", kind=kind, opset=opset)
        assert verify(made.SerializeToString()).status == status
        assert loads(made) == (status == "verified")


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32", "network"])
@pytest.mark.parametrize("use", ["weights", "a factor", "axes"])
def test_no_mode_answers(use: str, certify: str) -> None:
    body, stored, name = USES[use]
    other = np.int32 if stored[name].dtype == np.int64 else np.float64
    with pytest.raises(Refused, match="LIP013"):
        CertifiedSession(model(body, {**stored, name: stored[name].astype(other)}).SerializeToString(), certify=certify)


def value(name: str, kind: int) -> Any:
    return helper.make_tensor_value_info(name, kind, None)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
@pytest.mark.parametrize("inside", [True, False])
def test_a_type_that_the_file_states(kind: int, inside: bool) -> None:
    made = model("h = Relu(x) y = Neg(h)")
    if inside:
        made.graph.value_info.append(value("h", kind))
    else:
        made.graph.output[0].CopyFrom(value("y", kind))
    (refusal,) = verify(made.SerializeToString()).refusals
    assert (refusal.code, refusal.node) == ("LIP013", "h" if inside else "y")
    assert not loads(made)
