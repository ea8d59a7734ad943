"""Walks a graph from its inputs to one output and composes the rules: the law is here, once.

For every tensor that depends on the input: ‖h(x) − h(y)‖_q ≤ lipschitz[q]·‖x − y‖_p, in each norm q carried, rounded
up after every operation. A node that cannot be judged makes its outputs ``Unproven``; the graph is refused when the
output depends on one, unless a motif that contains the node as a whole has a proof of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from lipdeploy.errors import Refusal, Refused
from lipdeploy.ops import DOMAIN
from lipdeploy.verify.bound import ONE, UNBOUNDED, ZERO, Bound
from lipdeploy.verify.chain import Chain, chain_of
from lipdeploy.verify.constants import evaluate
from lipdeploy.verify.functions import check_bodies, inlined
from lipdeploy.verify.graph import (
    Call,
    Flow,
    Unproven,
    Value,
    calls,
    opset_versions,
    read_constant,
)
from lipdeploy.verify.motifs import recognise
from lipdeploy.verify.norms import Norm, PerNorm, carried_norms, norm_pair
from lipdeploy.verify.numeric_error import PRECISIONS, ErrorState, exact_input, output_error, propagate
from lipdeploy.verify.pairwise import pair_bounds
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES
from lipdeploy.verify.step import Step, joined, plus
from lipdeploy.verify.verdict import ErrorBound, NodeReport, TensorSpec

INPUT_TYPES = frozenset({np.dtype(t) for t in (np.float32, np.float64, np.uint8, np.int8, np.uint16, np.int16)})
IR_VERSIONS = range(7, 14)
#: What NumPy and Python raise when a malformed node reaches a rule's arithmetic: a refusal, never a verdict.
MALFORMED = (TypeError, ValueError, KeyError, IndexError, OverflowError, ZeroDivisionError)
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


def prove(proto: ModelProto, norm: str, output_name: str | None = None, *, with_chain: bool = False) -> Proof:
    """Prove a bound for ``proto`` (external data inlined). Raises ``Refused`` with every reason found."""
    if proto.ir_version not in IR_VERSIONS:
        message = f"IR version {proto.ir_version} is outside {IR_VERSIONS.start} to {IR_VERSIONS.stop - 1}"
        raise Refused([Refusal("LIP020", "", "", message)])
    flat = inlined(proto)
    with np.errstate(all="ignore"):
        walk = _Walk(flat.graph, opset_versions(flat), norm)
        proof = walk.run(_chosen_output(flat.graph, output_name))
        if with_chain:
            proof = replace(proof, chain=chain_of(proof.output.name, walk.calls, walk.values))
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


class _Walk:
    """The state of one proof: the value of every tensor seen so far, and its error in every program."""

    def __init__(self, graph: GraphProto, opsets: Mapping[str, int], norm: str) -> None:
        self.norms = carried_norms(norm)
        self.input_norm, self.output_norm = norm_pair(norm)
        self.values: dict[str, Value] = {}
        self.errors: dict[str, dict[str, ErrorState | None]] = {}
        self.reports: list[NodeReport] = []
        self.element_types: set[int] = set()
        self.operators: dict[str, int] = {}
        self.opset = opsets[""]
        self.calls = calls(graph, opsets, self.norms)
        self.inputs = tuple(_input_spec(value) for value in graph.input)
        _refuse_different_batches(graph)
        self.batch = self.inputs[0].shape[0] if self.inputs else None
        for tensor in graph.initializer:
            self.values[tensor.name] = read_constant(tensor)
        for spec in self.inputs:
            self._enter(spec)

    def _enter(self, spec: TensorSpec) -> None:
        shape = tuple(int(n) for n in spec.shape[1:] if n is not None)
        bounds = {norm: ONE for norm in self.norms if norm_weaker(norm, self.input_norm)}
        zero = {norm: ZERO for norm in bounds}
        self.values[spec.name] = Flow(spec.name, spec.dtype, shape, bounds, zero)
        self.errors[spec.name] = {precision.mode: exact_input(bounds) for precision in PRECISIONS}

    def run(self, output: str) -> Proof:
        """Judge every node that ``output`` depends on."""
        for call in _needed(self.calls, output):
            self._visit(call)
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
            pairwise=pair_bounds(value, output, self.calls, self.values),
            numeric_error=self._numeric_error(output),
            inputs=self.inputs,
            output=TensorSpec(output, value.dtype, (None, *value.shape)),
            operators=dict(sorted(self.operators.items())),
        )

    def _numeric_error(self, output: str) -> dict[str, ErrorBound | None]:
        result = {mode: output_error(state) for mode, state in self.errors[output].items()}
        if any(isinstance(value, Flow) and value.dtype == np.float64 for value in self.values.values()):
            result["f32"] = None
        return result

    def _visit(self, call: Call) -> None:
        values = [self.values[name] if name else None for name in call.input_names]
        call = call.with_inputs(values, self.batch)
        try:
            constant = evaluate(call) if _is_constant(call) else None
            if constant is not None:
                self.values[call.output_names[0]] = constant
                return
            steps = self._judge(call)
        except Refused as error:
            self._give_up(call, error.refusals)
        except MALFORMED as error:
            message = f"its inputs or attributes do not fit the operator: {error}"
            self._give_up(call, (Refusal("LIP013", call.name, call.op, message),))
        else:
            self._compose_outputs(call, steps)
        self._try_motif(call)

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
        return rule(call)

    def _compose(self, call: Call, name: str, step: Step) -> None:
        flows = call.flows()
        flow = _after(name, step, flows, self.norms)
        if not flow.size:
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
        try:
            found = recognise(call, self.values.get)
        except (Refused, *MALFORMED):
            return
        if found is None:
            return
        source, step = found
        name = call.output_names[0]
        whole, direct = _after(name, step, (source,), self.norms), self.values[name]
        if isinstance(direct, Flow):
            tighter = {
                norm: min(bound, whole.lipschitz.get(norm, UNBOUNDED)) for norm, bound in direct.lipschitz.items()
            }
            whole = replace(direct, lipschitz=tighter)
            self.reports.pop()
        else:
            states = {p.mode: self.errors[source.name][p.mode] for p in PRECISIONS}
            self.errors[name] = {
                p.mode: propagate(step, (source,), [states[p.mode]], p, self.norms) for p in PRECISIONS
            }
        self.values[name] = whole
        self.reports.append(self._report(call, whole, step))

    def _report(self, call: Call, flow: Flow, step: Step) -> NodeReport:
        unit: PerNorm = {norm: ONE for norm in self.norms}
        gain = joined(step.gains, step.join, [unit] * len(step.gains), self.norms)
        return NodeReport(
            name=call.name,
            op=f"{call.domain}.{call.op}" if call.domain else call.op,
            gain=gain.get(self.output_norm, UNBOUNDED),
            bound_after=flow.lipschitz.get(self.output_norm, UNBOUNDED),
            rule=step.rule,
            shape=(None, *flow.shape),
        )


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
    if call.op == "Shape" and not call.domain:
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
    if any(n is None or n < 1 for n in dims[1:]):
        raise Refused([Refusal("LIP006", value.name, "input", f"shape {dims}: only the batch axis may be open")])
    return TensorSpec(value.name, dtype, tuple(dims))


__all__ = ["Proof", "norm_weaker", "prove"]
