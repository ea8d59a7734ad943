"""An operator's inlined body, run in float16, rounds after every node; the operator itself only once.

The certificate also says what a program in float16 or bfloat16 would err by. That of LinearSpline is
about a kernel that computes in float32 inside. A file with the body written out has no such inside: nothing is claimed
about it there, while float32 and float64 keep their constants.
"""

from __future__ import annotations

from onnx import TensorProto, inliner

from lipdeploy.ops import attach_functions
from tests.verify.models import judge, model

SPLINE = """g (float[N, 4] x) => (float[N, 4] y) <float[1, 5] c = {0, 0.125, -0.5, 0.25, 0.375}>
  { y = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 0.5>(x, c) }"""


def test_no_claim_about_float16() -> None:
    proto = model(SPLINE, imports={"lipdeploy": 1})
    attach_functions(proto, {TensorProto.FLOAT})
    whole, inlined = judge(proto), judge(inliner.inline_local_functions(proto))
    assert whole.lipschitz_bound == inlined.lipschitz_bound
    assert whole.numeric_error["f16"] is not None
    for program in ("f16", "bf16"):
        assert inlined.numeric_error[program] is None
    for program in ("f32", "f64"):
        assert inlined.numeric_error[program] == whole.numeric_error[program]
