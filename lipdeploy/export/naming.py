"""Names that people recognise: nodes by torch module path, initialisers by parameter path."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import NodeProto

from lipdeploy.export.graph import Graph, strip_program


def rename(graph: Graph) -> None:
    """Name every node, value and constant; drop the exporter's metadata."""
    scopes = [graph.scope(node) for node in graph.nodes]
    _name_outputs(graph)
    _name_constants(graph, scopes)
    _name_nodes(graph, scopes)
    _name_values(graph)
    for node in graph.nodes:
        del node.metadata_props[:]
        node.doc_string = ""


def _name_outputs(graph: Graph) -> None:
    """``output``, or ``output_0``, ``output_1`` …"""
    plain = len(graph.outputs) == 1
    names = {old: "output" if plain else f"output_{k}" for k, old in enumerate(graph.outputs)}
    _apply(graph.nodes, names)
    for value in graph.proto.output:
        value.name = names[value.name]
    graph.outputs = list(names.values())


def _name_nodes(graph: Graph, scopes: list[str]) -> None:
    """A module's path when it wrote one node, else path/OpType, counted from the second on."""
    sizes = Counter(scopes)
    taken: set[str] = set()
    for node, scope in zip(graph.nodes, scopes, strict=True):
        stem = scope if scope and sizes[scope] == 1 else "/".join(filter(None, (scope, node.op_type)))
        node.name = _unique(stem, taken)


def _name_values(graph: Graph) -> None:
    fixed = {value.name for value in (*graph.proto.input, *graph.proto.output)}
    taken = fixed | set(graph.constants)
    names: dict[str, str] = {}
    for node in graph.nodes:
        for k, value in enumerate(node.output):
            if value and value not in fixed:
                names[value] = _unique(f"{node.name}/out" if k == 0 else f"{node.name}/out{k}", taken)
    _apply(graph.nodes, names)


def _name_constants(graph: Graph, scopes: list[str]) -> None:
    """Parameters keep their path; others are called after the node and the input that they feed."""
    parameters = [name for name in graph.constants if name.startswith(("network.", "preprocess."))]
    taken: set[str] = {value.name for value in (*graph.proto.input, *graph.proto.output)}
    names = {name: _unique(_parameter_path(name), taken) for name in parameters}
    for node, scope in zip(graph.nodes, scopes, strict=True):
        for k, name in enumerate(node.input):
            if name in graph.constants and name not in names:
                stem = ".".join(filter(None, (scope, _role(node, k))))
                names[name] = _unique(stem, taken)
    graph.constants = {names[name]: value for name, value in graph.constants.items() if name in names}
    _apply(graph.nodes, names)


def _parameter_path(name: str) -> str:
    return strip_program(name).replace(".original.", ".")


def _role(node: NodeProto, position: int) -> str:
    try:
        inputs = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    except onnx.defs.SchemaError:
        return f"{node.op_type}.{position}"
    return f"{node.op_type}.{inputs[min(position, len(inputs) - 1)].name}"


def _unique(stem: str, taken: set[str]) -> str:
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def _apply(nodes: list[NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for k, value in enumerate(node.input):
            node.input[k] = names.get(value, value)
        for k, value in enumerate(node.output):
            node.output[k] = names.get(value, value)
