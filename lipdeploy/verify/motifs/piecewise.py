"""Activations written as sums, maxima and multiples of one tensor: judged as the one function that they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import reduce

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.matching import Found, Values
from lipdeploy.verify.norms import Norm, constant_norm, diagonal
from lipdeploy.verify.piecewise_linear import IDENTITY, PiecewiseLinear, constant
from lipdeploy.verify.rounding import fraction_up
from lipdeploy.verify.step import Step

MOST_NODES = 128
MOST_LINES = 32
MOST_BITS = 1024  # of one number: sums of float32 numbers need 300, each factor 24 more
MINUS = Fraction(-1)

Function = PiecewiseLinear


class _NotPiecewiseLinear(Exception):
    """This is no piecewise-linear function of one tensor, or none that is worth the time."""


def piecewise_linear(call: Call, values: Values) -> Found | None:
    """φ(x), one continuous piecewise-linear φ for all entries: its largest |slope|, in exact rationals (Lemma S9).

    From the nearest tensor that all of the node comes through; between both lie only sums, extrema, |·|, rectifiers and
    multiples by numbers that hold for all entries.
    """
    if len(_flows(call, values)) < 2:
        return None  # its own rule says the same
    try:
        nodes, source = _region(call, values)
        function = _composed(nodes, source, values)
    except _NotPiecewiseLinear:
        return None
    start = values(source)
    assert isinstance(start, Flow)
    fixed = Bound(fraction_up(abs(function(Fraction(0)))))
    at_zero = {norm: constant_norm(norm, fixed, start.size) for norm in Norm}
    gains = (diagonal(Bound(fraction_up(function.steepest))),)
    return start, Step(start.shape, gains, "piecewise linear", at_zero=at_zero, rounding=None)


def _flows(call: Call, values: Values) -> set[str]:
    return {name for name in call.input_names if name and isinstance(values(name), Flow)}


def _region(last: Call, values: Values) -> tuple[list[Call], str]:
    """The nodes from the nearest common source on, in the graph's order, and that source's name."""
    nodes, frontier = [last], _flows(last, values)
    while len(frontier) > 1:
        producers = {name: last.producer(name) for name in frontier}
        name, node = max(producers.items(), key=lambda item: -1 if item[1] is None else item[1].place)
        if node is None or node.domain or node.op not in OPERATORS or len(nodes) == MOST_NODES:
            raise _NotPiecewiseLinear
        nodes.append(node)
        frontier = (frontier - {name}) | _flows(node, values)
    if not frontier:
        raise _NotPiecewiseLinear
    return nodes[::-1], frontier.pop()


def _composed(nodes: Sequence[Call], source: str, values: Values) -> Function:
    """The last node's output as a function of the source's entries."""
    start = values(source)
    functions = {source: IDENTITY}
    for node in nodes:
        output = values(node.output_names[0])
        if not isinstance(start, Flow) or not isinstance(output, Flow) or output.shape != start.shape:
            raise _NotPiecewiseLinear  # not proven by itself, or entries meet others
        operands = [_operand(name, functions, values) for name in node.input_names]
        function = OPERATORS[node.op](node, operands)
        if len(function.lines) > MOST_LINES or function.bits > MOST_BITS:
            raise _NotPiecewiseLinear
        functions[node.output_names[0]] = function
    return function


def _operand(name: str, functions: Mapping[str, Function], values: Values) -> Function | None:
    """What one input is as a function of the source; ``None`` where an optional one is left out."""
    if not name or name in functions:
        return functions.get(name)
    value = values(name)
    if not isinstance(value, Constant) or value.roundings or value.array.dtype.kind != "f" or not value.array.size:
        raise _NotPiecewiseLinear
    number = float(value.float64().reshape(-1)[0])
    if not math.isfinite(number) or (value.array != value.array.reshape(-1)[0]).any():
        raise _NotPiecewiseLinear
    return constant(Fraction(number))


Operands = Sequence[Function | None]


def _all(operands: Operands) -> list[Function]:
    given = [operand for operand in operands if operand is not None]
    if len(given) != len(operands):
        raise _NotPiecewiseLinear
    return given


def _number(operand: Function | None) -> Fraction:
    """The value of a constant."""
    if operand is None or operand.steepest:
        raise _NotPiecewiseLinear
    return operand(Fraction(0))


def _product(call: Call, operands: Operands) -> Function:
    first, second = _all(operands)
    return second.scaled(_number(first)) if not first.steepest else first.scaled(_number(second))


def _quotient(call: Call, operands: Operands) -> Function:
    first, second = _all(operands)
    divisor = _number(second)
    if not divisor:
        raise _NotPiecewiseLinear
    return first.scaled(1 / divisor)


def _leaky(call: Call, operands: Operands) -> Function:
    """α·f below 0; a default α is left alone, because it is no float32 number."""
    (argument,) = _all(operands)
    if "alpha" not in call.attributes:
        raise _NotPiecewiseLinear
    return _bent(argument, Fraction(call.real("alpha")))


def _bent(argument: Function, slope: Fraction) -> Function:
    return argument.scaled(slope) + argument.positive_part().scaled(1 - slope)


def _clip(call: Call, operands: Operands) -> Function:
    """min(max(f, low), high), in this order, as the operator is defined where low > high."""
    argument, low, high = (*operands, None, None)[:3]
    if argument is None:
        raise _NotPiecewiseLinear
    raised = argument if low is None else argument.maximum(low)
    return raised if high is None else raised.minimum(high)


def _fold(combine: Callable[[Function, Function], Function]) -> Callable[[Call, Operands], Function]:
    return lambda call, operands: reduce(combine, _all(operands))


OPERATORS: Mapping[str, Callable[[Call, Operands], Function]] = {
    "Add": _fold(Function.__add__),
    "Sum": _fold(Function.__add__),
    "Sub": _fold(lambda first, second: first + second.scaled(MINUS)),
    "Max": _fold(Function.maximum),
    "Min": _fold(Function.minimum),
    "Mul": _product,
    "Div": _quotient,
    "Neg": lambda call, operands: _all(operands)[0].scaled(MINUS),
    "Abs": lambda call, operands: _all(operands)[0].maximum(_all(operands)[0].scaled(MINUS)),
    "Relu": lambda call, operands: _all(operands)[0].positive_part(),
    "LeakyRelu": _leaky,
    "PRelu": lambda call, operands: _bent(_all(operands)[0], _number(operands[1])),
    "Clip": _clip,
    "Identity": lambda call, operands: _all(operands)[0],
}
