"""A node in the form of another opset: a runtime that passes over what it does not know computes another function.

``ReduceSum<axes=[1]>`` was ONNX up to opset 12; since then the axes are an input, and without one every axis is summed.
Every reduction moved in another opset (ReduceSum in 13, the others in 18), and the reverse was verified, too.
"""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from lipdeploy.verify import verify

REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
SHAPES = "(float[N,2,4,4] x) => (float[N,16] y)"


def model(opset: int, body: str) -> onnx.ModelProto:
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> g {SHAPES} <int64[1] axes = {{1}}> {{ {body} y = Flatten(h) }}'
    )
    return parser.parse_model(text)


def judged(opset: int, body: str) -> tuple[str, list[str]]:
    made = model(opset, body)
    verdict = verify(made.SerializeToString())
    legal = True
    try:
        onnx.checker.check_model(made)
    except onnx.checker.ValidationError:
        legal = False
    assert legal == (verdict.status == "verified"), "ONNX's own checker says what the standard allows"
    return verdict.status, [refusal.code for refusal in verdict.refusals]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_axes_where_the_opset_has_them(op: str, opset: int) -> None:
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    attribute, given = judged(opset, f"h = {op}<axes=[1]>(x)"), judged(opset, f"h = {op}(x, axes)")
    right, wrong = (given, attribute) if as_input else (attribute, given)
    assert right == ("verified", [])
    assert wrong == ("refused", ["LIP002"])


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(("squares", "since"), [("q = Mul(x, x) s = ReduceSum", 13), ("s = ReduceSumSquare", 18)])
def test_inside_a_motif(squares: str, since: int, opset: int) -> None:
    """The root of a sum of squares is judged as a whole; its sum is still the one of its opset."""
    data = "q" if "Mul" in squares else "x"
    attribute = judged(opset, f"{squares}<axes=[1]>({data}) h = Sqrt(s)")
    given = judged(opset, f"{squares}({data}, axes) h = Sqrt(s)")
    right, wrong = (given, attribute) if opset >= since else (attribute, given)
    assert right == ("verified", [])
    assert wrong[0] == "refused"


@pytest.mark.parametrize("opset", [17, 21])
def test_inside_a_sorting_network(opset: int) -> None:
    shapes = "<int64[4] pairs = {0, 2, 8, 2}, int64[1] last = {3}>"
    form = {17: ("<axes=[3]>(r)", "(r, last)"), 21: ("(r, last)", "<axes=[3]>(r)")}[opset]
    for words, status in zip(form, ("verified", "refused"), strict=True):
        body = f"r = Reshape(x, pairs) a = ReduceMin{words} b = ReduceMax{words} h = Concat<axis=3>(a, b)"
        head = f'<ir_version: 8, opset_import: ["": {opset}]> g {SHAPES.replace("16", "32")} {shapes}'
        text = f"{head} {{ {body} y = Flatten(h) }}"
        assert verify(parser.parse_model(text).SerializeToString()).status == status


@pytest.mark.parametrize(
    ("opset", "constant"),
    [
        (13, "Squeeze<axes=[0]>(b)"),
        (13, "Transpose<perm=[1,0], foo=1>(w)"),
        (13, "Reshape<allowzero=0>(w, s)"),
        (19, "DequantizeLinear<axis=0, block_size=2>(q, t)"),
        (19, "DequantizeLinear<axis=0, block_size=0>(q, u)"),
    ],
)
def test_a_constant_that_the_opset_does_not_compute(opset: int, constant: str) -> None:
    tensors = (
        "<float[1,2] b = {1, 2}, float[2,2] w = {1, 2, 3, 4}, int64[2] s = {2, 2}, int8[2,2] q = {1, 2, 3, 4}, "
        "float[1,2] t = {1, 2}, float[2] u = {1, 2}>"
    )
    head = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,2] x) => (float[N,2] y) {tensors}'
    verdict = verify(parser.parse_model(f"{head} {{ c = {constant} y = Add(x, c) }}").SerializeToString())
    assert verdict.status == "refused"
    assert [refusal.code for refusal in verdict.refusals] == ["LIP002"]


OPEN = {
    "ReduceMean<axes>": (18, "y = ReduceMean<axes = [2, 3]>(x)"),
    "ReduceMax with an input": (13, "y = ReduceMax(x, axes)"),
    "Pad with axes": (13, "p = Constant<value_ints = [1, 1]>() y = Pad(x, p, , axes)"),
    "AveragePool<dilations>": (13, "y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x)"),
    "Resize<axes>": (
        13,
        's = Constant<value_floats = [2.0, 2.0]>() y = Resize<axes = [2, 3], mode = "nearest", nearest_mode = "floor", '
        'coordinate_transformation_mode = "asymmetric">(x, , s)',
    ),
    "Shape<start>": (13, "s = Shape<start = 3, end = 4>(x) y = Expand(x, s)"),
    "Shape<unknown>": (20, "s = Shape<wobble = 3>(x) y = Reshape(x, s)"),
}


@pytest.mark.parametrize("form", OPEN)
@pytest.mark.parametrize("size", ["height, width", "1, 1"])
def test_images_of_open_size_and_shapes(form: str, size: str) -> None:
    """What is evaluated for images of any size, or as a constant, passes the same gate."""
    opset, body = OPEN[form]
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,3,{size}] x) => (float y) '
        f"<int64[1] axes = {{2}}> {{ {body} }}"
    )
    verdict = verify(parser.parse_model(text).SerializeToString())
    assert verdict.status == "refused"
    assert {refusal.code for refusal in verdict.refusals} <= {
        "LIP002",
        "LIP006",
    }  # a shape of open size is refused anyway


@pytest.mark.parametrize("body", ["y = Sub(x)", "y = Add(x)", "y = Div(x)", "y = Where(x)", "y = Concat<axis = 1>()"])
def test_too_few_inputs(body: str) -> None:
    """What a runtime would make of a difference of one number is its own affair."""
    text = f'<ir_version: 8, opset_import: ["": 20]> g (float[N,2] x) => (float[N,2] y) {{ {body} }}'
    assert verify(parser.parse_model(text).SerializeToString()).status == "refused"
