"""Motifs judged as a whole: tight where the structure matches, and no better than the parts where it nearly does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.verify import verify

RANDOM = np.random.default_rng(3)


def bound(text: str, norm: str = "l2", **weights: np.ndarray) -> float:
    """The proven bound of a graph from its text."""
    verdict = verify(model(text, **weights), norm=norm)
    assert verdict.status == "verified", verdict.refusals
    return float(verdict.lipschitz_bound)


def model(text: str, **weights: np.ndarray) -> bytes:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>\n' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return proto.SerializeToString()


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# Circular convolution.

CIRCULAR = """g (float[N,3,8,8] x) => (float[N,4,{out},{out}] y) {{
    p = Pad<mode = "wrap">(x, pads)
    y = Conv<strides = [{stride}, {stride}]>(p, k)
}}"""


def circulant(kernel: np.ndarray, size: int, stride: int, wrap: int) -> np.ndarray:
    """The whole operator as a matrix, entry by entry."""
    outputs, inputs, taps, _ = kernel.shape
    count = (size + 2 * wrap - taps) // stride + 1
    matrix = np.zeros((outputs, count, count, inputs, size, size))
    for i, j, a, b in np.ndindex(count, count, taps, taps):
        row, column = (i * stride + a - wrap) % size, (j * stride + b - wrap) % size
        matrix[:, i, j, :, row, column] += kernel[:, :, a, b]
    return matrix.reshape(outputs * count * count, -1)


@pytest.mark.parametrize(("stride", "taps"), [(1, 3), (2, 3), (1, 5), (4, 3)])
def test_a_circular_convolution_is_its_symbol_on_the_images_own_grid(stride: int, taps: int) -> None:
    kernel = RANDOM.standard_normal((4, 3, taps, taps)).astype(np.float32)
    wrap = taps // 2
    text = CIRCULAR.format(out=-(-8 // stride), stride=stride)
    proven = bound(text, pads=integers(0, 0, wrap, wrap, 0, 0, wrap, wrap), k=kernel)
    truth = np.linalg.norm(circulant(kernel.astype(np.float64), 8, stride, wrap), 2)
    assert truth <= proven <= truth * (1 + 1e-7)


def test_more_wrapping_than_the_kernel_reaches_is_not_a_circulant() -> None:
    """Sharp edge 3: wrap 4 + 4 with one tap on 8 pixels copies every pixel: √2 per axis, not 1."""
    kernel = np.zeros((4, 3, 1, 1), np.float32)
    kernel[:3, :, 0, 0] = np.eye(3)
    proven = bound(CIRCULAR.format(out=16, stride=1), pads=integers(0, 0, 4, 4, 0, 0, 4, 4), k=kernel)
    assert proven >= 2.0


@pytest.mark.parametrize("stride", [3])
def test_a_stride_that_does_not_divide_the_image_keeps_the_general_bound(stride: int) -> None:
    kernel = RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32)
    proven = bound(CIRCULAR.format(out=3, stride=stride), pads=integers(0, 0, 1, 1, 0, 0, 1, 1), k=kernel)
    assert proven >= np.linalg.norm(circulant(kernel.astype(np.float64), 8, stride, 1), 2)


# SLL residual layers.

RESIDUAL = """g (float[N,6] x) => (float[N,6] y) {{
    h = Gemm<transB = 1>(x, F, b)
    s = {activation}(h)
    r = Gemm<transB = 1>(s, G)
    y = Add(x, r)
}}"""


def sll(width: int = 12) -> dict[str, np.ndarray]:
    inner = RANDOM.standard_normal((width, 6))
    scale = np.abs(inner @ inner.T).sum(axis=1)
    outer = -2.0 * inner.T / scale
    return {
        "F": inner.astype(np.float32),
        "G": outer.astype(np.float32),
        "b": RANDOM.standard_normal(width).astype(np.float32),
    }


def test_an_sll_layer_is_one_lipschitz_up_to_rounding() -> None:
    assert 1.0 <= bound(RESIDUAL.format(activation="Relu"), **sll()) <= 1.00001


def test_a_cpl_layer_is_one_lipschitz_up_to_rounding() -> None:
    inner = RANDOM.standard_normal((9, 6))
    weights = {"F": inner, "G": -2.0 * inner.T / np.linalg.norm(inner, 2) ** 2, "b": np.zeros(9)}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    assert 1.0 <= bound(RESIDUAL.format(activation="Relu"), **weights) <= 1.00001


def worst_ratio(weights: dict[str, np.ndarray]) -> float:
    """The largest Jacobian norm over all activation patterns that random points reach, in float64."""
    inner, outer = weights["F"].astype(np.float64), weights["G"].astype(np.float64)
    points = RANDOM.standard_normal((4000, 6)) * 3
    patterns = np.unique(points @ inner.T + weights["b"] > 0, axis=0)
    return max(np.linalg.norm(np.eye(6) + (outer * pattern) @ inner, 2) for pattern in patterns)


@pytest.mark.parametrize("change", ["scaled", "one column", "sign"])
def test_a_residual_that_is_nearly_sll_never_gets_less_than_the_truth(change: str) -> None:
    weights = sll()
    if change == "scaled":
        weights["G"] = weights["G"] * np.float32(1.8)
    elif change == "one column":
        weights["G"][:, 0] *= 5
    else:
        weights["G"][:, 2] *= -1
    proven = bound(RESIDUAL.format(activation="Relu"), **weights)
    assert proven >= worst_ratio(weights)


def test_slopes_below_zero_do_not_count_as_sll() -> None:
    """With |·| in place of ReLU the layer x − 2·Fᵀ·T⁻¹·|F·x| reaches 3 for one unit vector."""
    weights = {
        "F": np.array([[1, 0, 0, 0, 0, 0]], np.float32),
        "G": np.array([[-2, 0, 0, 0, 0, 0]], np.float32).T.copy(),
        "b": np.zeros(1, np.float32),
    }
    assert bound(RESIDUAL.format(activation="Abs"), **weights) >= 3.0
    assert bound(RESIDUAL.format(activation="Relu"), **weights) <= 1.0 + 1e-9


def test_another_source_is_not_a_residual() -> None:
    """The branch starts from z, not from x: the sum has no 1-Lipschitz proof."""
    text = """g (float[N,6] x) => (float[N,6] y) {
        z = Mul(x, two)
        h = Gemm<transB = 1>(z, F, b)
        s = Relu(h)
        r = Gemm<transB = 1>(s, G)
        y = Add(x, r)
    }"""
    weights = sll()
    assert bound(text, two=np.array(2, np.float32), **weights) > 1.5


# Residuals without an activation (LiResNet).


@pytest.mark.parametrize("op", ["Add(x, r)", "Add(r, x)", "Sub(x, r)", "Sub(r, x)"])
def test_a_dense_residual_is_one_matrix(op: str) -> None:
    weight = RANDOM.standard_normal((6, 6)).astype(np.float32) / 3
    text = "g (float[N,6] x) => (float[N,6] y) { r = Gemm<transB = 1>(x, W) y = OP }".replace("OP", op)
    sign = -1.0 if op.startswith("Sub") else 1.0
    truth = np.linalg.norm(np.eye(6) + sign * weight.astype(np.float64), 2)
    assert truth <= bound(text, W=weight) <= truth * (1 + 1e-9)


def zero_padded(kernel: np.ndarray, size: int, pad: int, dilation: int) -> np.ndarray:
    """A stride-1 convolution with zero padding, as a matrix."""
    outputs, inputs, taps, _ = kernel.shape
    count = size + 2 * pad - (taps - 1) * dilation
    matrix = np.zeros((outputs, count, count, inputs, size, size))
    for i, j, a, b in np.ndindex(count, count, taps, taps):
        row, column = i + a * dilation - pad, j + b * dilation - pad
        if 0 <= row < size and 0 <= column < size:
            matrix[:, i, j, :, row, column] += kernel[:, :, a, b]
    return matrix.reshape(outputs * count * count, -1)


@pytest.mark.parametrize(("taps", "pad", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (1, 0, 1)])
def test_a_convolutional_residual_is_one_convolution(taps: int, pad: int, dilation: int) -> None:
    kernel = RANDOM.standard_normal((3, 3, taps, taps)).astype(np.float32) / 9
    text = f"""g (float[N,3,6,6] x) => (float[N,3,6,6] y) {{
        r = Conv<pads = [{pad}, {pad}, {pad}, {pad}], dilations = [{dilation}, {dilation}]>(x, k)
        y = Add(x, r)
    }}"""
    operator = zero_padded(kernel.astype(np.float64), 6, pad, dilation)
    truth = np.linalg.norm(np.eye(len(operator)) + operator, 2)
    assert truth <= bound(text, k=kernel) <= truth * (1 + 1e-9)


def test_a_shifted_convolution_is_not_the_identity_plus_a_kernel() -> None:
    """Asymmetric padding moves the image: the residual's identity is another tap, here the first one."""
    kernel = RANDOM.standard_normal((2, 2, 3, 3)).astype(np.float32)
    text = """g (float[N,2,6,6] x) => (float[N,2,6,6] y) {
        r = Conv<pads = [0, 0, 2, 2]>(x, k)
        y = Add(x, r)
    }"""
    shifted = np.zeros((2, 2, 5, 5))
    shifted[:, :, 2:, 2:] = kernel
    operator = zero_padded(shifted, 6, 2, 1)
    truth = np.linalg.norm(np.eye(len(operator)) + operator, 2)
    assert truth <= bound(text, k=kernel) <= truth * (1 + 1e-9)


# Sorting in standard operators.


def test_torchs_five_nodes_are_a_sort() -> None:
    text = """g (float[N,6] x) => (float[N,6] y) {
        r = Reshape(x, apart)
        low = ReduceMin(r, two)
        high = ReduceMax(r, two)
        c = Concat<axis = 2>(low, high)
        y = Reshape(c, together)
    }"""
    weights = {"apart": integers(-1, 3, 2), "together": integers(-1, 6), "two": integers(2)}
    for norm in ("l2", "linf", "l1"):
        assert bound(text, norm, **weights) == 1.0
    near_miss = text.replace("ReduceMax(r, two)", "ReduceMax(q, two)").replace("low =", "q = Neg(r) low =")
    assert bound(near_miss, **weights) > 1.4


def test_maxima_and_minima_of_two_halves_are_a_sort() -> None:
    text = """g (float[N,6] x) => (float[N,6] y) {
        a, b = Split<axis = 1, num_outputs = 2>(x)
        high = Max(a, b)
        low = Min(a, b)
        y = Concat<axis = 1>(high, low)
    }"""
    assert bound(text) == 1.0
    assert bound(text.replace("Min(a, b)", "Max(a, b)")) > 1.4
    assert bound(text.replace("Min(a, b)", "Min(a, a)")) > 1.4


def test_centering_is_a_projection() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        m = ReduceMean(x, one)
        y = Sub(x, m)
    }"""
    assert bound(text, one=integers(1)) == 1.0
    assert bound(text, "linf", one=integers(1)) == 1.5
    assert bound(text.replace("Sub(x, m)", "Sub(m, x)"), one=integers(1)) > 1.4


def test_silu_is_judged_as_a_whole() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        s = Sigmoid(x)
        y = Mul(x, s)
    }"""
    assert 1.0998 < bound(text) < 1.09985
    other = text.replace("Sigmoid(x)", "Sigmoid(z)").replace("s =", "z = Neg(x) s =")
    assert verify(model(other)).status == "refused"
