"""e(x) ≤ c0 + c1·‖x‖ against programs that sum in hostile orders, on nets with hostile scales.

float32 programs are compared with float64, float64 programs with 80-bit arithmetic; the truth is thus known to far
more digits than the error that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lipdeploy.verify import ErrorBound
from tests.verify.models import double_runner, judge, lengths, model, run, single

Array = np.ndarray[Any, np.dtype[Any]]
Order = Callable[[Array], Array]
INPUT_NORM = {"l2": "l2", "linf": "linf", "l1": "l1", "l2-linf": "l2", "l1-linf": "l1"}

ORDERS: dict[str, Order] = {
    "forward": lambda terms: np.arange(terms.shape[-1]),
    "backward": lambda terms: np.arange(terms.shape[-1])[::-1],
    "large first": lambda terms: np.argsort(-np.abs(terms).max(axis=tuple(range(terms.ndim - 1)))),
    "small first": lambda terms: np.argsort(np.abs(terms).max(axis=tuple(range(terms.ndim - 1)))),
}


def affine(x: Array, weight: Array, bias: Array, order: Order) -> Array:
    """x·Wᵀ + b with one rounding per operation, summed in the order given."""
    terms = x[:, None, :] * weight[None]
    total = np.zeros(terms.shape[:-1], x.dtype)
    for k in order(terms):
        total = total + terms[..., k]
    return total + bias


def layers(seed: int, scales: tuple[float, ...]) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    sizes = [6, *[8] * (len(scales) - 1), 3]
    return [
        (
            (rng.standard_normal((m, n)) * scale).astype(np.float32),
            (rng.standard_normal(m) * scale * rng.choice([0.0, 1.0, 1e3])).astype(np.float32),
        )
        for n, m, scale in zip(sizes, sizes[1:], scales, strict=False)
    ]


def network(stack: list[tuple[Array, Array]], activation: str) -> Any:
    text = ["g (float[N, 6] x) => (float[N, 3] y) {"]
    name = "x"
    for k in range(len(stack)):
        last = k + 1 == len(stack)
        text.append(f"h{k} = Gemm<transB = 1>({name}, W{k}, b{k})")
        name = f"h{k}"
        if not last:
            text.append(f"a{k} = {activation}({name})")
            name = f"a{k}"
    text.append(f"y = Identity({name}) }}")
    proto = model(" ".join(text))
    from onnx import numpy_helper

    for k, (weight, bias) in enumerate(stack):
        proto.graph.initializer.extend(
            [numpy_helper.from_array(weight, f"W{k}"), numpy_helper.from_array(bias, f"b{k}")]
        )
    return proto


def forward(x: Array, stack: list[tuple[Array, Array]], activation: str, dtype: Any, order: Order) -> Array:
    h = x.astype(dtype)
    for k, (weight, bias) in enumerate(stack):
        h = affine(h, weight.astype(dtype), bias.astype(dtype), order)
        if k + 1 < len(stack):
            h = np.maximum(h, 0) if activation == "Relu" else np.abs(h)
    return h


def within(error: Array, x: Array, bound: ErrorBound, norm: str) -> None:
    size = lengths(x.astype(np.float64), INPUT_NORM[norm])
    inside = size <= bound.x_max
    allowed = bound.c0 + bound.c1 * size
    worst = np.abs(error).reshape(len(x), -1).max(axis=1)
    assert np.all(worst[inside] <= allowed[inside]), (worst / allowed).max()


SCALES = [(1.0, 1.0, 1.0), (1e6, 1e-6, 1.0), (1e-12, 1e3, 1e9), (1e-20, 1e-20, 1.0), (1e10, 1e10, 1e-25)]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l2-linf"])
@pytest.mark.parametrize("scales", SCALES)
def test_float32_programs(scales: tuple[float, ...], norm: str) -> None:
    for seed, activation in enumerate(("Relu", "Abs")):
        stack = layers(seed, scales)
        error = judge(network(stack, activation), norm).numeric_error["f32"]
        assert error is not None
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal((300, 6)) * 10.0 ** rng.uniform(-8, 8, (300, 1))).astype(np.float32)
        with np.errstate(all="ignore"):
            truth = forward(x, stack, activation, np.float64, ORDERS["forward"])
            for order in ORDERS.values():
                within(forward(x, stack, activation, np.float32, order).astype(np.float64) - truth, x, error, norm)
        within(run(network(stack, activation), x).astype(np.float64) - truth, x, error, norm)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs 80-bit long double as the truth")
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("scales", SCALES)
def test_float64_programs(scales: tuple[float, ...], norm: str) -> None:
    stack = layers(3, scales)
    error = judge(network(stack, "Relu"), norm).numeric_error["f64"]
    assert error is not None
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((300, 6)) * 10.0 ** rng.uniform(-8, 8, (300, 1))).astype(np.float32)
    truth = forward(x, stack, "Relu", np.longdouble, ORDERS["forward"])
    for order in ORDERS.values():
        difference = forward(x, stack, "Relu", np.float64, order).astype(np.longdouble) - truth
        within(difference.astype(np.float64), x, error, norm)


def test_the_bound_is_useful() -> None:
    stack = layers(0, (0.3, 0.3, 0.3))
    verdict = judge(network(stack, "Relu"))
    assert verdict.numeric_error["f32"] is not None and verdict.numeric_error["f64"] is not None
    assert verdict.numeric_error["f32"].c1 < 1e-4
    assert verdict.numeric_error["f64"].c1 < 1e-12


def test_nothing_overflows_up_to_x_max() -> None:
    for scales in SCALES:
        stack = layers(1, scales)
        error = judge(network(stack, "Relu")).numeric_error["f32"]
        assert error is not None
        rng = np.random.default_rng(2)
        x = rng.standard_normal((200, 6))
        x *= min(error.x_max, 3e38) * 0.999 / np.linalg.norm(x, axis=1, keepdims=True)
        assert np.all(np.isfinite(run(network(stack, "Relu"), x.astype(np.float32))))


def test_subnormal_results_are_covered() -> None:
    """Products far below the smallest normal number lose every digit; the constant term covers them."""
    proto = single("Mul", (2,), {"c": np.array([1e-30, 1e-30], np.float32)})
    x = np.array([[1e-15, 3e-12], [1e-9, 2e-8]], np.float32)
    error = judge(proto).numeric_error["f32"]
    assert error is not None
    within(run(proto, x).astype(np.float64) - double_runner(proto)(x), x, error, "l2")


TENTHS = np.full((3, 2), 0.1, np.float32)


def gauss(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SINGLES: list[tuple[str, tuple[int, ...], dict[str, Any], dict[str, Any]]] = [
    ("AveragePool", (2, 9), {}, {"kernel_shape": [3], "strides": [2]}),
    ("AveragePool", (1, 6, 6), {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("GlobalAveragePool", (3, 7, 7), {}, {}),
    ("ReduceMean", (50,), {"a": np.array([1], np.int64)}, {"keepdims": 0}),
    ("ReduceSum", (50,), {"a": np.array([1], np.int64)}, {"keepdims": 1}),
    ("Div", (3,), {"c": np.array([3.0, 0.7, -1e-3], np.float32)}, {}),
    ("Add", (3,), {"c": np.array([1e8, -1e-8, 1.0], np.float32)}, {}),
    ("Sub", (3,), {"c": np.array([1e8, -1e-8, 1.0], np.float32)}, {}),
    ("LeakyRelu", (3,), {}, {"alpha": 0.1}),
    ("PRelu", (3,), {"c": np.array([0.1, 0.3, 0.7], np.float32)}, {}),
    ("HardSigmoid", (3,), {}, {"alpha": 0.3, "beta": 0.45}),
    ("Gemm", (3,), {"W": TENTHS, "b": np.array([1.1, 7.3], np.float32)}, {"alpha": 0.3, "beta": 1.7}),
    (
        "BatchNormalization",
        (3,),
        {
            "s": np.array([1.1, -0.3, 7.0], np.float32),
            "b": np.array([0.1, 3.0, -5.0], np.float32),
            "m": np.array([100.3, -0.7, 1e4], np.float32),
            "v": np.array([1e-6, 0.3, 25.0], np.float32),
        },
        {},
    ),
    ("Conv", (2, 5, 5), {"W": gauss(0, 3, 2, 3, 3)}, {"pads": [1] * 4}),
    ("ConvTranspose", (2, 5), {"W": gauss(1, 2, 2, 3)}, {"strides": [2]}),
]  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("case", SINGLES, ids=lambda case: case[0])
def test_single_operators_in_float32(case: Any, norm: str) -> None:
    operator, shape, constants, attributes = case
    proto = single(operator, shape, constants, **attributes)
    error = judge(proto, norm).numeric_error["f32"]
    assert error is not None
    rng = np.random.default_rng(9)
    x = (rng.standard_normal((200, *shape)) * 10.0 ** rng.uniform(-8, 8, (200, *[1] * len(shape)))).astype(np.float32)
    within(run(proto, x).astype(np.float64) - double_runner(proto)(x.astype(np.float64)), x, error, norm)


@pytest.mark.parametrize("operator", ["Sin", "Cos", "Atan", "Asinh"])
def test_unspecified_rounding_gives_no_constants(operator: str) -> None:
    assert set(judge(single(operator, (3,))).numeric_error.values()) == {None}


@pytest.mark.parametrize("operator", ["Softplus", "Gelu", "Erf", "Mish", "Softmax", "Elu", "Selu", "Celu", "HardSwish"])
def test_what_only_the_float64_program_writes_out_has_only_its_constants(operator: str) -> None:
    known = {mode for mode, error in judge(single(operator, (3,))).numeric_error.items() if error is not None}
    assert known == {"f64"}


def test_a_float64_part_has_no_float32_program() -> None:
    verdict = judge("g (float[N, 2] x) => (double[N, 2] y) { d = Cast<to = 11>(x) y = Relu(d) }")
    assert verdict.numeric_error["f32"] is None
    assert verdict.numeric_error["f64"] is not None


def spline_exactly(x: float, row: Array, lower: float, spacing: float) -> float:
    """The spline in rational arithmetic."""
    from fractions import Fraction

    position = (Fraction(x) - Fraction(lower)) / Fraction(spacing)
    k = min(max(position.__floor__(), 0), len(row) - 2)
    left, right = Fraction(float(row[k])), Fraction(float(row[k + 1]))
    return float(left + (position - k) * (right - left))


@pytest.mark.parametrize(
    ("lower", "spacing", "scale"),
    [(-2.0, 0.5, 1.0), (-0.1, 0.037, 1.0), (1e4, 0.01, 1.0), (-1e5, 0.3, 1e-6), (0.0, 1e-6, 1.0), (-3.0, 1.0, 1e8)],
)
def test_splines_near_their_knots(lower: float, spacing: float, scale: float) -> None:
    """Knots that float32 cannot hold, inputs beside them: the neighbouring interval may be chosen."""
    rng = np.random.default_rng(0)
    lower, spacing = float(np.float32(lower)), float(np.float32(spacing))
    table = (rng.standard_normal((1, 9)) * scale).astype(np.float32)
    text = (
        "g (float[N, 1] x) => (float[N, 1] y) "
        f"{{ y = lipdeploy.LinearSpline<lower = {lower!r}, knot_spacing = {spacing!r}>(x, c) }}"
    )
    from onnx import numpy_helper

    proto = model(text, imports={"lipdeploy": 1})
    proto.graph.initializer.append(numpy_helper.from_array(table, "c"))
    knots = (lower + spacing * np.arange(-2, 12)).astype(np.float32)
    points = np.concatenate([knots, np.nextafter(knots, np.float32(9e9)), np.nextafter(knots, np.float32(-9e9))])
    points = np.concatenate([points, rng.uniform(float(knots[0]), float(knots[-1]), 300).astype(np.float32)])
    x = points.reshape(-1, 1)
    truth = np.array([[spline_exactly(float(v), table[0], lower, spacing)] for v in points])
    from lipdeploy.ops import OPERATORS

    single_precision = OPERATORS["LinearSpline"].evaluate(x, table, lower=lower, knot_spacing=spacing, axis=1)
    for norm in ("l2", "linf", "l1"):
        error = judge(proto, norm).numeric_error["f32"]
        assert error is not None
        within(single_precision.astype(np.float64) - truth, x, error, norm)
