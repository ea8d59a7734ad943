"""The liar's function imports another version of the standard domain than the model.

The same node can mean two things then: the rules would judge one and the runtime may run the other. LIP020, also when
the domain is spelled ai.onnx in one place and left empty in the other.
"""

from __future__ import annotations

import pytest

from tests.verify.models import codes, model

GRAPH = "g (float[N, 2] x) => (float[N, 2] y) { y = f.A(x) }"


@pytest.mark.parametrize("stated", ['"": 13', '"ai.onnx": 13', '"": 20, "ai.onnx": 13'])
def test_another_opset_is_refused(stated: str) -> None:
    text = f'{GRAPH}<domain: "f", opset_import: [{stated}]> A (X) => (Y) {{ Y = Softmax(X) }}'
    assert set(codes(model(text, imports={"f": 1}))) <= {"LIP020", "LIP008"}


@pytest.mark.parametrize("opset", [1, 7, 12, 24, 99])
def test_versions_without_rules_are_refused(opset: int) -> None:
    assert codes(model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", opset=opset)) == ["LIP020"]


def test_a_domain_imported_twice_is_refused() -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    proto.opset_import.add(domain="ai.onnx", version=13)
    assert codes(proto) == ["LIP020"]
