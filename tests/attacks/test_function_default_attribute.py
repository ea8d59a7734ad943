"""The liar hides the slope in the default value of a function's attribute.

The body says LeakyRelu<alpha = @alpha>, the function's default for alpha is 100, the call gives none. ONNX Runtime runs
slope 100. onnx's inliner used to drop such defaults, which leaves LeakyRelu with its own default of 0.01: constant 1.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import judge, model, run

FUNCTION = (
    '<domain: "f", opset_import: ["": 20]> A <alpha: float = 100.0>(X) => (Y) { Y = '
    "LeakyRelu<alpha: float = @alpha>(X) }"
)
OUTER = (
    '<domain: "f", opset_import: ["": 20, "f": 1]> B <beta: float = 50.0>(X) => (Y) { Y = '
    "f.A<alpha: float = @beta>(X) }"
)
SILENT = '<domain: "f", opset_import: ["": 20, "f": 1]> B (X) => (Y) { Y = f.A(X) }'


@pytest.mark.parametrize(
    ("call", "functions", "slope"),
    [
        ("f.A(x)", FUNCTION, 100.0),
        ("f.A<alpha = 7.0>(x)", FUNCTION, 7.0),
        ("f.B(x)", FUNCTION + OUTER, 50.0),
        ("f.B<beta = 20.0>(x)", FUNCTION + OUTER, 20.0),
        ("f.B(x)", FUNCTION + SILENT, 100.0),
    ],
)  # fmt: skip
def test_the_default_counts(call: str, functions: str, slope: float) -> None:
    proto = model(f"g (float[N, 1] x) => (float[N, 1] y) {{ y = {call} }}{functions}", imports={"f": 1})
    verdict = judge(proto)
    if verdict.status == "refused":
        return  # no proof is sound; a proof must know the slope
    assert verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value >= slope


def test_the_runtime_runs_the_default() -> None:
    proto = model(f"g (float[N, 1] x) => (float[N, 1] y) {{ y = f.A(x) }}{FUNCTION}", imports={"f": 1})
    assert run(proto, np.array([[-1.0]], np.float32)).tolist() == [[-100.0]]
