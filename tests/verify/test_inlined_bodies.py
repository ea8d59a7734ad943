"""Function bodies of our own operators, inlined by others: as tight as the operator, or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from lipdeploy.ops import OPERATORS, attach_functions
from tests.verify.models import Array, judge

RNG = np.random.default_rng(0)
CASES: list[tuple[str, tuple[int, ...], dict[str, Any], dict[str, Array]]] = [
    ("LinearSpline", (4, 5), {"lower": -1.0, "knot_spacing": 0.1, "axis": 1}, {"c": RNG.uniform(-1, 1, (4, 21))}),
    ("LinearSpline", (4, 5), {"lower": -1.5, "knot_spacing": 0.5, "axis": -1}, {"c": RNG.uniform(-1, 1, (5, 7))}),
    ("LinearSpline", (4, 5, 3), {"lower": 0.25, "knot_spacing": 2.0, "axis": 2}, {"c": RNG.uniform(-1, 1, (1, 2))}),
    *(
        ("GroupSort", (8, 3), {"group_size": size, "axis": 1, "layout": layout, "descending": descending}, {})
        for size in (0, 2, 4) for layout in (0, 1) for descending in (0, 1)
    ),
    ("GroupSort", (3, 24), {"group_size": 12, "axis": -1}, {}),
    *(
        ("Householder", (6, 3), {"axis": axis, "layout": layout}, {k: RNG.uniform(-1, 1, 3) for k in ("s", "k")})
        for axis in (1, -2) for layout in (0, 1)
    ),
]  # fmt: skip
NAMES = [f"{name}-{'-'.join(map(str, attributes.values()))}" for name, _, attributes, _ in CASES]


def network(
    operator: str, shape: tuple[int, ...], attributes: Mapping[str, Any], stored: Mapping[str, Array], kind: int
) -> onnx.ModelProto:
    """One of our operators with its function body, between two scalings."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["u"]),
        helper.make_node(operator, ["u", *stored], ["v"], domain="lipdeploy", **attributes),
        helper.make_node("Mul", ["v", "half"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in stored.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ["N", *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
        [*constants, numpy_helper.from_array(np.asarray(0.5, dtype), "half")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    attach_functions(proto, [kind])
    return proto


def test_every_operator_is_among_the_cases() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_an_inlined_body_is_judged_like_the_operator(case: Any, kind: int) -> None:
    proto = network(*case, kind)
    flat = inline_local_functions(proto)
    assert not flat.functions and all(not node.domain for node in flat.graph.node)
    for norm in ("l2", "linf", "l1"):
        whole, inlined = judge(proto, norm), judge(flat, norm)
        assert whole.status == inlined.status == "verified", inlined.refusals
        if case[0] == "Householder":  # its nodes have proofs of their own, as tight but for the last digits
            assert inlined.lipschitz_bound == pytest.approx(whole.lipschitz_bound, rel=1e-12)
            assert all(inlined.numeric_error.values()) == all(whole.numeric_error.values())
            continue
        assert inlined.lipschitz_bound == whole.lipschitz_bound
        assert inlined.numeric_error == whole.numeric_error


@pytest.mark.parametrize("case", [c for c in CASES if "group_size" not in c[2] or c[2]["group_size"] in (2, 4)][:7])
def test_what_onnx_runtime_makes_of_a_body_is_recognised(case: Any) -> None:
    """It folds the constants and writes default attributes."""
    if case[0] == "LinearSpline" and len(case[3]["c"]) == 1:
        pytest.skip("one row: a sum with a folded 0 disappears, which changes the graph")
    proto = network(*case, TensorProto.FLOAT)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    assert not any(node.domain == "lipdeploy" for node in folded.graph.node)
    assert judge(folded).lipschitz_bound == judge(proto).lipschitz_bound


def flat_spline() -> onnx.ModelProto:
    return inline_local_functions(network(*CASES[0], TensorProto.FLOAT))


def only(proto: onnx.ModelProto, op: str, which: int = 0) -> NodeProto:
    return [node for node in proto.graph.node if node.op_type == op][which]


def swap(node: NodeProto, first: int = 0, second: int = 1) -> None:
    node.input[first], node.input[second] = node.input[second], node.input[first]


def constant(proto: onnx.ModelProto, name: str, value: Array) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _another_spacing(proto: onnx.ModelProto) -> None:
    only(proto, "Div", 1).input[1] = constant(proto, "other", np.array(0.2, np.float32))


def _another_origin(proto: onnx.ModelProto) -> None:
    last = [node for node in proto.graph.node if node.op_type == "Add" and "CastLike" in node.input[0]][-1]
    last.input[0] = constant(proto, "other", np.array(-1.1, np.float32))


def _no_guard(proto: onnx.ModelProto) -> None:
    end = only(proto, "Where", 2)
    end.op_type, inner = "Identity", end.input[2]
    del end.input[:]
    end.input.append(inner)


def _wider_clamp(proto: onnx.ModelProto) -> None:
    only(proto, "Max").input[1] = constant(proto, "other", np.array(1.0, np.float32))


def _extra_knot(proto: onnx.ModelProto) -> None:
    step = next(n for n in proto.graph.node if n.op_type == "Add" and n.output[0] == only(proto, "Gather", 1).input[1])
    step.input[1] = constant(proto, "other", np.array(2, np.int64))


CHANGES = {
    "another spacing in the quotient": _another_spacing,
    "another origin": _another_origin,
    "no guard against NaN": _no_guard,
    "a wider clamp": _wider_clamp,
    "two knots further": _extra_knot,
    "the difference the other way round": lambda proto: swap(only(proto, "Sub", 2)),
    "the choice the other way round": lambda proto: swap(only(proto, "Where", 1), 1, 2),
    "ceil instead of floor": lambda proto: setattr(only(proto, "Floor"), "op_type", "Ceil"),
    "the first knot taken from x": lambda proto: only(proto, "Gather").input.__setitem__(0, "table2"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_in_a_spline_body_and_it_is_refused(change: str) -> None:
    proto = flat_spline()
    assert judge(proto).status == "verified"
    constant(proto, "table2", RNG.uniform(-1, 1, 84).astype(np.float32))
    CHANGES[change](proto)
    assert judge(proto).status == "refused"


@pytest.mark.parametrize("op", ["Min", "Max", "Concat", "Split"])
@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_one_change_inside_a_branch_of_a_sort_and_it_is_refused(op: str, branch: str) -> None:
    proto = inline_local_functions(network(*CASES[3 + 4 * 2], TensorProto.FLOAT))
    assert judge(proto).status == "verified"
    inner = next(a.g for a in only(proto, "If").attribute if a.name == branch)
    node = next(n for n in inner.node if n.op_type == op)
    if op in ("Min", "Max"):
        node.op_type = "Sum"
    elif op == "Split":
        node.output[0], node.output[1] = node.output[1], node.output[0]
        node.input[0] = "x"
    else:
        swap(node)
    assert judge(proto).status == "refused"


def test_an_inner_tensor_that_leaks_is_not_covered() -> None:
    """The interval number jumps; the spline itself stays proven."""
    proto = flat_spline()
    leak = only(proto, "Floor").output[0]
    proto.graph.node.append(helper.make_node("Add", ["y", leak], ["z"]))
    proto.graph.output[0].name = "z"
    assert judge(proto).status == "refused"
