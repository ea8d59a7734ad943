"""A Constant whose `value_ints` are floats: read by its name it is 2, by its type 2.9.

The verifier went by the name and cut off the fraction, ONNX Runtime goes by the type. A bound of 3 was proven of a
program with the constant 3.9, and every mode of a session answered with radii to match, inside which the class changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, helper, parser

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from lipdeploy.verify import verify
from lipdeploy.verify.constants import EXACT
from lipdeploy.verify.form import check_form
from lipdeploy.verify.graph import OPSETS, Call
from lipdeploy.verify.rules import RULES

#: Constants as they should be, and the same attribute with a number of another type.
CONSTANTS = [
    ("value_int", 2, 2.9),
    ("value_int", 0, 0.9),
    ("value_int", 2, [2, 2]),
    ("value_ints", [2], [2.9]),
    ("value_float", 2.5, 2),
    ("value_floats", [2.5], [2, 2]),
    ("value_floats", [2.5], 2.5),
]


def model(name: str, value: Any, opset: int = 20, cast: str = "Cast<to = 1>(c)") -> ModelProto:
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,2] x) => (float[N,2] y) '
        f"{{ k = {cast} t = Mul(x, k) y = Add(t, x) }}"
    )
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute(name, value))
    nodes = [node, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


@pytest.mark.parametrize("cast", ["Cast<to = 1>(c)", "CastLike(c, x)"])
@pytest.mark.parametrize("opset", [15, 18, 23])
@pytest.mark.parametrize(("name", "right", "wrong"), CONSTANTS)
def test_a_constant_of_another_type(name: str, right: Any, wrong: Any, opset: int, cast: str) -> None:
    assert verify(model(name, right, opset, cast).SerializeToString()).status == "verified"
    (refusal,) = verify(model(name, wrong, opset, cast).SerializeToString()).refusals
    assert refusal.code == "LIP013" and f"'{name}'" in refusal.message


def test_what_onnx_runtime_makes_of_it() -> None:
    data = model("value_ints", [2.9]).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((1, 2), np.float32)})[0].max() == pytest.approx(3.9)


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32", "network"])
@pytest.mark.parametrize(("name", "wrong"), [("value_ints", [2.9]), ("value_int", 0.9)])
def test_no_mode_answers(name: str, wrong: Any, certify: str) -> None:
    with pytest.raises(Refused, match="LIP013"):
        CertifiedSession(model(name, wrong).SerializeToString(), certify=certify)


OTHERS = {
    AttributeProto.INT: 1.5,
    AttributeProto.FLOAT: 1,
    AttributeProto.INTS: [1.5],
    AttributeProto.FLOATS: [1],
    AttributeProto.STRING: 1,
    AttributeProto.TENSOR: 1.5,
}


@pytest.mark.parametrize("op", sorted({op for domain, op in RULES if not domain} | set(EXACT)))
def test_no_operator_takes_an_attribute_of_another_type(op: str) -> None:
    """Whatever else is wrong with the node: the attribute's type is looked at before its number."""
    for opset in (OPSETS[0], 18, OPSETS[-1]):
        if not onnx.defs.has(op, opset):
            continue
        schema = onnx.defs.get_schema(op, opset)
        for name, attribute in schema.attributes.items():
            wrong = OTHERS.get(int(attribute.type.value))
            if wrong is None:
                continue
            given = {name: helper.make_attribute(name, wrong)}
            with pytest.raises(Refused, match=f"LIP013.*attribute '{name}' has the type"):
                check_form(Call("n", op, "", opset, given, ("x",) * schema.min_input, ("y",)))
