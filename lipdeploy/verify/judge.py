"""Asks the rule of one node, or says why there is none: the same questions before every rule."""

from __future__ import annotations

from onnx import helper

from lipdeploy.errors import Refused
from lipdeploy.ops import DOMAIN
from lipdeploy.verify.dequantize import QUANTISES
from lipdeploy.verify.graph import Call
from lipdeploy.verify.open_rules import judge_open
from lipdeploy.verify.open_sizes import is_open
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES
from lipdeploy.verify.step import Step

#: An activation that is rounded to a grid jumps: no finite constant holds, however fine the grid is.
WEIGHTS_ONLY = (
    "quantise the weights only: integers, their scales and DequantizeLinear (lipdeploy export --weights int8)"
)
SCORES = "export the scores before it: the class is the same"
COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
#: What a choice by the input's sign was usually written for: an activation with where, or one of torch's functions.
NO_CHOICE = (
    "write a piecewise-linear activation with max, min, clamp or abs, or as lipdeploy.nn.LinearSpline; "
    "a softplus as nn.Softplus"
)
FIRST_WITH_BODIES = 17  # the oldest opset for which lipdeploy.ops writes function bodies
#: Operators that do no arithmetic, so that integer activations cannot overflow in them.
MOVES_INTEGERS = frozenset(
    {
        "Cast",
        "Identity",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Split",
        "Slice",
        "Gather",
    }
)


class Judge:
    """Judges nodes and remembers which operators of other domains they were, and the element types of ours."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.operators: dict[str, int] = {}
        self.element_types: set[int] = set()

    def steps(self, call: Call) -> list[Step]:
        """What the node's rule says about each output. Raises ``Refused``."""
        rule = RULES.get((call.domain, call.op))
        if rule is None:
            raise _no_rule(call)
        if call.domain:
            self.operators[call.op] = call.version
            if call.domain == DOMAIN and self.opset < FIRST_WITH_BODIES:
                raise call.refuse("LIP020", f"lipdeploy operators need opset {FIRST_WITH_BODIES}, this is {self.opset}")
            if call.domain == DOMAIN:
                self.element_types.add(helper.np_dtype_to_tensor_dtype(call.flow().dtype))
        if any(flow.dtype.kind != "f" for flow in call.flows()) and call.op not in MOVES_INTEGERS:
            raise call.refuse(
                "LIP015", "computes with integers, which wrap around", hint="cast the input to float first"
            )
        if any(is_open(flow.shape) for flow in call.flows()):
            return judge_open(call)
        return rule(call)


def refuse_open_shape(call: Call) -> None:
    """A size that the file leaves open is no constant, although Shape would name it."""
    if call.op == "Shape" and not call.domain and any(is_open(flow.shape) for flow in call.flows()):
        raise call.refuse("LIP006", "computes with an image's height or width, which the file leaves open")


def _no_rule(call: Call) -> Refused:
    name = f"{call.domain}.{call.op}" if call.domain else call.op
    if not call.domain and call.op == "DequantizeLinear":
        call.flows()  # what an integer activation was made by has a better reason
        return call.refuse("LIP015", "dequantises numbers that depend on the input", WEIGHTS_ONLY)
    if not call.domain and call.op in NOT_LIPSCHITZ:
        return call.refuse("LIP010", f"{name} has no finite Lipschitz constant, or no useful one", _instead(call.op))
    return call.refuse("LIP001", f"there is no rule for {name}")


def _instead(op: str) -> str:
    """What to write in place of an operator without a constant; empty where only the code's own hint helps."""
    if op in QUANTISES:
        return WEIGHTS_ONLY
    if op in COMPARES:
        return NO_CHOICE
    return SCORES if op == "LogSoftmax" else ""
