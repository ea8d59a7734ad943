"""Sorting and concatenated rectifiers written with standard operators."""

from __future__ import annotations

from lipdeploy.verify.bound import ONE
from lipdeploy.verify.graph import Call, Flow
from lipdeploy.verify.motifs.matching import Found, Values, output_of
from lipdeploy.verify.motifs.tracing import Trace, bases, multiplicity
from lipdeploy.verify.norms import diagonal, replication
from lipdeploy.verify.step import EXACT, Step


def crelu(call: Call, values: Values) -> Found | None:
    """Concat(Relu(x), Relu(−x)): the two parts have disjoint support changes, so 1 in ℓ1, ℓ2 and ℓ∞."""
    if len(call.input_names) != 2:
        return None
    parts = [call.producer(name) for name in call.input_names]
    if any(part is None or part.op != "Relu" or part.domain for part in parts):
        return None
    roots = [part.input_names[0] for part in parts if part is not None]
    for plain, negated in (roots, roots[::-1]):
        negation = call.producer(negated)
        if negation is not None and negation.op == "Neg" and not negation.domain and negation.input_names[0] == plain:
            source = values(plain)
            output = values(call.output_names[0])
            if isinstance(source, Flow) and isinstance(output, Flow):
                return source, Step(output.shape, (diagonal(ONE),), "CReLU", rounding=EXACT)
    return None


def order_statistics(call: Call, values: Values) -> Found | None:
    """Pieces that are order statistics of disjoint groups of one tensor, each at most r times: r^(1/p) (Lemma S6).

    Covers sorting and MaxMin in any spelling (Reshape with ReduceMin and ReduceMax, Split, strided Slice or Gather with
    Max and Min, TopK), channel shuffles, rolls and circular padding made of slices.
    """
    output = output_of(call, values)
    if output is None:
        return None
    bound = call.with_inputs([values(name) if name else None for name in call.input_names])
    for base in bases(call, values):
        source, statistics = values(base.name), Trace(call, base, values).joined(bound)
        copies = multiplicity(statistics) if statistics is not None else None
        if copies is not None and isinstance(source, Flow):
            name = "permutation" if statistics is not None and statistics.single and copies == 1 else "order statistics"
            return source, Step(output.shape, (replication(copies),), name, rounding=EXACT)
    return None
