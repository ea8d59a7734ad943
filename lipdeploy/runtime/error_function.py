"""erf of the float64 program: a table of Taylor polynomials on cells of width 1/16, absolute error below 4·2⁻⁵³ (F6).

The table is made of 60-digit decimals from series whose terms are all positive, and rounded once.
"""

from __future__ import annotations

import functools
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
from onnx import helper

from lipdeploy.runtime.rewriting import Rewriting

CELLS_PER_UNIT = 16
LARGEST = 6  # 1 − erf(6) is below a quarter of a unit roundoff
DEGREE = 9  # the next term is below 2⁻⁵⁷ at 1/32 from a cell's middle
DIGITS = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def error_function(graph: Rewriting, x: str, stem: str, output: str | None = None) -> str:
    """erf(x) = sign(x)·Σ table[k][cell]·dᵏ with d the distance of |x| from the middle of its cell; a NaN stays one."""
    size = graph.emit("Abs", [x], stem=stem)
    bounded = graph.emit("Min", [size, graph.constant(stem, float(LARGEST))], stem=stem)
    scaled = graph.emit("Mul", [bounded, graph.constant(stem, float(CELLS_PER_UNIT))], stem=stem)
    middle = graph.emit("Floor", [graph.emit("Add", [scaled, graph.constant(stem, 0.5)], stem=stem)], stem=stem)
    number = graph.emit("IsNaN", [middle], stem=stem)
    known = graph.emit("Where", [number, graph.constant(stem, 0.0), middle], stem=stem)
    cell = graph.emit("Cast", [known], stem=stem, to=7)  # int64
    begin = graph.emit("Mul", [middle, graph.constant(stem, 1.0 / CELLS_PER_UNIT)], stem=stem)
    last = graph.integers(stem, [-1])
    distance = graph.emit("Unsqueeze", [graph.emit("Sub", [bounded, begin], stem=stem), last], stem=stem)
    value, *rest = reversed(_coefficients(graph, cell, stem))
    for coefficient in rest:
        value = graph.emit("Add", [graph.emit("Mul", [distance, value], stem=stem), coefficient], stem=stem)
    value = graph.emit("Squeeze", [value, last], stem=stem)
    negative = graph.emit("Less", [x, graph.constant(stem, 0.0)], stem=stem)
    return graph.emit("Where", [negative, graph.emit("Neg", [value], stem=stem), value], output, stem=stem)


def _coefficients(graph: Rewriting, cell: str, stem: str) -> list[str]:
    """The polynomial of every entry's cell: one tensor (..., 1) per degree. A whole row is fetched at a time."""
    rows = graph.emit("Gather", [graph.constant(stem, table().T), cell], stem=stem, axis=0)
    names = [graph.fresh(stem) for _ in range(DEGREE + 1)]
    ones = graph.integers(stem, [1] * len(names))
    graph.nodes.append(helper.make_node("Split", [rows, ones], names, name=names[0], axis=-1))
    return names


@functools.cache
def table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """(degree + 1, cells): erf⁽ᵏ⁾(j/16)/k!, each the nearest binary64 number."""
    with localcontext(Context(prec=DIGITS)):
        columns = [_taylor(Decimal(j) / CELLS_PER_UNIT) for j in range(CELLS_PER_UNIT * LARGEST + 1)]
    return np.array([[float(number) for number in column] for column in columns]).T


def _taylor(x: Decimal) -> list[Decimal]:
    """erf and its derivatives over factorials: erf⁽ᵏ⁺¹⁾ = (2/√π)·(−1)ᵏ·Hₖ(x)·e^(−x²), with Hermite's polynomials."""
    peak = 2 / PI.sqrt() * (-x * x).exp()
    coefficients, factorial, before, hermite = [_erf(x, peak)], Decimal(1), Decimal(0), Decimal(1)
    for k in range(DEGREE):
        factorial *= k + 1
        coefficients.append((-1) ** k * hermite * peak / factorial)
        before, hermite = hermite, 2 * x * hermite - 2 * k * before
    return coefficients


def _erf(x: Decimal, peak: Decimal) -> Decimal:
    """(2/√π)·e^(−x²)·Σ 2ⁿ·x^(2n+1)/(2n+1)!!."""
    total, term, n = Decimal(0), x, 0
    while term > Decimal(10) ** -DIGITS:
        total += term
        n += 1
        term *= 2 * x * x / (2 * n + 1)
    return total * peak
