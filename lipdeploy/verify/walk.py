"""Walks a graph from its inputs to one output and composes the rules: the law is here, once.

For every tensor that depends on the input: ‖h(x) − h(y)‖_q ≤ lipschitz[q]·‖x − y‖_p, in each norm q carried, rounded
up after every operation. A node that cannot be judged makes its outputs ``Unproven``; the graph is refused when the
output depends on one, unless a motif that contains the node as a whole has a proof of its own.

What each node was found to do is kept, because it does not depend on the bounds in front of it: ``tighten`` composes
the same claims again behind tensors of which multiplier certificates prove less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.bound import ONE, UNBOUNDED, ZERO, Bound
from lipdeploy.verify.chain import Chain, all_segments, segment
from lipdeploy.verify.collapse import Collapsed, collapsed, is_linear
from lipdeploy.verify.constants import evaluate
from lipdeploy.verify.dequantize import as_programmed, in_binary64_only
from lipdeploy.verify.element_types import check_element_types
from lipdeploy.verify.entry import input_specs
from lipdeploy.verify.graph import Call, Constant, Flow, Unproven, Value, calls
from lipdeploy.verify.judge import Judge, refuse_open_shape
from lipdeploy.verify.limits import MOST_COMPUTED, check_shape, too_large
from lipdeploy.verify.lmi import Certified
from lipdeploy.verify.motifs import recognise
from lipdeploy.verify.norms import Gains, Norm, PerNorm, carried_norms, norm_pair
from lipdeploy.verify.numeric_error import PRECISIONS, ErrorState, output_error, propagate, received_input
from lipdeploy.verify.one_sided import one_sided_by
from lipdeploy.verify.open_sizes import is_open, opened
from lipdeploy.verify.open_sizes import stated as stated_shape
from lipdeploy.verify.operator_norm import ProofFailed
from lipdeploy.verify.pairwise import pair_bounds
from lipdeploy.verify.progress import Progress
from lipdeploy.verify.step import Step, joined, plus
from lipdeploy.verify.tensors import read_constant
from lipdeploy.verify.verdict import ErrorBound, NodeReport, TensorSpec

WORTH_SAYING = 1.0 - 1e-6
#: Which programs a graph with activations of a type can be; without such types, all of them.
COMPUTES = {np.dtype(np.float64): ("f64",), np.dtype(np.float16): ("f64", "f16")}
#: What NumPy and Python raise when a malformed node reaches a rule's arithmetic: a refusal, never a verdict.
MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError)


@dataclass(frozen=True)
class Proof:
    """What was proven about one graph in one norm."""

    bound: Bound
    nodes: tuple[NodeReport, ...]
    pairwise: np.ndarray[Any, np.dtype[np.float64]] | None
    numeric_error: Mapping[str, ErrorBound | None]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    one_sided_by: str
    operators: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]


@dataclass
class _Claims:
    """What was found about one node, in terms of bounds that may still change.

    ``steps`` of its own outputs, or why there are none (``refused``); the ``motif`` that ends in it, from the named
    tensors; the ``row`` of linear operators that ends in it, with the gains of its matrix.
    """

    call: Call
    steps: Sequence[Step] = ()
    refused: tuple[Refusal, ...] = ()
    motif: tuple[tuple[str, ...], Step] | None = None
    row: tuple[Collapsed, Gains] | None = None


class Walk:
    """One proof: the value of every tensor seen so far, its error in every program, and the claims behind both."""

    def __init__(self, graph: GraphProto, opsets: Mapping[str, int], norm: str, progress: Progress) -> None:
        self.progress = progress
        self.judge = Judge(opsets[""])
        self.norms = carried_norms(norm)
        self.input_norm, self.output_norm = norm_pair(norm)
        self.consumers: dict[str, list[Call]] = {}
        self.collapsed: dict[str, Collapsed] = {}
        self.judged: set[str] = set()
        self.unknown: set[str] = set()  # constants that could not be evaluated
        self.values: dict[str, Value] = {}
        self.errors: dict[str, dict[str, ErrorState | None]] = {}
        self.reports: list[NodeReport] = []
        self.reported: list[int] = []  # how many reports there were after each of the claims
        self.claims: list[_Claims] = []
        self.output = ""
        self.computed = 0
        self.graph = graph
        self.calls = calls(graph, opsets, self.norms)
        self.inputs = input_specs(graph)
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

    def run(self, output: str) -> None:
        """Judge every node that ``output`` depends on."""
        needed = _needed(self.calls, output)
        check_element_types(self.graph, needed)
        self.progress.expect(needed, self.values)
        for call in needed:
            for name in filter(None, call.input_names):
                self.consumers.setdefault(name, []).append(call)
        self.output = output
        for call in needed:
            claims = self._visit(call)
            if claims is not None:
                self.claims.append(claims)
                self.reported.append(len(self.reports))
            self.progress.finished(call)

    def proven(self) -> Flow:
        """The output with what is proven about it now. Raises ``Refused`` with every reason found."""
        value = self.values.get(self.output)
        if isinstance(value, Unproven):
            raise Refused(value.refusals)
        if not isinstance(value, Flow):
            raise Refused([Refusal("LIP013", self.output, "", "the output does not depend on the graph's input")])
        if not value.lipschitz.get(self.output_norm, UNBOUNDED).is_finite:
            raise Refused([Refusal("LIP011", self.output, "", "no finite bound in the norm asked for")])
        return value

    def proof(self) -> Proof:
        """Everything that is proven now. Raises ``Refused`` with every reason found."""
        output, value = self.output, self.proven()
        return Proof(
            bound=value.lipschitz[self.output_norm],
            nodes=tuple(self.reports),
            pairwise=pair_bounds(value, output, self.calls, self.values, self.collapsed.get(output)),
            numeric_error=self._numeric_error(output),
            inputs=self.inputs,
            output=TensorSpec(output, value.dtype, (None, *stated_shape(value.shape))),
            one_sided_by=one_sided_by(output, _needed(self.calls, output), self.values),
            operators=dict(sorted(self.judge.operators.items())),
            sizes={name: v.shape for name, v in self.values.items() if isinstance(v, Flow) and not is_open(v.shape)},
        )

    def segments(self) -> list[Chain]:
        """The parts of the graph that multipliers may tighten, from the inputs on."""
        return all_segments(self.output, self.calls, self.values)

    def segment(self, end: str) -> Chain | None:
        """The longest of them that ends in one tensor, as ``segments`` would find it."""
        return segment(end, self.calls, self.values)

    def tighten(
        self, chains: Sequence[Chain], certify: Callable[[Chain], Certified | None]
    ) -> dict[str, tuple[Certified, Bound]]:
        """Compose the claims again, with ‖Δy‖₂ at most what is certified for the chain that ends in y.

        A chain's ``front`` is what is proven for its start by then, with the chains before it. Returns, by y's name
        and in the graph's order, what was certified and the bound of y. No bound grows.
        """
        ends = {chain.output: chain for chain in chains if self.input_norm is Norm.L2}
        found: dict[str, tuple[Certified, Bound]] = {}
        for claims, reported in zip(self.claims, self.reported, strict=True) if ends else ():
            if found:
                claims.call = claims.call.with_inputs(self._inputs_of(claims.call), self.batch)
                self._compose_claims(claims)
            for name in filter(ends.__contains__, claims.call.output_names):
                certified = certify(replace(ends[name], front=self._front(ends[name])))
                if certified is None:
                    continue
                if not found:
                    self.reports = self.reports[:reported]
                found[name] = (certified, self._lower(name, certified.bound))
        return found

    def _front(self, chain: Chain) -> Bound:
        flow = None if chain.source is None else self.values[chain.source]
        return flow.lipschitz[Norm.L2] if isinstance(flow, Flow) else ONE

    def _lower(self, name: str, bound: Bound) -> Bound:
        """‖Δy‖₂ is at most ``bound``·‖Δx‖₂, and so is ‖Δy‖∞."""
        flow = self.values[name]
        assert isinstance(flow, Flow)
        tighter = {norm: min(old, bound) if norm is not Norm.L1 else old for norm, old in flow.lipschitz.items()}
        self.values[name] = replace(flow, lipschitz=tighter)
        return tighter[Norm.L2]

    def _numeric_error(self, output: str) -> dict[str, ErrorBound | None]:
        result = {mode: output_error(state) for mode, state in self.errors[output].items()}
        kinds = {value.dtype for value in self.values.values() if isinstance(value, Flow)}
        for kind, known in COMPUTES.items():
            if kind in kinds:
                result = {mode: error if mode in known else None for mode, error in result.items()}
        constants = [value.array for value in self.values.values() if isinstance(value, Constant)]
        for precision in PRECISIONS:
            if not all(precision.holds(array) for array in constants):
                result[precision.mode] = None
        return result

    def _inputs_of(self, call: Call) -> list[Value | None]:
        return [self.values[name] if name else None for name in call.input_names]

    def _visit(self, call: Call) -> _Claims | None:
        """Judge one node; ``None`` for a constant, about which nothing is claimed."""
        call = call.with_inputs(self._inputs_of(call), self.batch, self.progress.guide(call))
        claims = _Claims(call)
        try:
            refuse_open_shape(call)
            self._refuse_unknown(call)
            constant = evaluate(call) if _is_constant(call) else None
            if constant is not None:
                self._keep(call, constant)
                return None
            claims.steps = self.judge.steps(call)
            for step in claims.steps:
                check_shape(call, [size or 1 for size in stated_shape(step.shape)])
        except Refused as error:
            claims.refused = error.refusals
            if self._uses_only_constants(call):
                self.unknown.update(call.output_names)
        except MemoryError as error:
            claims.refused = (Refusal("LIP024", call.name, call.op, f"needs more memory than there is: {error}"),)
        except MALFORMED as error:
            message = f"its inputs or attributes do not fit the operator: {error}"
            claims.refused = (Refusal("LIP013", call.name, call.op, message),)
        else:
            self.judged.update(filter(None, call.output_names))
        self._compose_outputs(claims)
        self._look_for_motif(claims)
        self._look_for_row(claims)
        return claims

    def _uses_only_constants(self, call: Call) -> bool:
        """Whether a node does not depend on the input, even if something that it uses could not be evaluated."""
        names = filter(None, call.input_names)
        return all(name in self.unknown or isinstance(self.values[name], Constant) for name in names)

    def _refuse_unknown(self, call: Call) -> None:
        """What cannot be evaluated is named where it begins, not as an operator that does not suit activations."""
        if self._uses_only_constants(call):
            for value in map(self.values.get, call.input_names):
                if isinstance(value, Unproven):
                    raise Refused(value.refusals)  # the first one's: all of them would double from node to node

    def _keep(self, call: Call, constant: Constant) -> None:
        """Remember a computed constant; those that are views of others take no memory."""
        self.computed += constant.array.size if constant.array.base is None else 0
        if self.computed > self.computable:
            raise too_large(call, f"{self.computed} computed constants", self.computable)
        self.values[call.output_names[0]] = constant

    def _compose_claims(self, claims: _Claims) -> None:
        self._compose_outputs(claims)
        self._compose_motif(claims)
        self._compose_row(claims)

    def _compose_outputs(self, claims: _Claims) -> None:
        call = claims.call
        for index, name in enumerate(call.output_names):
            if name and claims.refused:
                self.values[name] = Unproven(name, claims.refused)
            elif name and index < len(claims.steps):
                self._compose(call, name, claims.steps[index])
            elif name:
                message = f"output {index} ('{name}') has no rule"
                self.values[name] = Unproven(name, (Refusal("LIP002", call.name, call.op, message),))

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
        programmed = as_programmed(call.op, call.domain, call.inputs, step)
        self.errors[name] = {
            precision.mode: propagate(
                programmed, flows, [self.errors[f.name][precision.mode] for f in flows], precision, self.norms
            )
            for precision in PRECISIONS
        }
        self.reports.append(self._report(call, flow, step))

    def _look_for_motif(self, claims: _Claims) -> None:
        call = claims.call
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
        if not any(is_open(source.shape) for source in sources):
            claims.motif = (tuple(source.name for source in sources), step)
            self._compose_motif(claims)

    def _compose_motif(self, claims: _Claims) -> None:
        """The smaller of both bounds, where the node was proven by itself; else the motif's."""
        if claims.motif is None:
            return
        call, (names, step) = claims.call, claims.motif
        sources = [flow for flow in map(self.values.get, names) if isinstance(flow, Flow)]
        name = call.output_names[0]
        whole, direct = _after(name, step, sources, self.norms), self.values[name]
        if isinstance(direct, Flow):
            tighter = {
                norm: min(bound, whole.lipschitz.get(norm, UNBOUNDED)) for norm, bound in direct.lipschitz.items()
            }
            whole = replace(direct, lipschitz=tighter)
            self.reports.pop()
        else:
            rounded = any(isinstance(value, Constant) and value.roundings for value in self.values.values())
            programmed = in_binary64_only(step) if rounded else step
            self.errors[name] = {
                p.mode: propagate(programmed, sources, [self.errors[s.name][p.mode] for s in sources], p, self.norms)
                for p in PRECISIONS
            }
        self.values[name] = whole
        self.reports.append(self._report(call, whole, step))

    def _look_for_row(self, claims: _Claims) -> None:
        """Where a row of linear operators ends, all of them as one matrix."""
        call = claims.call
        name = call.output_names[0] if call.output_names else ""
        direct, consumers = self.values.get(name), self.consumers.get(name, [])
        if not is_linear(call) or not isinstance(direct, Flow) or (consumers and all(map(self._continues, consumers))):
            return
        try:
            found = collapsed(call, self.values, self.judged, call.guide)
            claims.row = None if found is None else (found, found.gains(self.norms))
        except (Refused, ProofFailed, MemoryError, *MALFORMED):
            return
        self._compose_row(claims)

    def _compose_row(self, claims: _Claims) -> None:
        """The bound of a row of linear operators as one matrix, if that is less."""
        direct = self.values.get(claims.call.output_names[0]) if claims.row is not None else None
        if claims.row is None or not isinstance(direct, Flow):
            return
        found, gains = claims.row
        source = self.values[found.source.name]
        assert isinstance(source, Flow)
        self.collapsed[direct.name] = replace(found, source=source)
        whole = joined((gains,), "sum", [source.lipschitz], self.norms)
        best = {norm: min(bound, whole.get(norm, UNBOUNDED)) for norm, bound in direct.lipschitz.items()}
        # Proofs differ in their last digits; the report, which a certificate repeats, must not change with them.
        if best[self.output_norm] < direct.lipschitz[self.output_norm] * WORTH_SAYING:
            last = self.reports.pop()
            rule = f"{last.rule}; one matrix from {found.first} on"
            self.reports.append(replace(last, bound_after=best[self.output_norm], rule=rule))
        self.values[direct.name] = replace(direct, lipschitz=best)

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
            unspecified=self._unspecified(call, flow.name),
        )

    def _unspecified(self, call: Call, name: str) -> tuple[str, ...]:
        """The programs whose error is known for this node's inputs, as far as they were judged, and not after it."""
        before = [self.errors[source] for source in call.input_names if source in self.errors]
        lost = (mode for mode, state in self.errors[name].items() if state is None)
        return tuple(mode for mode in lost if all(states[mode] is not None for states in before))


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


def _needed(listed: Sequence[Call], output: str) -> list[Call]:
    wanted, needed = {output}, []
    for call in reversed(listed):
        if wanted & set(filter(None, call.output_names)):
            needed.append(call)
            wanted |= set(filter(None, call.input_names))
    return needed[::-1]
