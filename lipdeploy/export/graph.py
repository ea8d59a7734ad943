"""A small editable view of one captured graph: nodes as protos, constants as arrays."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from lipdeploy.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
SCOPES = "pkg.torch.onnx.name_scopes"


class Graph:
    """Nodes in topological order, constants by name, and the static shapes that the exporter recorded."""

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.nodes: list[NodeProto] = list(proto.node)
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in proto.initializer}
        values = [*proto.input, *proto.value_info, *proto.output]
        self.shapes = {value.name: _shape(value) for value in values}
        self.outputs = [value.name for value in proto.output]
        self._collect_constant_nodes()
        self._reject_subgraphs()

    def producer(self, value: str) -> NodeProto | None:
        """The node that writes ``value``; None for inputs and constants."""
        return next((node for node in self.nodes if value in node.output), None)

    def consumers(self, value: str) -> list[NodeProto]:
        """Every node that reads ``value``."""
        return [node for node in self.nodes if value in node.input]

    def only_consumer(self, value: str) -> NodeProto | None:
        """The one node that reads ``value``; None when several do, or when it is also an output."""
        readers = self.consumers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def rank(self, value: str) -> int | None:
        """Number of axes of ``value``, where the exporter recorded it."""
        shape = self.shapes.get(value)
        return None if shape is None else len(shape)

    def add_constant(self, stem: str, value: Array) -> str:
        """Store ``value`` under a fresh name beginning with ``stem``."""
        name, count = stem, 0
        while name in self.constants or name in self.shapes:
            count += 1
            name = f"{stem}_{count}"
        self.constants[name] = value
        return name

    def replace_value(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``."""
        for node in self.nodes:
            for k, name in enumerate(node.input):
                if name == old:
                    node.input[k] = new

    def take_over(self, node: NodeProto, removed: NodeProto) -> None:
        """Remove ``removed``, a reader of ``node``, and let ``node`` write its output instead."""
        node.output[0] = removed.output[0]
        self.nodes.remove(removed)

    def prune(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def scope(self, node: NodeProto) -> str:
        """Path of the torch module that the node came from; empty for the root."""
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        names: list[str] = ast.literal_eval(scopes)
        path = names[-2] if len(names) > 1 else ""
        return strip_program(path)

    def _collect_constant_nodes(self) -> None:
        for node in [node for node in self.nodes if node.op_type == "Constant"]:
            attribute = node.attribute[0]
            value = helper.get_attribute_value(attribute)
            if attribute.name == "value":
                value = numpy_helper.to_array(value)
            elif attribute.name in ("value_float", "value_floats"):
                value = np.asarray(value, dtype=np.float32)
            elif attribute.name in ("value_int", "value_ints"):
                value = np.asarray(value, dtype=np.int64)
            else:
                raise InputError(f"the exporter wrote a constant of kind {attribute.name}, which is not a number")
            self.constants[node.output[0]] = value
            self.nodes.remove(node)

    def _reject_subgraphs(self) -> None:
        for node in self.nodes:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise InputError(
                    f"layer '{self.scope(node)}' has data-dependent control flow ({node.op_type})",
                    hint="write the forward pass without if, while or cond on tensor values",
                )


def strip_program(path: str) -> str:
    """A path inside ``Program`` as the user knows it: ``network.0.weight`` is ``0.weight``."""
    return "" if path == "network" else path.removeprefix("network.")


def attributes(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def like(node: NodeProto, op_type: str, inputs: list[str], outputs: list[str], **values: Any) -> NodeProto:
    """A standard node with the module path of ``node``."""
    made = helper.make_node(op_type, inputs, outputs, **values)
    made.metadata_props.extend(node.metadata_props)
    return made


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(_dims(value))


def _dims(value: onnx.ValueInfoProto) -> Iterator[int | None]:
    for dim in value.type.tensor_type.shape.dim:
        yield dim.dim_value if dim.HasField("dim_value") else None
