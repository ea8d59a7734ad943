"""The liar uses an operator, attribute, input or output that has no rule, hoping that it passes as harmless.

There is no default rule. The operator is named (LIP001, LIP010), the attribute too (LIP002); an extra output has no
rule of its own, and operators with sub-graphs are refused like any other unknown one.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import codes, judge, model, single


@pytest.mark.parametrize("name", ["Warp", "GridSample", "MaxRoiPool", "Loop", "Scan", "RandomNormalLike"])
def test_unknown_operators_are_named(name: str) -> None:
    verdict = judge(single(name, (2,)))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code in {"LIP001", "LIP010"}
    assert name in str(verdict.refusals[0])


def test_a_foreign_domain_is_no_hiding_place() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { y = com.acme.Relu(x) }"
    assert codes(model(text, imports={"com.acme": 1})) == ["LIP001"]
    assert codes(model(text)) == ["LIP020"]


@pytest.mark.parametrize("operator", ["Relu", "MatMul", "Add", "Reshape", "Identity", "MaxPool"])
def test_unknown_attributes_are_refused(operator: str) -> None:
    constants = {"MatMul": {"W": np.eye(2, dtype=np.float32)}, "Add": {"c": np.ones(2, np.float32)}}
    attributes = {"kernel_shape": [1]} if operator == "MaxPool" else {}
    proto = single(operator, (2, 2), constants.get(operator), gain=9.0, **attributes)
    assert codes(proto) == ["LIP002"]


def test_a_second_output_has_no_rule() -> None:
    text = "g (float[N, 4] x) => (float[N, 2] y) <int64[1] k = {2}> { v, i = TopK(x, k) y = Cast<to = 1>(i) }"
    assert judge(model(text)).status == "refused"


def test_a_branch_is_refused() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y) { c = Constant<value = bool {1}>()
      y = If (c) <then_branch = t () => (float[N, 2] p) { p = Relu(x) }, else_branch = e () => (float[N, 2] q)
      { q = Exp(x) }> }"""
    assert codes(model(text))
    steered = text.replace("c = Constant<value = bool {1}>()", "").replace(
        "float[N, 2] x)", "float[N, 2] x, bool[1] c)", 1
    )
    assert codes(model(steered))


@pytest.mark.parametrize("operator", ["Mul", "MatMul"])
def test_products_of_activations_are_refused(operator: str) -> None:
    text = f"g (float[N, 2, 2] x) => (float[N, 2, 2] y) {{ a = Relu(x) y = {operator}(x, a) }}"
    assert codes(model(text)) == ["LIP004"]
