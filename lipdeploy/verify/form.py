"""What form a node of the standard may have in its opset."""

from __future__ import annotations

import functools

import onnx

from lipdeploy.verify.graph import OPSETS, Call


def check_form(call: Call) -> None:
    """Refuse an attribute or input that the operator does not have in its opset: a runtime could pass over it.

    An operator that its opset does not have is no operator: no runtime loads it, and so nothing is known of it.
    Reductions moved their axes from an attribute to an input, each operator in another opset. Also refuse gaps among
    inputs and outputs that no node can be without: ONNX Runtime reads and writes them all the same.
    """
    if call.domain not in ("", "ai.onnx"):
        return
    form = _form(call.op, call.version)
    if form is None:
        raise call.refuse("LIP020", f"opset {call.version} has no operator {call.op}", _opset_with(call.op))
    attributes, least_inputs, most_inputs, needed = form
    strange = sorted(set(call.attributes) - attributes)
    if strange:
        raise call.refuse("LIP002", f"opset {call.version} has no attribute '{strange[0]}' here")
    if not least_inputs <= len(call.inputs) <= most_inputs:
        allowed = f"{least_inputs}" if least_inputs == most_inputs else f"{least_inputs} to {most_inputs}"
        raise call.refuse("LIP002", f"has {len(call.inputs)} inputs, in opset {call.version} there are {allowed}")
    for kind, names in (("input", call.input_names), ("output", call.output_names)):
        for place, name in enumerate(names):
            if not name and needed[kind][min(place, len(needed[kind]) - 1)]:  # the last one may stand for many
                raise call.refuse("LIP002", f"{kind} {place} is left out, which {call.op} does not allow")


def _opset_with(op: str) -> str:
    """What to try where an operator is newer than the file's opset."""
    first = next((version for version in OPSETS if onnx.defs.has(op, version)), None)
    return "" if first is None else f"export in opset {first} or later"


@functools.cache
def _form(op: str, version: int) -> tuple[frozenset[str], int, int, dict[str, list[bool]]] | None:
    """The attributes, the fewest and most inputs, and which inputs and outputs cannot be left out, of an operator.

    ``None`` where the standard has none so named.
    """
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    listed = {"input": schema.inputs, "output": schema.outputs}
    needed = {kind: [one.option != optional for one in parameters] for kind, parameters in listed.items()}
    return frozenset(schema.attributes), schema.min_input, schema.max_input, needed
