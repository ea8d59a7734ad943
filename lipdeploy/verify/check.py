"""Walks a graph from its inputs to one output and composes the rules: the law is here, once.

For every tensor that depends on the input: ‖h(x) − h(y)‖_q ≤ lipschitz[q]·‖x − y‖_p, in each norm q carried, rounded
up after every operation. A node that cannot be judged makes its outputs ``Unproven``; the graph is refused when the
output depends on one, unless a motif that contains the node as a whole has a proof of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from lipdeploy.errors import Refusal, Refused
from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import ONE, UNBOUNDED, ZERO, Bound
from lipdeploy.verify.chain import Chain, chain_of
from lipdeploy.verify.collapse import Collapsed, collapsed, is_linear, tightened
from lipdeploy.verify.constants import evaluate
from lipdeploy.verify.functions import check_bodies, inlined
from lipdeploy.verify.graph import (
    Call,
    Constant,
    Flow,
    Unproven,
    Value,
    calls,
    opset_versions,
    read_constant,
)
from lipdeploy.verify.guide import Effort, Guide
from lipdeploy.verify.limits import MOST_COMPUTED, MOST_ENTRIES, MOST_RANK, check_shape, too_large
from lipdeploy.verify.motifs import recognise
from lipdeploy.verify.norms import Norm, PerNorm, carried_norms, norm_pair
from lipdeploy.verify.numeric_error import PRECISIONS, ErrorState, output_error, propagate, received_input
from lipdeploy.verify.open_sizes import is_open, judge_open, opened
from lipdeploy.verify.open_sizes import stated as stated_shape
from lipdeploy.verify.operator_norm import ProofFailed
from lipdeploy.verify.pairwise import pair_bounds
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES
from lipdeploy.verify.step import Step, joined, plus
from lipdeploy.verify.verdict import ErrorBound, NodeReport, TensorSpec

#: Hints by node name, as a certificate stores them.
NodeHints = Mapping[str, Any]
#: Hears the node that is being judged and the fraction of the whole proof that is done.
Watch = Callable[[str, float], None]

INPUT_TYPES = frozenset({np.dtype(t) for t in (np.float32, np.float64, np.uint8, np.int8, np.uint16, np.int16)})
WORTH_SAYING = 1.0 - 1e-6
IR_VERSIONS = range(7, 14)
#: What NumPy and Python raise when a malformed node reaches a rule's arithmetic: a refusal, never a verdict.
MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError)
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


@dataclass(frozen=True)
class Proof:
    """What was proven about one graph in one norm."""

    bound: Bound
    nodes: tuple[NodeReport, ...]
    pairwise: np.ndarray[Any, np.dtype[np.float64]] | None
    numeric_error: Mapping[str, ErrorBound | None]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    operators: Mapping[str, int]
    chain: Chain | None = None  # what a multiplier certificate may be about; only when asked for
    resumed: Callable[[Bound], Proof] | None = None  # the proof from the chain's end on, given an l2 bound there


def prove(
    proto: ModelProto,
    norm: str,
    output_name: str | None = None,
    *,
    with_chain: bool = False,
    hints: NodeHints | None = None,
    watch: Watch | None = None,
) -> Proof:
    """Prove a bound for ``proto`` (external data inlined). Raises ``Refused`` with every reason found.

    ``hints`` are what a certificate stores per node: tried first, never believed. ``watch`` hears of the progress.
    """
    if proto.ir_version not in IR_VERSIONS:
        message = f"IR version {proto.ir_version} is outside {IR_VERSIONS.start} to {IR_VERSIONS.stop - 1}"
        raise Refused([Refusal("LIP020", "", "", message)])
    flat = inlined(proto)
    with np.errstate(all="ignore"):
        walk = _Walk(flat.graph, opset_versions(flat), norm, _Helper(hints or {}, watch))
        proof = walk.run(_chosen_output(flat.graph, output_name))
        if with_chain:
            chain = chain_of(proof.output.name, walk.calls, walk.values)
            proof = replace(proof, chain=chain, resumed=None if chain is None else partial(walk.resumed, chain.output))
    check_bodies(flat, walk.element_types or {TensorProto.FLOAT})
    return proof


def _chosen_output(graph: GraphProto, name: str | None) -> str:
    names = [str(output.name) for output in graph.output]
    if name is None:
        if len(names) > 1:
            raise Refused([Refusal("LIP016", "", "", f"the graph has {len(names)} outputs: {', '.join(names)}")])
        return names[0]
    if name not in names:
        raise Refused([Refusal("LIP016", name, "", f"the graph has no such output; it has {', '.join(names)}")])
    return name


class _Helper:
    """Hands every node its guide, and tells who watches how far the proof is (by the weights still to be judged)."""

    def __init__(self, hints: NodeHints, watch: Watch | None) -> None:
        self.hints, self.watch, self.effort = hints, watch, Effort()
        self.weights: dict[str, float] = {}
        self.done, self.total = 0.0, 1.0

    def expect(self, needed: Sequence[Call], values: Mapping[str, Value]) -> None:
        """Learn which nodes are to come."""
        for call in needed:
            stored = (values.get(name) for name in call.input_names)
            sizes = (value.array.size for value in stored if isinstance(value, Constant))
            self.weights[call.name] = 1.0 + float(sum(sizes))
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


class _Walk:
    """The state of one proof: the value of every tensor seen so far, and its error in every program."""

    def __init__(self, graph: GraphProto, opsets: Mapping[str, int], norm: str, helper: _Helper) -> None:
        self.helper = helper
        self.consumers: dict[str, list[Call]] = {}
        self.collapsed: dict[str, Collapsed] = {}
        self.judged: set[str] = set()
        self.norms = carried_norms(norm)
        self.input_norm, self.output_norm = norm_pair(norm)
        self.values: dict[str, Value] = {}
        self.errors: dict[str, dict[str, ErrorState | None]] = {}
        self.reports: list[NodeReport] = []
        self.reported: dict[str, int] = {}  # reports up to the node that made a tensor
        self.output = ""
        self.element_types: set[int] = set()
        self.operators: dict[str, int] = {}
        self.computed = 0
        self.opset = opsets[""]
        self.calls = calls(graph, opsets, self.norms)
        self.inputs = tuple(_input_spec(value) for value in graph.input)
        _refuse_different_batches(graph)
        self.batch = self.inputs[0].shape[0] if self.inputs else None
        for tensor in graph.initializer:
            self.values[tensor.name] = read_constant(tensor)
        stored = (value.array.size for value in self.values.values() if isinstance(value, Constant))
        self.computable = MOST_COMPUTED + 4 * sum(stored)
        for spec in self.inputs:
            self._enter(spec)

    def _enter(self, spec: TensorSpec) -> None:
        shape = opened(spec.name, spec.shape)
        bounds = {norm: ONE for norm in self.norms if norm_weaker(norm, self.input_norm)}
        zero = {norm: ZERO for norm in bounds}
        flow = self.values[spec.name] = Flow(spec.name, spec.dtype, shape, bounds, zero)
        if is_open(shape):
            self.errors[spec.name] = dict.fromkeys((p.mode for p in PRECISIONS), None)
        else:
            self.errors[spec.name] = {p.mode: received_input(bounds, flow.size, p) for p in PRECISIONS}

    def run(self, output: str) -> Proof:
        """Judge every node that ``output`` depends on."""
        needed = _needed(self.calls, output)
        self.helper.expect(needed, self.values)
        for call in needed:
            for name in filter(None, call.input_names):
                self.consumers.setdefault(name, []).append(call)
        self.output = output
        for call in needed:
            self._visit(call)
            self.reported.update(dict.fromkeys(call.output_names, len(self.reports)))
            self.helper.finished(call)
        return self._proof()

    def _proof(self) -> Proof:
        output = self.output
        value = self.values.get(output)
        if isinstance(value, Unproven):
            raise Refused(value.refusals)
        if not isinstance(value, Flow):
            raise Refused([Refusal("LIP013", output, "", "the output does not depend on the graph's input")])
        bound = value.lipschitz.get(self.output_norm, UNBOUNDED)
        if not bound.is_finite:
            raise Refused([Refusal("LIP011", output, "", "no finite bound in the norm asked for")])
        return Proof(
            bound=bound,
            nodes=tuple(self.reports),
            pairwise=pair_bounds(value, output, self.calls, self.values, self.collapsed.get(output)),
            numeric_error=self._numeric_error(output),
            inputs=self.inputs,
            output=TensorSpec(output, value.dtype, (None, *stated_shape(value.shape))),
            operators=dict(sorted(self.operators.items())),
        )

    def resumed(self, name: str, bound: Bound) -> Proof:
        """The proof again from the tensor ``name`` on, which moves by at most ``bound`` in ℓ2.

        Everything after ``name`` must depend on the inputs through it alone.
        """
        flow = self.values[name]
        assert isinstance(flow, Flow)
        tighter = {norm: min(old, bound) if norm is not Norm.L1 else old for norm, old in flow.lipschitz.items()}
        self.values[name] = replace(flow, lipschitz=tighter)
        needed = _needed(self.calls, self.output)
        position = next(index for index, call in enumerate(needed) if name in call.output_names)
        self.reports = self.reports[: self.reported[name]]
        self.helper.effort = Effort()
        with np.errstate(all="ignore"):
            for call in needed[position + 1 :]:
                if not isinstance(self.values.get(call.output_names[0]), Constant):
                    self._visit(call)
        return self._proof()

    def _numeric_error(self, output: str) -> dict[str, ErrorBound | None]:
        result = {mode: output_error(state) for mode, state in self.errors[output].items()}
        if any(isinstance(value, Flow) and value.dtype == np.float64 for value in self.values.values()):
            result = {mode: error if mode == "f64" else None for mode, error in result.items()}
        constants = [value.array for value in self.values.values() if isinstance(value, Constant)]
        for precision in PRECISIONS:
            if not all(precision.holds(array) for array in constants):
                result[precision.mode] = None
        return result

    def _visit(self, call: Call) -> None:
        values = [self.values[name] if name else None for name in call.input_names]
        call = call.with_inputs(values, self.batch, self.helper.guide(call))
        try:
            _refuse_open_shape(call)
            constant = evaluate(call) if _is_constant(call) else None
            if constant is not None:
                self._keep(call, constant)
                return
            steps = self._judge(call)
            for step in steps:
                check_shape(call, [size or 1 for size in stated_shape(step.shape)])
        except Refused as error:
            self._give_up(call, error.refusals)
        except MemoryError as error:
            self._give_up(call, (Refusal("LIP024", call.name, call.op, f"needs more memory than there is: {error}"),))
        except MALFORMED as error:
            message = f"its inputs or attributes do not fit the operator: {error}"
            self._give_up(call, (Refusal("LIP013", call.name, call.op, message),))
        else:
            self.judged.update(filter(None, call.output_names))
            self._compose_outputs(call, steps)
        self._try_motif(call)
        self._try_collapse(call)

    def _keep(self, call: Call, constant: Constant) -> None:
        """Remember a computed constant; those that are views of others take no memory."""
        self.computed += constant.array.size if constant.array.base is None else 0
        if self.computed > self.computable:
            raise too_large(call, f"{self.computed} computed constants", self.computable)
        self.values[call.output_names[0]] = constant

    def _give_up(self, call: Call, refusals: tuple[Refusal, ...]) -> None:
        for name in filter(None, call.output_names):
            self.values[name] = Unproven(name, refusals)

    def _compose_outputs(self, call: Call, steps: Sequence[Step]) -> None:
        for index, name in enumerate(call.output_names):
            if name and index < len(steps):
                self._compose(call, name, steps[index])
            elif name:
                message = f"output {index} ('{name}') has no rule"
                self.values[name] = Unproven(name, (Refusal("LIP002", call.name, call.op, message),))

    def _judge(self, call: Call) -> list[Step]:
        rule = RULES.get((call.domain, call.op))
        if rule is None:
            raise _no_rule(call)
        if call.domain:
            self.operators[call.op] = call.version
            if call.domain == DOMAIN and self.opset < FIRST_WITH_BODIES:
                raise call.refuse("LIP020", f"lipdeploy operators need opset {FIRST_WITH_BODIES}, this is {self.opset}")
            if call.domain == DOMAIN:
                self.element_types.add(helper.np_dtype_to_tensor_dtype(call.flow().dtype))
        types = {flow.dtype for flow in call.flows()}
        if len(types) > 1:
            raise call.refuse("LIP013", "its activations have different element types")
        if types.pop().kind != "f" and call.op not in MOVES_INTEGERS:
            raise call.refuse(
                "LIP015", "computes with integers, which wrap around", hint="cast the input to float first"
            )
        if any(is_open(flow.shape) for flow in call.flows()):
            return judge_open(call)
        return rule(call)

    def _compose(self, call: Call, name: str, step: Step) -> None:
        flows = call.flows()
        flow = _after(name, step, flows, self.norms)
        if 0 in flow.shape:
            self.values[name] = Unproven(name, (Refusal("LIP002", call.name, call.op, "the output is empty"),))
            return
        if not all(bound.is_finite for bound in flow.lipschitz.values()):
            refusal = Refusal("LIP014", call.name, call.op, "the bound overflows")
            self.values[name] = Unproven(name, (refusal,))
            return
        self.values[name] = flow
        self.errors[name] = {
            precision.mode: propagate(
                step, flows, [self.errors[f.name][precision.mode] for f in flows], precision, self.norms
            )
            for precision in PRECISIONS
        }
        self.reports.append(self._report(call, flow, step))

    def _try_motif(self, call: Call) -> None:
        if any(isinstance(value, Flow) and is_open(value.shape) for value in call.inputs):
            return  # motifs are proven for images of one size
        try:
            found = recognise(call, self.values.get)
        except (Refused, MemoryError, RecursionError, *MALFORMED):
            return
        if found is None:
            return
        start, step = found
        sources = (start,) if isinstance(start, Flow) else start
        if any(is_open(source.shape) for source in sources):
            return
        name = call.output_names[0]
        whole, direct = _after(name, step, sources, self.norms), self.values[name]
        if isinstance(direct, Flow):
            tighter = {
                norm: min(bound, whole.lipschitz.get(norm, UNBOUNDED)) for norm, bound in direct.lipschitz.items()
            }
            whole = replace(direct, lipschitz=tighter)
            self.reports.pop()
        else:
            self.errors[name] = {
                p.mode: propagate(step, sources, [self.errors[s.name][p.mode] for s in sources], p, self.norms)
                for p in PRECISIONS
            }
        self.values[name] = whole
        self.reports.append(self._report(call, whole, step))

    def _try_collapse(self, call: Call) -> None:
        """Where a row of linear operators ends, the bound of all of them as one matrix, if that is less."""
        name = call.output_names[0] if call.output_names else ""
        direct, consumers = self.values.get(name), self.consumers.get(name, [])
        if not is_linear(call) or not isinstance(direct, Flow) or (consumers and all(map(self._continues, consumers))):
            return
        try:
            found = collapsed(call, self.values, self.judged, call.guide)
            whole = tightened(found, self.norms) if found is not None else {}
        except (Refused, ProofFailed, MemoryError, *MALFORMED):
            return
        if found is None:
            return
        self.collapsed[name] = found
        best = {norm: min(bound, whole.get(norm, UNBOUNDED)) for norm, bound in direct.lipschitz.items()}
        # Proofs differ in their last digits; the report, which a certificate repeats, must not change with them.
        if best[self.output_norm] < direct.lipschitz[self.output_norm] * WORTH_SAYING:
            last = self.reports.pop()
            rule = f"{last.rule}; one matrix from {found.first} on"
            self.reports.append(replace(last, bound_after=best[self.output_norm], rule=rule))
        self.values[name] = replace(direct, lipschitz=best)

    def _continues(self, consumer: Call) -> bool:
        """Whether a consumer may go on with a row of linear operators: all its other inputs are constants."""
        constants = sum(isinstance(self.values.get(name), Constant) for name in consumer.input_names if name)
        return is_linear(consumer) and constants == len(list(filter(None, consumer.input_names))) - 1

    def _report(self, call: Call, flow: Flow, step: Step) -> NodeReport:
        unit: PerNorm = {norm: ONE for norm in self.norms}
        gain = joined(step.gains, step.join, [unit] * len(step.gains), self.norms)
        return NodeReport(
            name=call.name,
            op=f"{call.domain}.{call.op}" if call.domain else call.op,
            gain=gain.get(self.output_norm, UNBOUNDED),
            bound_after=flow.lipschitz.get(self.output_norm, UNBOUNDED),
            rule=step.rule,
            shape=(None, *stated_shape(flow.shape)),
            hints=dict(call.guide.found),
        )


def _refuse_open_shape(call: Call) -> None:
    """A size that the file leaves open is no constant, although Shape would name it."""
    if call.op == "Shape" and not call.domain and any(is_open(flow.shape) for flow in call.flows()):
        raise call.refuse("LIP006", "computes with an image's height or width, which the file leaves open")


def _refuse_different_batches(graph: GraphProto) -> None:
    """Samples of one input could be regrouped by the batch size of another."""
    axes = [value.type.tensor_type.shape.dim[0] for value in graph.input]
    stated = {dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in axes}
    if len(axes) > 1 and (len(stated) > 1 or "" in stated):
        message = f"the inputs' batch axes are not the same: {sorted(map(str, stated))}"
        hint = "give axis 0 of every input the same name or size"
        raise Refused([Refusal("LIP005", graph.input[0].name, "input", message, hint)])


def norm_weaker(norm: Norm, than: Norm) -> bool:
    """Whether ‖·‖_norm ≤ ‖·‖_than for all vectors."""
    order = (Norm.L1, Norm.L2, Norm.LINF)
    return order.index(norm) >= order.index(than)


def _after(name: str, step: Step, flows: Sequence[Flow], norms: tuple[Norm, ...]) -> Flow:
    lipschitz = joined(step.gains, step.join, [flow.lipschitz for flow in flows], norms)
    at_zero = plus(joined(step.gains, step.join, [flow.at_zero for flow in flows], norms), step.at_zero)
    dtype = step.dtype if step.dtype is not None else flows[0].dtype
    return Flow(name, dtype, step.shape, lipschitz, at_zero)


def _is_constant(call: Call) -> bool:
    if call.op in ("Shape", "CastLike") and not call.domain:
        return True
    return not any(isinstance(value, (Flow, Unproven)) for value in call.inputs)


def _no_rule(call: Call) -> Refused:
    name = f"{call.domain}.{call.op}" if call.domain else call.op
    if not call.domain and call.op in NOT_LIPSCHITZ:
        return call.refuse("LIP010", f"{name} has no finite Lipschitz constant, or no useful one")
    return call.refuse("LIP001", f"there is no rule for {name}")


def _needed(listed: Sequence[Call], output: str) -> list[Call]:
    wanted, needed = {output}, []
    for call in reversed(listed):
        if wanted & set(filter(None, call.output_names)):
            needed.append(call)
            wanted |= set(filter(None, call.input_names))
    return needed[::-1]


def _input_spec(value: ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise Refused([Refusal("LIP006", value.name, "input", "the input is not a tensor of known rank")])
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError) as error:
        raise Refused([Refusal("LIP021", value.name, "input", f"element type {tensor.elem_type}")]) from error
    if dtype not in INPUT_TYPES:
        raise Refused([Refusal("LIP021", value.name, "input", f"inputs of type {dtype} are not supported")])
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if not dims:
        raise Refused([Refusal("LIP005", value.name, "input", "the input has no batch axis")])
    if math.prod(n or 1 for n in dims[1:]) > MOST_ENTRIES or len(dims) > MOST_RANK:
        message = f"more than {MOST_ENTRIES} entries per sample, or {MOST_RANK} axes"
        raise Refused([Refusal("LIP024", value.name, "input", message)])
    if any(n is None for n in dims[1:2]) or any(n is not None and n < 1 for n in dims[1:]):
        message = f"shape {dims}: only the batch axis and the axes of an image, from 2 on, may be open"
        raise Refused([Refusal("LIP006", value.name, "input", message)])
    return TensorSpec(value.name, dtype, tuple(dims))


__all__ = ["Proof", "norm_weaker", "prove"]
