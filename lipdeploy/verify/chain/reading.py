"""Finds the parts of a graph that multiplier certificates can be about: as much of it as the readers understand.

A part starts at the network's inputs or at a *cut*, a tensor that everything in the part depends on through it alone,
and ends in any tensor. The bound proven for the cut becomes the chain's ``front``. From the end of a part on the
rules go on with the smaller bound, up to the next part.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from lipdeploy.errors import Refused
from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.chain.builder import MOST_WEIGHTS, Builder, Ineligible, Signal
from lipdeploy.verify.chain.model import Chain, Slopes, parts_of
from lipdeploy.verify.chain.node import Node
from lipdeploy.verify.chain.readers import READERS
from lipdeploy.verify.chain.sorting import extremes
from lipdeploy.verify.graph import Call, Constant, Flow, Value
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.rules import RULES

LARGEST_TENSOR = 1 << 22  # entries of one sample at any node
DEEPEST = 4096  # nodes
MOST_ENDS = 256  # tensors that are tried as the end of a part
MOST_PARTS = 64
FAILURES = (Ineligible, Refused, ValueError, KeyError, IndexError, TypeError, MemoryError)


def all_segments(output: str, calls: Sequence[Call], values: Mapping[str, Value]) -> list[Chain]:
    """Every part of the graph that could beat the product of norms, from the inputs on.

    Found from ``output`` backwards, each as long as possible: where a part starts, the next one may end; what is not
    understood is passed by one node at a time, into every branch. Parts that end in two branches may share a stem.
    """
    producers = {name: call for call in calls for name in call.output_names}
    ends, tried, room, found = [output], set[str](), MOST_WEIGHTS, list[Chain]()
    while ends and len(tried) < MOST_ENDS and len(found) < MOST_PARTS:
        end = ends.pop()
        if end in tried or end not in producers:
            continue
        tried.add(end)
        producer = producers[end]
        chain = segment(end, calls, values) if (producer.domain, producer.op) in READERS else None
        if chain is None:
            ends.extend(name for name in producer.input_names if name in producers)
            continue
        ends.extend([chain.source] if chain.source is not None else [])
        weights = sum(weight.size for weight in chain.weights)
        if (bends(chain) or (end == output and chain.whole)) and weights <= room:
            found.append(chain)
            room -= weights
    place = {name: call.place for name, call in producers.items()}
    return sorted(found, key=lambda chain: place[chain.output])


def segment(end: str, calls: Sequence[Call], values: Mapping[str, Value]) -> Chain | None:
    """The longest chain that ends in the tensor ``end``, if any."""
    path = _dependent(end, calls, values) if isinstance(values.get(end), Flow) else []
    if not path or len(path) > DEEPEST:
        return None
    earliest = max((i + 1 for i, call in enumerate(path) if not _readable(call)), default=0)
    for start, names in _cuts(path, end):
        front = _front(start, names, values)
        if start < earliest or front is None:
            continue
        reading = _Reading(path[start:], end, values)
        try:
            return reading.run(names, front, whole=start == 0)
        except FAILURES:
            earliest = start + reading.index + 1
    return None


def _dependent(output: str, calls: Sequence[Call], values: Mapping[str, Value]) -> list[Call]:
    """The nodes between the inputs and ``output``, in order and with their inputs; constants are no nodes."""
    wanted, path = {output}, []
    for call in reversed(calls):
        moving = [name for name in call.output_names if name and not isinstance(values.get(name), Constant)]
        if wanted.intersection(moving):
            path.append(call.with_inputs([values.get(name) if name else None for name in call.input_names]))
            wanted.update(filter(None, call.input_names))
    return path[::-1]


def _readable(call: Call) -> bool:
    rule = RULES.get((call.domain, call.op))
    if rule is None or (call.domain, call.op) not in READERS:
        return False
    return not set(call.attributes) - rule.attributes and len(call.inputs) <= rule.most_inputs


def _moving(call: Call) -> list[str]:
    """Names of the inputs that are not constant."""
    return [n for n, v in zip(call.input_names, call.inputs, strict=True) if n and not isinstance(v, Constant)]


def _cuts(path: Sequence[Call], output: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(position, tensors): all that the nodes from the position on take from before. First the inputs, then cuts."""
    last = {name: index for index, call in enumerate(path) for name in _moving(call)}
    last[output] = len(path)
    made = {name for call in path for name in call.output_names}
    alive = {name for name in last if name not in made}
    yield 0, tuple(sorted(alive))
    for index, call in enumerate(path):
        alive.update(name for name in call.output_names if last.get(name, -1) > index)
        alive = {name for name in alive if last[name] > index}
        if len(alive) == 1 and index + 1 < len(path):
            yield index + 1, tuple(alive)


def _front(start: int, names: Sequence[str], values: Mapping[str, Value]) -> Bound | None:
    flows = [value for value in map(values.get, names) if isinstance(value, Flow)]
    if len(flows) != len(names) or not flows or any(Norm.L2 not in flow.lipschitz for flow in flows):
        return None
    return ONE if start == 0 else flows[0].lipschitz[Norm.L2]


def bends(chain: Chain) -> bool:
    """Whether a multiplier has anything to say."""
    parts = [part for activation in chain.activations for part, _ in parts_of(activation)]
    return any(not isinstance(part, Slopes) or bool(np.any(part.low != part.high)) for part in parts)


class _Reading:
    """One pass over the nodes; ``index`` is the node being read."""

    def __init__(self, path: Sequence[Call], output: str, values: Mapping[str, Value]) -> None:
        self.path, self.output, self.values = path, output, values
        self.index = 0
        self.held: set[Hashable] = set()
        self.consumers: dict[Hashable, list[int]] = {}
        for index, call in enumerate(path):
            for name in _moving(call):
                self.consumers.setdefault(name, []).append(index)

    def run(self, names: Sequence[str], front: Bound, *, whole: bool) -> Chain:
        """Read every node; raises one of ``FAILURES`` at the first that is not eligible."""
        self.keys = [extremes(call)[0] for call in self.path]
        self.builder = Builder([(name, self._flow(name).size) for name in names], self._alive, self._again)
        for index, call in enumerate(self.path):
            self.index = index
            self._read(call)
        self.index = len(self.path)
        return self.builder.chain(self.output, front, None if whole else names[0])

    def _read(self, call: Call) -> None:
        results = tuple(
            value if isinstance(value := self.values.get(n), Flow) and n else None for n in call.output_names
        )
        sizes = [flow.size for flow in (*call.flows(), *filter(None, results))]
        if max(sizes) > LARGEST_TENSOR or not any(results):
            raise Ineligible
        signals = READERS[call.domain, call.op](Node(call, results, self.builder, self._hold, self._earlier))
        signals = [signals] if isinstance(signals, Signal) else signals
        for name, result, signal in zip(call.output_names, results, signals, strict=False):
            if result is not None:
                if signal.size != result.size:
                    raise Ineligible
                self.builder.signals[name] = signal
        for key in self.held:
            del self.builder.signals[key]
        self.held.clear()

    def _flow(self, name: str) -> Flow:
        value = self.values.get(name)
        if not isinstance(value, Flow):
            raise Ineligible
        return value

    def _hold(self, label: Hashable, signal: Signal) -> Hashable:
        key = ("held", label)
        self.held.add(key)
        self.builder.signals[key] = signal
        return key

    def _earlier(self, op: str, name: str) -> str | None:
        found = (c for c in self.path[: self.index] if (c.domain, c.op, c.input_names) == ("", op, (name,)))
        return next((call.output_names[0] for call in found), None)

    def _alive(self, name: Hashable) -> bool:
        """Whether the node being read or a later one needs the tensor; a shared sort stands for what it sorted."""
        return name in self.held or self._wanted(name, self.index)

    def _again(self, name: Hashable) -> bool:
        """Whether a node after the one being read needs the tensor."""
        return self._wanted(name, self.index + 1)

    def _wanted(self, name: Hashable, since: int) -> bool:
        if name == self.output or name in self.keys[since:]:
            return True
        later = (index for index in self.consumers.get(name, ()) if index >= since)
        return any(self.keys[index] is None or self.keys[index] not in self.builder.signals for index in later)
