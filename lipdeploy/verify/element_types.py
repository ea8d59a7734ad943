"""The element type of every tensor, as the standard derives it; a graph whose types contradict one another is refused.

No runtime loads such a file, whatever the proofs say about its numbers: a bound of it would be about nothing, or about
what a lenient runtime makes of it. Types come from the file alone (inputs, stored tensors, attributes), so that they
are known inside motifs, too, where nothing is proven of single nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, TensorProto

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.constants import WRITTEN_OUT
from lipdeploy.verify.graph import Call
from lipdeploy.verify.schema import FLOATING, Parameter, Schema, parameter_at, schema

#: What to store numbers in, the most usual first.
STORED = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.INT8,
    TensorProto.BOOL,
)
SCALE = "T2"  # the variable of a scale's type since it is one, opset 19
CAST = "store them in one type, or cast one to the other's"
DEQUANTISE = "put DequantizeLinear between stored integers and the operator"


def check_element_types(graph: GraphProto, needed: Sequence[Call]) -> None:
    """Raises ``Refused`` (LIP013) with every node of ``needed``, in the file's order, whose types do not fit.

    Else with every tensor for which the file states another type than it has. Tensors whose type the standard leaves
    open, and those behind a node that is refused, are taken as they come.
    """
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    stored = frozenset(known)
    known.update((value.name, value.type.tensor_type.elem_type) for value in graph.input)
    refusals: list[Refusal] = []
    for call in needed:
        try:
            known.update(_types_after(call, known, stored))
        except Refused as error:
            refusals.extend(error.refusals)
    if not refusals:  # behind a node that does not fit, types are guesses
        refusals.extend(_lies(graph, known))
    if refusals:
        raise Refused(refusals)


def _lies(graph: GraphProto, known: Mapping[str, int]) -> Iterator[Refusal]:
    for value in (*graph.output, *graph.value_info):
        stated = value.type.tensor_type.elem_type
        if stated and known.get(value.name, stated) != stated:
            message = f"the file states {_plain(stated)} for it, the graph computes {_plain(known[value.name])}"
            yield Refusal("LIP013", value.name, "tensor", message)


def _types_after(call: Call, known: Mapping[str, int], stored: frozenset[str]) -> dict[str, int]:
    """The types of the node's outputs, as far as they follow from its inputs or its attributes."""
    found = schema(call.domain, call.op, call.version)
    if found is None or len(call.input_names) > found.most_inputs or any(not one.variable for one in found.inputs):
        return {}
    bound: dict[str, int] = {}  # an input's place, by the variable of its type
    for place, name in enumerate(call.input_names):
        if name not in known:
            continue
        parameter = parameter_at(found.inputs, place)
        if known[name] not in parameter.types:
            raise _undefined(call, place, known[name], parameter, name in stored)
        first = bound.setdefault(parameter.variable, place)
        if known[call.input_names[first]] != known[name]:
            raise _contradiction(call, first, place, known)
    return _outputs(call, found, {variable: known[call.input_names[place]] for variable, place in bound.items()})


def _outputs(call: Call, found: Schema, bound: Mapping[str, int]) -> dict[str, int]:
    types = {}
    for place, name in enumerate(call.output_names):
        if name and found.outputs:
            parameter = parameter_at(found.outputs, place)
            types[name] = bound.get(parameter.variable) or _from_attributes(call) or _only(parameter)
            if call.op == "DequantizeLinear":  # that of its scale, where no attribute says otherwise
                types[name] = types[name] or bound.get(SCALE, 0)
    return {name: kind for name, kind in types.items() if kind}


def _from_attributes(call: Call) -> int:
    """The type that a node's attributes name, 0 where they name none."""
    for attribute in call.attributes.values():
        if attribute.name in ("to", "output_dtype") and attribute.type == AttributeProto.INT:
            return int(attribute.i)
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return int(attribute.t.data_type)
        if attribute.name in WRITTEN_OUT:
            return WRITTEN_OUT[attribute.name]
    return TensorProto.FLOAT if call.op == "ConstantOfShape" else 0


def _only(parameter: Parameter) -> int:
    return next(iter(parameter.types)) if len(parameter.types) == 1 else 0


def _undefined(call: Call, place: int, kind: int, parameter: Parameter, stored: bool) -> Refused:
    message = f"input {place} is {_plain(kind)}, for which opset {call.version} does not define {call.op}"
    allowed = [_plain(other) for other in STORED if other in parameter.types]
    if not allowed:
        return call.refuse("LIP013", message)
    hint = f"store it as {' or '.join(allowed)}" if stored else f"cast it to {allowed[0]}"
    return call.refuse("LIP013", message, hint)


def _contradiction(call: Call, first: int, second: int, known: Mapping[str, int]) -> Refused:
    kinds = [known[call.input_names[place]] for place in (first, second)]
    message = f"input {second} is {_plain(kinds[1])} and input {first} {_plain(kinds[0])}, {call.op} takes one type"
    return call.refuse("LIP013", message, DEQUANTISE if len(FLOATING.intersection(kinds)) == 1 else CAST)


def _plain(kind: int) -> str:
    """As NumPy calls it."""
    name = TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else str(kind)
    return {"float": "float32", "double": "float64"}.get(name, name)
