"""One rule per operator. ``RULES`` is the whole list: what is not in it is refused by name."""

from lipdeploy.verify.rules import arithmetic, elementwise, linear, operators, pooling, resize, structure
from lipdeploy.verify.rules.registry import NOT_LIPSCHITZ, RULES, Rule

__all__ = [
    "NOT_LIPSCHITZ",
    "RULES",
    "Rule",
    "arithmetic",
    "elementwise",
    "linear",
    "operators",
    "pooling",
    "resize",
    "structure",
]
