"""Weights stored as integers or in sixteen bits: what is proven is (q − zero)·scale, exactly.

Truth: exact rationals, ONNX's reference evaluator, ONNX Runtime, NumPy's singular values.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipdeploy.verify.check import prove
from lipdeploy.verify.dequantize import dequantised
from tests.verify.models import bound, judge, model, run, session

Array = np.ndarray[Any, np.dtype[Any]]
TYPES = {np.dtype(t): np.iinfo(t) for t in (np.int8, np.uint8, np.int16, np.uint16)}
FOUR = {"int4": (TensorProto.INT4, -8, 7), "uint4": (TensorProto.UINT4, 0, 15)}


def layer(
    q: Array | TensorProto,
    scale: Array,
    zero: Array | TensorProto | None = None,
    *,
    opset: int = 21,
    kind: str = "float",
    **given: Any,
) -> onnx.ModelProto:
    """y = x · DequantizeLinear(q, scale, zero)."""
    rows = (q.dims if isinstance(q, TensorProto) else q.shape)[0]
    proto = model(f"g ({kind}[N, {rows}] x) => ({kind}[N, M] y) {{ y = MatMul(x, W) }}", opset=opset)
    stored = {"q": q, "s": np.asarray(scale), **({} if zero is None else {"z": zero})}
    for name, value in stored.items():
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        proto.graph.initializer.append(tensor)
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", list(stored), ["W"], "widen", **given))
    return proto


def four_bits(values: Array, kind: str, name: str) -> TensorProto:
    return helper.make_tensor(name, FOUR[kind][0], values.shape, values.ravel().tolist())


def exactly(q: Array, scale: Array, zero: Array | None, axis: int, block: int) -> list[Fraction]:
    """Entry by entry, from the specification's words."""
    found = []
    for index in np.ndindex(*q.shape):
        place: Any = ()
        if scale.ndim == 1 and scale.size > 1:
            place = (index[axis],)
        elif scale.ndim > 1:
            place = tuple(i // block if k == axis else i for k, i in enumerate(index))
        elif scale.ndim == 1:
            place = (0,)
        shift = 0 if zero is None else int(zero[place])
        found.append((int(q[index]) - shift) * Fraction(float(scale[place])))
    return found


CASES = [
    ((5, 7), (), 1, 0), ((5, 7), (1,), 1, 0), ((5, 7), (5,), 0, 0), ((5, 7), (7,), 1, 0), ((5, 7), (7,), -1, 0),
    ((3, 2, 4), (2,), 1, 0), ((6, 4), (2, 4), 0, 3), ((7, 4), (3, 4), 0, 3), ((4, 6), (4, 2), 1, 4),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "scales", "axis", "block"), CASES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("zeros", [False, True])
def test_exact_products(shape, scales, axis, block, kind, zeros) -> None:
    rng = np.random.default_rng(0)
    low, high = TYPES[kind].min, TYPES[kind].max + 1
    q = rng.integers(low, high, shape).astype(kind)
    scale = (rng.random(scales) * 10.0 ** rng.integers(-40, 20, scales)).astype(np.float32)
    scale = np.maximum(scale, np.float32(1e-45))
    zero = rng.integers(low, high, scales).astype(kind) if zeros else None
    found = dequantised(q, scale, zero, axis=axis, block=block)
    assert [Fraction(v) for v in found.ravel().tolist()] == exactly(q, scale, zero, axis % len(shape), block)


#: Blocks and four bits begin with opset 21.
PROGRAMS = [
    (*case, kind, opset)
    for case in CASES
    for kind in ("int8", "uint8", "int4", "uint4")
    for opset in (13, 19, 21, 23)
    if len(case[0]) == 2 and (opset >= 21 or not (case[3] or kind in FOUR))
]


@pytest.mark.parametrize(("shape", "scales", "axis", "block", "kind", "opset"), PROGRAMS)
def test_two_other_programs_compute_it_rounded_once(shape, scales, axis, block, kind, opset) -> None:
    rng = np.random.default_rng(1)
    _, low, high = FOUR.get(kind, (0, -128 if kind == "int8" else 0, 127 if kind == "int8" else 255))
    q, zero = (rng.integers(low, high + 1, size) for size in (shape, scales))
    scale = (rng.random(scales) + 0.1).astype(np.float32)
    if kind in FOUR:
        pair: tuple[Any, Any] = four_bits(q, kind, "q"), four_bits(np.asarray(zero), kind, "z")
    else:
        pair = q.astype(kind), np.asarray(zero).astype(kind)
    given = {"axis": axis, **({"block_size": block} if block else {})}
    proto = layer(*pair[:1], scale, pair[1], opset=opset, **given)
    wide = np.int8 if kind == "int4" else np.uint8 if kind == "uint4" else np.dtype(kind)
    real = dequantised(q.astype(wide), scale, np.asarray(zero).astype(wide), axis=axis, block=block)
    identity = np.eye(shape[0], dtype=np.float32)
    programs = [run(proto, identity)]
    if opset >= 19:  # the reference evaluator knows no older DequantizeLinear
        programs += ReferenceEvaluator(proto).run(None, {"x": identity})
    for weights in programs:
        np.testing.assert_array_equal(weights, real.astype(np.float32))
    assert bound(proto) == pytest.approx(float(np.linalg.norm(real, 2)), rel=1e-9)
    assert bound(proto) >= float(np.linalg.norm(real, 2)) * (1 - 1e-14)
    assert bound(proto, "linf") >= float(np.abs(real).sum(axis=0).max()) * (1 - 1e-14)


def test_the_bound_is_that_of_the_real_weights_and_not_of_the_rounded_ones() -> None:
    """127·0.1 as float32 is below the exact product of the two."""
    scale = next(
        s for s in map(np.float32, np.linspace(0.1, 0.2, 200)) if float(np.float32(127) * s) < 127.0 * float(s)
    )
    proto = layer(np.int8([[127]]), scale)
    assert Fraction(bound(proto)) >= 127 * Fraction(float(scale)) > Fraction(float(np.float32(127) * scale))


def test_an_axis_that_fits_by_chance_is_another_network() -> None:
    """A square matrix takes its scales along either axis: what the file says is what is proven and what runs."""
    rng = np.random.default_rng(2)
    q, scale = rng.integers(-127, 128, (6, 6)).astype(np.int8), np.float32(2.0 ** np.arange(-6, 0))
    found = {}
    for axis in (0, 1):
        proto = layer(q, scale, axis=axis)
        shape = (-1, 1) if axis == 0 else (1, -1)
        real = q.astype(float) * scale.astype(float).reshape(shape)
        found[axis] = bound(proto)
        assert found[axis] == pytest.approx(np.linalg.norm(real, 2), rel=1e-9)
        np.testing.assert_array_equal(run(proto, np.eye(6, dtype=np.float32)), real)
    assert abs(found[0] - found[1]) > 1e-3 * found[0]


Q = np.int8([[1, -2, 3], [4, 5, -128]])
NEAR_MISSES: list[tuple[str, onnx.ModelProto, str, str]] = [
    ("scales of the other axis", layer(Q, np.float32([1, 2]), axis=1), "LIP013", "[2] scales for 3 indices of axis 1"),
    ("axis outside", layer(Q, np.float32([1, 2]), axis=2), "LIP013", "axis 2 is outside"),
    ("no scale at all", layer(Q, np.zeros(0, np.float32)), "LIP013", "not positive"),
    ("a scale of zero", layer(Q, np.float32([1, 0, 1])), "LIP013", "not positive"),
    ("a negative scale", layer(Q, np.float32([1, -1, 1])), "LIP013", "not positive"),
    ("a NaN", layer(Q, np.float32([1, np.nan, 1])), "LIP003", "NaN or infinite"),
    ("an infinity", layer(Q, np.float32([1, np.inf, 1])), "LIP003", "NaN or infinite"),
    ("too large a product", layer(Q, np.float32(3e38)), "LIP013", "larger than float32 can be"),
    ("zero points of another shape", layer(Q, np.float32([1, 1, 1]), np.int8(0)), "LIP013", "zero points int8[]"),
    ("zero points of another type", layer(Q, np.float32(1), np.uint8(0)), "LIP013", "uint8 and input 0 int8"),
    ("float weights", layer(Q.astype(np.float32), np.float32(1)), "LIP013", "input 0 is float32"),
    ("64 bits", layer(Q.astype(np.int64), np.float32(1)), "LIP013", "input 0 is int64"),
    ("int32 of more bits than float32", layer(np.int32([[1 << 25]]), np.float32(1)), "LIP013", "more than 24 bits"),
    ("int32 with a zero point", layer(np.int32([[5]]), np.float32(1), np.int32(1)), "LIP013", "zero points"),
    ("an integer scale", layer(Q, np.int32(1)), "LIP013", "input 1 is int32"),
    ("blocks that do not fit", layer(Q, np.ones((2, 3), np.float32), axis=0, block_size=2), "LIP013", "not [1, 3]"),
    ("negative blocks", layer(Q, np.ones((2, 3), np.float32), axis=0, block_size=-1), "LIP013", "blocks of -1"),
    ("one scale for blocks", layer(Q, np.float32(1), block_size=2), "LIP013", "cannot be one per block"),
    ("a matrix of scales, no blocks", layer(Q, np.ones((2, 3), np.float32)), "LIP013", "[2, 3] scales"),
    ("an output of another type", layer(Q, np.float32(1), opset=23, output_dtype=10), "LIP013", "is float16"),
    ("a stated type", layer(Q, np.float32(1), opset=23, kind="float16", output_dtype=10), "LIP002", "output_dtype"),
    ("an attribute of another age", layer(Q, np.float32(1), saturate=1), "LIP002", "'saturate'"),
    ("scales that round to float16", layer(Q, np.float16(0.1), kind="float16"), "LIP013", "does not hold the weights"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("proto", "code", "words"), [case[1:] for case in NEAR_MISSES], ids=[c[0] for c in NEAR_MISSES]
)
def test_near_misses_are_refused(proto: onnx.ModelProto, code: str, words: str) -> None:
    verdict = judge(proto)
    assert verdict.status == "refused", verdict.lipschitz_bound
    refusal = verdict.refusals[0]
    assert refusal.code == code and words in refusal.message, refusal


def test_scales_of_sixteen_bits_whose_products_they_hold() -> None:
    proto = layer(Q, np.float16(0.25))
    proto.graph.node.insert(1, helper.make_node("Cast", ["W"], ["V"], to=TensorProto.FLOAT))
    proto.graph.node[-1].input[1] = "V"
    assert bound(proto) == pytest.approx(np.linalg.norm(Q.astype(float) * 0.25, 2), rel=1e-9)


ACTIVATIONS = {
    "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)": ("LIP010", "QuantizeLinear"),
    "q, t, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, t, z)": ("LIP010", "DynamicQuantizeLinear"),
    "y = DequantizeLinear(Q, x)": ("LIP015", "dequantises numbers that depend on the input"),
}


@pytest.mark.parametrize(("text", "code", "words"), [(t, *c) for t, c in ACTIVATIONS.items()])
def test_activations_on_a_grid_are_refused_with_a_hint(text: str, code: str, words: str) -> None:
    stored = "<float s = {0.1}, int8[2] Q = {1, 2}>"
    verdict = judge(f"g (float[N, 2] x) => (float[N, 2] y) {stored} {{ {text} }}")
    assert verdict.status == "refused"
    (refusal,) = verdict.refusals
    assert refusal.code == code and words in refusal.message and "--weights int8" in refusal.hint


def test_a_quantised_input_is_refused() -> None:
    verdict = judge("g (uint8[N, 2] x) => (float[N, 2] y) <float s = {0.1}> { y = DequantizeLinear(x, s) }")
    assert [r.code for r in verdict.refusals] == ["LIP015"]


def test_weights_that_are_quantised_in_the_graph_are_refused() -> None:
    text = "{ q = QuantizeLinear(W, s) V = DequantizeLinear(q, s) y = MatMul(x, V) }"
    verdict = judge(f"g (float[N, 1] x) => (float[N, 1] y) <float s = {{0.1}}, float[1, 1] W = {{0.7}}> {text}")
    assert [r.code for r in verdict.refusals] == ["LIP017"] and "DequantizeLinear" in verdict.refusals[0].hint


def test_integers_that_nobody_dequantises_are_refused() -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) <int8[2] c = {3, 4}> { y = Mul(x, c) }")
    verdict = judge(proto)
    assert verdict.refusals[0].code == "LIP013" and "DequantizeLinear" in verdict.refusals[0].hint


# What a float32 program rounds.


ROUNDED = np.float32(0.1)  # its products with most integers need more than 24 bits


def products(count: int, seed: int, scale: Any = ROUNDED) -> tuple[Array, Array]:
    q = np.random.default_rng(seed).integers(-127, 128, (count, 3)).astype(np.int8)
    return q, np.asarray(scale, np.float32)


def test_a_rounded_product_costs_float32_one_more_rounding_and_float64_none() -> None:
    q, scale = products(40, 0)
    real = dequantised(q, scale)
    error = judge(layer(q, scale)).numeric_error
    exact = judge(layer(q, np.float32(0.125))).numeric_error
    plain = model("g (float[N, 40] x) => (float[N, 3] y) { y = MatMul(x, W) }")
    plain.graph.initializer.append(numpy_helper.from_array((q * np.float32(0.125)).astype(np.float32), "W"))
    stored = judge(plain).numeric_error
    assert exact["f32"].c1 == pytest.approx(stored["f32"].c1, rel=1e-9)
    f32, f64 = error["f32"], error["f64"]
    assert f32.c1 / exact["f32"].c1 == pytest.approx(0.8 * 42 / 41, rel=1e-3)  # γ₄₂ in place of γ₄₁
    assert real.dtype == np.float64 and f64.c1 < 1e-6 * f32.c1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("operator", ["MatMul", "Mul", "Add", "Div", "Conv"])
def test_measured_errors_stay_below(operator: str, seed: int) -> None:
    """ONNX Runtime's float32 program against long double on the exact weights."""
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.random() * 0.2 + 0.01)
    shape = {"MatMul": (9, 5), "Conv": (4, 2, 3)}.get(operator, (9,))
    q = rng.integers(1, 128, shape).astype(np.int8)
    size = [2, 11] if operator == "Conv" else [9]
    dims, out = ", ".join(map(str, size)), ", ".join(f"m{k}" for k in range(len(size)))
    text = f"g (float[N, {dims}] x) => (float[N, {out}] y) {{ W = DequantizeLinear(q, s) y = {operator}(x, W) }}"
    proto = model(text)
    proto.graph.initializer.extend([numpy_helper.from_array(q, "q"), numpy_helper.from_array(scale, "s")])
    real = dequantised(q, np.asarray(scale)).astype(np.longdouble)
    x = (rng.standard_normal((300, *size)) * 10.0 ** rng.uniform(-3, 3, (300, *[1] * len(size)))).astype(np.float32)
    wide = x.astype(np.longdouble)
    if operator == "MatMul":
        truth = wide @ real
    elif operator == "Conv":
        windows = np.stack([wide[:, :, k : k + 9] for k in range(3)], axis=-1)
        truth = np.einsum("ncpk,ock->nop", windows, real)
    else:
        truth = {"Mul": wide * real, "Add": wide + real, "Div": wide / real}[operator]
    error = judge(proto, "linf").numeric_error["f32"]
    assert error is not None
    worst = np.abs(session(proto).run(None, {"x": x})[0].astype(np.longdouble) - truth).reshape(300, -1).max(axis=1)
    length = np.abs(x).reshape(300, -1).max(axis=1).astype(np.longdouble)
    assert np.all(worst <= error.c0 + error.c1 * length)
    assert worst.max() > 0


def test_moved_weights_keep_their_rounding() -> None:
    q, scale = products(6, 3)
    text = "{ W = DequantizeLinear(q, s) T = Transpose(W) y = Gemm<transB = 1>(x, T) }"
    proto = model(f"g (float[N, 6] x) => (float[N, 3] y) {text}")
    proto.graph.initializer.extend([numpy_helper.from_array(q, "q"), numpy_helper.from_array(scale, "s")])
    moved, direct = judge(proto), judge(layer(q, scale))
    assert moved.lipschitz_bound == direct.lipschitz_bound
    assert moved.numeric_error["f32"].c1 == pytest.approx(direct.numeric_error["f32"].c1, rel=1e-9)


@pytest.mark.parametrize("last", ["Cast<to = 11>", "CastLike", "Add"])
def test_nothing_else_is_computed_with_rounded_weights(last: str) -> None:
    """Widened after float32 has rounded them, they are no longer the numbers of the statement."""
    q, scale = products(6, 3)
    second = {"CastLike": ", d", "Add": ", W"}.get(last, "")
    use = "U = Cast<to = 11>(V) y = MatMul(x, U)" if last == "Add" else "y = MatMul(x, V)"
    proto = model(
        f"g (double[N, 6] x) => (double[N, 3] y) <double d = {{1}}> "
        f"{{ W = DequantizeLinear(q, s) V = {last}(W{second}) {use} }}"
    )
    proto.graph.initializer.extend([numpy_helper.from_array(q, "q"), numpy_helper.from_array(scale, "s")])
    verdict = judge(proto)
    assert verdict.status == "refused" and verdict.refusals[0].code == "LIP017"


def test_where_a_rounded_constant_is_not_a_factor_only_float64_is_known() -> None:
    """A spline divides differences of its table: one rounding of an entry is many of a slope."""
    table = np.int8([[-100, -3, 90, 91]])
    spline = "lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 0.5>(x, c)"
    text = f"g (float[N, 2] x) => (float[N, 2] y) {{ c = DequantizeLinear(q, s) y = {spline} }}"
    rounded = model(text, imports={"lipdeploy": 1})
    for value, name in ((table, "q"), (np.float32(0.1), "s")):
        rounded.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    verdict = judge(rounded)
    assert verdict.status == "verified" and verdict.numeric_error["f32"] is None
    assert verdict.numeric_error["f64"] is not None
    steps = np.abs(np.diff(table.astype(int))).max() * Fraction(float(np.float32(0.1))) / Fraction(1, 2)
    assert verdict.lipschitz_bound is not None
    assert 0 <= Fraction(verdict.lipschitz_bound.value) - steps <= Fraction(1, 10**12)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_sixteen_bits_behind_a_cast(kind: str) -> None:
    rng = np.random.default_rng(7)
    narrow = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    weight = rng.standard_normal((6, 4)).astype(narrow)
    proto = model("g (float[N, 6] x) => (float[N, 4] y) { V = Cast<to = 1>(W) y = MatMul(x, V) }")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    verdict = judge(proto)
    assert verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value == pytest.approx(np.linalg.norm(weight.astype(float), 2), rel=1e-9)
    modes = {mode for mode, error in verdict.numeric_error.items() if error is not None}
    assert {"f32", "f64", "tf32"} <= modes and ("bf16" if kind == "bfloat16" else "f16") in modes


def test_progress_counts_the_layer_and_not_its_cast() -> None:
    """Weights behind a Cast are the layer's work."""
    proto = model("g (float[N, 6] x) => (float[N, 4] y) { V = Cast<to = 1>(W) h = MatMul(x, V) y = Relu(h) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((6, 4), np.float16), "W"))
    heard: list[float] = []
    prove(proto, "l2", watch=lambda name, done: heard.append(done))
    assert heard[0] < 0.1 and heard[-1] == 1.0
    assert all(a <= b for a, b in itertools.pairwise(heard))
