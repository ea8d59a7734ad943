"""A truth value stored as 256, in a field of 32 bits: false to NumPy, which keeps eight bits, and true to ONNX Runtime.

`verify` proved 0 of a program with the constant 1. Numbers that do not fit the element type, or more bytes than there
are numbers, are refused before anybody can read them in two ways.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, parser

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from lipdeploy.verify import verify


def model(kind: int, field: str, stored: list[int] | bytes, size: int = 2) -> ModelProto:
    made = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N,2] x) => (float[N,2] y) '
        "{ c = Cast<to = 1>(q) y = Mul(x, c) }"
    )
    tensor = made.graph.initializer.add(name="q", data_type=kind, dims=[size])
    if isinstance(stored, bytes):
        tensor.raw_data = stored
    else:
        getattr(tensor, field).extend(stored)
    return made


FIT = [
    (TensorProto.BOOL, "int32_data", [1, 0]),
    (TensorProto.INT8, "int32_data", [-128, 127]),
    (TensorProto.UINT8, "int32_data", [255, 0]),
    (TensorProto.INT16, "int32_data", [-32768, 32767]),
    (TensorProto.UINT16, "int32_data", [65535, 0]),
    (TensorProto.FLOAT16, "int32_data", [0x3C00, 0x4000]),
    (TensorProto.UINT32, "uint64_data", [2**24, 0]),
    (TensorProto.UINT4, "int32_data", [0xF1]),
    (TensorProto.INT4, "int32_data", [0xF1]),
    (TensorProto.BOOL, "raw_data", b"\x01\x00"),
    (TensorProto.UINT4, "raw_data", b"\xf1"),
]
LIES = [
    (TensorProto.BOOL, "int32_data", [256, 0]),
    (TensorProto.BOOL, "int32_data", [2, -1]),
    (TensorProto.BOOL, "raw_data", b"\x02\x00"),
    (TensorProto.INT8, "int32_data", [128, 0]),
    (TensorProto.INT8, "int32_data", [-129, 0]),
    (TensorProto.UINT8, "int32_data", [256, 0]),
    (TensorProto.UINT8, "int32_data", [-1, 0]),
    (TensorProto.INT16, "int32_data", [70000, 1]),
    (TensorProto.UINT16, "int32_data", [65536, 1]),
    (TensorProto.FLOAT16, "int32_data", [65536 + 0x3C00, 0]),
    (TensorProto.BFLOAT16, "int32_data", [-1, 0]),
    (TensorProto.UINT32, "uint64_data", [2**32 + 1, 0]),
    (TensorProto.UINT4, "int32_data", [256 + 0xF1]),
    (TensorProto.INT4, "int32_data", [0x21, 0x43]),
    (TensorProto.UINT4, "raw_data", b"\x21\x00"),
    (TensorProto.INT4, "raw_data", b""),
]


@pytest.mark.parametrize(("kind", "field", "stored"), FIT)
def test_what_fits_is_the_number_that_runs(kind: int, field: str, stored: list[int] | bytes) -> None:
    data = model(kind, field, stored).SerializeToString()
    ran = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": np.ones((1, 2), "f4")})
    assert verify(data).lipschitz_bound == pytest.approx(float(np.abs(ran[0]).max()), rel=1e-12)


@pytest.mark.parametrize(("kind", "field", "stored"), LIES)
def test_what_does_not_fit_is_refused(kind: int, field: str, stored: list[int] | bytes) -> None:
    made = model(kind, field, stored)
    (refusal,) = verify(made.SerializeToString()).refusals
    assert (refusal.code, refusal.node) == ("LIP013", "q")
    inside = made.graph.node.add(op_type="Constant", output=["q"])
    inside.attribute.add(name="value", type=4).t.CopyFrom(made.graph.initializer.pop())
    made.graph.node.insert(0, made.graph.node.pop())
    assert [refusal.code for refusal in verify(made.SerializeToString()).refusals] == ["LIP013"]


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32", "network"])
def test_no_mode_answers(certify: str) -> None:
    with pytest.raises(Refused, match="LIP013"):
        CertifiedSession(model(TensorProto.BOOL, "int32_data", [256, 0]).SerializeToString(), certify=certify)


def test_numbers_in_two_fields() -> None:
    made = model(TensorProto.FLOAT, "float_data", [1, 2])
    made.graph.initializer[0].int64_data.extend([3, 4])
    (refusal,) = verify(made.SerializeToString()).refusals
    assert refusal.code == "LIP013" and "float_data and int64_data" in refusal.message


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**53) - 1])
def test_integers_that_no_float_holds(number: int) -> None:
    (refusal,) = verify(model(TensorProto.INT64, "int64_data", [number, 1]).SerializeToString()).refusals
    assert refusal.code == "LIP017"
