"""The liar ships a function named lipdeploy.GroupSort whose body multiplies by nine.

With our operator library the runtime sorts, and the constant 1 is true. Without it, ONNX Runtime inlines the function
of the file, and the certified network moves nine times as far. The verifier generates the operator's body itself and
compares bytes (LIP007); a body for an operator that the graph does not use is refused too.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lipdeploy.ops import attach_functions
from tests.verify.models import bound, codes, model, run

GRAPH = "g (float[N, 2] x) => (float[N, 2] y) { y = lipdeploy.GroupSort<group_size = 2>(x) }"
LIE = '<domain: "lipdeploy", opset_import: ["": 20]> GroupSort (X) => (Y) { Y = LeakyRelu<alpha = 9.0>(X) }'


def honest() -> onnx.ModelProto:
    proto = model(GRAPH, imports={"lipdeploy": 1})
    attach_functions(proto, {TensorProto.FLOAT})
    return proto


def test_the_lie_runs_without_the_library() -> None:
    lie = model(GRAPH + LIE, imports={"lipdeploy": 1})
    assert run(lie, np.array([[-1.0, 0.0]], np.float32)).tolist() == [[-9.0, 0.0]]
    assert codes(lie) == ["LIP007"]


def test_the_honest_body_is_accepted() -> None:
    assert bound(honest()) == 1.0


@pytest.mark.parametrize("detail", ["doc string", "extra node", "attribute", "reordered", "metadata", "opset", "input"])
def test_every_byte_of_the_body_counts(detail: str) -> None:
    proto = honest()
    function = proto.functions[0]
    if detail == "doc string":
        function.doc_string = "sorts"
    elif detail == "extra node":
        function.node.append(helper.make_node("Identity", ["Y"], ["unused"]))
    elif detail == "attribute":
        function.attribute.append("scale")
    elif detail == "reordered":
        first = onnx.NodeProto()
        first.CopyFrom(function.node[0])
        del function.node[0]
        function.node.append(first)
    elif detail == "metadata":
        entry = function.metadata_props.add()
        entry.key, entry.value = "k", "v"
    elif detail == "opset":
        function.opset_import[0].version = 19
    else:
        function.input.append("Z")
    assert "LIP007" in codes(proto)


def test_a_body_for_an_unused_operator_is_refused() -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }" + LIE, imports={"lipdeploy": 1})
    assert codes(proto) == ["LIP007"]


def test_a_body_for_an_operator_that_does_not_exist_is_refused() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) z = lipdeploy.Twice(x) }"
    proto = model(text + LIE.replace("GroupSort", "Twice"), imports={"lipdeploy": 1})
    assert codes(proto) == ["LIP007"]


def test_a_missing_or_other_version_of_the_domain_is_refused() -> None:
    for versions in ({}, {"lipdeploy": 2}, {"lipdeploy": 0}):
        proto = model(GRAPH, imports={"lipdeploy": 1})
        proto.opset_import.pop()
        proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
        assert codes(proto) == ["LIP020"]


@pytest.mark.parametrize("version", [0, 2, 1000])
def test_an_import_counts_only_where_it_is_used(version: int) -> None:
    """ONNX Runtime writes every operator set that its process knows, ours as version 1000 (seen with 1.31)."""
    plain = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", imports={"lipdeploy": version})
    assert bound(plain) >= 1
    imports = f'opset_import: ["": 20, "lipdeploy": {version}]'
    block = f'<domain: "f", {imports}> Block (x) => (y) {{ y = lipdeploy.GroupSort<group_size = 2>(x) }}'
    assert "LIP020" in codes(model(GRAPH, imports={"lipdeploy": version}))
    called = "g (float[N, 2] x) => (float[N, 2] y) { y = f.Block(x) }" + block
    assert "LIP020" in codes(model(called, imports={"lipdeploy": version, "f": 1}))


def test_the_lie_hides_behind_another_function() -> None:
    """A foreign function calls our operator; after inlining the lying body would be what runs."""
    text = (
        "g (float[N, 2] x) => (float[N, 2] y) { y = f.Block(x) }"
        '<domain: "f", opset_import: ["": 20, "lipdeploy": 1]> Block (X) => (Y) { Y = lipdeploy.GroupSort(X) }'
    )
    assert codes(model(text + LIE, imports={"lipdeploy": 1, "f": 1})) == ["LIP007"]
