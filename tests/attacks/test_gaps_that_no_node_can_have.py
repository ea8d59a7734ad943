"""The liar leaves out an operand of a sum, or a piece of a Split.

The standard calls neither optional. ONNX Runtime loads such files, reads or writes what is not there, and takes the
process with it: a model that passed the gate could end every server that loads it.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from lipdeploy import CertifiedSession, Refused
from tests.verify.models import codes, judge

RUN = """import sys, numpy, onnxruntime as r; r.set_default_logger_severity(4)
r.InferenceSession(sys.stdin.buffer.read()).run(None, {"x": numpy.zeros((1, 4), numpy.float32)})"""
GAPS = [
    ("Sum", ["x", ""], ["y"], {}),
    ("Max", ["x", ""], ["y"], {}),
    ("Min", ["x", "", "x"], ["y"], {}),
    ("Split", ["x"], ["y", ""], {"axis": 1}),
    ("Split", ["x"], ["", "y"], {"axis": 1}),
]


def one_node(op: str, inputs: list[str], outputs: list[str], opset: int = 13, **given: int) -> ModelProto:
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["N", 4]), ("y", None))
    )
    graph = helper.make_graph([helper.make_node(op, inputs, outputs, **given)], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(("op", "inputs", "outputs", "given"), [*GAPS, ("Concat", ["x", "", "x"], ["y"], {"axis": 1})])
def test_gaps_are_refused(op: str, inputs: list[str], outputs: list[str], given: dict[str, int], opset: int) -> None:
    proto = one_node(op, inputs, outputs, opset, **given)
    assert codes(proto) == ["LIP002"]
    with pytest.raises(Refused, match="LIP002"):
        CertifiedSession(proto.SerializeToString())


def test_what_is_optional_may_be_left_out() -> None:
    proto = one_node("Dropout", ["x", "", ""], ["y", ""])
    assert judge(proto).status == "verified"
    assert CertifiedSession(proto.SerializeToString()).predict(np.eye(4, dtype=np.float32)).label.tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(("op", "inputs", "outputs", "given"), GAPS[:1] + GAPS[3:4])
def test_the_lie_is_real(op: str, inputs: list[str], outputs: list[str], given: dict[str, int]) -> None:
    data = one_node(op, inputs, outputs, **given).SerializeToString()
    assert subprocess.run([sys.executable, "-c", RUN], input=data, check=False, capture_output=True).returncode < 0
