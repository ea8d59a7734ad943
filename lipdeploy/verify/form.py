"""What form a node of the standard may have in its opset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto

from lipdeploy.verify.graph import OPSETS, Call, Constant
from lipdeploy.verify.schema import Parameter, parameter_at, schema

#: How many axes the inputs have that say how an operator works, by their name in whatever operator: lists, and flags.
LISTS = ("axes", "ends", "pads", "repeats", "shape", "sizes", "split", "starts", "steps", "K")
RANKS = {**dict.fromkeys(LISTS, 1), "ratio": 0, "training_mode": 0}
#: Where one axis may be a single number: torch writes it so, and ONNX Runtime reads it (that of Squeeze it does not).
ONE_AXIS = "Unsqueeze"


def check_form(call: Call) -> None:
    """Refuse what the operator does not have or allow in its opset: a runtime could pass over it, or load nothing.

    An operator that its opset does not have is no operator: no runtime loads it, and so nothing is known of it.
    Reductions moved their axes from an attribute to an input, each operator in another opset. Also refuse gaps among
    inputs and outputs that no node can be without (ONNX Runtime reads and writes them all the same), and lists that
    are no lists. Element types are checked before, for the graph as a whole (``element_types``).
    """
    if call.domain not in ("", "ai.onnx"):
        return
    form = schema("", call.op, call.version)
    if form is None:
        raise call.refuse("LIP020", f"opset {call.version} has no operator {call.op}", _opset_with(call.op))
    _check_attributes(call, form.attributes)
    if not form.least_inputs <= len(call.inputs) <= form.most_inputs:
        least, most = form.least_inputs, form.most_inputs
        allowed = f"{least}" if least == most else f"{least} to {most}"
        raise call.refuse("LIP002", f"has {len(call.inputs)} inputs, in opset {call.version} there are {allowed}")
    _check_gaps(call, "input", call.input_names, form.inputs)
    _check_gaps(call, "output", call.output_names, form.outputs)
    _check_ranks(call, form.inputs)


def _check_attributes(call: Call, known: Mapping[str, int]) -> None:
    """By name and by type: a runtime goes by the one or the other."""
    for name, attribute in sorted(call.attributes.items()):
        if name not in known:
            raise call.refuse("LIP002", f"opset {call.version} has no attribute '{name}' here")
        if attribute.type != known[name]:
            kinds = [AttributeProto.AttributeType.Name(kind) for kind in (attribute.type, known[name])]
            raise call.refuse("LIP013", f"attribute '{name}' has the type {kinds[0]}, in the standard {kinds[1]}")


def _check_gaps(call: Call, kind: str, names: Sequence[str], parameters: Sequence[Parameter]) -> None:
    for place, name in enumerate(names):
        if not name and not parameter_at(parameters, place).optional:
            raise call.refuse("LIP002", f"{kind} {place} is left out, which {call.op} does not allow")


def _check_ranks(call: Call, parameters: Sequence[Parameter]) -> None:
    for place, value in enumerate(call.inputs):
        name = parameter_at(parameters, place).name
        if not isinstance(value, Constant) or name not in RANKS or (not value.array.ndim and call.op == ONE_AXIS):
            continue
        if value.array.ndim != RANKS[name]:
            wanted = "it is a list" if RANKS[name] else "it is a single number"
            raise call.refuse("LIP013", f"input {place} ({name}) has {value.array.ndim} axes, {wanted}")


def _opset_with(op: str) -> str:
    """What to try where an operator is newer than the file's opset."""
    first = next((version for version in OPSETS if onnx.defs.has(op, version)), None)
    return "" if first is None else f"export in opset {first} or later"
