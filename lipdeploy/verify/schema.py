"""What an operator takes and gives, as the standard has it in one opset, and this project's own operators likewise."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto

from lipdeploy.ops import DOMAIN, OPERATORS

#: The element types of activations, and what operators of this project's domain have for all inputs and the output.
FLOATING = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
#: By what the standard calls them in type constraints; sequences and optional values are none.
ELEMENT_TYPES = {f"tensor({name.lower()})": number for name, number in TensorProto.DataType.items()}
KINDS = {"int": AttributeProto.INT, "float": AttributeProto.FLOAT}


@dataclass(frozen=True)
class Parameter:
    """An input or output; of a variadic operator, the last one stands for all that follow.

    All parameters of one ``variable`` have one element type, which is one of ``types``; those without a variable
    (what a loop carries) each have a type of their own.
    """

    name: str
    variable: str
    types: frozenset[int]
    optional: bool = False


@dataclass(frozen=True)
class Schema:
    """One operator in one version. ``attributes``: the type that each must have, as ``AttributeProto`` numbers it."""

    attributes: Mapping[str, int]
    least_inputs: int
    most_inputs: int
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]


def parameter_at(listed: Sequence[Parameter], place: int) -> Parameter:
    """The parameter that input or output ``place`` is; the last one may stand for many."""
    return listed[min(place, len(listed) - 1)]


@functools.cache
def schema(domain: str, op: str, version: int) -> Schema | None:
    """What the standard, or ``lipdeploy.ops``, says of an operator; ``None`` where neither has it."""
    if domain == DOMAIN:
        return _own(op) if op in OPERATORS else None
    try:
        found = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    return Schema(
        {name: int(one.type.value) for name, one in found.attributes.items()},  # type: ignore[attr-defined]
        found.min_input,
        found.max_input,
        _parameters(found.inputs),
        _parameters(found.outputs),
    )


def _own(op: str) -> Schema:
    operator = OPERATORS[op]
    inputs = tuple(Parameter(name, "T", FLOATING) for name in operator.inputs)
    attributes = {one.name: KINDS[one.kind] for one in operator.attributes}
    return Schema(attributes, len(inputs), len(inputs), inputs, (Parameter("Y", "T", FLOATING),))


def _parameters(listed: Sequence[onnx.defs.OpSchema.FormalParameter]) -> tuple[Parameter, ...]:
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return tuple(
        Parameter(
            name=one.name,
            variable=one.type_str if one.is_homogeneous else "",
            types=frozenset(ELEMENT_TYPES[name] for name in one.types if name in ELEMENT_TYPES),
            optional=one.option == optional,
        )
        for one in listed
    )
