"""The semantic digest: one number for what a model means, whatever its doc strings, producer or storage form.

It serves ``diff`` and ``--baseline``. Integrity is another matter: that compares the digests of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

CLASS_NAMES_KEY = "lipdeploy.class_names"


def semantic_sha256(proto: ModelProto) -> str:
    """SHA-256 over a canonical walk: operator sets, functions, inputs and outputs, nodes, weights, class names."""
    sink = hashlib.sha256()
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    _put(sink, "opsets", sorted(opsets.items()))
    for function in sorted(proto.functions, key=lambda f: (f.domain, f.name)):
        _function(sink, function, opsets)
    _graph(sink, proto.graph, opsets)
    names = [entry.value for entry in proto.metadata_props if entry.key == CLASS_NAMES_KEY]
    _put(sink, "class names", names)
    return sink.hexdigest()


def _put(sink: Any, *parts: object) -> None:
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        sink.update(len(data).to_bytes(8, "little"))
        sink.update(data)


def _function(sink: Any, function: FunctionProto, opsets: dict[str, int]) -> None:
    _put(sink, "function", function.domain, function.name, list(function.input), list(function.output))
    _put(sink, sorted(function.attribute), sorted((e.domain, e.version) for e in function.opset_import))
    for node in function.node:
        _node(sink, node, opsets)


def _graph(sink: Any, graph: GraphProto, opsets: dict[str, int]) -> None:
    for label, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            _put(sink, label, _signature(value))
    for tensor in sorted(graph.initializer, key=lambda t: t.name):
        _tensor(sink, tensor)
    for node in graph.node:
        _node(sink, node, opsets)


def _signature(value: ValueInfoProto) -> tuple[object, ...]:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return value.name, tensor.elem_type, dims


def _tensor(sink: Any, tensor: onnx.TensorProto) -> None:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, onnx.checker.ValidationError):
        # Only a node that the output does not depend on can carry such a tensor; its bytes still count.
        _put(sink, "malformed tensor", tensor.SerializeToString(deterministic=True))
        return
    numeric = array.dtype != object
    data = array.astype(array.dtype.newbyteorder("<")).tobytes() if numeric else repr(array.tolist()).encode()
    _put(sink, "tensor", tensor.name, tensor.data_type, list(array.shape), data)


def _node(sink: Any, node: NodeProto, opsets: dict[str, int]) -> None:
    _put(sink, "node", node.domain or "ai.onnx", node.op_type, list(node.input), list(node.output))
    given = {attribute.name: attribute for attribute in node.attribute}
    for attribute in _defaults(node, opsets):
        given.setdefault(attribute.name, attribute)
    for name in sorted(given):
        _attribute(sink, given[name], opsets)


def _defaults(node: NodeProto, opsets: dict[str, int]) -> Iterable[AttributeProto]:
    domain = node.domain if node.domain != "ai.onnx" else ""
    version = opsets.get(domain or "ai.onnx", 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # no such operator, or a version that is no version
        return []
    return [a.default_value for a in schema.attributes.values() if a.default_value.type != AttributeProto.UNDEFINED]


def _attribute(sink: Any, attribute: AttributeProto, opsets: dict[str, int]) -> None:
    _put(sink, "attribute", attribute.name, attribute.type, attribute.ref_attr_name)
    if attribute.type == AttributeProto.TENSOR:
        _tensor(sink, attribute.t)
    elif attribute.type == AttributeProto.GRAPH:
        _graph(sink, attribute.g, opsets)
    elif attribute.type == AttributeProto.FLOAT:
        _put(sink, float(attribute.f).hex())
    elif not attribute.ref_attr_name:
        _put(sink, attribute.SerializeToString(deterministic=True))
