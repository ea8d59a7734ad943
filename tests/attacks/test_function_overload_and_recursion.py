"""The liar overloads a function, defines it twice, or lets it call itself.

An overload lets two bodies share one name; a doubled definition leaves it open which one runs; recursion has no inlined
body, and an inliner may never come back. All are refused (LIP008), also when the cycle passes through another function
or through a branch of an If.
"""

from __future__ import annotations

import pytest

from tests.verify.models import codes, judge, model

GRAPH = "g (float[N, 2] x) => (float[N, 2] y) { y = f.A(x) }"
HEAD = '<domain: "f", opset_import: ["": 20, "f": 1]>'
A = f"{HEAD} A (X) => (Y) {{ Y = Relu(X) }}"


def test_an_overload_is_refused() -> None:
    proto = model(GRAPH + A, imports={"f": 1})
    proto.functions[0].overload = "fast"
    assert "LIP008" in codes(proto)
    proto.graph.node[0].overload = "fast"
    assert "LIP008" in codes(proto)


def test_a_node_that_calls_an_overload_of_a_standard_operator_is_refused() -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    proto.graph.node[0].overload = "fast"
    assert codes(proto) == ["LIP008"]


def test_two_definitions_are_refused() -> None:
    proto = model(GRAPH + A + f"{HEAD} A (X) => (Y) {{ Y = LeakyRelu<alpha = 9.0>(X) }}", imports={"f": 1})
    assert codes(proto) == ["LIP008"]


@pytest.mark.parametrize(
    "functions",
    [
        f"{HEAD} A (X) => (Y) {{ Y = f.A(X) }}",
        f"{HEAD} A (X) => (Y) {{ Y = f.B(X) }} {HEAD} B (X) => (Y) {{ Y = f.A(X) }}",
        f"{HEAD} A (X) => (Y) {{ Y = Relu(X) }} {HEAD} B (X) => (Y) {{ Y = f.B(X) }}",
        f"{HEAD} A (X) => (Y) {{ c = Constant<value = bool {{1}}>() "
        "Y = If (c) <then_branch = t () => (float[N, 2] p) { p = f.A(X) }, "
        "else_branch = e () => (float[N, 2] q) { q = Identity(X) }> }",
    ],
    ids=["itself", "through another", "unused", "through a branch"],
)
def test_recursion_is_refused(functions: str) -> None:
    assert codes(model(GRAPH + functions, imports={"f": 1})) == ["LIP008"]


def test_an_honest_function_is_judged_by_its_body() -> None:
    verdict = judge(model(GRAPH + f"{HEAD} A (X) => (Y) {{ Y = LeakyRelu<alpha = 9.0>(X) }}", imports={"f": 1}))
    assert verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value == 9.0
