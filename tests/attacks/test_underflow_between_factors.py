"""The liar multiplies by tiny numbers until the verifier's float64 underflows, and by huge ones afterwards.

In the real network the factors cancel. Where motifs multiply the stored numbers out, a relative error per product was
counted (or none, for powers of two), but a subnormal product loses its last bits or all of them, and the factors that
follow blow that up: 5x/4 became x, and a whole residual branch vanished. Products that small prove nothing now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.verify.models import bound

SIZE = 4


class _Graph:
    def __init__(self, dtype: type[np.floating]) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def constant(self, value: object) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(value, self.dtype), name))
        return name

    def add(self, op: str, *inputs: str) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"t{len(self.nodes)}"]))
        return f"t{len(self.nodes) - 1}"

    def times(self, name: str, exponents: Sequence[int]) -> str:
        for exponent in exponents:
            name = self.add("Mul", name, self.constant(2.0**exponent))
        return name

    def model(self, output: str) -> onnx.ModelProto:
        kind = TensorProto.DOUBLE if self.dtype is np.float64 else TensorProto.FLOAT
        self.nodes[-1].output[0] = "y"
        assert output == f"t{len(self.nodes) - 1}"
        ends = [helper.make_tensor_value_info(name, kind, ["N", SIZE]) for name in ("x", "y")]
        graph = helper.make_graph(self.nodes, "g", ends[:1], ends[1:], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


#: Exponents that add up to −1074 (then +1074), and to +1120 (then −1020), each within the type's range.
DOWN = {np.float64: (-1000, -74, 1000, 74), np.float32: (*[-149] * 7, -31, *[127] * 8, 58)}
UP = {np.float64: (1000, 120, -1000, -20), np.float32: (*[112] * 10, *[-102] * 10)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_blocks(dtype: type[np.floating]) -> None:
    """y = 5x/4 − relu(x), whose 5/4 went through 2⁻¹⁰⁷⁴·5/4: where x < 0 the slope is 5/4, and 1 was proven."""
    graph = _Graph(dtype)
    five = "x"
    for _ in range(4):
        five = graph.add("Add", five, "x")
    straight = graph.times(graph.add("Mul", five, graph.constant(0.25)), DOWN[dtype])
    assert bound(graph.model(graph.add("Sub", straight, graph.add("Relu", "x")))) >= 1.25


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_linear_residual(dtype: type[np.floating]) -> None:
    """y = x + 5x/4 through a matrix of 2⁻¹⁰⁰·5/4: the factors were multiplied from the last one on, and gave zero."""
    graph = _Graph(dtype)
    weight = graph.constant(1.25 * 2.0**-100 * np.eye(SIZE))
    branch = graph.times(graph.add("MatMul", "x", weight), UP[dtype])
    assert bound(graph.model(graph.add("Add", "x", branch))) >= 2.25


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_residual_layer(dtype: type[np.floating]) -> None:
    """y = x + relu(x)·5/4, which a vanished outer matrix made 1-Lipschitz."""
    graph = _Graph(dtype)
    inner = graph.add("Relu", graph.add("MatMul", "x", graph.constant(np.eye(SIZE))))
    branch = graph.times(graph.add("MatMul", inner, graph.constant(1.25 * 2.0**-100 * np.eye(SIZE))), UP[dtype])
    assert bound(graph.model(graph.add("Add", "x", branch))) >= 2.25


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ordinary_factors_still_help(dtype: type[np.floating]) -> None:
    """y = x − 2·(x/4) is x/2."""
    graph = _Graph(dtype)
    branch = graph.times(graph.add("MatMul", "x", graph.constant(np.eye(SIZE) / 4)), (3, -2))
    assert bound(graph.model(graph.add("Sub", "x", branch))) == pytest.approx(0.5, rel=1e-6)
