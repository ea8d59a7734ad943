"""The float64 graph under construction: nodes, constants, known shapes and fresh names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lipdeploy.errors import Refusal, Refused

Shape = tuple[int | None, ...]
Sizes = Mapping[str, tuple[int, ...]]  # of a sample, per tensor
WITHOUT = "replace the operator; where float32 rounding is known, certify='f32' needs no float64 program"


@dataclass
class Rewriting:
    """Collects the nodes and initialisers of the new graph while the old one is walked in order.

    ``own``: the operator library's float64 products may be used (``products.py``).
    """

    opset: int
    shapes: Mapping[str, Shape]
    constants: dict[str, onnx.TensorProto]
    taken: set[str]
    own: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def shape(self, name: str, node: onnx.NodeProto) -> Shape:
        """The shape of a tensor; refuses where inference left it open."""
        if name not in self.shapes:
            raise unsupported(node, f"the shape of '{name}' could not be inferred")
        return self.shapes[name]

    def sizes(self, name: str, node: onnx.NodeProto, first: int = 1) -> tuple[int, ...]:
        """The static sizes of a tensor from axis ``first`` on; refuses dynamic ones."""
        shape = self.shape(name, node)[first:]
        if any(size is None for size in shape):
            raise unsupported(node, f"'{name}' has the dynamic shape {self.shapes[name]}")
        return tuple(size for size in shape if size is not None)

    def fresh(self, stem: str) -> str:
        """A name that nothing else in the graph has."""
        count = 0
        while f"{stem}/f64_{count}" in self.taken:
            count += 1
        name = f"{stem}/f64_{count}"
        self.taken.add(name)
        return name

    def constant(self, stem: str, values: Any, dtype: Any = np.float64) -> str:
        """Add an initialiser and return its name."""
        name = self.fresh(stem)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(np.asarray(values, dtype=dtype)), name)
        return name

    def integers(self, stem: str, values: Iterable[int]) -> str:
        """Add a one-dimensional int64 initialiser (axes, shapes, pads)."""
        return self.constant(stem, list(values), np.int64)

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """The array behind a name when it is an initialiser, else ``None``."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def emit(
        self, op: str, inputs: Sequence[str], output: str | None = None, *, stem: str = "", **attributes: Any
    ) -> str:
        """Append one node and return the name of its output."""
        name = output if output is not None else self.fresh(stem or inputs[0])
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def reshape(self, x: str, shape: Iterable[int], output: str | None = None, *, stem: str) -> str:
        """Append a Reshape; a 0 keeps the axis, which is how the batch axis stays dynamic."""
        return self.emit("Reshape", [x, self.integers(stem, shape)], output, stem=stem)

    def reduce(self, op: str, x: str, axes: Sequence[int], output: str, keepdims: int = 1) -> str:
        """Append a reduction; its axes are an attribute before opset 18 and an input since."""
        if self.opset < 18 and op != "ReduceSum":
            return self.emit(op, [x], output, axes=list(axes), keepdims=keepdims)
        return self.emit(op, [x, self.integers(output, axes)], output, keepdims=keepdims)

    def pad(self, x: str, begin: Sequence[int], end: Sequence[int], *, stem: str, leading: int = 2) -> str:
        """Zero-pad (or crop, where negative) the axes after the first ``leading`` ones."""
        if not any(begin) and not any(end):
            return x
        pads = [0] * leading + list(begin) + [0] * leading + list(end)
        return self.emit("Pad", [x, self.integers(stem, pads)], stem=stem)


def unsupported(node: onnx.NodeProto, why: str) -> Refused:
    """The refusal of the float64 program for one node."""
    name = node.name or (node.output[0] if node.output else "")
    return Refused([Refusal("LIP018", name, node.op_type, f"no float64 program: {why}", WITHOUT)])


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values (strings decoded)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
