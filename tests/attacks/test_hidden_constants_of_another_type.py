"""The lie of a Constant that holds another type than its name says, where a look at the graph's own nodes misses it.

Inside a function, a function that a function calls, a node that writes its domain out, numbers that only make a shape,
and the body of an operator of ours, attached to it or written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, inliner, parser

from lipdeploy.ops import attach_functions
from lipdeploy.verify import verify

GRAPH = '<ir_version: 10, opset_import: ["": 20, "my": 1, "lipdeploy": 1]> g (float[N,2] X) => (float[N,2] Y)'
FUNCTION = '<domain: "my", opset_import: ["": 20, "my": 1]>'
TIMES_TWO = "c = Constant<value_ints = [2]>() k = CastLike(c, X) Y = Mul(X, k)"
F = f"{FUNCTION} F (X) => (Y) {{ {TIMES_TWO} }}"
SHAPE = (
    "c = Constant<value_ints = [2]>() m = Constant<value_ints = [-1]>() s = Concat<axis = 0>(m, c) Y = Reshape(X, s)"
)
PLACES = {
    "the graph": f"{GRAPH} {{ {TIMES_TWO} }}",
    "a domain by name": f"{GRAPH} {{ {TIMES_TWO.replace('Constant', 'ai.onnx.Constant')} }}",
    "a function": f"{GRAPH} {{ Y = my.F(X) }} {F}",
    "a function's function": f"{GRAPH} {{ Y = my.G(X) }} {F} {FUNCTION} G (X) => (Y) {{ Y = my.F(X) }}",
    "a shape": f"{GRAPH} {{ {SHAPE} }}",
}
SPLINE = (
    f"{GRAPH} <float[1,3] c = {{-1, 0, 1}}> {{ Y = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 1.0>(X, c) }}"
)


def written(made: ModelProto) -> Iterator[AttributeProto]:
    """What all Constants hold, those of functions included, where it is not an attribute of the function."""
    for nodes in (made.graph.node, *(function.node for function in made.functions)):
        listed = (attribute for node in nodes if node.op_type == "Constant" for attribute in node.attribute)
        yield from (attribute for attribute in listed if not attribute.ref_attr_name)


def of_another_type(number: Any) -> Any:
    if isinstance(number, list):
        return [of_another_type(one) for one in number]
    return int(number) if isinstance(number, float) else float(number)


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands(place: str) -> None:
    made = parser.parse_model(PLACES[place])
    assert verify(made.SerializeToString()).lipschitz_bound == (1.0 if place == "a shape" else 2.0)
    lie = next(attribute for attribute in written(made) if list(attribute.ints) == [2])
    lie.CopyFrom(helper.make_attribute("value_ints", [2.9]))
    refusals = verify(made.SerializeToString()).refusals
    assert refusals[0].code == "LIP013" and "FLOATS" in refusals[0].message


@pytest.mark.parametrize("written_out", [False, True])
def test_in_the_body_of_an_operator(written_out: bool) -> None:
    """Each of its constants in turn, with the number that it had."""

    def model() -> ModelProto:
        made = parser.parse_model(SPLINE)
        attach_functions(made, {TensorProto.FLOAT})
        return inliner.inline_local_functions(made) if written_out else made

    assert verify(model().SerializeToString()).lipschitz_bound == 1.0
    count = sum(1 for _ in written(model()))
    assert count > 5
    for place in range(count):
        made = model()
        lie = list(written(made))[place]
        lie.CopyFrom(helper.make_attribute(lie.name, of_another_type(helper.get_attribute_value(lie))))
        assert verify(made.SerializeToString()).status == "refused", lie
