"""The error constants and radii hold for the programs that really run: measured against exact rational arithmetic."""

from __future__ import annotations

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.runtime import CertifiedSession
from lipdeploy.verify.radius import input_norm_up

INPUTS, HIDDEN, CLASSES = 6, 8, 3
LOWER, SPACING = -1.0, float(np.float32(0.3))


def exact(array):
    """The array's numbers as fractions."""
    flat = [Fraction(float(value)) for value in np.asarray(array).ravel()]
    return np.array(flat, dtype=object).reshape(np.shape(array))


# Weights that are hard on floating point.

RANDOM = np.random.default_rng(23)


def plain(*shape):
    return RANDOM.standard_normal(shape)


def wide_range(*shape):
    return RANDOM.standard_normal(shape) * 2.0 ** RANDOM.integers(-12, 12, shape)


def cancelling(*shape):
    """Large neighbours that nearly cancel."""
    values = RANDOM.standard_normal(shape)
    flat = values.reshape(-1)
    half = len(flat) // 2
    flat[: 2 * half : 2] += 1e6
    flat[1 : 2 * half : 2] -= 1e6
    return values


def tiny(*shape):
    """Near the subnormal numbers of float32."""
    return RANDOM.standard_normal(shape) * 2.0**-70


def all_positive(*shape):
    """Every partial sum grows, so every addition rounds in the same place."""
    return RANDOM.uniform(0.5, 1.5, shape)


SCALES = (plain, wide_range, cancelling, tiny, all_positive)


# Layers: (onnx nodes, weights) and the same function in exact arithmetic.


def relu(values):
    return np.array([max(v, Fraction(0)) for v in values], dtype=object)


def group_sort(values):
    return np.array([v for i in range(0, len(values), 2) for v in sorted(values[i : i + 2])], dtype=object)


def leaky(values):
    slope = Fraction(float(np.float32(0.1)))
    return np.array([v if v >= 0 else slope * v for v in values], dtype=object)


def spline(coefficients):
    knots, lower, spacing = exact(coefficients), Fraction(LOWER), Fraction(SPACING)

    def evaluate(values):
        result = []
        for channel, v in enumerate(values):
            k = min(max((v - lower) // spacing, 0), knots.shape[1] - 2)
            slope = (knots[channel, k + 1] - knots[channel, k]) / spacing
            result.append(knots[channel, k] + (v - lower - k * spacing) * slope)
        return np.array(result, dtype=object)

    return evaluate


def batch_norm(scale, shift, mean, variance):
    epsilon = Fraction(float(np.float32(1e-5)))
    factors = [g / square_root(v + epsilon) for g, v in zip(exact(scale), exact(variance), strict=True)]
    return lambda values: np.array(
        [g * (v - m) + b for g, v, m, b in zip(factors, values, exact(mean), exact(shift), strict=True)], dtype=object
    )


def square_root(value):
    """To 200 bits, which is exact enough to be the truth here."""
    with mpmath.workprec(250):
        root = mpmath.sqrt(mpmath.mpf(value.numerator) / value.denominator)
        return Fraction(int(mpmath.floor(root * mpmath.mpf(2) ** 200)), 2**200)


def activation(name, scaled):
    """(node from h to a, further weights, exact function)."""
    if name == "Relu":
        return helper.make_node("Relu", ["h"], ["a"]), {}, relu
    if name == "LeakyRelu":
        return helper.make_node("LeakyRelu", ["h"], ["a"], alpha=0.1), {}, leaky
    if name == "GroupSort":
        return helper.make_node("GroupSort", ["h"], ["a"], domain="lipdeploy", group_size=2), {}, group_sort
    if name == "LinearSpline":
        knots = scaled(HIDDEN, 7).astype(np.float32)
        node = helper.make_node(
            "LinearSpline", ["h", "c"], ["a"], domain="lipdeploy", lower=LOWER, knot_spacing=SPACING
        )
        return node, {"c": knots}, spline(knots)
    statistics = [scaled(HIDDEN), scaled(HIDDEN), scaled(HIDDEN), np.abs(scaled(HIDDEN)) + 0.01]
    names = ["scale", "shift", "mean", "variance"]
    stored = {n: v.astype(np.float32) for n, v in zip(names, statistics, strict=True)}
    return helper.make_node("BatchNormalization", ["h", *names], ["a"]), stored, batch_norm(*stored.values())


def classifier(name, scaled):
    """A model x → Gemm → activation → Gemm → y and the same function in exact arithmetic."""
    node, weights, function = activation(name, scaled)
    weights |= {
        "w1": scaled(HIDDEN, INPUTS).astype(np.float32), "b1": scaled(HIDDEN).astype(np.float32),
        "w2": scaled(CLASSES, HIDDEN).astype(np.float32), "b2": scaled(CLASSES).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node,
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], transB=1),
    ]
    w1, b1, w2, b2 = (exact(weights[n]) for n in ("w1", "b1", "w2", "b2"))
    return model_of(nodes, weights, (INPUTS,)), lambda x: w2 @ function(w1 @ exact(x) + b1) + b2


def convolutional(scaled):
    """A model x → Conv → AveragePool → Flatten → Gemm → y on 2 × 5 × 5 images."""
    weights = {
        "k": scaled(4, 1, 3, 2).astype(np.float32), "kb": scaled(4).astype(np.float32),
        "w": scaled(CLASSES, 16).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["h"], group=2, pads=[1, 0, 1, 1]),
        helper.make_node("AveragePool", ["h"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    kernel, bias, matrix = (exact(weights[n]) for n in ("k", "kb", "w"))

    def function(x):
        image, pooled = exact(x), []
        for c, i, j in itertools.product(range(4), range(2), range(2)):
            total = Fraction(0)
            for u, v in itertools.product((2 * i, 2 * i + 1), (2 * j, 2 * j + 1)):
                total += bias[c] + sum(
                    kernel[c, 0, a, b] * image[c // 2, u + a - 1, v + b]
                    for a, b in itertools.product(range(3), range(2))
                    if 0 <= u + a - 1 < 5 and v + b < 5
                )
            pooled.append(total / 4)
        return matrix @ np.array(pooled, dtype=object)

    return model_of(nodes, weights, (2, 5, 5)), function


def model_of(nodes, weights, shape):
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *shape])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", CLASSES])
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=opsets, ir_version=10)
    attach_functions(model, {onnx.TensorProto.FLOAT})
    return model.SerializeToString()


def check_errors(model, function, shape):
    """Both programs stay within their proven distance from the exact values."""
    session = CertifiedSession(model, threads=1)  # its stored program is float32's, whether or not that has a guarantee
    x = np.concatenate([scale * RANDOM.standard_normal((3, *shape)) for scale in (1.0, 1e-6, 1e4)]).astype(np.float32)
    norms = input_norm_up(x, "l2")
    truth = [function(row) for row in x]
    for mode, found in (("f64", session.predict(x).logits), ("f32", session.run(None, {"x": x})[0])):
        error = session.verdict.numeric_error[mode]
        for row, norm in enumerate(norms):
            allowed = Fraction(error.c0) + Fraction(error.c1) * Fraction(float(norm))
            worst = max(abs(Fraction(float(v)) - t) for v, t in zip(found[row], truth[row], strict=True))
            assert worst <= allowed, (mode, row, float(worst), float(allowed))


@pytest.mark.parametrize("scaled", SCALES)
@pytest.mark.parametrize("name", ["Relu", "LeakyRelu", "GroupSort", "LinearSpline", "BatchNormalization"])
def test_measured_errors_stay_below_the_proven_constants(name, scaled):
    check_errors(*classifier(name, scaled), (INPUTS,))


@pytest.mark.parametrize("scaled", SCALES)
def test_measured_errors_of_convolutions(scaled):
    check_errors(*convolutional(scaled), (2, 5, 5))


def test_labels_and_radii_follow_the_exact_network():
    model, function = classifier("GroupSort", plain)
    x = RANDOM.standard_normal((60, INPUTS)).astype(np.float32)
    for mode in ("f64", "f32", "network"):
        found = CertifiedSession(model, certify=mode, threads=1).predict(x)
        for row in np.flatnonzero(found.radius > 0):
            scores = function(x[row])
            assert max(range(CLASSES), key=lambda c: scores[c]) == found.label[row]


@pytest.mark.parametrize("mode", ["f32", "f64"])
def test_no_point_in_the_ball_changes_the_program(mode):
    """Attack along the steepest direction of each class difference, with the largest steps that stay inside."""
    weight = RANDOM.standard_normal((CLASSES, INPUTS)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    certified = CertifiedSession(model_of(nodes, {"w": weight}, (INPUTS,)), certify=mode, threads=1)
    x = (100 * RANDOM.standard_normal((20, INPUTS))).astype(np.float32)
    found = certified.predict(x)
    assert np.any(found.radius > 0)
    for row in np.flatnonzero(found.radius > 0):
        for other in set(range(CLASSES)) - {int(found.label[row])}:
            away = weight[other].astype(float) - weight[found.label[row]]
            steps = found.radius[row] * np.linspace(0.9, 1.0, 50)[:, None] * away / np.linalg.norm(away)
            attack = (x[row].astype(float) + steps).astype(np.float32)
            inside = np.linalg.norm(attack.astype(float) - x[row], axis=1) < found.radius[row]
            assert inside.any()
            assert np.all(certified.predict(attack[inside]).label == found.label[row])


@pytest.mark.parametrize("mode", ["f32", "f64"])
def test_answers_hold_for_every_batch_size_and_number_of_threads(mode):
    """BLAS sums in another order for another batch size: logits may differ by twice the error, labels may not."""
    model, function = classifier("GroupSort", wide_range)
    x = RANDOM.standard_normal((33, INPUTS)).astype(np.float32)
    truth = [function(row) for row in x]
    norms = input_norm_up(x, "l2")
    for threads, size in itertools.product((1, 2), (1, 2, 7, 33)):
        certified = CertifiedSession(model, certify=mode, threads=threads)
        error = certified.verdict.numeric_error[mode]
        for start in range(0, len(x), size):
            found = certified.predict(x[start : start + size])
            for offset, logits in enumerate(found.logits):
                row = start + offset
                allowed = Fraction(error.c0) + Fraction(error.c1) * Fraction(float(norms[row]))
                for value, exact_value in zip(logits, truth[row], strict=True):
                    assert abs(Fraction(float(value)) - exact_value) <= allowed
                if found.radius[offset] > 0:
                    assert found.label[offset] == max(range(CLASSES), key=lambda c: truth[row][c])
