"""The registry of rules and what every rule has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lipdeploy.verify.form import check_form
from lipdeploy.verify.graph import Call
from lipdeploy.verify.step import Step

RuleFunction = Callable[[Call], Step | list[Step]]


@dataclass(frozen=True)
class Rule:
    """A rule, the attributes it understands, and how many inputs and outputs it allows."""

    function: RuleFunction
    attributes: frozenset[str]
    most_inputs: int
    most_outputs: int

    @property
    def name(self) -> str:
        """What reports print in the ``rule`` column."""
        return self.function.__name__

    def __call__(self, call: Call) -> list[Step]:
        """Apply the rule after the checks that hold for all of them."""
        self.refuse_unknown(call)
        result = self.function(call)
        return result if isinstance(result, list) else [result]

    def refuse_unknown(self, call: Call) -> None:
        """Raise ``Refused`` where the node has what the rule does not understand, or the standard not allow."""
        unknown = sorted(set(call.attributes) - self.attributes)
        if unknown:
            raise call.refuse("LIP002", f"attribute '{unknown[0]}' is not understood")
        check_form(call)
        for flag in sorted(FLAGS.intersection(call.attributes)):
            if call.integer(flag) not in (0, 1):
                raise call.refuse("LIP002", f"{flag} is {call.integer(flag)}, a flag is 0 or 1")
        if len(call.inputs) > self.most_inputs:
            raise call.refuse("LIP002", f"has {len(call.inputs)} inputs, at most {self.most_inputs} are understood")
        if sum(map(bool, call.output_names)) > self.most_outputs:
            raise call.refuse("LIP002", f"has {len(call.output_names)} outputs, only {self.most_outputs} understood")


#: Attributes that are true or false. What a runtime makes of other numbers is not specified.
FLAGS = frozenset(
    {
        "allowzero", "ceil_mode", "count_include_pad", "keepdims", "largest", "noop_with_empty_axes", "saturate",
        "sorted", "spatial", "storage_order", "training_mode", "transA", "transB",
    }
)  # fmt: skip

RULES: dict[tuple[str, str], Rule] = {}

#: Operators of the standard that are known not to be globally Lipschitz (or to jump): refused by that name.
NOT_LIPSCHITZ = frozenset(
    {
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Pow",
        "Tan",
        "Sinh",
        "Cosh",
        "Asin",
        "Acos",
        "Acosh",
        "Atanh",
        "Sign",
        "Round",
        "Floor",
        "Ceil",
        "Mod",
        "BitShift",
        "Equal",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
        "ArgMax",
        "ArgMin",
        "OneHot",
        "NonZero",
        "Hardmax",
        "LogSoftmax",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "MeanVarianceNormalization",
        "LpNormalization",
        "LRN",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "Det",
        "Einsum",
        "Attention",
        "GRU",
        "LSTM",
        "RNN",
        "CumSum",
        "ReduceProd",
        "ReduceLogSum",
        "ReduceSumSquare",
    }
)


def rule(
    *operators: str, attributes: tuple[str, ...] = (), inputs: int = 1, outputs: int = 1, domain: str = ""
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of one or several operators."""

    def register(function: RuleFunction) -> RuleFunction:
        for operator in operators:
            RULES[domain, operator] = Rule(function, frozenset(attributes), inputs, outputs)
        return function

    return register
