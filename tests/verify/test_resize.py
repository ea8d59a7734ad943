"""Resize, ceil_mode, Where, Shrink and other rules against matrices that ONNX Runtime and torch make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.verify.models import (
    Array,
    best_ratio,
    bound,
    codes,
    double_runner,
    judge,
    matrix,
    model,
    operator_norm,
    single,
)  # fmt: skip

NORMS = ("l2", "linf", "l1")


def resized(shape: tuple[int, ...], *, scales: Any = None, sizes: Any = None, **attributes: Any) -> Any:
    constants: dict[str, Array | None] = {"roi": None}
    constants["scales"] = None if scales is None else np.array(scales, np.float32)
    if sizes is not None:
        constants["sizes"] = np.array(sizes, np.int64)
    return single("Resize", shape, constants, **attributes)


def place(mode: str) -> dict[str, str]:
    """How positions in the output belong to positions in the input."""
    return {"coordinate_transformation_mode": mode}


FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
RESIZES = {
    "nearest, twice": ((2, 4, 3), {"scales": [1, 1, 2, 2], "mode": "nearest", **FLOOR}),
    "nearest, thrice one way": ((2, 4, 3), {"scales": [1, 1, 3, 1], "mode": "nearest", **FLOOR}),
    "nearest, half": ((1, 6, 4), {"scales": [1, 1, 0.5, 0.5], "mode": "nearest", **FLOOR}),
    "nearest, rounded": ((1, 4, 3), {"scales": [1, 1, 2, 3], "mode": "nearest"}),
    "linear, twice": ((2, 3, 4), {"scales": [1, 1, 2, 2], "mode": "linear"}),
    "linear, 1.5 times": ((1, 4, 4), {"scales": [1, 1, 1.5, 1.5], "mode": "linear"}),
    "linear, corners": ((1, 3, 4), {"scales": [1, 1, 2, 2], "mode": "linear", **place("align_corners")}),
    "linear, torch": ((1, 3, 4), {"scales": [1, 1, 2, 2], "mode": "linear", **place("pytorch_half_pixel")}),
    "linear, smaller": ((1, 6, 6), {"scales": [1, 1, 0.5, 0.5], "mode": "linear"}),
    "linear, one axis": ((2, 5), {"scales": [1, 1, 2], "mode": "linear", **place("asymmetric")}),
}  # fmt: skip


@pytest.mark.parametrize("case", RESIZES)
@pytest.mark.parametrize("norm", NORMS)
def test_resize_is_its_matrix(case: str, norm: str) -> None:
    shape, options = RESIZES[case]
    proto = resized(shape, **options)
    operator, _ = matrix(proto, shape)
    truth = operator_norm(operator, norm)
    assert truth * (1 - 1e-6) <= bound(proto, norm) <= truth * (1 + 1e-6)


def test_sizes_say_the_same_as_scales() -> None:
    text = """g (float[N,2,4,4] x) => (float y) {{
        s = Shape<end = 2>(x) t = Constant<value = int64[2] {{{h}, 8}}>() u = Concat<axis = 0>(s, t)
        y = Resize<mode = "linear">(x, , , u) }}"""
    assert bound(text.format(h=8)) == bound(resized((2, 4, 4), scales=[1, 1, 2, 2], mode="linear"))
    assert bound(text.format(h=7)) < bound(text.format(h=8))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"scales": [2, 1, 1, 1]}, "LIP005"),
        ({"scales": [1, 1, 2, 2], "mode": "cubic"}, "LIP002"),
        ({"scales": [1, 1, 0.5, 0.5], "mode": "linear", "antialias": 1}, "LIP002"),
        ({"scales": [1, 1, 1.3, 1], "mode": "nearest", **FLOOR}, None),
        ({"scales": [1, 1, 1 / 3, 1], "mode": "nearest", **FLOOR}, "LIP002"),
        ({"scales": [1, 1, 2, 2], "coordinate_transformation_mode": "tf_crop_and_resize"}, "LIP002"),
        ({"scales": [1, 1, 2, 2], "exclude_outside": 1}, "LIP002"),
        ({"scales": [1, 1, 2, 2], "sizes": [1, 1, 8, 8]}, "LIP013"),
        ({"scales": [1, 1, 1.25, 1], "mode": "linear", "coordinate_transformation_mode": "align_corners"}, "LIP002"),
    ],
)
def test_what_resize_cannot_be_sure_of_is_refused(options: Any, code: str | None) -> None:
    """Where a float position may fall on either side of a pixel's border, runtimes may copy either pixel."""
    proto = resized((1, 6, 4), **options)
    if code is None:
        assert bound(proto) >= operator_norm(matrix(proto, (1, 6, 4))[0], "l2")
    else:
        assert codes(proto) == [code]


# ceil_mode.

POOLS = [(8, 3, 2, 0), (8, 3, 2, 1), (7, 2, 3, 0), (5, 2, 2, 1), (6, 3, 2, 1), (5, 3, 4, 1), (6, 2, 3, 1)]


@pytest.mark.parametrize(("size", "taps", "stride", "pad"), POOLS)
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("norm", NORMS)
def test_average_pools_with_ceil_mode(size: int, taps: int, stride: int, pad: int, include: int, norm: str) -> None:
    """The matrix of ONNX Runtime; torch's layer is the same one."""
    attributes = {"kernel_shape": [taps], "strides": [stride], "pads": [pad, pad], "ceil_mode": 1}
    proto = single("AveragePool", (1, size), {}, **attributes, count_include_pad=include)
    operator, shape = matrix(proto, (1, size))
    layer = torch.nn.AvgPool1d(taps, stride, pad, ceil_mode=True, count_include_pad=bool(include))
    assert np.allclose(layer(torch.eye(size)[:, None]).reshape(size, -1).T.numpy(), operator, atol=1e-7)
    verdict = judge(proto, norm)
    assert verdict.nodes[-1].shape == (None, *shape)
    truth = operator_norm(operator, norm)
    assert truth * (1 - 1e-6) <= bound(proto, norm) <= truth * (1 + 1e-6)


@pytest.mark.parametrize(("size", "taps", "stride", "pad"), POOLS)
def test_max_pools_with_ceil_mode(size: int, taps: int, stride: int, pad: int) -> None:
    attributes = {"kernel_shape": [taps], "strides": [stride], "pads": [pad, pad], "ceil_mode": 1}
    proto = single("MaxPool", (1, size), {}, **attributes)
    verdict = judge(proto)
    layer = torch.nn.MaxPool1d(taps, stride, pad, ceil_mode=True)
    assert verdict.nodes[-1].shape == (None, 1, layer(torch.zeros(1, 1, size)).shape[-1])
    for norm in NORMS:
        assert best_ratio(double_runner(proto), (1, size), norm) <= bound(proto, norm)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("operator", ["LpPool", "GlobalLpPool"])
def test_lp_pools(p: int, operator: str) -> None:
    windows = {"kernel_shape": [3], "strides": [2]} if operator == "LpPool" else {}
    proto = single(operator, (2, 9), {}, p=p, **windows)

    def evaluate(x: Array) -> Array:
        cut = np.stack([x[..., i : i + 3] for i in (0, 2, 4, 6)], axis=2) if windows else x[:, :, None, :]
        return np.asarray((np.abs(cut) ** p).sum(axis=-1) ** (1 / p))

    for norm in NORMS:
        seen = best_ratio(evaluate, (2, 9), norm, samples=128, rounds=8)
        assert 0.4 * bound(proto, norm) <= seen <= bound(proto, norm) * (1 + 1e-9)
    assert codes(single(operator, (2, 9), {}, p=3, **windows)) == ["LIP002"]


# Where with a stored mask, Mean, and functions that jump unless their numbers fit.


def test_a_stored_mask_selects() -> None:
    text = """g (float[N,3] x) => (float y) <bool[3] m = {1, 0, 1}> {
        three = Constant<value = float {3.0}>() a = Mul(x, three) y = Where(m, a, x) }"""
    assert bound(text) == pytest.approx(10**0.5)  # √(3² + 1²): the mask's complement is not looked at
    assert bound(text, "linf") == 3.0
    assert best_ratio(double_runner(model(text)), (3,)) <= bound(text)


def test_a_mask_over_a_constant() -> None:
    text = """g (float[N,3] x) => (float y) <bool[2,3] m = {1, 0, 1, 1, 1, 1}> {
        s = Constant<value = int64[3] {-1, 1, 3}>() r = Reshape(x, s) seven = Constant<value = float {7.0}>()
        y = Where(m, r, seven) }"""
    assert bound(text) == pytest.approx(2**0.5)
    for norm in NORMS:
        assert best_ratio(double_runner(model(text)), (3,), norm) <= bound(text, norm) * (1 + 1e-9)


def test_a_mask_that_depends_on_the_input_is_refused() -> None:
    text = (
        """g (float[N,3] x) => (float y) { z = Constant<value = float {1.0}>() m = Greater(x, z) y = Where(m, x, z) }"""
    )
    assert codes(text)


def test_a_mask_over_samples_is_refused() -> None:
    text = "g (float[2,3] x) => (float y) <bool[2,1] m = {1, 0}> { z = Neg(x) y = Where(m, x, z) }"
    assert codes(text) == ["LIP005"]


def test_the_mean_of_several_tensors() -> None:
    text = "g (float[N,3] x) => (float y) { a = Neg(x) b = Relu(x) y = Mean(x, a, b) }"
    assert bound(text) == pytest.approx(1.0, abs=1e-12)
    assert best_ratio(double_runner(model(text)), (3,)) <= bound(text)


@pytest.mark.parametrize(
    ("text", "jumps"),
    [
        ("Shrink<bias = 0.5, lambd = 0.5>", False),
        ("Shrink<bias = 0.4, lambd = 0.5>", True),
        ("Shrink", True),
        ("ThresholdedRelu<alpha = 0.0>", False),
        ("ThresholdedRelu", True),
    ],
)
def test_functions_that_jump_unless_their_numbers_fit(text: str, jumps: bool) -> None:
    graph = f"g (float[N,3] x) => (float y) {{ y = {text}(x) }}"
    if jumps:
        assert codes(graph) == ["LIP010"]
        return
    assert bound(graph) == 1.0
    assert best_ratio(double_runner(model(graph)), (3,)) <= 1.0 + 1e-9


# Activations in several nodes.

ACTIVATIONS = {
    "mish": (
        "s = Softplus(x) t = Tanh(s) y = Mul(x, t)", 1.088499,
        "s = Softplus(x) t = Tanh(s) z = Neg(x) y = Mul(z, t)",
    ),
    "gelu": (
        "w = Constant<value = float {1.4142135}>() o = Constant<value = float {1.0}>() "
        "h = Constant<value = float {0.5}>() "
        "a = Div(x, w) b = Erf(a) c = Add(b, o) d = Mul(x, c) y = Mul(d, h)", 1.128905,
        "w = Constant<value = float {1.4142135}>() o = Constant<value = float {2.0}>() "
        "h = Constant<value = float {0.5}>() "
        "a = Div(x, w) b = Erf(a) c = Add(b, o) d = Mul(x, c) y = Mul(d, h)",
    ),
    "softsign": (
        "o = Constant<value = float {1.0}>() a = Abs(x) b = Add(a, o) y = Div(x, b)", 1.0,
        "o = Constant<value = float {0.5}>() a = Abs(x) b = Add(a, o) y = Div(x, b)",
    ),
    "log sigmoid": ("s = Sigmoid(x) y = Log(s)", 1.0, "s = Softplus(x) y = Log(s)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_in_several_nodes(name: str) -> None:
    body, slope, miss = ACTIVATIONS[name]
    text = f"g (float[N,2] x) => (float y) {{ {body} }}"
    assert bound(text) == pytest.approx(slope, rel=1e-6)
    seen = best_ratio(double_runner(model(text)), (2,), samples=128, rounds=8)
    assert 0.9 * slope <= seen <= bound(text) * (1 + 1e-9)
    assert codes(f"g (float[N,2] x) => (float y) {{ {miss} }}")
