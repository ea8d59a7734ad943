"""Shapes far larger than memory, and hints that make the verifier write them out: a verdict, never a crash.

A certificate beside the model carries hints, and a session tries them, so what hints can cost is part of what a file
can do to whoever opens it.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy.verify.limits import MOST_ENTRIES
from tests.verify.models import judge, model

HUGE = 1 << 40
GRAPHS = {
    "gather": (f"float[N, {HUGE}] x", "float[N, 2] y", "<int64[2] i = {0, 1}> { y = Gather<axis = 1>(x, i) }"),
    "gather and matrix": (
        "float[N, 1000000000000] x",
        "float[N, 2] y",
        "<int64[2] i = {0, 1}, float[2, 2] W = {1, 0, 0, 1}> { g = Gather<axis = 1>(x, i) y = MatMul(g, W) }",
    ),
    "transpose": (
        f"float[N, 2, {HUGE}] x",
        f"float[N, {HUGE}, 2] y",
        "{ y = Transpose<perm = [0, 2, 1]>(x) }",
    ),
    "rectifier": (f"float[N, {HUGE}] x", "float[N, 1] y", "<int64[1] a = {1}> { r = Relu(x) y = ReduceMax(r, a) }"),
}


@pytest.mark.parametrize("parts", GRAPHS.values(), ids=GRAPHS.keys())
@pytest.mark.parametrize("method", ["product", "best", "lmi"])
def test_hints_for_a_tensor_larger_than_memory(parts: tuple[str, str, str], method: str) -> None:
    source, result, body = parts
    verdict = judge(model(f"g ({source}) => ({result}) {body}"), method=method, hints=[np.ones(2)])
    assert verdict.status in ("verified", "refused")


@pytest.mark.parametrize("entries", [300_000, MOST_ENTRIES])
def test_an_output_row_too_long_for_a_table_of_pairs(entries: int) -> None:
    """An image as output: a bound, but no (entries × entries) constants of pairs of classes."""
    verdict = judge(model(f"g (float[N, {entries}] x) => (float[N, {entries}] y) {{ y = Relu(x) }}"))
    assert verdict.status == "verified"
    assert verdict.pairwise is None


@pytest.mark.parametrize("entries", [MOST_ENTRIES + 1, HUGE])
def test_more_entries_than_any_proof_is_made_for_are_refused_by_name(entries: int) -> None:
    """Whatever the graph does with them: one limit for every rule, and a hint."""
    verdict = judge(model(f"g (float[N, {entries}] x) => (float[N, {entries}] y) {{ y = Relu(x) }}"))
    assert [(refusal.code, refusal.node) for refusal in verdict.refusals] == [("LIP024", "x")]
    assert "smaller" in verdict.refusals[0].hint
    grown = f"<int64[1] n = {{{MOST_ENTRIES}}}> {{ u = Concat<axis = 1>(x, x) r = Relu(u) y = Neg(r) }}"
    verdict = judge(model(f"g (float[N, {MOST_ENTRIES}] x) => (float y) {grown}"))
    assert {refusal.code for refusal in verdict.refusals} == {"LIP024"}
    assert verdict.refusals[0].op == "Concat"
