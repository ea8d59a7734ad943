"""What motifs share: how to look back from a node."""

from __future__ import annotations

from collections.abc import Callable

from lipdeploy.verify.graph import Call, Flow, Unproven, Value
from lipdeploy.verify.step import Step

Values = Callable[[str], "Value | None"]
#: The tensor (or tensors) that a sub-graph starts from, and the step for the whole.
Found = tuple[Flow | tuple[Flow, ...], Step]
Motif = Callable[[Call, Values], "Found | None"]


def judged_inputs(call: Call | None, op: str, values: Values) -> Call | None:
    """The producing node with its inputs' values, when it is the standard operator ``op``."""
    if call is None or call.domain or call.op != op:
        return None
    bound = [values(name) if name else None for name in call.input_names]
    if any(isinstance(value, Unproven) for value in bound):
        return None
    return call.with_inputs(bound)


def output_of(call: Call, values: Values) -> Flow | None:
    """The node's first output, when it was proven."""
    value = values(call.output_names[0])
    return value if isinstance(value, Flow) else None
