"""The liar stores a NaN or an infinity: comparisons with NaN are false, so a careless maximum skips it.

A NaN in a weight makes max(|w|) whatever the order of comparison makes it; an infinity times a zero row is NaN. Every
non-finite stored number is refused (LIP003), in initialisers, Constant nodes and attributes, used or not.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from tests.verify.models import codes, model, single

VALUES = [np.nan, -np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("operator", ["MatMul", "Add", "Mul", "Max", "PRelu"])
def test_in_an_operand(operator: str, value: float) -> None:
    weight = np.eye(2, dtype=np.float32)
    weight[1, 0] = value
    stored = weight if operator == "MatMul" else weight[1]
    assert "LIP003" in codes(single(operator, (2,), {"W": stored}))


@pytest.mark.parametrize("value", VALUES)
def test_in_an_initializer_that_nobody_uses(value: float) -> None:
    proto = single("Relu", (2,))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), "unused"))
    assert codes(proto) == ["LIP003"]


@pytest.mark.parametrize("value", VALUES)
def test_in_an_attribute(value: float) -> None:
    assert codes(single("LeakyRelu", (2,), alpha=value)) == ["LIP003"]
    assert codes(single("Gemm", (2,), {"W": np.eye(2, dtype=np.float32)}, alpha=value)) == ["LIP003"]


@pytest.mark.parametrize("value", VALUES)
def test_in_a_constant_node(value: float) -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) { c = Constant<value_float = 1.0>() y = Mul(x, c) }")
    proto.graph.node[0].attribute[0].f = value
    assert codes(proto) == ["LIP003"]


def test_division_by_a_stored_zero() -> None:
    for zero in (0.0, -0.0):
        assert codes(single("Div", (2,), {"c": np.array([1.0, zero], np.float32)})) == ["LIP003"]
