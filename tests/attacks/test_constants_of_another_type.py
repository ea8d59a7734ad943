"""Stored numbers of a type that their operator does not take: float64 weights beside float32 activations, int32 axes.

A runtime that converted them would run other weights than those that were proven. ONNX Runtime loads no such file, and
no mode answers for it from its float64 program alone, in which all types are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from lipdeploy import CertifiedSession
from lipdeploy.errors import InputError

WEIGHTS = np.arange(24).reshape(12, 2) / 100
FILES = {
    "weights in float64": ("f = Flatten(x) y = MatMul(f, w)", {"w": WEIGHTS}),
    "weights in float16": ("f = Flatten(x) y = MatMul(f, w)", {"w": WEIGHTS.astype(np.float16)}),
    "a factor in float64": (
        "z = Mul(x, c) f = Flatten(z) y = MatMul(f, w)",
        {"w": WEIGHTS.astype(np.float32), "c": np.array(2.0 + 2**-40)},
    ),
    "axes in int32": (
        "z = ReduceSum<keepdims = 0>(x, a) y = MatMul(z, w)",
        {"w": WEIGHTS[:3].astype(np.float32), "a": np.array([2], np.int32)},
    ),
}


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32", "network"])
@pytest.mark.parametrize("name", FILES)
def test_no_mode_answers(name: str, certify: str) -> None:
    body, stored = FILES[name]
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3,4] x) => (float[N,2] y) {{ {body} }}'
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
    with pytest.raises(InputError, match=r"stored program: ONNX Runtime cannot load the model.*Type"):
        CertifiedSession(model.SerializeToString(), certify=certify)
