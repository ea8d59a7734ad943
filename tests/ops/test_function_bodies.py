"""The function bodies: same numbers as the NumPy meaning wherever standard ONNX runs, and the same bytes every time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.ops import DOMAIN, OPERATORS, VERSION, attach_functions, function_bodies
from lipdeploy.ops.networks import comparators
from tests.ops.cases import (
    REFLECT_CASES,
    SORT_CASES,
    SPLINE_CASES,
    TYPES,
    ReflectCase,
    SortCase,
    SplineCase,
    reflect_angles,
    reflect_input,
    sort_input,
    spline_coefficients,
    spline_input,
    values,
)
from tests.ops.runners import in_onnxruntime, in_reference, model

OPSETS = range(17, 24)


def agree(got: np.ndarray, want: np.ndarray) -> None:
    """Equal up to signs of zeros and NaN payloads."""
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(values(got), values(want))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SORT_CASES, ids=str)
def test_group_sort_body(case: SortCase, type_name: str) -> None:
    dtype, element_type = TYPES[type_name]
    x = sort_input(case, dtype, special=True)
    want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
    file = model("GroupSort", case.shape, element_type, case.attributes)
    onnx.checker.check_model(file, full_check=True)
    agree(in_reference(file, x), want)
    if type_name == "bf16":
        # Python cannot hand bfloat16 to ONNX Runtime, so the file casts on the outside.
        file = model("GroupSort", case.shape, element_type, case.attributes, casts=True)
        agree(in_onnxruntime(file, x.astype(np.float32)), want.astype(np.float32))
    else:
        agree(in_onnxruntime(file, x), want)


@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
@pytest.mark.parametrize("case", [case for case in SORT_CASES if 2 <= case.group_size <= 8], ids=str)
def test_group_sort_body_takes_either_branch(case: SortCase, type_name: str) -> None:
    """Networks branch on a sum: on numbers, with infinities of one sign or of both, with one NaN, with an overflow."""
    dtype, element_type = TYPES[type_name]
    file = model("GroupSort", case.shape, element_type, case.attributes)
    plain = sort_input(case, dtype, special=False)
    largest = np.finfo(dtype).max
    for added in ([], [np.inf, np.inf], [np.inf, -np.inf], [np.nan], [-np.inf, np.nan, np.inf], [largest] * 4):
        x = plain.copy()
        x.reshape(-1)[: min(len(added), x.size)] = np.array(added[: x.size], dtype)
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
        agree(in_onnxruntime(file, x), want)
        agree(in_reference(file, x), want)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SPLINE_CASES, ids=str)
def test_linear_spline_body(case: SplineCase, type_name: str) -> None:
    dtype, element_type = TYPES[type_name]
    x, table = spline_input(case, dtype, special=True), spline_coefficients(case, dtype)
    want = OPERATORS["LinearSpline"].evaluate(x, table, **case.attributes)
    file = model("LinearSpline", case.shape, element_type, case.attributes, table)
    onnx.checker.check_model(file, full_check=True)
    agree(in_reference(file, x), want)
    if type_name == "bf16":
        file = model("LinearSpline", case.shape, element_type, case.attributes, table, casts=True)
        agree(in_onnxruntime(file, x.astype(np.float32)), want.astype(np.float32))
    else:
        agree(in_onnxruntime(file, x), want)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", REFLECT_CASES, ids=str)
def test_householder_body(case: ReflectCase, type_name: str) -> None:
    dtype, element_type = TYPES[type_name]
    x, angles = reflect_input(case, dtype, special=True), reflect_angles(case, dtype)
    want = OPERATORS["Householder"].evaluate(x, *angles, **case.attributes)
    file = model("Householder", case.shape, element_type, case.attributes, angles)
    onnx.checker.check_model(file, full_check=True)
    agree(in_reference(file, x), want)
    if type_name == "bf16":
        file = model("Householder", case.shape, element_type, case.attributes, angles, casts=True)
        agree(in_onnxruntime(file, x.astype(np.float32)), want.astype(np.float32))
    else:
        agree(in_onnxruntime(file, x), want)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
def test_bodies_in_every_opset(opset: int, type_name: str) -> None:
    dtype, element_type = TYPES[type_name]
    for case in (SortCase((3, 12, 2), 2), SortCase((3, 12), 3, axis=-1, layout=1), SortCase((3, 12), 12)):
        x = sort_input(case, dtype, special=True)
        file = model("GroupSort", case.shape, element_type, case.attributes, opset=opset)
        onnx.checker.check_model(file, full_check=True)
        agree(in_onnxruntime(file, x), OPERATORS["GroupSort"].evaluate(x, **case.attributes))
    spline = SPLINE_CASES[0]
    x, table = spline_input(spline, dtype, special=True), spline_coefficients(spline, dtype)
    file = model("LinearSpline", spline.shape, element_type, spline.attributes, table, opset=opset)
    agree(in_onnxruntime(file, x), OPERATORS["LinearSpline"].evaluate(x, table, **spline.attributes))
    for reflect in (ReflectCase((3, 12, 2)), ReflectCase((3, 12), 0, axis=-1)):
        x, angles = reflect_input(reflect, dtype, special=True), reflect_angles(reflect, dtype)
        file = model("Householder", reflect.shape, element_type, reflect.attributes, angles, opset=opset)
        onnx.checker.check_model(file, full_check=True)
        agree(in_onnxruntime(file, x), OPERATORS["Householder"].evaluate(x, *angles, **reflect.attributes))


def chain(*nodes: onnx.NodeProto, shape: tuple[int, ...], opset: int = 20) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor("c", TensorProto.FLOAT, (1, 3), [0.0, 1.0, 0.5])],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    file = helper.make_model(graph, opset_imports=imports, ir_version=10)
    attach_functions(file, {TensorProto.FLOAT})
    return file


def sorts_in_a_row(uses: list[dict[str, int]], shape: tuple[int, ...], opset: int) -> onnx.ModelProto:
    names = ["x", *(f"y{i}" for i in range(len(uses)))]
    nodes = [
        helper.make_node("GroupSort", [before], [after], domain=DOMAIN, **attributes)
        for before, after, attributes in zip(names, names[1:], uses, strict=False)
    ]
    return chain(*nodes, shape=shape, opset=opset)


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize(
    "uses",
    [
        [{"group_size": 2}, {"group_size": 4, "layout": 1}, {"group_size": 0, "descending": 1, "axis": -1}],
        [{"group_size": 2, "axis": 1}, {"group_size": 2, "axis": -1, "layout": 1}],
        [{}, {"group_size": 3, "axis": 2, "descending": 1}, {"group_size": 2, "axis": 0, "layout": 1}],
    ],
    ids=["mixed", "same size and order", "every axis"],
)
def test_one_function_serves_several_attribute_sets(uses: list[dict[str, int]], opset: int) -> None:
    """ONNX Runtime takes an omitted attribute from the function; onnx's evaluator needs all of them."""
    x = np.random.default_rng(0).standard_normal((4, 8, 6)).astype(np.float32)
    x[0, 0, 0] = np.nan
    file = sorts_in_a_row(uses, x.shape, opset)
    assert [function.name for function in file.functions] == ["GroupSort"]
    onnx.checker.check_model(file, full_check=True)
    want = x
    for attributes in uses:
        want = OPERATORS["GroupSort"].evaluate(want, **attributes)
    agree(in_onnxruntime(file, x), want)
    written = [OPERATORS["GroupSort"].complete(attributes) for attributes in uses]
    agree(in_reference(sorts_in_a_row(written, x.shape, opset), x), want)


def test_one_spline_function_serves_several_axes() -> None:
    first = {"lower": -1.0, "knot_spacing": 0.5, "axis": 1}
    second = {"lower": -2.0, "knot_spacing": 2.0, "axis": -1}
    file = chain(
        helper.make_node("LinearSpline", ["x", "c"], ["a"], domain=DOMAIN, **first),
        helper.make_node("LinearSpline", ["a", "c"], ["b"], domain=DOMAIN, **second),
        shape=(2, 3, 4),
    )
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    table = np.array([[0.0, 1.0, 0.5]], np.float32)
    evaluate = OPERATORS["LinearSpline"].evaluate
    want = evaluate(evaluate(x, table, **first), table, **second)
    agree(in_onnxruntime(file, x), want)
    agree(in_reference(file, x), want)


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_one_householder_function_serves_several_axes_and_layouts(opset: int) -> None:
    shape = (4, 6, 8)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[0, 0, 0] = np.nan
    nodes, constants, want = [], [], x
    for i, (axis, layout) in enumerate([(1, 0), (-1, 1), (0, 0), (1, 1), (2, 0)]):
        angles = reflect_angles(ReflectCase(shape, layout, axis), np.dtype("f4"), seed=i)
        constants += [numpy_helper.from_array(angle, f"{name}{i}") for name, angle in zip("sc", angles, strict=True)]
        inputs = [f"y{i - 1}" if i else "x", f"s{i}", f"c{i}"]
        nodes.append(helper.make_node("Householder", inputs, [f"y{i}"], domain=DOMAIN, axis=axis, layout=layout))
        want = OPERATORS["Householder"].evaluate(want, *angles, axis=axis, layout=layout)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", nodes[-1].output[0])]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    file = helper.make_model(graph, opset_imports=imports, ir_version=10)
    attach_functions(file, {TensorProto.FLOAT})
    assert [function.name for function in file.functions] == ["Householder"]
    onnx.checker.check_model(file, full_check=True)
    agree(in_onnxruntime(file, x), want)
    agree(in_reference(file, x), want)


def test_a_householder_of_the_wrong_width_is_an_error_without_the_library_too() -> None:
    half = np.ones(3, np.float32)
    for layout in (0, 1):
        file = model("Householder", (2, 8), TensorProto.FLOAT, {"layout": layout}, (half, half))
        with pytest.raises(Exception, match=r"(?i)split|reshape"):
            in_onnxruntime(file, np.zeros((2, 8), np.float32))


def test_bodies_are_deterministic_sorted_and_cover_subgraphs() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20, "lipdeploy" : 1]>
    agraph (float[N,4] x, bool flag) => (float[N,4] y) {
      c = Constant <value: tensor = float[1,2] {0.0, 1.0}> ()
      z = lipdeploy.LinearSpline <lower = 0.0, knot_spacing = 1.0> (x, c)
      y = If (flag) <
        then_branch = g1 () => (float[N,4] a) { a = lipdeploy.GroupSort <group_size = 4> (z) },
        else_branch = g2 () => (float[N,4] b) { b = Identity (z) }>
    }"""
    graph = onnx.parser.parse_model(text).graph
    first, second = (function_bodies(graph, {TensorProto.FLOAT}, 20) for _ in range(2))
    assert [function.name for function in first] == ["GroupSort", "LinearSpline"]
    assert [f.SerializeToString(deterministic=True) for f in first] == [
        f.SerializeToString(deterministic=True) for f in second
    ]


def test_attach_replaces_and_keeps_others() -> None:
    file = model("GroupSort", (2, 4), TensorProto.FLOAT, {"group_size": 2})
    standard = [helper.make_opsetid("", 20)]
    liar = helper.make_function(DOMAIN, "GroupSort", ["X"], ["Y"], [helper.make_node("Neg", ["X"], ["Y"])], standard)
    other = helper.make_function("other", "F", ["X"], ["Y"], [helper.make_node("Neg", ["X"], ["Y"])], standard)
    file.functions.extend([liar, other])
    attach_functions(file, {TensorProto.FLOAT})
    assert [(f.domain, f.name) for f in file.functions] == [("other", "F"), (DOMAIN, "GroupSort")]
    assert sum(entry.domain == DOMAIN for entry in file.opset_import) == 1
    x = np.array([[2.0, 1.0, 3.0, 4.0]], np.float32)
    assert in_reference(file, x.repeat(2, 0)).tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2


@pytest.mark.parametrize("shape", [(2, 6), (1, 3)])
def test_a_group_size_that_does_not_divide_is_an_error_without_the_library_too(shape: tuple[int, int]) -> None:
    """Split would otherwise cut the axis unevenly and Max would broadcast."""
    for layout in (0, 1):
        size = 4 if shape[1] == 6 else 2
        file = model("GroupSort", shape, TensorProto.FLOAT, {"group_size": size, "layout": layout})
        with pytest.raises(Exception, match=r"(?i)split|reshape"):
            in_onnxruntime(file, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("attributes", "element_types", "opset", "message"),
    [
        ({"group_size": -2}, {1}, 20, "attribute 'group_size' must be"),
        ({"size": 2}, {1}, 20, "unknown attribute 'size'"),
        ({}, {1}, 16, "opset 17 to 23, asked for 16"),
        ({}, {1}, 24, "opset 17 to 23, asked for 24"),
        ({}, {7}, 20, "exist for float16, bfloat16, float32 and float64"),
        ({}, {10, 11}, 20, "no single body serves both"),
    ],
)
def test_refuses(attributes: dict[str, int], element_types: set[int], opset: int, message: str) -> None:
    node = helper.make_node("GroupSort", ["x"], ["y"], domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], "g", [], [])
    with pytest.raises(ValueError, match=message):
        function_bodies(graph, element_types, opset)


def test_refuses_an_operator_that_the_domain_does_not_have() -> None:
    graph = helper.make_graph([helper.make_node("Sort", ["x"], ["y"], name="n", domain=DOMAIN)], "g", [], [])
    with pytest.raises(ValueError, match="node 'n': the domain lipdeploy has no operator 'Sort'"):
        function_bodies(graph, {TensorProto.FLOAT}, 20)


@pytest.mark.parametrize("size", range(1, 13))
def test_networks_sort_every_pattern_of_zeros_and_ones(size: int) -> None:
    """Knuth's 0-1 principle: a network that sorts all of these sorts everything."""
    patterns = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    for i, j in comparators(size):
        assert i < j
        low, high = np.minimum(patterns[:, i], patterns[:, j]), np.maximum(patterns[:, i], patterns[:, j])
        patterns[:, i], patterns[:, j] = low, high
    assert (np.diff(patterns, axis=1) >= 0).all()
