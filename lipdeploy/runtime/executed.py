"""Comparing the graph that ONNX Runtime executes with the one that was verified.

ONNX Runtime may rewrite a graph while loading it (fold constants, fuse weights, move factors into attributes). Here is
the check of a graph that was loaded without any optimisation: every node must be one of the verified ones, or come from
the body of a function that the verified graph calls, and every constant and attribute must be bit for bit the verified
one. Anything else is an ``IntegrityError``. Graphs that were optimised are compared in ``optimised.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from lipdeploy.errors import IntegrityError

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
STANDARD = ("", "ai.onnx")
COPIES = frozenset({"MemcpyToHost", "MemcpyFromHost"})
HINT = "this onnxruntime version rewrites the graph; use one of the versions in docs/serving_modes.md"


@dataclass
class _Bodies:
    """What function bodies may contribute to the executed graph."""

    operators: set[tuple[str, str]] = field(default_factory=set)
    numbers: set[float] = field(default_factory=set)


def check_executed(verified: onnx.ModelProto, executed: onnx.ModelProto, what: str) -> None:
    """Raise ``IntegrityError`` unless ``executed`` computes with the nodes and numbers of ``verified`` only."""
    stored = {tensor.name: tensor for tensor in _constants(verified.graph)}
    bodies = _bodies(verified)
    for tensor in executed.graph.initializer:
        if not _is_verified(tensor, stored, bodies):
            raise IntegrityError(f"{what}: ONNX Runtime computes with a changed constant '{tensor.name}'", hint=HINT)
    _check_nodes(verified, executed, bodies, what)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            yield constant_tensor(node)


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto:
    """What a Constant node stands for; of type UNDEFINED where it is neither a tensor nor made of plain numbers."""
    tensor = onnx.TensorProto()
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            tensor.CopyFrom(attribute.t)
        elif attribute.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
            tensor = numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype=np.float32))
        elif attribute.type in (AttributeProto.INT, AttributeProto.INTS):
            tensor = numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype=np.int64))
    tensor.name = node.output[0]
    return tensor


def _is_verified(tensor: onnx.TensorProto, stored: dict[str, onnx.TensorProto], bodies: _Bodies) -> bool:
    values = numpy_helper.to_array(tensor)
    if tensor.name in stored:
        other = numpy_helper.to_array(stored[tensor.name])
        return values.dtype == other.dtype and values.shape == other.shape and values.tobytes() == other.tobytes()
    if tensor.data_type not in FLOATS:  # an index or shape inside a function body
        return bool(bodies.operators)
    return all(float(value) in bodies.numbers or value != value for value in values.ravel())


def _bodies(model: onnx.ModelProto) -> _Bodies:
    """Operators and numbers of every function that the model's nodes may be expanded into."""
    bodies, opsets = _Bodies(), opset_versions(model)
    local = {(f.domain, f.name): f for f in model.functions}
    pending, seen = list(model.graph.node), set()
    while pending:
        node = pending.pop()
        function = local.get((node.domain, node.op_type)) or _standard_body(node, opsets)
        if function is None:
            continue
        bodies.numbers.update(_numbers(node.attribute))
        key = (node.domain, node.op_type)
        if key not in seen:
            seen.add(key)
            _collect(function, bodies)
            pending.extend(function.node)
    return bodies


def _collect(function: onnx.FunctionProto, bodies: _Bodies) -> None:
    bodies.numbers.update(_numbers(function.attribute_proto))
    for node in function.node:
        bodies.operators.add((_domain(node), node.op_type))
        bodies.numbers.update(_numbers(node.attribute))
        if node.op_type == "CastLike":  # ONNX Runtime writes the Cast that the second input's type asks for
            bodies.operators.add(("", "Cast"))


def _numbers(attributes: Iterable[AttributeProto]) -> Iterator[float]:
    for attribute in attributes:
        if attribute.ref_attr_name:  # its value stands at the call
            continue
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
            yield from (float(value) for value in numpy_helper.to_array(attribute.t).ravel())
        elif attribute.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
            yield from np.atleast_1d(np.asarray(helper.get_attribute_value(attribute), dtype=np.float64)).tolist()


def opset_versions(model: onnx.ModelProto) -> dict[str, int]:
    """Operator set versions by domain."""
    return {"" if entry.domain in STANDARD else entry.domain: entry.version for entry in model.opset_import}


def _schema(node: onnx.NodeProto, opsets: dict[str, int]) -> defs.OpSchema | None:
    domain = _domain(node)
    if domain not in opsets or not defs.has(node.op_type, opsets[domain], domain):
        return None
    return defs.get_schema(node.op_type, opsets[domain], domain)


def _standard_body(node: onnx.NodeProto, opsets: dict[str, int]) -> onnx.FunctionProto | None:
    schema = _schema(node, opsets)
    return schema.function_body if schema is not None and schema.has_function else None  # type: ignore[attr-defined]


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain in STANDARD else node.domain


def _check_nodes(verified: onnx.ModelProto, executed: onnx.ModelProto, bodies: _Bodies, what: str) -> None:
    opsets = opset_versions(verified)
    nodes = [node for node in verified.graph.node if not (node.op_type == "Constant" and node.domain in STANDARD)]
    by_output = {node.output[0]: node for node in _casts_written_out(nodes, verified)}
    alias = _aliases(executed)
    missing = set(by_output)
    for node in executed.graph.node:
        known = by_output.get(node.output[0])
        missing.discard(node.output[0])
        if node.op_type in COPIES or _matches(node, known, alias, opsets):
            continue
        if not _comes_from_body(node, known, bodies, opsets, verified):
            message = f"{what}: ONNX Runtime executes {node.op_type} for '{node.output[0]}', which was not verified"
            raise IntegrityError(message, hint=HINT)
    if missing:
        raise IntegrityError(f"{what}: ONNX Runtime dropped the node of '{min(missing)}'", hint=HINT)


def _casts_written_out(nodes: Sequence[onnx.NodeProto], model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes, with the Cast that ONNX Runtime writes for a CastLike in its place."""
    types = _element_types(model) if any(map(_is_cast_like, nodes)) else {}
    for node in nodes:
        to = types.get(node.input[1]) if _is_cast_like(node) else None
        yield helper.make_node("Cast", [node.input[0]], node.output, to=to) if to else node


def _is_cast_like(node: onnx.NodeProto) -> bool:
    return node.op_type == "CastLike" and node.domain in STANDARD


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph, as far as ONNX infers it; weights are not copied for that."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)  # of operators that only the library knows
    for tensor in model.graph.initializer:
        light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph = onnx.shape_inference.infer_shapes(light).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _aliases(executed: onnx.ModelProto) -> dict[str, str]:
    """Names that copies between devices gave to a tensor → its verified name."""
    alias: dict[str, str] = {}
    for node in executed.graph.node:
        if node.op_type in COPIES:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
    return alias


def _matches(node: onnx.NodeProto, known: onnx.NodeProto | None, alias: dict[str, str], opsets: dict[str, int]) -> bool:
    if known is None or (_domain(node), node.op_type) != (_domain(known), known.op_type):
        return False
    inputs = [alias.get(name, name) for name in node.input]
    return (
        _stripped(inputs) == _stripped(known.input)
        and _stripped(node.output) == _stripped(known.output)
        and comparable_attributes(node, opsets) == comparable_attributes(known, opsets)
    )


def _stripped(names: Iterable[str]) -> list[str]:
    """Without the empty names at the end, which mean the same as nothing."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def comparable_attributes(node: onnx.NodeProto, opsets: dict[str, int]) -> dict[str, bytes]:
    """Attributes in comparable form, with the operator's defaults filled in."""
    schema = _schema(node, opsets)
    defaults = [] if schema is None else [a.default_value for a in schema.attributes.values() if a.default_value.name]
    return {a.name: _comparable(a) for a in (*defaults, *node.attribute)}


def _comparable(attribute: AttributeProto) -> bytes:
    plain = AttributeProto()
    plain.CopyFrom(attribute)
    plain.doc_string = ""
    if attribute.type == AttributeProto.TENSOR:
        values = numpy_helper.to_array(attribute.t)
        plain.t.CopyFrom(numpy_helper.from_array(values))
    data: bytes = plain.SerializeToString(deterministic=True)
    return data


def _comes_from_body(
    node: onnx.NodeProto,
    known: onnx.NodeProto | None,
    bodies: _Bodies,
    opsets: dict[str, int],
    verified: onnx.ModelProto,
) -> bool:
    """Whether a node can stem from a function body: never in place of a plain verified operator."""
    if (_domain(node), node.op_type) not in bodies.operators:
        return False
    schema = _schema(node, opsets)
    defaults = [] if schema is None else [a.default_value for a in schema.attributes.values()]
    if not set(_numbers(node.attribute)) <= bodies.numbers | set(_numbers(defaults)):
        return False
    local = {(f.domain, f.name) for f in verified.functions}
    return known is None or (known.domain, known.op_type) in local or _standard_body(known, opsets) is not None
