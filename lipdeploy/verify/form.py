"""What form a node of the standard may have in its opset."""

from __future__ import annotations

import functools

import onnx

from lipdeploy.verify.graph import Call


def check_form(call: Call) -> None:
    """Refuse an attribute or input that the operator does not have in its opset: a runtime could pass over it.

    Reductions moved their axes from an attribute to an input, each operator in another opset.
    """
    form = _form(call.op, call.version) if call.domain in ("", "ai.onnx") else None
    if form is None:
        return
    attributes, least_inputs, most_inputs = form
    strange = sorted(set(call.attributes) - attributes)
    if strange:
        raise call.refuse("LIP002", f"opset {call.version} has no attribute '{strange[0]}' here")
    if not least_inputs <= len(call.inputs) <= most_inputs:
        allowed = f"{least_inputs}" if least_inputs == most_inputs else f"{least_inputs} to {most_inputs}"
        raise call.refuse("LIP002", f"has {len(call.inputs)} inputs, in opset {call.version} there are {allowed}")


@functools.cache
def _form(op: str, version: int) -> tuple[frozenset[str], int, int] | None:
    """The attributes, and the fewest and most inputs, of an operator; ``None`` where the standard has none so named."""
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None
    return frozenset(schema.attributes), schema.min_input, schema.max_input
