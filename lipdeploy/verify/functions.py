"""Model-local functions: what runs in place of an operator when our library is not there.

A function in the lipdeploy domain must be, byte for byte, the body that ``lipdeploy.ops`` generates for this file.
Any other function is judged by its inlined body; one that could shadow an operator is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import FunctionProto, ModelProto, NodeProto
from onnx.inliner import inline_selected_functions

from lipdeploy.errors import Refusal, Refused
from lipdeploy.ops import DOMAIN, OPERATORS, VERSION, function_bodies
from lipdeploy.verify.limits import MOST_CALLS_DEEP, MOST_NODES

#: Domains in which a runtime, or our own library, has kernels that would run in place of the function's body.
SHADOWED_PREFIXES = ("ai.onnx", "com.microsoft", "com.ms", "org.pytorch", f"{DOMAIN}.")

_Key = tuple[str, str]


def inlined(proto: ModelProto) -> ModelProto:
    """The model with every foreign function inlined; refuses functions that shadow operators or recurse."""
    for function in proto.functions:
        _refuse_shadowing(function)
    _refuse_duplicates(proto.functions)
    foreign = [function for function in proto.functions if function.domain != DOMAIN]
    if not foreign:
        return proto
    _refuse_growth(proto, foreign)
    _refuse_other_opsets(proto, foreign)
    _refuse_default_attributes(proto, foreign)
    try:
        return inline_selected_functions(proto, [(f.domain, f.name) for f in foreign])
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise _refused("LIP008", foreign[0].name, f"the model's functions cannot be inlined: {error}") from error


def check_bodies(proto: ModelProto, element_types: Iterable[int]) -> None:
    """Refuse (LIP007) a lipdeploy function that is not, byte for byte, the generated one."""
    stated = {function.name: function for function in proto.functions if function.domain == DOMAIN}
    if not stated and all(node.domain != DOMAIN for node in _nodes(proto.graph.node)):
        return  # imported perhaps, but of no meaning: ONNX Runtime writes every operator set that its process knows
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if versions.get(DOMAIN, VERSION) != VERSION or (stated and DOMAIN not in versions):
        raise _refused("LIP020", DOMAIN, f"opset import of '{DOMAIN}' is {versions.get(DOMAIN)}, known is {VERSION}")
    if not stated:
        return
    opset = versions.get("", versions.get("ai.onnx", 0))
    try:
        expected = {body.name: body for body in function_bodies(proto.graph, sorted(set(element_types)), opset)}
    except ValueError as error:
        raise _refused("LIP007", DOMAIN, f"no body can be generated for this file: {error}") from error
    for name, function in stated.items():
        if name not in OPERATORS:
            raise _refused("LIP007", name, f"'{DOMAIN}' has no operator of this name")
        if name not in expected:
            raise _refused("LIP007", name, "a function body for an operator that the graph does not use")
        if _bytes(function) != _bytes(expected[name]):
            raise _refused("LIP007", name, "the function's body differs from the operator's own")


def _bytes(function: FunctionProto) -> bytes:
    return bytes(function.SerializeToString(deterministic=True))


def _refuse_shadowing(function: FunctionProto) -> None:
    if not function.domain or function.domain.startswith(SHADOWED_PREFIXES):
        raise _refused("LIP008", function.name, f"is defined in the domain '{function.domain or 'ai.onnx'}'")
    if getattr(function, "overload", ""):
        raise _refused("LIP008", function.name, f"is an overload ('{function.overload}')")


def _refuse_duplicates(functions: Iterable[FunctionProto]) -> None:
    seen: set[tuple[str, str]] = set()
    for function in functions:
        key = function.domain, function.name
        if key in seen:
            raise _refused("LIP008", function.name, "is defined twice")
        seen.add(key)


def _refuse_growth(proto: ModelProto, functions: list[FunctionProto]) -> None:
    """Refuse functions that call themselves, and calls of calls that would inline into more nodes than one can read."""
    bodies = {_key(function): list(_nodes(function.node)) for function in functions}
    finished: dict[_Key, tuple[int, int]] = {}  # nodes after inlining, calls deep
    for start in bodies:
        stack = [(start, _callees(bodies, start))]
        while stack:
            key, waiting = stack[-1]
            following = next((callee for callee in waiting if callee not in finished), None)
            if following is None:
                finished[key] = _grown(bodies[key], finished)
                stack.pop()
            elif any(following == open_call for open_call, _ in stack):
                raise _refused("LIP008", following[1], "calls itself")
            else:
                stack.append((following, _callees(bodies, following)))
            if len(stack) > MOST_CALLS_DEEP or finished.get(key, (0, 0))[1] > MOST_CALLS_DEEP:
                raise _refused("LIP024", key[1], f"functions call one another more than {MOST_CALLS_DEEP} deep")
    nodes, _ = _grown(list(_nodes(proto.graph.node)), finished)
    if nodes > MOST_NODES:
        raise _refused("LIP024", functions[0].name, f"inlined, the functions make more than {MOST_NODES} nodes")


def _callees(bodies: Mapping[_Key, list[NodeProto]], key: _Key) -> Iterator[_Key]:
    return ((node.domain, node.op_type) for node in bodies[key] if (node.domain, node.op_type) in bodies)


def _grown(body: list[NodeProto], finished: Mapping[_Key, tuple[int, int]]) -> tuple[int, int]:
    called = [finished[key] for node in body if (key := (node.domain, node.op_type)) in finished]
    return len(body) + sum(nodes for nodes, _ in called), 1 + max((depth for _, depth in called), default=0)


def _key(function: FunctionProto) -> _Key:
    return function.domain, function.name


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """These nodes and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _refuse_other_opsets(proto: ModelProto, functions: list[FunctionProto]) -> None:
    model = {_standard(entry.domain): entry.version for entry in proto.opset_import}
    for function in functions:
        for entry in function.opset_import:
            if model.get(_standard(entry.domain), entry.version) != entry.version:
                raise _refused("LIP020", function.name, f"uses another version of '{entry.domain}' than the model")


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _refuse_default_attributes(proto: ModelProto, functions: list[FunctionProto]) -> None:
    """onnx's inliner drops defaults that the runtime applies, so every call must give every attribute itself."""
    attributes = {(f.domain, f.name): set(f.attribute) for f in functions}
    for function in functions:
        if function.attribute_proto:
            raise _refused("LIP002", function.name, "has default attribute values")
    for graph_nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nodes(graph_nodes):
            expected = attributes.get((node.domain, node.op_type))
            if expected is not None and {a.name for a in node.attribute} != expected:
                raise _refused("LIP002", node.op_type, f"is called without some of its attributes {sorted(expected)}")


def _refused(code: str, name: str, message: str) -> Refused:
    return Refused([Refusal(code, name, "function", message)])
