"""Smooth activations of the float64 program from operations that round once each (Lemmas F5, F6, docs/mathematics.md).

How ONNX Runtime's own Tanh, Sigmoid, Softmax or Elu round is specified nowhere and differs between versions and
processors; the error rule could only trust a measurement. Sums, products and quotients of float64 numbers are
specified, so the exponential is written out in them: 47 operations per node, errors below 1e-12, the same everywhere.
The verifier's constants for these forms are in ``lipdeploy/verify/rules/elementwise.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import onnx

from lipdeploy.runtime.error_function import error_function
from lipdeploy.runtime.rewriting import Rewriting, attributes_of, unsupported

DEGREE = 11
HALVINGS = 8
LARGEST = 40.0  # e⁻⁴⁰ is below half a unit roundoff
LOGARITHM_TERMS = 17  # of atanh's series at w ≤ 1/3: the rest is below 2·3⁻³⁵/35
ROOT_HALF, ROOT_TWO_OVER_PI = 0.7071067811865476, 0.7978845608028654  # nearest to √½ and √(2/π)
SELU_ALPHA, SELU_GAMMA = 1.6732631921768188, 1.0507010221481323  # ONNX's defaults, as float32 stores them


def exponential(graph: Rewriting, t: str, stem: str) -> str:
    """e⁻ᵗ for t ≥ 0, relative error below 8800·2⁻⁵³ up to t = 40: (Taylor's sum at t/256)²⁵⁶."""
    bounded = graph.emit("Min", [t, graph.constant(stem, LARGEST)], stem=stem)
    part = graph.emit("Mul", [bounded, graph.constant(stem, 2.0**-HALVINGS)], stem=stem)
    coefficients = [float(Fraction((-1) ** k, math.factorial(k))) for k in range(DEGREE + 1)]
    value = horner(graph, part, coefficients, stem)
    for _ in range(HALVINGS):
        value = graph.emit("Mul", [value, value], stem=stem)
    return value


def horner(graph: Rewriting, x: str, coefficients: Sequence[float], stem: str) -> str:
    """Σ coefficients[k]·xᵏ, one product and one sum per degree."""
    value = graph.constant(stem, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        product = graph.emit("Mul", [x, value], stem=stem)
        value = graph.emit("Add", [product, graph.constant(stem, coefficient)], stem=stem)
    return value


def tanh(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Tanh = ±(1 − z)/(1 + z) with z = e^(−2|x|)."""
    x, stem = node.input[0], node.output[0]
    one = graph.constant(stem, 1.0)
    twice = graph.emit("Mul", [graph.emit("Abs", [x], stem=stem), graph.constant(stem, 2.0)], stem=stem)
    z = exponential(graph, twice, stem)
    above = graph.emit("Sub", [one, z], stem=stem)
    size = graph.emit("Div", [above, graph.emit("Add", [one, z], stem=stem)], stem=stem)
    _by_sign(graph, node, graph.emit("Neg", [size], stem=stem), size)


def sigmoid(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Sigmoid = 1/(1 + z) for x ≥ 0, z/(1 + z) below, with z = e^(−|x|)."""
    x, stem = node.input[0], node.output[0]
    one = graph.constant(stem, 1.0)
    z = exponential(graph, graph.emit("Abs", [x], stem=stem), stem)
    below = graph.emit("Add", [one, z], stem=stem)
    _by_sign(graph, node, graph.emit("Div", [z, below], stem=stem), graph.emit("Div", [one, below], stem=stem))


def _decay(graph: Rewriting, x: str, stem: str) -> str:
    """e^(−|x|)."""
    return exponential(graph, graph.emit("Abs", [x], stem=stem), stem)


def elu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Elu = x for x ≥ 0, α·(e^x − 1) below."""
    _exponential_unit(graph, node, attributes_of(node).get("alpha", 1.0), node.input[0], node.input[0])


def selu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Selu = γ·x for x ≥ 0, γ·α·(e^x − 1) below."""
    given, stem = attributes_of(node), node.output[0]
    gamma = given.get("gamma", SELU_GAMMA)
    line = graph.emit("Mul", [node.input[0], graph.constant(stem, gamma)], stem=stem)
    _exponential_unit(graph, node, gamma * given.get("alpha", SELU_ALPHA), node.input[0], line)


def celu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Celu = x for x ≥ 0, α·(e^(x/α) − 1) below."""
    alpha, stem = attributes_of(node).get("alpha", 1.0), node.output[0]
    exponent = graph.emit("Div", [node.input[0], graph.constant(stem, alpha)], stem=stem)
    _exponential_unit(graph, node, alpha, exponent, node.input[0])


def _exponential_unit(graph: Rewriting, node: onnx.NodeProto, height: float, exponent: str, line: str) -> None:
    stem = node.output[0]
    below = graph.emit("Sub", [_decay(graph, exponent, stem), graph.constant(stem, 1.0)], stem=stem)
    _by_sign(graph, node, graph.emit("Mul", [below, graph.constant(stem, height)], stem=stem), line)


def softplus(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Softplus = max(x, 0) + log(1 + z), z = e^(−|x|); log(1 + z) = 2·atanh(w), w = z/(2 + z), by atanh's series."""
    x, stem = node.input[0], node.output[0]
    z = _decay(graph, x, stem)
    w = graph.emit("Div", [z, graph.emit("Add", [z, graph.constant(stem, 2.0)], stem=stem)], stem=stem)
    square = graph.emit("Mul", [w, w], stem=stem)
    coefficients = [float(Fraction(2, 2 * k + 1)) for k in range(LOGARITHM_TERMS)]
    logarithm = graph.emit("Mul", [w, horner(graph, square, coefficients, stem)], stem=stem)
    graph.emit("Add", [graph.emit("Max", [x, graph.constant(stem, 0.0)], stem=stem), logarithm], node.output[0])


def mish(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Mish = x·tanh(log(1 + e^x)), with z = e^(−|x|): x·(1 + 2z)/(1 + 2z + 2z²), or x·n/(n + 2) with n = z² + 2z."""
    x, stem = node.input[0], node.output[0]
    z, one, two = _decay(graph, x, stem), graph.constant(stem, 1.0), graph.constant(stem, 2.0)
    square, twice = graph.emit("Mul", [z, z], stem=stem), graph.emit("Mul", [z, two], stem=stem)
    above = graph.emit("Add", [one, twice], stem=stem)
    under = graph.emit("Add", [above, graph.emit("Mul", [square, two], stem=stem)], stem=stem)
    below = graph.emit("Add", [square, twice], stem=stem)
    falling = graph.emit("Div", [below, graph.emit("Add", [below, two], stem=stem)], stem=stem)
    negative = graph.emit("Less", [x, graph.constant(stem, 0.0)], stem=stem)
    gate = graph.emit("Where", [negative, falling, graph.emit("Div", [above, under], stem=stem)], stem=stem)
    graph.emit("Mul", [x, gate], node.output[0])


def hard_swish(graph: Rewriting, node: onnx.NodeProto) -> None:
    """HardSwish = x·(x/6 + 1/2 clipped to [0, 1])."""
    x, stem = node.input[0], node.output[0]
    sixth = graph.emit("Div", [x, graph.constant(stem, 6.0)], stem=stem)
    line = graph.emit("Add", [sixth, graph.constant(stem, 0.5)], stem=stem)
    gate = graph.emit("Clip", [line, graph.constant(stem, 0.0), graph.constant(stem, 1.0)], stem=stem)
    graph.emit("Mul", [x, gate], node.output[0])


def erf(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Erf by a table of Taylor polynomials."""
    error_function(graph, node.input[0], node.output[0], node.output[0])


def gelu(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Gelu = (x/2)·(1 + erf(x/√2)), or with tanh(√(2/π)·(x + 0.044715·x³)) instead of erf(x/√2)."""
    form, x, stem = attributes_of(node).get("approximate", "none"), node.input[0], node.output[0]
    if form == "none":
        gate = error_function(graph, graph.emit("Mul", [x, graph.constant(stem, ROOT_HALF)], stem=stem), stem)
    elif form == "tanh":
        gate = _cubic_tanh(graph, x, stem)
    else:
        raise unsupported(node, f"approximate = {form!r}")
    half = graph.emit("Mul", [x, graph.constant(stem, 0.5)], stem=stem)
    whole = graph.emit("Add", [gate, graph.constant(stem, 1.0)], stem=stem)
    graph.emit("Mul", [half, whole], node.output[0])


def _cubic_tanh(graph: Rewriting, x: str, stem: str) -> str:
    """tanh(√(2/π)·x·(1 + 0.044715·x²)), with |x| cut at 100, where the tanh is ±1."""
    bounded = graph.emit("Min", [x, graph.constant(stem, 100.0)], stem=stem)
    bounded = graph.emit("Max", [bounded, graph.constant(stem, -100.0)], stem=stem)
    square = graph.emit("Mul", [bounded, bounded], stem=stem)
    cubic = horner(graph, square, [1.0, 0.044715], stem)
    scaled = graph.emit("Mul", [bounded, graph.constant(stem, ROOT_TWO_OVER_PI)], stem=stem)
    output = graph.fresh(stem)
    tanh(graph, onnx.helper.make_node("Tanh", [graph.emit("Mul", [scaled, cubic], stem=stem)], [output]))
    return output


def softmax(graph: Rewriting, node: onnx.NodeProto) -> None:
    """Softmax = z/Σz with z = e^(x − max x)."""
    x, stem = node.input[0], node.output[0]
    axes = [int(attributes_of(node).get("axis", -1)) % len(graph.shape(x, node))]
    largest = graph.reduce("ReduceMax", x, axes, graph.fresh(stem))
    z = exponential(graph, graph.emit("Sub", [largest, x], stem=stem), stem)
    graph.emit("Div", [z, graph.reduce("ReduceSum", z, axes, graph.fresh(stem))], node.output[0])


def _by_sign(graph: Rewriting, node: onnx.NodeProto, negative: str, positive: str) -> None:
    less = graph.emit("Less", [node.input[0], graph.constant(node.output[0], 0.0)], stem=node.output[0])
    graph.emit("Where", [less, negative, positive], node.output[0])
