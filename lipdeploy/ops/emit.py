"""A small writer of ONNX nodes, so that function bodies read like the formulas they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

SIXTEEN_BIT = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
ELEMENT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE}) | SIXTEEN_BIT


class Emitter:
    """Collects nodes; every method adds one and returns the name of its output. Names are numbered, so repeatable.

    The names in a branch start with its own ``prefix``, because they may not repeat those around it.
    """

    def __init__(self, opset: int, prefix: str = "") -> None:
        self.opset = opset
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[object, ...], str] = {}

    def op(self, kind: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        """Add one node with one output."""
        return self.several(kind, inputs, 1, result=result, **attributes)[0]

    def several(self, kind: str, inputs: Sequence[str], count: int, result: str = "", **attributes: Any) -> list[str]:
        """Add one node with ``count`` outputs."""
        serial = len(self.nodes)
        outputs = [result] if result else [f"{self._prefix}{kind}_{serial}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def vector_of(self, *values: int) -> str:
        """A constant int64 vector."""
        return self._constant("value_ints", list(values))

    def scalar(self, value: int) -> str:
        """A constant int64 scalar."""
        return self._constant("value_int", value)

    def real(self, value: float) -> str:
        """A constant float32 scalar."""
        return self._constant("value_float", value)

    def attribute(self, name: str, *, kind: str = "int") -> str:
        """The function's own attribute ``name`` as a scalar tensor."""
        key = ("reference", name)
        if key not in self._constants:
            output = self.op("Constant")
            reference = onnx.AttributeProto(name=f"value_{kind}", ref_attr_name=name)
            reference.type = onnx.AttributeProto.FLOAT if kind == "float" else onnx.AttributeProto.INT
            self.nodes[-1].attribute.append(reference)
            self._constants[key] = output
        return self._constants[key]

    def vector(self, scalar: str) -> str:
        """A scalar as a vector of one element."""
        return self.op("Reshape", scalar, self.vector_of(1))

    def reduce_max(self, tensor: str, axis: int) -> str:
        """Maximum along one axis, which stays with size 1. The axes moved from attribute to input in opset 18."""
        if self.opset >= 18:
            return self.op("ReduceMax", tensor, self.vector_of(axis), keepdims=1)
        return self.op("ReduceMax", tensor, axes=[axis], keepdims=1)

    def product(self, sizes: str) -> str:
        """Product of a possibly empty vector of integers, as a vector of one element."""
        padded = self.op("Concat", self.vector_of(1), sizes, axis=0)
        if self.opset >= 18:
            return self.op("ReduceProd", padded, self.vector_of(0), keepdims=1)
        return self.op("ReduceProd", padded, axes=[0], keepdims=1)

    def _constant(self, attribute: str, value: Any) -> str:
        key = (attribute, repr(value))
        if key not in self._constants:
            self._constants[key] = self.several("Constant", [], 1, **{attribute: value})[0]
        return self._constants[key]


def enter(e: Emitter, tensor: str, element_types: frozenset[int]) -> str:
    """The tensor in the type that the body computes in: 16-bit types compute in float32."""
    if not element_types & SIXTEEN_BIT:
        return tensor
    if TensorProto.DOUBLE in element_types:
        raise ValueError(
            "one file uses a lipdeploy operator in float64 and in a 16-bit type; no single body serves both"
        )
    return e.op("Cast", tensor, to=TensorProto.FLOAT)


def leave(e: Emitter, tensor: str, element_types: frozenset[int]) -> None:
    """Give the result, in the type of ``X``, the name ``Y``."""
    if element_types & SIXTEEN_BIT:
        e.op("CastLike", tensor, "X", result="Y")
    else:
        e.op("Identity", tensor, result="Y")
