"""Function bodies for a whole file: one FunctionProto for each lipdeploy operator that its graph uses.

A file may use an operator several times with different attributes, but carries one function for it. The body is
specialised to the attributes on which all uses agree and reads the others from the function's own attributes. The
verifier generates the same functions again and compares bytes, so everything here depends on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import helper

from lipdeploy.ops.emit import ELEMENT_TYPES
from lipdeploy.ops.registry import OPERATORS
from lipdeploy.ops.spec import DOMAIN, VERSION, Attribute, AttributeValue, Operator

OPSETS = range(17, 24)


def function_bodies(graph: onnx.GraphProto, element_types: Iterable[int], opset: int) -> list[onnx.FunctionProto]:
    """Return the functions for exactly the lipdeploy operators used in the graph and its sub-graphs, sorted by name.

    ``element_types`` are the TensorProto element types in which the file uses them, ``opset`` is the file's version
    of the standard domain (17 to 23). Raises ValueError for an unknown operator, bad attributes or a combination of
    types that no single body serves.
    """
    types = frozenset(element_types)
    uses = _uses(graph)
    if not uses:
        return []
    if opset not in OPSETS:
        raise ValueError(f"function bodies exist for opset {OPSETS[0]} to {OPSETS[-1]}, asked for {opset}")
    if not types <= ELEMENT_TYPES:
        raise ValueError("lipdeploy operators exist for float16, bfloat16, float32 and float64")
    return [_function(OPERATORS[name], tuple(uses[name]), types, opset) for name in sorted(uses)]


def attach_functions(model: onnx.ModelProto, element_types: Iterable[int]) -> None:
    """Replace the lipdeploy functions of the model by generated ones, and import the domain where it is used.

    Functions of other domains stay. Raises ValueError as ``function_bodies`` does, or when the model does not import
    the standard domain.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise ValueError("the model does not import the standard ONNX domain")
    functions = function_bodies(model.graph, element_types, opset)
    others = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend([*others, *functions])
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    if functions:
        imports.append(helper.make_opsetid(DOMAIN, VERSION))
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _function(
    operator: Operator, uses: tuple[Mapping[str, AttributeValue], ...], types: frozenset[int], opset: int
) -> onnx.FunctionProto:
    function = helper.make_function(
        DOMAIN,
        operator.name,
        list(operator.inputs),
        ["Y"],
        operator.build_body(uses, types, opset),
        [helper.make_opsetid("", opset)],
        attributes=[attribute.name for attribute in operator.attributes if attribute.default is None],
    )
    function.attribute_proto.extend(_defaults(operator.attributes))
    return function


def _defaults(attributes: Iterable[Attribute]) -> list[onnx.AttributeProto]:
    return [helper.make_attribute(entry.name, entry.default) for entry in attributes if entry.default is not None]


def _uses(graph: onnx.GraphProto) -> dict[str, list[dict[str, AttributeValue]]]:
    """The distinct completed attribute sets of each operator, in order of appearance."""
    uses: dict[str, list[dict[str, AttributeValue]]] = {}
    for node in _nodes(graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type not in OPERATORS:
            raise ValueError(f"node '{node.name}': the domain {DOMAIN} has no operator '{node.op_type}'")
        completed = OPERATORS[node.op_type].complete(_attributes(node))
        seen = uses.setdefault(node.op_type, [])
        if completed not in seen:
            seen.append(completed)
    return uses


def _attributes(node: onnx.NodeProto) -> dict[str, AttributeValue]:
    values: dict[str, AttributeValue] = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.name in values:
            raise ValueError(f"node '{node.name}': attribute '{attribute.name}' is a reference or written twice")
        values[attribute.name] = helper.get_attribute_value(attribute)
    return values


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of sub-graphs after their parent. A stack, not recursion: files may nest deeply."""
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            yield node
            waiting.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
            waiting.extend(subgraph for attribute in node.attribute for subgraph in attribute.graphs)
