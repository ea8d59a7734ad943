"""Bodies of lipdeploy's own operators in standard operators, inlined into the graph.

What ``lipdeploy.ops`` generates for the attributes read off the graph is compared with the graph node for node, from
the output back to the operator's inputs; parts that do not depend on the input are compared by value, so that a
runtime or an exporter may have folded them. Only then the operator's own rule judges the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from lipdeploy.errors import Refused
from lipdeploy.ops import DOMAIN, OPERATORS
from lipdeploy.verify.constants import evaluate
from lipdeploy.verify.graph import STANDARD_DOMAINS, Call, Constant, Flow, Numbers, Unproven, Value
from lipdeploy.verify.motifs.matching import Found, Values
from lipdeploy.verify.rules.registry import RULES
from lipdeploy.verify.step import Step

MOST_NODES = 96  # of one body
OLDEST = 17  # the first opset that bodies are written for
MOST_CANDIDATES = 256
MOST_SOURCES = 8
#: Programs whose single nodes round once each; the operator's own kernels round so within float32 in the others, too.
ROUND_ONCE = ("f32", "f64", "tf32")
Attributes = Mapping[str, int | float]


@dataclass(frozen=True)
class _Candidate:
    """An operator, its attributes, its data input, and its other inputs as stored numbers by name."""

    operator: str
    attributes: Attributes
    source: Flow
    stored: Mapping[str, Numbers] = field(default_factory=dict)


def operator_body(call: Call, values: Values) -> Found | None:
    """A lipdeploy operator's generated body, node for node, is that operator: its rule judges the whole."""
    name = call.output_names[0]
    if not isinstance(values(name), Unproven) or call.version < OLDEST:
        return None
    graph = _Side(call.producer, values)
    for index, candidate in enumerate(_candidates(call, graph)):
        if index >= MOST_CANDIDATES:
            return None
        pattern = _pattern(candidate, call)
        if pattern is not None and _Comparison(pattern, graph, candidate.source.name).same("Y", name):
            return candidate.source, _judged(candidate, call)
    return None


def _judged(candidate: _Candidate, call: Call) -> Step:
    attributes = {key: helper.make_attribute(key, value) for key, value in candidate.attributes.items()}
    whole = Call(
        name=call.name,
        op=candidate.operator,
        domain=DOMAIN,
        version=1,
        attributes=attributes,
        input_names=(candidate.source.name, *candidate.stored),
        output_names=call.output_names[:1],
        inputs=(candidate.source, *(Constant(key, array) for key, array in candidate.stored.items())),
        norms=call.norms,
    )
    (step,) = RULES[DOMAIN, candidate.operator](whole)
    if step.rounding is None or not step.rounding.terms:
        return step
    return replace(step, rounding=replace(step.rounding, only=ROUND_ONCE))


# Values and producers on either side of the comparison.


class _Side:
    """One of the two graphs: what makes a tensor, and its value where it does not depend on the input."""

    def __init__(self, producer: Callable[[str], Call | None], values: Values, like: Flow | None = None) -> None:
        # In a generated body all activations have one type, that of ``like``.
        self.producer, self.values, self.like = producer, values, like
        self.known: dict[str, Constant | None] = {}

    def constant(self, name: str) -> Constant | None:
        """The tensor's value; ``None`` when it depends on the input."""
        if name not in self.known:
            self.known[name] = None
            self.known[name] = self._evaluated(name)
        return self.known[name]

    def _evaluated(self, name: str) -> Constant | None:
        value = self.values(name)
        if isinstance(value, Constant):
            return value
        node = None if isinstance(value, Flow) else self.producer(name)
        if node is None or node.domain or node.output_names != (name,):
            return None
        inputs: list[Value | None] = []
        for source in node.input_names:
            found = (self.constant(source) or self.values(source)) if source else None
            found = self.like if found is None and node.op == "CastLike" and len(inputs) == 1 else found
            if source and not isinstance(found, (Constant, Flow)):
                return None
            inputs.append(found)
        try:
            return evaluate(node.with_inputs(inputs))
        except (Refused, TypeError, ValueError, IndexError, KeyError, OverflowError):
            return None

    def inside(self, graph: GraphProto, outside: Call) -> _Side | None:
        """The scope of a branch; ``None`` when the branch is more than nodes."""
        if graph.input or graph.initializer or graph.sparse_initializer or len(graph.output) != 1:
            return None
        made = {name: _as_call(node, outside) for node in graph.node for name in node.output}
        return _Side(lambda name: made[name] if name in made else self.producer(name), self._unless(made), self.like)

    def _unless(self, made: Mapping[str, Call]) -> Values:
        return lambda name: None if name in made else self.values(name)


def _as_call(node: NodeProto, like: Call) -> Call:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if len(attributes) < len(node.attribute) or node.overload:
        raise ValueError(f"{node.op_type}: an attribute is given twice, or an overload is called")
    return Call(
        node.name, node.op_type, domain, like.version, attributes, tuple(node.input), tuple(node.output),
        norms=like.norms,
    )  # fmt: skip


def _pattern(candidate: _Candidate, call: Call) -> _Side | None:
    """The body that ``lipdeploy.ops`` writes for a candidate."""
    specification = OPERATORS[candidate.operator]
    source = candidate.source
    kind = TensorProto.DOUBLE if source.dtype == np.float64 else TensorProto.FLOAT
    try:
        uses = (specification.complete(candidate.attributes),)
        nodes = specification.build_body(uses, frozenset({kind}), call.version)
    except ValueError:
        return None
    made = {name: _as_call(_specialised(node, uses[0]), call) for node in nodes for name in node.output}
    known: dict[str, Value] = {key: Constant(key, array) for key, array in candidate.stored.items()}
    known["X"] = Flow("X", source.dtype, source.shape, {}, {})
    return _Side(made.get, known.get, source)


def _specialised(node: NodeProto, attributes: Attributes) -> NodeProto:
    """References to the function's attributes replaced by their values, as an inliner does."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.ref_attr_name:
            value = helper.make_attribute(attribute.name, attributes[attribute.ref_attr_name])
            attribute.CopyFrom(value)
    return copy


class _Comparison:
    """Whether two graphs compute the same, node for node; ``source`` is what the operator's ``X`` must be."""

    def __init__(self, pattern: _Side, graph: _Side, source: str) -> None:
        self.pattern, self.graph, self.source = pattern, graph, source
        self.agreed: set[tuple[str, str]] = set()

    def same(self, ours: str, theirs: str) -> bool:
        """Compare two tensors and all that they are made of."""
        if not ours or not theirs:
            return ours == theirs
        if ours == "X" and self.pattern.producer("X") is None:
            return theirs == self.source
        if (ours, theirs) in self.agreed:
            return True
        agree = self._agree(ours, theirs)
        if agree:
            self.agreed.add((ours, theirs))
        return agree

    def _agree(self, ours: str, theirs: str) -> bool:
        first, second = self.pattern.constant(ours), self.graph.constant(theirs)
        if first is not None or second is not None:
            return first is not None and second is not None and _identical(first.array, second.array)
        made, node = self.pattern.producer(ours), self.graph.producer(theirs)
        if made is None:
            return False
        if made.op == "Identity" and not made.domain:
            # Nothing happens there, and most tools leave it out.
            bare = node is not None and node.op == "Identity" and not node.domain and not node.attributes
            return self.same(made.input_names[0], node.input_names[0] if bare and node is not None else theirs)
        if node is None or node.domain or made.domain or made.op != node.op:
            return False
        if made.output_names.index(ours) != node.output_names.index(theirs):
            return False
        if len(made.input_names) != len(node.input_names) or len(made.output_names) < len(node.output_names):
            return False
        return self._same_attributes(made, node) and all(map(self.same, made.input_names, node.input_names))

    def _same_attributes(self, made: Call, node: Call) -> bool:
        ours, theirs = _with_defaults(made), _with_defaults(node)
        if ours.keys() != theirs.keys():
            return False
        return all(self._same_attribute(made, node, ours[name], theirs[name]) for name in ours)

    def _same_attribute(self, made: Call, node: Call, first: AttributeProto, second: AttributeProto) -> bool:
        if first.type != AttributeProto.GRAPH or second.type != AttributeProto.GRAPH:
            return _bytes(first) == _bytes(second)
        inner, outer = self.pattern.inside(first.g, made), self.graph.inside(second.g, node)
        if inner is None or outer is None:
            return False
        comparison = _Comparison(inner, outer, self.source)
        return comparison.same(first.g.output[0].name, second.g.output[0].name)


def _with_defaults(call: Call) -> dict[str, AttributeProto]:
    """The attributes, and those that the operator's definition fills in."""
    schema = onnx.defs.get_schema(call.op, call.version, "")
    defaults = {name: entry.default_value for name, entry in schema.attributes.items() if entry.default_value.type}
    return {**defaults, **call.attributes}


def _bytes(attribute: AttributeProto) -> bytes:
    bare = AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    return bytes(bare.SerializeToString(deterministic=True))


def _identical(first: Numbers, second: Numbers) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return first.tolist() == second.tolist() if first.dtype == object else first.tobytes() == second.tobytes()


# What the body could be of.


def _candidates(call: Call, graph: _Side) -> Iterator[_Candidate]:
    nodes = _behind(call, graph)
    kinds = {node.op for node in nodes}
    if "Floor" in kinds:
        yield from _splines(nodes, graph)
    elif kinds & {"If", "TopK"}:
        yield from _sorts(nodes, graph)
    elif "LessOrEqual" in kinds:
        yield from _reflections(nodes, graph)


def _behind(call: Call, graph: _Side) -> list[Call]:
    """The nodes behind an unproven tensor, up to the first proven ones (and those included)."""
    found: dict[int, Call] = {id(call): call}
    waiting = [call]
    while waiting and len(found) < MOST_NODES:
        node = waiting.pop()
        for name in filter(None, node.input_names):
            source = graph.producer(name)
            if source is None or id(source) in found or graph.constant(name) is not None:
                continue
            found[id(source)] = source
            if not isinstance(graph.values(name), Flow):
                waiting.append(source)
    return list(found.values())


def _splines(nodes: list[Call], graph: _Side) -> Iterator[_Candidate]:
    """lower, knot_spacing and x from Floor((x − lower)/h), the table from the Gather, K from the largest interval."""
    by_op = {node.op: node for node in nodes}
    quotient = graph.producer(by_op["Floor"].input_names[0])
    shifted = None if quotient is None or quotient.op != "Div" else graph.producer(quotient.input_names[0])
    if quotient is None or shifted is None or shifted.op != "Sub" or not {"Gather", "Min"} <= by_op.keys():
        return
    source = graph.values(shifted.input_names[0])
    lower, spacing = graph.constant(shifted.input_names[1]), graph.constant(quotient.input_names[1])
    table = graph.constant(by_op["Gather"].input_names[0])
    last = next((found for name in by_op["Min"].input_names if (found := graph.constant(name)) is not None), None)
    if not isinstance(source, Flow) or lower is None or spacing is None or table is None or last is None:
        return
    if any(value.array.size != 1 for value in (lower, spacing, last)):
        return
    knots = int(last.float64().reshape(-1)[0]) + 2
    if knots < 2 or table.array.size % knots:
        return
    rows = table.array.reshape(-1, knots)
    for axis, channels in enumerate(source.shape, start=1):
        if len(rows) in (1, channels):
            attributes = {"lower": _number(lower), "knot_spacing": _number(spacing), "axis": axis}
            yield _Candidate("LinearSpline", attributes, source, {"coefficients": rows})


def _number(constant: Constant) -> float:
    return float(constant.float64().reshape(-1)[0])


def _sources(nodes: list[Call], graph: _Side) -> list[Flow]:
    """Proven tensors that the unproven ones are made of, and what those are pieces or views of."""
    names = list(dict.fromkeys(name for node in nodes for name in node.input_names if name))
    for name in names:  # grows while it is read
        made = graph.producer(name)
        if made is not None and not made.domain and made.op in ("Split", "Reshape", "Mul"):
            names += [made.input_names[0]] if made.input_names[0] not in names and len(names) < MOST_NODES else []
    flows = [value for name in names if isinstance(value := graph.values(name), Flow) and value.shape]
    return flows[-MOST_SOURCES:]


def _sorts(nodes: list[Call], graph: _Side) -> Iterator[_Candidate]:
    size = _group_size(nodes, graph)
    for source in _sources(nodes, graph):
        for axis, channels in enumerate(source.shape, start=1):
            if size is None or channels % size:
                continue
            sizes = (size, 0) if size == channels else (size,)
            for group_size in sizes:
                for layout in (0, 1):
                    for descending in (0, 1):
                        given = {"axis": axis, "group_size": group_size, "layout": layout, "descending": descending}
                        yield from (_Candidate("GroupSort", way, source) for way in _both_ways(given, source))


def _both_ways(given: dict[str, int], source: Flow) -> list[dict[str, int]]:
    """The axis counted from the front and from the end: bodies differ in it."""
    return [given, {**given, "axis": given["axis"] - len(source.shape) - 1}]


def _group_size(nodes: list[Call], graph: _Side) -> int | None:
    for node in nodes:
        if node.op == "TopK":
            count = graph.constant(node.input_names[1])
            entries = [] if count is None else count.array.reshape(-1).tolist()
            return entries[0] if len(entries) == 1 and isinstance(entries[0], int) and entries[0] > 0 else None
        if node.op == "If" and "else_branch" in node.attributes:
            splits = [inner for inner in node.attributes["else_branch"].g.node if inner.op_type == "Split"]
            return len(splits[0].output) if splits else None
    return None


def _reflections(nodes: list[Call], graph: _Side) -> Iterator[_Candidate]:
    """sine and cosine from a·s − b·c, the operands of the difference that is compared with 0."""
    compared = next(node for node in nodes if node.op == "LessOrEqual")
    difference = graph.producer(compared.input_names[0])
    if difference is None or difference.op != "Sub" or "Householder" not in OPERATORS:
        return
    angles = []
    for name in difference.input_names:
        product = graph.producer(name)
        stored = None if product is None or product.op != "Mul" else graph.constant(product.input_names[1])
        if stored is None:
            return
        angles.append(np.ascontiguousarray(stored.array.reshape(-1)))
    for source in _sources(nodes, graph):
        for axis, channels in enumerate(source.shape, start=1):
            if channels != 2 * len(angles[0]) or len(angles[0]) != len(angles[1]):
                continue
            for layout in (1, 0):
                for way in _both_ways({"axis": axis, "layout": layout}, source):
                    yield _Candidate("Householder", way, source, dict(zip(("sine", "cosine"), angles, strict=True)))
