"""Residual and sandwich layers, dense and convolutional, as libraries write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.verify.models import Array, best_ratio, bound, double_runner, matrix, model, run


def built(text: str, weights: Mapping[str, Array]) -> onnx.ModelProto:
    proto = model(text)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()
    )
    return proto


# SLL and CPL with convolutions.

CONVOLUTION = """g (float[N,3,7,7] x) => (float[N,3,7,7] y) {{
    h = Conv<pads = [1, 1, 1, 1], strides = [{stride}, {stride}]>(x, K)
    hb = Add(h, b) s = {activation}(hb) u = Mul(s, t)
    r = ConvTranspose<pads = [1, 1, 1, 1], strides = [{stride}, {stride}]>(u, {back}) w = Mul(r, two) y = {last} }}"""


def sll_convolution(seed: int = 0, stride: int = 1) -> dict[str, Array]:
    """T by absolute row sums of the correlations, with SLL's free scales q (Araujo and others 2023)."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((5, 3, 3, 3)).astype(np.float32).astype(np.float64)
    padded = np.pad(kernel, ((0, 0), (0, 0), (2, 2), (2, 2)))
    sums = np.zeros((5, 5))
    for i in range(0, 5, 1):
        for j in range(0, 5, 1):
            window = padded[:, :, i : i + 3, j : j + 3]
            sums += np.abs(np.einsum("acij,bcij->ab", kernel, window))
    q = np.exp(rng.standard_normal(5) * 0.3)
    scales = 1.0 / (sums * q[None, :] / q[:, None]).sum(axis=1)
    return {"K": kernel, "b": rng.standard_normal((5, 1, 1)), "t": scales.reshape(1, 5, 1, 1), "two": np.array(2.0)}


def convolutional(weights: Mapping[str, Array], last: str = "Sub(x, w)", **choices: Any) -> onnx.ModelProto:
    options: dict[str, Any] = {"stride": 1, "activation": "Relu", "back": "K", **choices}
    return built(CONVOLUTION.format(last=last, **options), weights)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda v: np.maximum(v, 0.0),
    "Abs": np.abs,
    "Tanh": np.tanh,
    "Sigmoid": lambda v: 1.0 / (1.0 + np.exp(-v)),
}


def observed(
    weights: Mapping[str, Array], last: str = "Sub(x, w)", stride: int = 1, activation: str = "Relu", back: str = "K"
) -> float:
    """The largest ratio of distances seen, in float64 with the convolutions written out as matrices."""
    stored = {name: np.asarray(value, np.float32).astype(np.float64) for name, value in weights.items()}
    forward, backward = (written_out(stored[name], stride) for name in ("K", back))
    size = (7 - 1) // stride + 1
    shift = np.broadcast_to(stored["b"].reshape(5, 1, 1), (5, size, size)).reshape(-1)
    scale = np.broadcast_to(stored["t"].reshape(5, *stored["t"].shape[2:]), (5, size, size)).reshape(-1)

    def layer(x: Array) -> Array:
        flat = x.reshape(len(x), -1)
        branch = stored["two"] * (ACTIVATIONS[activation](flat @ forward.T + shift) * scale) @ backward
        return np.asarray({"Sub(x, w)": flat - branch, "Add(x, w)": flat + branch, "Sub(w, x)": branch - flat}[last])

    return best_ratio(layer, (3, 7, 7), samples=64, rounds=8)


def written_out(kernel: Array, stride: int) -> Array:
    """A convolution with pads 1 on 7 × 7 pixels as a matrix."""
    outputs, inputs, _, _ = kernel.shape
    count = (7 - 1) // stride + 1
    result = np.zeros((outputs, count, count, inputs, 7, 7))
    for i, j, a, b in np.ndindex(count, count, 3, 3):
        row, column = i * stride + a - 1, j * stride + b - 1
        if 0 <= row < 7 and 0 <= column < 7:
            result[:, i, j, :, row, column] = kernel[:, :, a, b]
    return result.reshape(outputs * count * count, -1)


def test_the_written_out_layer_is_the_graph() -> None:
    weights = sll_convolution()
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 7)).astype(np.float32)
    matrix_form = written_out(np.asarray(weights["K"], np.float64), 1)
    hidden = np.maximum(x.reshape(2, -1) @ matrix_form.T + np.repeat(weights["b"].reshape(-1), 49), 0.0)
    branch = 2.0 * (hidden * np.repeat(weights["t"].reshape(-1), 49)) @ matrix_form
    assert np.allclose(x.reshape(2, -1) - branch, run(convolutional(weights), x).reshape(2, -1), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh"])
def test_a_convolutional_sll_layer_is_one_lipschitz_up_to_rounding(stride: int, activation: str) -> None:
    proto = convolutional(sll_convolution(), stride=stride, activation=activation)
    assert 1.0 <= bound(proto) <= 1.00001
    assert observed(sll_convolution(), stride=stride, activation=activation) <= bound(proto)


def test_a_transposed_convolution_may_be_written_as_a_convolution() -> None:
    weights = sll_convolution()
    weights["back"] = np.swapaxes(weights["K"], 0, 1)[:, :, ::-1, ::-1].copy()
    text = CONVOLUTION.format(stride=1, activation="Relu", back="back", last="Sub(x, w)")
    text = text.replace("ConvTranspose<pads = [1, 1, 1, 1], strides = [1, 1]>", "Conv<pads = [1, 1, 1, 1]>")
    assert 1.0 <= bound(built(text, weights)) <= 1.00001


def one_tap() -> Array:
    """1 in one entry of a kernel."""
    return np.asarray((np.arange(135) == 40).reshape(5, 3, 3, 3), np.float64)


MISSES = {
    "added": lambda w: (w, {"last": "Add(x, w)"}),
    "the other way round": lambda w: (w, {"last": "Sub(w, x)"}),
    "eight times as strong": lambda w: ({**w, "two": np.array(16.0)}, {}),
    "slopes below 0": lambda w: (w, {"activation": "Abs"}),
    "another kernel on the way back": lambda w: ({**w, "back": w["K"][:, ::-1].copy()}, {"back": "back"}),
    "one tap changed": lambda w: ({**w, "back": w["K"] + 4.0 * one_tap()}, {"back": "back"}),
    "one scale changed": lambda w: ({**w, "t": w["t"] * np.array([1, 1, 9, 1, 1]).reshape(1, 5, 1, 1)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("miss", MISSES)
def test_what_is_nearly_sll_is_never_judged_below_the_truth(miss: str) -> None:
    weights, choices = MISSES[miss](sll_convolution())
    proto = convolutional(weights, **choices)
    assert bound(proto) >= observed(weights, **choices)
    assert bound(proto) > 1.01


def test_scales_per_position_are_no_channel_factors() -> None:
    weights = sll_convolution()
    weights["t"] = np.broadcast_to(weights["t"], (1, 5, 7, 7)).copy()
    assert 1.0 <= bound(convolutional(weights)) <= 1.00001
    weights["t"][0, 2, 3, 3] *= 3.0
    assert bound(convolutional(weights)) > 1.01


def test_a_factor_that_differs_between_the_branches_of_a_residual() -> None:
    """x/3 + conv(2x)/3: one convolution, its norm known from the matrix."""
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((3, 3, 3, 3)) / 6
    text = """g (float[N,3,5,5] x) => (float y) {
        z = Mul(x, p) c = Conv<pads = [1, 1, 1, 1]>(z, K, b) d = Mul(c, r) e = Div(x, three) y = Add(e, d) }"""
    weights = {
        "p": np.array(2.0),
        "K": kernel,
        "b": rng.standard_normal(3),
        "r": np.array(1 / 3),
        "three": np.array(3.0),
    }
    proto = built(text, weights)
    operator, _ = matrix(proto, (3, 5, 5))
    truth = float(np.linalg.norm(operator, 2))
    assert truth * (1 - 1e-5) <= bound(proto) <= truth * (1 + 1e-5)


# Sandwich layers (Wang and Manchester 2023).


def sandwich(seed: int = 0, inputs: int = 6, outputs: int = 9) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    upper, lower = rng.standard_normal((outputs, outputs)), rng.standard_normal((inputs, outputs))
    skew = upper - upper.T + lower.T @ lower
    inverse = np.linalg.inv(np.eye(outputs) + skew)
    a, b = (inverse @ (np.eye(outputs) - skew)).T, (-2 * lower @ inverse).T
    psi = np.exp(rng.standard_normal(outputs) * 0.4)
    return {
        "A": a.T,
        "B": b,
        "up": psi,
        "down": np.sqrt(2) / psi,
        "c": rng.standard_normal(outputs),
        "r": np.sqrt([2.0]),
    }


SANDWICH = """g (float[N,6] x) => (float y) {
    h = Gemm<transB = 1>(x, B) m = Mul(h, down) n = Add(m, c) s = Relu(n) u = Mul(s, up)
    v = Gemm<transB = 1>(u, A) y = Mul(v, r) }"""


@pytest.mark.parametrize("seed", range(3))
def test_a_sandwich_layer_is_one_lipschitz_up_to_rounding(seed: int) -> None:
    proto = built(SANDWICH, sandwich(seed))
    assert 1.0 <= bound(proto) <= 1.0001
    assert 0.5 <= best_ratio(double_runner(proto), (6,), samples=128, rounds=6) <= bound(proto)


def test_a_folded_sandwich_is_still_one() -> None:
    weights = sandwich()
    folded = {
        "F": weights["down"][:, None] * weights["B"],
        "G": np.sqrt(2) * weights["A"] * weights["up"],
        "c": weights["c"],
    }
    text = "g (float[N,6] x) => (float y) { h = Gemm<transB = 1>(x, F, c) s = Relu(h) y = Gemm<transB = 1>(s, G) }"
    assert 1.0 <= bound(built(text, folded)) <= 1.0001


@pytest.mark.parametrize("change", ["up", "A", "B", "Abs"])
def test_what_is_nearly_a_sandwich_is_never_judged_below_the_truth(change: str) -> None:
    weights = sandwich()
    if change == "up":
        weights["up"] = weights["up"] * np.where(np.arange(9) == 4, 3.0, 1.0)
    elif change in weights:
        weights[change] = weights[change] + np.eye(*weights[change].shape)
    proto = built(SANDWICH.replace("Relu", change) if change == "Abs" else SANDWICH, weights)
    seen = best_ratio(double_runner(proto), (6,), samples=128, rounds=10)
    assert bound(proto) >= seen
    assert bound(proto) > 1.01


@pytest.mark.parametrize("seed", range(4))
def test_random_layers_are_bounded_whatever_their_multipliers_look_like(seed: int) -> None:
    """Signs made to fit, so that the closed form is tried on layers that are no sandwiches."""
    rng = np.random.default_rng(seed)
    inner = np.abs(rng.standard_normal((5, 6)))
    outer = rng.standard_normal((7, 5))
    outer -= outer @ np.full((5, 5), 0.2)
    text = "g (float[N,6] x) => (float y) { h = Gemm<transB = 1>(x, F) s = Relu(h) y = Gemm<transB = 1>(s, G) }"
    proto = built(text, {"F": inner, "G": outer})
    assert bound(proto) >= best_ratio(double_runner(proto), (6,), samples=256, rounds=8)
