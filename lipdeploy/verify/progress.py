"""Who helps a proof and who watches it: the guide of every node, and how much of the proof is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lipdeploy.verify.arithmetic import check_arithmetic
from lipdeploy.verify.graph import Call, Constant, Value
from lipdeploy.verify.guide import Effort, Guide

#: Hints by node name, as a certificate stores them.
NodeHints = Mapping[str, Any]
#: Hears the node that is being judged and the fraction of the whole proof that is done.
Watch = Callable[[str, float], None]


MOST_COUNTED = 1 << 50  # constants that double from node to node are refused later; here they are only counted


class Progress:
    """Hands every node its guide, and tells who watches how far the proof is (by the weights still to be judged)."""

    def __init__(self, hints: NodeHints, watch: Watch | None) -> None:
        self.hints, self.watch, self.effort = hints, watch, Effort()
        self.weights: dict[str, float] = {}
        self.done, self.total = 0.0, 1.0

    def expect(self, needed: Sequence[Call], values: Mapping[str, Value]) -> None:
        """Learn which nodes are to come."""
        sizes = {name: value.array.size for name, value in values.items() if isinstance(value, Constant)}
        for call in needed:
            stored = min(sum(sizes.get(name, 0) for name in call.input_names), MOST_COUNTED)
            if all(name in sizes for name in filter(None, call.input_names)):  # a constant; its reader has the work
                sizes.update(dict.fromkeys(call.output_names, stored))
                stored = 0
            self.weights[call.name] = 1.0 + float(stored)
        self.total = max(1.0, sum(self.weights.values()))

    def guide(self, call: Call) -> Guide:
        """What this node's proof may use."""
        hint = self.hints.get(call.name, {})
        return Guide(hint if isinstance(hint, Mapping) else {}, effort=self.effort, watch=self._watcher(call.name))

    def finished(self, call: Call) -> None:
        """One node is judged."""
        self.done += self.weights.pop(call.name, 0.0)
        self._tell(call.name, self.done)

    def _watcher(self, name: str) -> Callable[[float], None]:
        return lambda fraction: self._tell(name, self.done + fraction * self.weights.get(name, 0.0))

    def _tell(self, name: str, done: float) -> None:
        if self.watch is not None:
            self.watch(name, min(done / self.total, 1.0))
            check_arithmetic()  # it is code of others, on the thread that proves
