"""The liar defines a harmless function under the name of a kernel that our own library keeps for itself.

The float64 program uses kernels of the domain ``lipdeploy.f64``. A file that defines ``lipdeploy.f64.Gemm`` as the
identity would be judged by that body, while ONNX Runtime, with our library registered, runs the kernel: proven 1,
and the program multiplies by 100. No function may live in a domain below ours.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from lipdeploy.runtime import find_library
from lipdeploy.verify import verify

LIE = """<ir_version: 10, opset_import: ["": 20, "{domain}": 1]>
g (double[N, 8] x) => (double[N, 8] y) {{ y = {domain}.Gemm(x, W, b) }}
<opset_import: ["": 20], domain: "{domain}">
Gemm (X, W, B) => (Y) {{ Y = Identity(X) }}
"""


def lie(domain: str) -> bytes:
    model = onnx.parser.parse_model(LIE.format(domain=domain))
    weight = (np.eye(8) * 100).reshape(1, 8, 8)
    model.graph.initializer.extend([numpy_helper.from_array(weight, "W"), numpy_helper.from_array(np.zeros(8), "b")])
    return model.SerializeToString()


@pytest.mark.parametrize("domain", ["lipdeploy.f64", "lipdeploy.anything"])
def test_a_function_in_a_domain_of_ours(domain: str) -> None:
    verdict = verify(lie(domain))
    assert verdict.status == "refused"
    assert [refusal.code for refusal in verdict.refusals] == ["LIP008"]


def test_a_function_elsewhere_is_judged_by_its_body() -> None:
    assert verify(lie("lipdeployed")).lipschitz_bound == 1.0


def test_the_runtime_really_prefers_the_kernel() -> None:
    """Without the refusal the lie works: this is why it is there."""
    library = find_library()
    if library is None:
        pytest.skip("the operator library is not built")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library.path))
    session = onnxruntime.InferenceSession(lie("lipdeploy.f64"), options, providers=["CPUExecutionProvider"])
    point = np.zeros((1, 8))
    point[0, 0] = 1.0
    assert session.run(None, {"x": point})[0][0, 0] == 100.0
