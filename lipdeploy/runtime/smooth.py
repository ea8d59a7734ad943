"""Tanh and Sigmoid of the float64 program from operations that round once each (Lemma F5 in docs/mathematics.md).

How ONNX Runtime's own Tanh and Sigmoid round is specified nowhere and differs between versions and processors; the
error rule could only trust a measurement. Sums, products and quotients of float64 numbers are specified, so the
exponential is written out in them: 47 operations per node, errors below 5e-13, the same everywhere.
"""

from __future__ import annotations

import math
from fractions import Fraction

import onnx

from lipdeploy.runtime.rewriting import Rewriting

DEGREE = 11
HALVINGS = 8
LARGEST = 40.0  # e⁻⁴⁰ is below half a unit roundoff


def exponential(graph: Rewriting, t: str, stem: str) -> str:
    """e⁻ᵗ for t ≥ 0, relative error below 8800·2⁻⁵³ up to t = 40: (Taylor's sum at t/256)²⁵⁶."""
    bounded = graph.emit("Min", [t, graph.constant(stem, LARGEST)], stem=stem)
    part = graph.emit("Mul", [bounded, graph.constant(stem, 2.0**-HALVINGS)], stem=stem)
    coefficients = [float(Fraction((-1) ** k, math.factorial(k))) for k in range(DEGREE + 1)]
    value = graph.constant(stem, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        product = graph.emit("Mul", [part, value], stem=stem)
        value = graph.emit("Add", [product, graph.constant(stem, coefficient)], stem=stem)
    for _ in range(HALVINGS):
        value = graph.emit("Mul", [value, value], stem=stem)
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


def _by_sign(graph: Rewriting, node: onnx.NodeProto, negative: str, positive: str) -> None:
    less = graph.emit("Less", [node.input[0], graph.constant(node.output[0], 0.0)], stem=node.output[0])
    graph.emit("Where", [less, negative, positive], node.output[0])
