"""What an operator takes and gives, as the standard has it in one opset, and this project's own operators likewise."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto

from lipdeploy.ops import DOMAIN, OPERATORS

#: What the operators of this project's domain compute in: all their inputs and their output have one of these types.
OWN_TYPES = frozenset(("tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"))

KINDS = {"int": AttributeProto.INT, "float": AttributeProto.FLOAT}


@dataclass(frozen=True)
class Parameter:
    """An input or output; of a variadic operator, the last one stands for all that follow.

    All parameters of one ``variable`` have one element type, which is one of ``types``; those without a variable
    (what a loop carries) each have a type of their own.
    """

    name: str
    variable: str
    types: frozenset[str]
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
    inputs = tuple(Parameter(name, "T", OWN_TYPES) for name in operator.inputs)
    attributes = {one.name: KINDS[one.kind] for one in operator.attributes}
    return Schema(attributes, len(inputs), len(inputs), inputs, (Parameter("Y", "T", OWN_TYPES),))


def _parameters(listed: Sequence[onnx.defs.OpSchema.FormalParameter]) -> tuple[Parameter, ...]:
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return tuple(
        Parameter(one.name, one.type_str if one.is_homogeneous else "", frozenset(one.types), one.option == optional)
        for one in listed
    )
