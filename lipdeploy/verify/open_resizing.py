"""Resize of images of open size: by a whole factor, or by one over a power of two, the pattern repeats (Lemma P3)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.graph import Call
from lipdeploy.verify.norms import Gains, Norm, diagonal, per_norm
from lipdeploy.verify.open_sizes import OpenSize
from lipdeploy.verify.operator_norm import dense_gains
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, mul_up, sqrt_up
from lipdeploy.verify.rules.resize import axis_matrix, placement, present, scaled_size
from lipdeploy.verify.step import Step

LARGEST_FACTOR = 64
PERIODS = 5  # images of up to so many periods show everything that any image shows


def resize(call: Call) -> list[Step]:
    """Rows sum to 1, so ℓ∞: 1; ℓ1: the largest column sum of any image; ℓ2: the root of both (Schur's test)."""
    flow, mode, placing = call.flow(0), call.string("mode", "nearest"), placement(call)
    if placing == "align_corners":
        raise call.refuse("LIP006", "align_corners depends on the image's size, which is open")
    shape: list[Any] = list(flow.shape)
    gains = diagonal(ONE)
    for axis, (size, scale) in enumerate(zip(flow.shape, _scales(call), strict=True)):
        if scale == 1:
            continue
        if isinstance(size, OpenSize):
            factors = _any_size(call, mode, placing, scale)
            shape[axis] = _resized(size, scale)
        else:
            count = scaled_size(call, size, scale)
            factors = dense_gains(axis_matrix(call, mode, placing, size, count, scale), tuple(Norm))
            shape[axis] = count
        slack = Bound(1.0 if mode == "nearest" else 1.0 + 4 * UNIT_ROUNDOFF)
        gains = {pair: gain * factors[pair] * slack for pair, gain in gains.items()}
    return [Step(cast("tuple[int, ...]", tuple(shape)), (gains,), f"{mode} interpolation, any size", rounding=None)]


def _scales(call: Call) -> list[Fraction]:
    """The scale of every axis but the batch axis."""
    rank = len(call.flow(0).shape) + 1
    axes = [call.resolve_axis(axis, rank) for axis in call.integers("axes", ()) or range(rank)]
    scales = present(call, 2)
    if scales is None or present(call, 3) is not None:
        raise call.refuse("LIP006", "states the sizes of images whose size is open; state scales")
    numbers = [Fraction(float(number)) for number in scales.array.reshape(-1)]
    if len(numbers) != len(axes) or len(set(axes)) < len(axes):
        raise call.refuse("LIP013", f"{len(numbers)} scales for axes {axes}")
    given = dict(zip(axes, numbers, strict=True))
    if given.get(0, Fraction(1)) != 1:
        raise call.refuse("LIP005", "resizes the batch axis")
    return [given.get(axis, Fraction(1)) for axis in range(1, rank)]


def _resized(size: OpenSize, scale: Fraction) -> OpenSize:
    """⌊size·scale⌋."""
    return size.stretched(scale.numerator, 0) if scale > 1 else size.after("shrink", scale.denominator, 0)


def _any_size(call: Call, mode: str, placing: str, scale: Fraction) -> Gains:
    """The largest row and column sums over images of up to ``PERIODS`` periods."""
    whole, part = scale.numerator, scale.denominator
    if 1 not in (whole, part) or part & (part - 1) or max(whole, part) > LARGEST_FACTOR:
        hint = f"a whole factor, or one over a power of two, up to {LARGEST_FACTOR}"
        raise call.refuse("LIP006", f"resizes by {float(scale)}: the pattern depends on the image's size", hint)
    column = row = 0.0
    for size in range(part, PERIODS * part + 1):
        matrix = axis_matrix(call, mode, placing, size, math.floor(size * scale), scale)
        row = max(row, float(matrix.sum(axis=1).max()))
        column = max(column, float(matrix.sum(axis=0).max()))
    slack = 1.0 + 2.0 * whole * PERIODS * UNIT_ROUNDOFF  # of sums of weights that err by one rounding
    column, row = mul_up(column, slack), mul_up(row, slack)
    return per_norm(Bound(column), Bound(sqrt_up(mul_up(column, row))), Bound(row))
