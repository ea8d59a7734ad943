"""Square roots of sums of squares: ℓ2 pooling, norms and ℓ2 residuals written with several nodes.

Op by op such a graph is not Lipschitz at all: the square grows without limit and the root has infinite slope at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound, total
from lipdeploy.verify.graph import Call, Constant, Flow, Unproven
from lipdeploy.verify.motifs.matching import Found, Values
from lipdeploy.verify.norms import Norm, PerNorm, constant_norm, per_norm
from lipdeploy.verify.operator_norm.sums import largest
from lipdeploy.verify.rounding import sqrt_up
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.pooling import pool_coverage, root_rounding
from lipdeploy.verify.rules.registry import RULES
from lipdeploy.verify.step import Rounding, Step

#: Linear operators with no negative weight, whose own rules bound the sums of their rows (ℓ∞) and columns (ℓ1).
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceL1", "Mul", "Div"})
MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Identity"})
#: The identity on numbers that are not negative.
NON_NEGATIVE = frozenset({"Relu", "Abs"})
DEEPEST = 24


@dataclass(frozen=True)
class _Share:
    """A·x² of one source: upper bounds of the largest column and row sums of A, and how many rows a column meets."""

    source: Flow
    columns: Bound
    rows: Bound
    coverage: int


@dataclass(frozen=True)
class _Squares:
    """A tensor t = Σ A_b·x_b² + c with A_b ≥ 0 and 0 ≤ c ≤ ``constant``; ``shape`` per sample.

    A program computes it to within γ_terms·t + lost·(smallest normal number), because nothing in it is negative, and
    no intermediate result exceeds growth·max‖x_b‖∞² + highest. ``terms`` is ``None`` where that is not known.
    """

    shape: tuple[int, ...]
    shares: tuple[_Share, ...]
    constant: Bound
    terms: int | None = 1
    lost: Bound = ONE
    growth: Bound = ONE
    highest: Bound = ZERO


def root_of_squares(call: Call, values: Values) -> Found | None:
    """√(A·x² + c) with A, c ≥ 0 is a norm of each row: √‖A‖₁ in ℓ2, √‖A‖∞ in ℓ∞, √(m·‖A‖₁) in ℓ1 (Lemma S8).

    m is in how many rows an entry occurs. The squares of several sources add up. Spellings: Sqrt or Pow(½) of pools,
    sums, means and non-negative constants over Mul(x, x), Pow(x, 2) or ReduceSumSquare; also with torch's
    Sign·Relu∘Abs in between.
    """
    if call.attributes or not _is_root(call, values):
        return None
    squares = _read(call, call.input_names[0], values, 0)
    if squares is None or len({share.source.dtype for share in squares.shares}) != 1:
        return None
    size, shares = math.prod(squares.shape), squares.shares
    gains = tuple(
        per_norm(_root(Bound(float(share.coverage)) * share.columns), _root(share.columns), _root(share.rows))
        for share in shares
    )
    at_zero = {norm: constant_norm(norm, _root(squares.constant), size) for norm in Norm}
    step = Step(squares.shape, gains, "root of squares", "root", at_zero, rounding=_rounding(squares, at_zero))
    return tuple(share.source for share in shares), step


def _rounding(squares: _Squares, at_zero: PerNorm) -> Rounding | None:
    if squares.terms is None:
        return None
    growth, highest = squares.growth, squares.highest
    return root_rounding(squares.terms, squares.lost.value, growth, constant=highest, offset=at_zero)


def _root(value: Bound) -> Bound:
    return Bound(sqrt_up(value.value))


def _is_root(call: Call, values: Values) -> bool:
    if call.op == "Sqrt":
        return len(call.input_names) == 1
    return _exponent(call, values) == 0.5


def _exponent(call: Call, values: Values) -> float | None:
    if call.op != "Pow" or len(call.input_names) != 2 or call.attributes:
        return None
    exponent = values(call.input_names[1])
    if not isinstance(exponent, Constant) or exponent.array.size != 1 or exponent.array.ndim > 1:
        return None
    return float(exponent.float64().reshape(-1)[0])


def _read(call: Call, name: str, values: Values, depth: int) -> _Squares | None:
    node = call.producer(name)
    if node is None or node.domain or depth > DEEPEST or node.output_names[0] != name:
        return None
    square = _square(node, values)
    if square is not None:
        return _Squares(square.shape, (_Share(square, ONE, ONE, 1),), ZERO)
    data = [n for n in node.input_names if n and not isinstance(values(n), Constant)]
    if node.op == "ReduceSumSquare":
        return _summed(node, values)
    if node.op == "Mul" and len(data) == 2:
        plain = _unsigned(node, data)
        return None if plain is None else _read(call, plain, values, depth + 1)
    if node.op == "Add" and len(data) == 2 and len(node.input_names) == 2 and not node.attributes:
        return _sum([_read(call, part, values, depth + 1) for part in data])
    inner = _read(call, data[0], values, depth + 1) if len(data) == 1 else None
    return None if inner is None else _after(node, inner, data[0], values)


def _square(node: Call, values: Values) -> Flow | None:
    """The tensor that this node squares, entry by entry."""
    twice = node.op == "Mul" and len(node.input_names) == 2 and node.input_names[0] == node.input_names[1]
    if node.attributes or not (twice or _exponent(node, values) == 2.0):
        return None
    source = values(node.input_names[0])
    return source if isinstance(source, Flow) and source.dtype.kind == "f" else None


def _summed(node: Call, values: Values) -> _Squares | None:
    source = values(node.input_names[0])
    if not isinstance(source, Flow) or source.dtype.kind != "f":
        return None
    squares = _Squares(source.shape, (_Share(source, ONE, ONE, 1),), ZERO)
    # Σ|x²|, whose axes became an input in the same opset; those of ReduceSum did earlier.
    return _after(replace(node, op="ReduceL1"), squares, node.input_names[0], values)


def _unsigned(node: Call, data: Sequence[str]) -> str | None:
    """z of Mul(Sign(z), |z|), which is z where z is not negative."""
    for first, second in (data, data[::-1]):
        sign, size = node.producer(first), node.producer(second)
        if sign is None or sign.domain or sign.op != "Sign" or sign.attributes:
            continue
        while size is not None and not size.domain and size.op in NON_NEGATIVE and not size.attributes:
            if size.input_names[0] == sign.input_names[0]:
                return sign.input_names[0]
            size = node.producer(size.input_names[0])
    return None


def _sum(parts: Sequence[_Squares | None]) -> _Squares | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.shape for part in known}) != 1:
        return None
    shares = tuple(share for part in known for share in part.shares)
    if len({share.source.name for share in shares}) < len(shares):
        return None
    counts = [part.terms for part in known if part.terms is not None]
    return _Squares(
        shape=known[0].shape,
        shares=shares,
        constant=total(part.constant for part in known),
        terms=max(counts) + 1 if len(counts) == len(known) else None,
        lost=total(part.lost for part in known) + ONE,
        growth=total(part.growth for part in known),
        highest=total(part.highest for part in known),
    )


def _after(node: Call, inner: _Squares, name: str, values: Values) -> _Squares | None:
    """One node that maps non-negative numbers to non-negative ones, judged by its own rule."""
    if node.op in NON_NEGATIVE:
        return None if node.attributes else inner
    stored = [value for value in map(values, filter(None, node.input_names)) if isinstance(value, Constant)]
    if node.op in ("Add", "Mul", "Div") and not all(_fits(value, inner.shape) for value in stored):
        return None
    if node.op == "Add":
        if len(stored) != 1 or node.attributes:
            return None
        shift = Bound(largest(stored[0].float64()))
        terms = None if inner.terms is None else inner.terms + 1
        return replace(
            inner,
            constant=inner.constant + shift,
            terms=terms,
            lost=inner.lost + ONE,
            highest=inner.highest + shift,
        )
    if node.op not in AVERAGES | MOVES or (node.op == "Div" and isinstance(values(node.input_names[0]), Constant)):
        return None
    call = _judged(node, name, inner, values)
    (step,) = RULES["", node.op](call)
    columns, rows = step.gains[0][Norm.L1, Norm.L1], step.gains[0][Norm.LINF, Norm.LINF]
    coverage = pool_coverage(call) if node.op == "AveragePool" else 1
    shares = tuple(
        _Share(share.source, share.columns * columns, share.rows * rows, share.coverage * coverage)
        for share in inner.shares
    )
    return _rounded(_Squares(step.shape, shares, inner.constant * rows), inner, rows, step.rounding)


def _rounded(squares: _Squares, inner: _Squares, rows: Bound, rounding: Rounding | None) -> _Squares:
    """``squares`` = A·``inner`` with the errors of a program: all numbers are positive, so relative errors add up.

    An absolute error grows with the rows of A, and a little with the roundings after it (doubled at the root, F7).
    """
    if rounding is None or rounding.only or inner.terms is None:
        return replace(squares, terms=None)
    peak, shift = rounding.peak
    larger = max(ONE, peak, rows)
    return replace(
        squares,
        terms=inner.terms + rounding.terms,
        lost=inner.lost * rows + Bound(rounding.underflow),
        growth=inner.growth * larger,
        highest=inner.highest * larger + shift,
    )


def _fits(constant: Constant, shape: tuple[int, ...]) -> bool:
    """Whether a constant operand has no negative entry and does not replicate the data."""
    if constant.array.ndim > len(shape) + 1 or constant.array.dtype.kind != "f":
        return False
    try:
        return bool(np.all(spread(constant, shape) >= 0.0))
    except ValueError:
        return False


def _judged(node: Call, name: str, inner: _Squares, values: Values) -> Call:
    """The node with a stand-in of the right shape for its data input, so that its rule can look at it."""
    dtype = inner.shares[0].source.dtype
    stand_in = Flow(name, dtype, inner.shape, {}, {})
    inputs = [stand_in if n == name else values(n) if n else None for n in node.input_names]
    if any(isinstance(value, Unproven) for value in inputs):
        raise node.refuse("LIP004", "an operand is not constant")
    return replace(node, norms=tuple(Norm)).with_inputs(inputs, node.batch)
