"""The verifier's own view of a model: nodes with checked attributes, constants as exact arrays, nothing implied.

Shapes that a file states about its inside (``value_info``) are not read: every rule computes its output's shape.
Types are compared with what the graph computes (``element_types``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import Norm, PerNorm

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
OPSETS = range(13, 24)
FLOATS: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
}
T = TypeVar("T")
Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Flow:
    """A tensor that depends on the input.

    ``shape`` is per sample: the batch axis, always axis 0, is left out. ``lipschitz[q]`` bounds
    ‖h(x) − h(y)‖_q / ‖x − y‖_p, ``at_zero[q]`` bounds ‖h(0)‖_q.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    lipschitz: PerNorm
    at_zero: PerNorm

    @property
    def size(self) -> int:
        """Entries per sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Constant:
    """A tensor that the file fixes. Integer tensors that describe shapes may hold ``BATCH`` (dtype object).

    ``roundings``: how often a float32 program rounds on the way to it; ``array`` then holds the exact numbers.
    """

    name: str
    array: Numbers
    roundings: int = 0

    def float64(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The stored numbers, widened exactly."""
        return self.array.astype(np.float64)


@dataclass(frozen=True)
class Unproven:
    """A tensor about which nothing could be proven, and why."""

    name: str
    refusals: tuple[Refusal, ...]


Value = Flow | Constant | Unproven


class _Batch:
    """The one unknown size: the number of samples."""

    def __repr__(self) -> str:
        return "BATCH"


BATCH = _Batch()


@dataclass(frozen=True)
class Call:
    """One node, as a rule sees it. ``batch`` is the number of samples where the file fixes it."""

    name: str
    op: str
    domain: str
    version: int
    attributes: Mapping[str, AttributeProto]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    inputs: tuple[Value | None, ...] = ()
    norms: tuple[Norm, ...] = ()
    batch: int | None = None
    place: int = -1  # in the order of the file
    producer: Callable[[str], Call | None] = field(default=lambda name: None, repr=False, compare=False)
    guide: Guide = field(default_factory=Guide, repr=False, compare=False)

    def refuse(self, code: str, message: str, hint: str = "") -> Refused:
        """The exception that refuses this node."""
        return Refused([Refusal(code, self.name, self.op, message, hint)])

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer attribute; refused when it is missing and has no default."""
        return int(self._attribute(name, AttributeProto.INT, lambda a: a.i, default))

    def real(self, name: str, default: float | None = None) -> float:
        """A float attribute (a float32 number, widened exactly); refused when it is not finite."""
        value = float(self._attribute(name, AttributeProto.FLOAT, lambda a: a.f, default))
        if not np.isfinite(value):
            raise self.refuse("LIP003", f"attribute '{name}' is {value}")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of integers."""
        return tuple(self._attribute(name, AttributeProto.INTS, lambda a: tuple(a.ints), default))

    def string(self, name: str, default: str) -> str:
        """A string attribute."""
        return self._attribute(name, AttributeProto.STRING, lambda a: a.s.decode("utf-8", "replace"), default)

    def _attribute(self, name: str, kind: int, read: Callable[[AttributeProto], T], default: T | None) -> T:
        attribute = self.attributes.get(name)
        if attribute is None:
            if default is None:
                raise self.refuse("LIP002", f"attribute '{name}' is missing")
            return default
        if attribute.type != kind:
            raise self.refuse("LIP013", f"attribute '{name}' has the wrong type")
        return read(attribute)

    def flow(self, index: int = 0) -> Flow:
        """Input ``index``, which must depend on the graph's input."""
        value = self.optional(index)
        if not isinstance(value, Flow):
            raise self.refuse("LIP002", f"input {index} must be an activation, not a constant")
        return value

    def constant(self, index: int) -> Constant | None:
        """Input ``index``, which must be constant (or absent: ``None``)."""
        value = self.optional(index)
        if isinstance(value, Flow):
            raise self.refuse("LIP004", f"input {index} ('{value.name}') depends on the input, a constant is needed")
        return value

    def required_constant(self, index: int) -> Constant:
        """Input ``index``, which must be a constant and present."""
        value = self.constant(index)
        if value is None:
            raise self.refuse("LIP002", f"input {index} is missing")
        return value

    def optional(self, index: int) -> Flow | Constant | None:
        """Input ``index`` or ``None``; raises the refusals of an unproven one."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Unproven):
            raise Refused(value.refusals)
        return value

    def flows(self) -> tuple[Flow, ...]:
        """All inputs that depend on the graph's input."""
        present = (self.optional(index) for index in range(len(self.inputs)))
        return tuple(value for value in present if isinstance(value, Flow))

    def axis(self, name: str, default: int | None, rank: int) -> int:
        """An axis attribute, counted from 0 over batch and sample axes (``rank`` of the whole tensor)."""
        return self.resolve_axis(self.integer(name, default), rank)

    def resolve_axis(self, axis: int, rank: int) -> int:
        """``axis`` counted from 0; refused outside −rank … rank − 1."""
        if not -rank <= axis < rank:
            raise self.refuse("LIP013", f"axis {axis} is outside a tensor of rank {rank}")
        return axis % rank

    def with_inputs(self, inputs: Sequence[Value | None], batch: int | None = None, guide: Guide | None = None) -> Call:
        """The same node with its inputs' values, and help for its proof."""
        return replace(self, inputs=tuple(inputs), batch=batch, guide=self.guide if guide is None else guide)

    def is_batch(self, size: object) -> bool:
        """Whether an entry of a target shape stands for the number of samples."""
        return size is BATCH or (self.batch is not None and size == self.batch)


def calls(graph: GraphProto, opsets: Mapping[str, int], norms: tuple[Norm, ...]) -> list[Call]:
    """The graph's nodes in their order, each with a name of its own; refuses what is not a plain SSA graph."""
    defined = _stored_names(graph)
    listed: list[Call] = []
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        call = _call(node, index, opsets, norms)
        for name in filter(None, call.input_names):
            if name not in defined:
                raise call.refuse("LIP013", f"input '{name}' is not defined before it is used")
        for name in filter(None, call.output_names):
            if name in defined:
                raise call.refuse("LIP013", f"'{name}' is defined twice")
            defined.add(name)
            producers[name] = index
        listed.append(call)

    def producer(name: str) -> Call | None:
        return listed[producers[name]] if name in producers else None

    listed[:] = [replace(call, producer=producer) for call in listed]
    return listed


def _stored_names(graph: GraphProto) -> set[str]:
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        message = "is both an input and an initializer, or stored twice: a caller could replace a verified weight"
        raise Refused([Refusal("LIP013", doubled[0], "", message)])
    if graph.sparse_initializer:
        raise Refused([Refusal("LIP013", graph.sparse_initializer[0].values.name, "", "sparse initializer")])
    return set(names)


def _call(node: NodeProto, index: int, opsets: Mapping[str, int], norms: tuple[Norm, ...]) -> Call:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    call = Call(
        name=node.name or f"#{index}",
        op=node.op_type,
        domain=domain,
        version=opsets.get(domain, 0),
        attributes={attribute.name: attribute for attribute in node.attribute},
        input_names=tuple(node.input),
        output_names=tuple(node.output),
        norms=norms,
        place=index,
    )
    if len(call.attributes) != len(node.attribute):
        raise call.refuse("LIP013", "an attribute is given twice")
    if any(attribute.type == AttributeProto.UNDEFINED for attribute in node.attribute):
        raise call.refuse("LIP013", "an attribute has no type")
    if any(attribute.ref_attr_name for attribute in node.attribute):
        raise call.refuse("LIP013", "an attribute refers to a function's attribute, outside any function")
    if getattr(node, "overload", ""):
        raise call.refuse("LIP008", f"calls the overload '{node.overload}'")
    if domain not in opsets:
        raise call.refuse("LIP020", f"domain '{domain}' is used without an opset import")
    return call


def opset_versions(proto: onnx.ModelProto) -> dict[str, int]:
    """Operator-set versions by domain; refuses duplicates and standard versions that the rules do not cover."""
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
        if domain in versions:
            raise Refused([Refusal("LIP020", "", "", f"operator set '{domain}' is imported twice")])
        versions[domain] = entry.version
    if versions.get("") not in OPSETS:
        message = f"opset {versions.get('')} is outside {OPSETS.start} to {OPSETS.stop - 1}"
        raise Refused([Refusal("LIP020", "", "", message)])
    return versions
