"""A file of opset 16 with a Gelu, which came with opset 20: no runtime loads it, and yet a bound of it was proven.

A gate that lets it pass says "proven" about a file that means nothing, or what a lenient runtime makes of it.
"""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from lipdeploy.verify import verify
from lipdeploy.verify.graph import OPSETS
from lipdeploy.verify.rules import RULES

YOUNG = [op for domain, op in RULES if not domain and not onnx.defs.has(op, OPSETS[0])]


def model(opset: int, body: str, size: str = "4") -> onnx.ModelProto:
    head = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,3,{size}] x) => (float y)'
    return parser.parse_model(f"{head} {{ {body} }}")


def test_there_are_such_operators() -> None:
    assert {"Gelu", "HardSwish", "Mish"} <= set(YOUNG)


@pytest.mark.parametrize("op", YOUNG)
@pytest.mark.parametrize("opset", OPSETS)
def test_only_where_the_opset_has_it(op: str, opset: int) -> None:
    made = model(opset, f"y = {op}(x)")
    verdict = verify(made.SerializeToString())
    if onnx.defs.has(op, opset):
        assert verdict.status == "verified"
        return
    (refusal,) = verdict.refusals
    first = min(later for later in OPSETS if onnx.defs.has(op, later))
    assert (refusal.code, refusal.op) == ("LIP020", op)
    assert refusal.message == f"opset {opset} has no operator {op}"
    assert refusal.hint == f"export in opset {first} or later"
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(made)


@pytest.mark.parametrize("size", ["height, width", "4"])
def test_behind_others_and_on_images_of_open_size(size: str) -> None:
    (refusal,) = verify(model(17, "a = Relu(x) h = Mish(a) y = Neg(h)", size).SerializeToString()).refusals
    assert refusal.code == "LIP020"


def test_a_constant_that_the_opset_does_not_compute() -> None:
    body = "c = Constant<value_floats = [1.0]>() g = Gelu(c) y = Add(x, g)"
    assert verify(model(16, body).SerializeToString()).status == "refused"
