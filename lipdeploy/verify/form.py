"""What form a node of the standard may have in its opset."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from lipdeploy.verify.graph import OPSETS, Call, Constant, Flow

#: Inputs that are lists of integers, in whatever operator.
LISTS = frozenset(("axes", "ends", "pads", "repeats", "shape", "sizes", "split", "starts", "steps"))


@dataclass(frozen=True)
class _Parameter:
    """An input or output: whether it can be left out, and the element types it may have."""

    name: str
    optional: bool
    types: frozenset[str]


@dataclass(frozen=True)
class _Form:
    attributes: frozenset[str]
    least_inputs: int
    most_inputs: int
    inputs: tuple[_Parameter, ...]
    outputs: tuple[_Parameter, ...]


def check_form(call: Call) -> None:
    """Refuse what the operator does not have or allow in its opset: a runtime could pass over it, or load nothing.

    An operator that its opset does not have is no operator: no runtime loads it, and so nothing is known of it.
    Reductions moved their axes from an attribute to an input, each operator in another opset. Also refuse gaps among
    inputs and outputs that no node can be without (ONNX Runtime reads and writes them all the same), activations of a
    type for which the operator is not defined, and lists that are no lists.
    """
    if call.domain not in ("", "ai.onnx"):
        return
    form = _form(call.op, call.version)
    if form is None:
        raise call.refuse("LIP020", f"opset {call.version} has no operator {call.op}", _opset_with(call.op))
    strange = sorted(set(call.attributes) - form.attributes)
    if strange:
        raise call.refuse("LIP002", f"opset {call.version} has no attribute '{strange[0]}' here")
    if not form.least_inputs <= len(call.inputs) <= form.most_inputs:
        least, most = form.least_inputs, form.most_inputs
        allowed = f"{least}" if least == most else f"{least} to {most}"
        raise call.refuse("LIP002", f"has {len(call.inputs)} inputs, in opset {call.version} there are {allowed}")
    _check_gaps(call, "input", call.input_names, form.inputs)
    _check_gaps(call, "output", call.output_names, form.outputs)
    _check_inputs(call, form.inputs)


def _check_gaps(call: Call, kind: str, names: Sequence[str], parameters: Sequence[_Parameter]) -> None:
    for place, name in enumerate(names):
        if not name and not _at(parameters, place).optional:
            raise call.refuse("LIP002", f"{kind} {place} is left out, which {call.op} does not allow")


def _check_inputs(call: Call, parameters: Sequence[_Parameter]) -> None:
    for place, value in enumerate(call.inputs):
        parameter = _at(parameters, place)
        if isinstance(value, Flow) and f"tensor({_onnx_name(value)})" not in parameter.types:
            message = f"input {place} is {value.dtype}, for which opset {call.version} does not define {call.op}"
            raise call.refuse("LIP013", message, "cast it to float32 first")
        if isinstance(value, Constant) and parameter.name in LISTS and value.array.ndim > 1:
            raise call.refuse("LIP013", f"input {place} ({parameter.name}) has {value.array.ndim} axes, it is a list")


def _at(parameters: Sequence[_Parameter], place: int) -> _Parameter:
    """The last one may stand for many."""
    return parameters[min(place, len(parameters) - 1)]


def _onnx_name(flow: Flow) -> str:
    return {"float32": "float", "float64": "double"}.get(flow.dtype.name, flow.dtype.name)


def _opset_with(op: str) -> str:
    """What to try where an operator is newer than the file's opset."""
    first = next((version for version in OPSETS if onnx.defs.has(op, version)), None)
    return "" if first is None else f"export in opset {first} or later"


@functools.cache
def _form(op: str, version: int) -> _Form | None:
    """What the standard says of an operator; ``None`` where it has none so named."""
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None
    return _Form(
        frozenset(schema.attributes),
        schema.min_input,
        schema.max_input,
        _parameters(schema.inputs),
        _parameters(schema.outputs),
    )


def _parameters(listed: Sequence[onnx.defs.OpSchema.FormalParameter]) -> tuple[_Parameter, ...]:
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return tuple(_Parameter(one.name, one.option == optional, frozenset(one.types)) for one in listed)
