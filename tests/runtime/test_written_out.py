"""Operators that the float64 program writes out: errors against mpmath and exact rationals, within the constants."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.special
from onnx.reference import ReferenceEvaluator

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from lipdeploy.runtime.error_function import CELLS_PER_UNIT, table
from lipdeploy.runtime.program import float64_function
from lipdeploy.verify import verify
from lipdeploy.verify.rules import RULES

RANDOM = np.random.default_rng(23)
BITS = 200
M = mpmath


def single(number):
    return M.mpf(float(np.float32(number)))


def exponential(v):
    return M.exp(v) if v > -1e5 else M.mpf(0)


def softplus(v):
    return M.log1p(M.exp(v)) if v < 1e3 else v


def cubic(v):
    return (1 + M.tanh(M.sqrt(2 / M.pi) * (v + M.mpf("0.044715") * v**3))) / 2 if abs(v) < 1e3 else M.mpf(int(v > 0))


TRUTH = {
    "Erf": M.erf,
    "Softplus": softplus,
    "Mish": lambda v: v * M.tanh(softplus(v)) if v > -1e5 else M.mpf(0),
    "Softsign": lambda v: v / (1 + abs(v)),
    "Elu<alpha=0.7>": lambda v: v if v >= 0 else single(0.7) * (exponential(v) - 1),
    "Selu": lambda v: single(1.0507010) * (v if v >= 0 else single(1.6732632) * (exponential(v) - 1)),
    "Celu<alpha=0.3>": lambda v: v if v >= 0 else single(0.3) * (exponential(v / single(0.3)) - 1),
    "HardSwish": lambda v: v * max(M.mpf(0), min(M.mpf(1), v / 6 + M.mpf(1) / 2)),
    "Gelu": lambda v: v / 2 * M.erfc(-v / M.sqrt(2)),
    'Gelu<approximate="tanh">': lambda v: v * cubic(v),
    "Shrink<bias=0.3, lambd=0.3>": lambda v: v - max(-single(0.3), min(single(0.3), v)),
    "ThresholdedRelu<alpha=0.0>": lambda v: max(v, M.mpf(0)),
}  # fmt: skip


def line(parse, operator):
    name, _, attributes = operator.partition("<")
    call = f"{name}<{attributes}(x)" if attributes else f"{name}(x)"
    kind = "float" if name == "Celu" else "double"  # ONNX has no Celu in float64
    return parse(f"g ({kind}[N,1] x) => ({kind}[N,1] y) {{ y = {call} }}")


def points():
    """Everywhere it matters: all sizes, the cells of the table and their seams, where exponentials are cut off."""
    cells = np.arange(0.0, 7.0, 1 / 32)
    seams = np.concatenate([cells, np.nextafter(cells, -1.0), np.nextafter(cells, 9.0)])
    sizes = 10.0 ** RANDOM.uniform(-320, 150, 150)
    usual = np.concatenate([RANDOM.uniform(0.0, 45.0, 400), RANDOM.uniform(0.0, 7.0, 400), [40.0, 12.0, 2.0**-1022]])
    both = np.concatenate([seams, sizes, usual])
    return np.concatenate([both, -both])


@pytest.mark.parametrize("operator", TRUTH)
def test_activations_err_by_less_than_what_is_proven(parse, operator):
    model = line(parse, operator)
    x = points()
    found = float64_function(model)(x[:, None])[:, 0]
    error = verify(model.SerializeToString()).numeric_error["f64"]
    with M.workprec(BITS):
        for v, y in zip(x, found, strict=True):
            apart = abs(M.mpf(float(y)) - TRUTH[operator](M.mpf(float(v))))
            assert apart <= M.mpf(error.c0) + M.mpf(error.c1) * abs(M.mpf(float(v))), (v, y)
    assert error.c0 < 1e-11 and error.c1 < 1e-11, "and it is worth something"


@pytest.mark.parametrize("operator", TRUTH)
def test_what_is_not_a_number_stays_one(parse, operator):
    found = float64_function(line(parse, operator))(np.array([[np.nan], [1.0]]))[:, 0]
    assert np.isnan(found[0]) and np.isfinite(found[1])


def test_the_table_of_erf_is_rounded_once():
    with M.workprec(BITS):
        for j in range(0, table().shape[1], 7):
            expected = M.taylor(M.erf, M.mpf(j) / CELLS_PER_UNIT, len(table()) - 1)
            assert [float(c) for c in expected] == table()[:, j].tolist()


@pytest.mark.parametrize(("shape", "axis"), [((5,), 1), ((3, 7), -1), ((7, 3), 1)])
def test_softmax(parse, shape, axis):
    sizes = ",".join(map(str, shape))
    model = parse(f"g (double[N,{sizes}] x) => (double[N,{sizes}] y) {{ y = Softmax<axis={axis}>(x) }}")
    error = verify(model.SerializeToString()).numeric_error["f64"]
    x = RANDOM.standard_normal((60, *shape)) * 10.0 ** RANDOM.uniform(-3, 3, (60, *[1] * len(shape)))
    x[0] = 1e300 * np.sign(x[0])
    x[1] = 0.1
    found = np.moveaxis(float64_function(model)(x), axis, -1).reshape(-1, shape[axis if axis < 0 else axis - 1])
    with M.workprec(BITS):
        for row, answer in zip(np.moveaxis(x, axis, -1).reshape(found.shape), found, strict=True):
            powers = [exponential(M.mpf(float(v)) - M.mpf(float(row.max()))) for v in row]
            for power, y in zip(powers, answer, strict=True):
                assert abs(M.mpf(float(y)) - power / sum(powers)) <= error.c0
    assert error.c0 < 1e-11 and error.c1 < 1e-300


ROOTS = {
    "LpPool": "y = LpPool<kernel_shape=[2,2], strides=[2,2]>(x)",
    "GlobalLpPool": "y = GlobalLpPool(x)",
    "ReduceL2": "axes = Constant<value_ints=[2,3]>() y = ReduceL2(x, axes)",
    "pool": """q = Mul(x, x) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(q) m = Mul(p, four) y = Sqrt(m)""",
    "torch": """two = Constant<value_float=2.0>() q = Pow(x, two) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(q)
        m = Mul(p, four) s = Sign(m) a = Abs(m) r = Relu(a) n = Mul(s, r)
        h = Constant<value_float=0.5>() y = Pow(n, h)""",
    "whole": """axes = Constant<value_ints=[2,3]>() m = ReduceSumSquare(x, axes) y = Sqrt(m)""",
    "shifted": """axes = Constant<value_ints=[2,3]>() q = Mul(x, x) m = ReduceMean(q, axes) b = Mul(m, four)
        e = Constant<value_float=1e-6>() d = CastLike(e, x) n = Add(b, d) y = Sqrt(n)""",
}  # fmt: skip


def roots(form, image):
    """The exact values under the roots, as rationals: (outputs,)."""
    squares = np.array([[Fraction(float(v)) ** 2 for v in row] for row in image.reshape(-1, 4)], dtype=object)
    squares = squares.reshape(2, 4, 4)
    if form in ("LpPool", "pool", "torch"):
        return squares.reshape(2, 2, 2, 2, 2).sum(axis=(2, 4)).reshape(-1)
    whole = squares.sum(axis=(1, 2))
    return whole / 4 + Fraction(float(np.float32(1e-6))) if form == "shifted" else whole


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("form", ROOTS)
def test_roots_of_sums_of_squares(parse, form, norm):
    model = parse(f"g (double[N,2,4,4] x) => (double[N,A,B,C] y) {{ {ROOTS[form]} }}", four=np.float64(4.0))
    verdict = verify(model.SerializeToString(), norm=norm)
    error = verdict.numeric_error["f64"]
    assert error.c1 < 1e-13
    x = RANDOM.standard_normal((40, 2, 4, 4)) * 10.0 ** RANDOM.uniform(-165, 150, (40, 1, 1, 1))
    x[0], x[1, 0, 0, 0], x[2] = 0.0, 1e120, 10.0 ** RANDOM.uniform(-170, -150, (2, 4, 4))
    assert np.abs(x).max() < error.x_max
    found = float64_function(model)(x).reshape(len(x), -1)
    with M.workprec(1200):
        for image, row in zip(x, found, strict=True):
            lengths = [Fraction(float(v)) for v in np.abs(image).reshape(-1)]
            square = sum(v * v for v in lengths)
            size = M.sqrt(M.mpf(square.numerator) / square.denominator) if norm == "l2" else M.mpf(float(max(lengths)))
            for value, exact in zip(row, roots(form, image), strict=True):
                truth = M.sqrt(M.mpf(exact.numerator) / exact.denominator)
                assert abs(M.mpf(float(value)) - truth) <= M.mpf(error.c0) + M.mpf(error.c1) * size


def test_no_square_overflows_up_to_x_max(parse):
    model = parse(f"g (double[N,2,4,4] x) => (double[N,A,B,C] y) {{ {ROOTS['pool']} }}", four=np.float64(4.0))
    limit = verify(model.SerializeToString()).numeric_error["f64"].x_max
    function = float64_function(model)
    x = np.zeros((1, 2, 4, 4))
    x[0, 0, 0, 0] = limit
    assert limit > 1e100 and np.isfinite(function(x)).all()
    x[0, 0, 0, 0] = 1e155
    assert not np.isfinite(function(x)).all() and limit < 1e155


RESIZES = {
    "linear": 'mode="linear", coordinate_transformation_mode="half_pixel"',
    "corners": 'mode="linear", coordinate_transformation_mode="align_corners"',
    "asymmetric": 'mode="linear", coordinate_transformation_mode="asymmetric"',
    "torch": 'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
    "nearest": 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
}


def interpolated(size, count, form):
    """(count, size) exact rationals, from the standard's text."""
    matrix = [[Fraction(0)] * size for _ in range(count)]
    for j in range(count):
        if form in ("linear", "torch"):
            position = (j + Fraction(1, 2)) * Fraction(size, count) - Fraction(1, 2)
        else:
            position = Fraction(j * (size - 1), count - 1) if form == "corners" else j * Fraction(size, count)
        position = min(max(position, Fraction(0)), Fraction(size - 1))
        left = math.floor(position)
        matrix[j][left] += 1 if form == "nearest" else 1 - (position - left)
        if form != "nearest" and position != left:
            matrix[j][left + 1] += position - left
    return np.array(matrix, dtype=object)


@pytest.mark.parametrize("sizes", [(8, 6), (5, 7), (2, 3), (4, 9)])
@pytest.mark.parametrize("form", RESIZES)
def test_resize(parse, form, sizes):
    text = f"""g (double[N,2,4,3] x) => (double[N,A,B,C] y) {{
        y = Resize<{RESIZES[form]}>(x, , , sizes) }}"""
    model = parse(text, sizes=np.array([2, 2, *sizes], dtype=np.int64))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    verdict = verify(model.SerializeToString())
    error = verdict.numeric_error["f64"]
    x = RANDOM.standard_normal((2, 2, 4, 3)) * 10.0 ** RANDOM.uniform(-30, 30, (2, 2, 4, 3))
    found = float64_function(model)(x)
    rows, columns = interpolated(4, sizes[0], form), interpolated(3, sizes[1], form)
    exact = np.vectorize(Fraction, otypes=[object])(x)
    truth = np.einsum("ah,bw,nchw->ncab", rows, columns, exact, optimize=False)
    for image, found_image, truth_image in zip(x, found, truth, strict=True):
        size = Fraction(float(np.sqrt((image**2).sum()))) * (1 + Fraction(1, 10**12))
        for value, wanted in zip(found_image.reshape(-1), truth_image.reshape(-1), strict=True):
            assert abs(Fraction(float(value)) - wanted) <= Fraction(error.c0) + Fraction(error.c1) * size


GATES = {
    "silu": "s = Sigmoid(h) a = Mul(h, s)",
    "mish": "p = Softplus(h) t = Tanh(p) a = Mul(t, h)",
    "gelu": """d = Div(h, root) e = Erf(d) o = Constant<value_float=1.0>() i = CastLike(o, h) g = Add(e, i)
        b = Mul(h, g) a = Mul(b, half)""",
    "softsign": "m = Abs(h) o = Constant<value_float=1.0>() i = CastLike(o, h) p = Add(m, i) a = Div(h, p)",
}
TRUE_GATES = {
    "silu": lambda v: v / (1 + M.exp(-v)) if v > -1e5 else M.mpf(0),
    "mish": TRUTH["Mish"],
    "gelu": lambda v: v / 2 * (1 + M.erf(v / single(math.sqrt(2)))),
    "softsign": TRUTH["Softsign"],
}


@pytest.mark.parametrize("form", GATES)
def test_activations_in_several_nodes(parse, form):
    text = f"g (double[N,1] x) => (double[N,1] y) {{ h = Identity(x) {GATES[form]} y = Identity(a) }}"
    model = parse(text, root=np.float64(np.float32(math.sqrt(2))), half=np.float64(0.5))
    error = verify(model.SerializeToString()).numeric_error["f64"]
    x = points()
    found = float64_function(model)(x[:, None])[:, 0]
    with M.workprec(BITS):
        for v, y in zip(x, found, strict=True):
            apart = abs(M.mpf(float(y)) - TRUE_GATES[form](M.mpf(float(v))))
            assert apart <= M.mpf(error.c0) + M.mpf(error.c1) * abs(M.mpf(float(v))), (v, y)


NET = """g (float[N,6] x) => (float[N,3] y) {{ h = Gemm<transB=1>(x, w1, b1) {body} y = Gemm<transB=1>(a, w2, b2) }}"""


def network(parse, body):
    return parse(
        NET.format(body=body),
        w1=RANDOM.standard_normal((8, 6)).astype(np.float32), b1=RANDOM.standard_normal(8).astype(np.float32),
        w2=RANDOM.standard_normal((3, 8)).astype(np.float32), b2=RANDOM.standard_normal(3).astype(np.float32),
        root=np.float32(math.sqrt(2)), half=np.float32(0.5),
    )  # fmt: skip


@pytest.mark.parametrize("body", [*GATES.values(), "a = Gelu(h)", "a = Softmax(h)", "a = Elu(h)", "a = Erf(h)"])
def test_such_networks_are_answered(parse, body):
    """In f64, in adaptive (by float64), and in network mode, each with its guarantee; not in f32, which says why."""
    data = network(parse, body).SerializeToString()
    x = RANDOM.standard_normal((16, 6)).astype(np.float32)
    answers = {mode: CertifiedSession(data, certify=mode).predict(x) for mode in ("f64", "adaptive", "network")}
    assert answers["f64"].guarantee == "deployed" and (answers["f64"].radius > 0).sum() > 12
    assert np.array_equal(answers["adaptive"].radius, answers["f64"].radius)
    assert np.array_equal(answers["network"].label, answers["f64"].label)
    with pytest.raises(Refused, match="LIP018") as refusal:
        CertifiedSession(data, certify="f32")
    assert "certify='f64'" in str(refusal.value.hint) and refusal.value.refusals[0].op


@pytest.mark.parametrize("operator", ["Sin", "Cos", "Atan", "Asinh"])
def test_the_rest_is_refused_by_name(parse, operator):
    data = network(parse, f"a = {operator}(h)").SerializeToString()
    assert verify(data).status == "verified" and verify(data).numeric_error["f64"] is None
    for mode in ("f64", "adaptive", "network", "f32"):
        with pytest.raises(Refused, match=f"LIP018.*{operator}") as refusal:
            CertifiedSession(data, certify=mode)
        assert "replace" in refusal.value.hint


def test_every_rule_says_whether_it_is_answered(one_node):
    """Operators with a Lipschitz rule whose rounding is unknown even in the float64 program: this list and no more."""
    unknown = set()
    image = {"LpPool": {"kernel_shape": [2, 2]}, "AveragePool": {"kernel_shape": [2, 2]}}
    for domain, op in RULES:
        if domain or op in ("Cast", "DequantizeLinear"):
            continue
        attributes = {**image.get(op, {}), **({"axes": [2]} if op.startswith("Reduce") else {})}
        opset = 17 if op != "ReduceSum" else 20
        data = one_node(op, (4, 6, 6), opset=opset, **attributes).SerializeToString()
        verdict = verify(data)
        if verdict.status == "verified" and verdict.numeric_error["f64"] is None:
            unknown.add(op)
    assert unknown == {"Sin", "Cos", "Atan", "Asinh", "ReduceLogSumExp"}


@pytest.mark.parametrize(
    "body",
    [
        "y = Shrink<bias=0.1, lambd=0.5>(x)",
        "y = ThresholdedRelu(x)",
        "y = Pow(x, c)",
        'y = Gelu<approximate="sigmoid">(x)',
    ],
)
def test_near_misses_have_no_float64_program(parse, body):
    model = parse(f"g (float[N,1] x) => (float[N,1] y) {{ {body} }}", c=np.float32(3.0))
    with pytest.raises(Refused, match="LIP018"):
        float64_function(model)


def test_scipy_agrees_about_erf(one_node):
    x = RANDOM.standard_normal((500, 3)).astype(np.float32) * 2
    found = float64_function(one_node("Erf", (3,)))(x)
    assert np.abs(found - scipy.special.erf(x.astype(np.float64))).max() < 1e-15


def test_the_reference_evaluator_agrees_about_the_rest(parse):
    """Meaning, not rounding: onnx's own evaluator in float32."""
    for body in ("y = Selu(x)", "y = Celu<alpha=0.5>(x)", "y = HardSwish(x)", "y = Mish(x)", "y = Softplus(x)"):
        model = parse(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}")
        x = RANDOM.standard_normal((64, 4)).astype(np.float32) * 3
        expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
        assert np.abs(float64_function(model)(x) - expected).max() < 1e-5, body
