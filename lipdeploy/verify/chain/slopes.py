"""Readers of what acts entry by entry, with chord slopes in known intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lipdeploy.verify.chain.builder import Ineligible, Signal
from lipdeploy.verify.chain.model import Slopes
from lipdeploy.verify.chain.node import Node, attributes_of, channel_axis
from lipdeploy.verify.graph import Constant, Flow
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rules.arithmetic import spread

#: Chord slopes of activations, rounded outward (sharp_edges 8; tests/verify/test_chain.py recomputes them).
INTERVALS: Mapping[str, tuple[float, float]] = {
    "Relu": (0.0, 1.0),
    "Abs": (-1.0, 1.0),
    "Neg": (-1.0, -1.0),
    "Tanh": (0.0, 1.0),
    "Softplus": (0.0, 1.0),
    "Sigmoid": (0.0, 0.25),
    "Mish": (-0.112527, 1.088499),
}


GELU_INTERVALS = {"none": (-0.128905, 1.128905), "tanh": (-0.128994, 1.128994)}


SILU_INTERVAL = (-0.099840, 1.099840)


def slopes(node: Node, low: float, high: float) -> Signal:
    """An activation with one slope interval for all entries."""
    size = node.source.size
    return node.builder.activate(node.source.name, Slopes(np.full(size, low), np.full(size, high)))


def smooth(node: Node) -> Signal:
    """An activation of the table."""
    return slopes(node, *INTERVALS[node.call.op])


def relu(node: Node) -> Signal:
    """Slopes in [0, 1]; but beside relu(−x), as in CReLU, it is relu(−x) + x, with no bend of its own."""
    name = node.source.name
    producer = node.call.producer(name)
    is_negative = producer is not None and (producer.domain, producer.op) == ("", "Neg")
    negative = producer.input_names[0] if producer is not None and is_negative else node.earlier("Neg", name)
    other = node.earlier("Relu", negative) if negative else None
    if other is None or other not in node.builder.signals or not node.builder.again(other):
        return smooth(node)
    return node.builder.total([(other, 1.0), (name, 1.0)])


def gelu(node: Node) -> Signal:
    """Either form of Gelu."""
    return slopes(node, *GELU_INTERVALS[node.call.string("approximate", "none")])


def elu(node: Node) -> Signal:
    """Slopes from 0 to max(1, alpha), for alpha ≥ 0."""
    alpha = node.call.real("alpha", 1.0)
    if alpha < 0.0:
        raise Ineligible
    return slopes(node, 0.0, max(1.0, alpha))


def leaky(node: Node) -> Signal:
    """Slopes 1 and alpha."""
    alpha = node.call.real("alpha", 0.009999999776482582)
    return slopes(node, min(alpha, 1.0), max(alpha, 1.0))


def prelu(node: Node) -> Signal:
    """Slopes 1 and a stored one for each entry."""
    slope = per_entry(node, node.call.required_constant(1))
    return node.builder.activate(node.source.name, Slopes(np.minimum(slope, 1.0), np.maximum(slope, 1.0)))


def product(node: Node) -> Signal:
    """A constant factor for each entry; or x·sigmoid(x)."""
    constant = next((value for value in map(node.call.optional, range(2)) if isinstance(value, Constant)), None)
    if constant is None:
        return _silu(node)
    factor = per_entry(node, constant)
    return node.builder.activate(node.source.name, Slopes(factor, factor))


def _silu(node: Node) -> Signal:
    first, second = node.call.flows()
    for data, gate in ((first, second), (second, first)):
        sigmoid = node.call.producer(gate.name)
        if (
            sigmoid is not None
            and (sigmoid.domain, sigmoid.op) == ("", "Sigmoid")
            and sigmoid.input_names[0] == data.name
        ):
            low, high = (np.full(data.size, end) for end in SILU_INTERVAL)
            return node.builder.activate(data.name, Slopes(low, high))
    raise Ineligible


def division(node: Node) -> Signal:
    """Division by stored numbers."""
    if not isinstance(node.call.inputs[0], Flow):
        raise Ineligible
    return node.builder.activate(node.source.name, quotient(per_entry(node, node.call.required_constant(1))))


def quotient(divisor: Array) -> Slopes:
    """Division by each entry of ``divisor``, bracketed where 1/d is not a float."""
    if np.any(divisor == 0.0):
        raise Ineligible
    inverse = 1.0 / divisor
    exact = np.frexp(np.abs(divisor))[0] == 0.5
    low, high = np.nextafter(inverse, -math.inf), np.nextafter(inverse, math.inf)
    return Slopes(np.where(exact, inverse, low), np.where(exact, inverse, high))


def per_entry(node: Node, constant: Constant) -> Array:
    """A constant operand, entry by entry of one sample; the operator may not replicate the data."""
    if node.result.shape != node.source.shape:
        raise Ineligible
    return np.array(spread(constant, node.source.shape), dtype=np.float64).reshape(-1)


def linear_spline(node: Node) -> Signal:
    """The interval of each channel's stored segments; end slopes continue outside the knots."""
    call, source, attributes = node.call, node.source, attributes_of(node.call)
    axis = channel_axis(node, attributes)
    coefficients = call.required_constant(1).float64()
    if coefficients.ndim != 2 or coefficients.shape[1] < 2 or coefficients.shape[0] not in (1, source.shape[axis]):
        raise Ineligible
    steps = np.diff(coefficients, axis=1)
    spacing = float(attributes["knot_spacing"])
    # One rounding in the difference and one in the quotient, each monotone: one step outward after each.
    low = np.nextafter(np.nextafter(steps.min(axis=1), -math.inf) / spacing, -math.inf)
    high = np.nextafter(np.nextafter(steps.max(axis=1), math.inf) / spacing, math.inf)
    shape = [1] * len(source.shape)
    shape[axis] = -1
    low, high = (np.broadcast_to(end.reshape(shape), source.shape).reshape(-1) for end in (low, high))
    return node.builder.activate(source.name, Slopes(np.array(low), np.array(high)))
