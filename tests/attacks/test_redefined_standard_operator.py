"""The liar defines a function called Relu in the standard domain, with a body of slope nine.

Runtimes differ in what they run then: the kernel or the body. Nothing in a standard domain may be redefined (LIP008),
whatever the spelling of the domain.
"""

from __future__ import annotations

import pytest

from tests.verify.models import codes, model

GRAPH = "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }"


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"])
def test_functions_in_reserved_domains_are_refused(domain: str) -> None:
    proto = model(f'{GRAPH}<domain: "f", opset_import: ["": 20]> Relu (X) => (Y) {{ Y = LeakyRelu<alpha = 9.0>(X) }}')
    proto.functions[0].domain = domain
    assert codes(proto) == ["LIP008"]
