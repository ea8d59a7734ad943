"""Which operator keeps an output on one side of 0: the last one before it, but for those that only move or scale.

Two classes meet where a score changes sign. The output of a sigmoid never does: read as a score, it would put every
input into class 1, with a radius.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lipdeploy.verify.graph import Call, Constant, Flow, Value

NORMS = frozenset(("Abs", "GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sqrt"))
ONE_SIDED = NORMS | {"Exp", "HardSigmoid", "Log", "Relu", "Sigmoid", "Softmax", "Softplus"}
#: They neither change a sign nor choose between values.
MOVING = frozenset(("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
#: With a constant they scale; a factor of either sign leaves one side.
SCALING = frozenset(("Div", "Mul", "Neg"))


def one_sided_by(output: str, calls: Sequence[Call], values: Mapping[str, Value]) -> str:
    """The operator that keeps the only number of each sample on one side of 0; empty where none was found.

    Log is one of them because it is proven only of a sigmoid. A scaled row of several numbers may have both signs, so
    this is about single numbers.
    """
    producers = {name: call for call in calls for name in call.output_names}
    call = producers.get(output)
    while call is not None and not call.domain:
        if call.op in ONE_SIDED or _clips_to_one_side(call, values):
            return call.op
        moving = [name for name in call.input_names if isinstance(values.get(name), Flow)]
        if call.op not in MOVING | SCALING or len(moving) != 1:
            return ""
        call = producers.get(moving[0])
    return ""


def _clips_to_one_side(call: Call, values: Mapping[str, Value]) -> bool:
    if call.op != "Clip":
        return False
    low, high = (_number(call, place, values) for place in (1, 2))
    return (low is not None and low >= 0.0) or (high is not None and high <= 0.0)


def _number(call: Call, place: int, values: Mapping[str, Value]) -> float | None:
    name = call.input_names[place] if len(call.input_names) > place else ""
    stored = values.get(name)
    return float(stored.float64().item()) if isinstance(stored, Constant) and stored.float64().size == 1 else None
