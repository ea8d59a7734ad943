"""Resize: the Kronecker product of one interpolation matrix per axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import BATCH, Call, Constant
from lipdeploy.verify.norms import Norm, diagonal
from lipdeploy.verify.operator_norm import dense_gains
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import UNIT_ROUNDOFF
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import EXACT, Rounding, Step

ATTRIBUTES = (
    "antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value",
    "keep_aspect_ratio_policy", "mode", "nearest_mode",
)  # fmt: skip
LARGEST_AXIS = 1 << 12  # so that a runtime's float32 positions err by less than DOUBT
#: Closer than this to where the nearest pixel changes, runtimes may round to either.
DOUBT = Fraction(1, 1 << 10)
#: Relative error of a product of a size and a scale in float32, with room to spare.
BLUR = Fraction(1, 1 << 22)
#: position of output pixel j → position in the input, for (size in, size out, scale).
Positions = Callable[[int, int, int, Fraction], Fraction]


def _half_pixel(j: int, size: int, count: int, scale: Fraction) -> Fraction:
    return (j + Fraction(1, 2)) / scale - Fraction(1, 2)


POSITIONS: dict[str, Positions] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": lambda j, size, count, scale: (
        _half_pixel(j, size, count, scale) if count > 1 else Fraction(0)
    ),
    "asymmetric": lambda j, size, count, scale: j / scale,
    "align_corners": lambda j, size, count, scale: Fraction(j * (size - 1), count - 1) if count > 1 else Fraction(0),
}
#: How far the nearest pixel's number lies below the rounded-down position: ⌊position + shift⌋, or its mirror image.
NEAREST: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda p: math.ceil(p - Fraction(1, 2)),
    "round_prefer_ceil": lambda p: math.floor(p + Fraction(1, 2)),
}


@rule("Resize", attributes=ATTRIBUTES, inputs=4)
def resize(call: Call) -> Step:
    """Nearest or linear interpolation along each axis: its matrix is known, norms of the axes multiply (Lemma P2).

    Nearest copies entries and rounds nothing. Linear weights are exact only in the float64 program, which forms them
    from the same rationals. Positions are exact rationals of the stored sizes or scales.
    """
    mode, matrices = call.string("mode", "nearest"), interpolations(call)
    shape, gains = list(call.flow(0).shape), diagonal(ONE)
    for axis, matrix in matrices.items():
        shape[axis] = len(matrix)
        factors = dense_gains(matrix, tuple(Norm))
        slack = Bound(1.0 if mode == "nearest" else 1.0 + 4 * UNIT_ROUNDOFF)
        gains = {pair: gain * factors[pair] * slack for pair, gain in gains.items()}
    terms = 6 * len(matrices)
    blend = Rounding(terms=terms, underflow=float(terms), peak=(Bound(2.0), ZERO), only=("f64",))  # F8
    return Step(tuple(shape), (gains,), f"{mode} interpolation", rounding=EXACT if mode == "nearest" else blend)


def interpolations(call: Call) -> dict[int, Array]:
    """(size out, size in) for every axis of a sample (from 0) that is resized; refuses what has no rule.

    Every row has one 1, or two non-negative weights that sum to 1 and err by a few 2⁻⁵³ relative.
    """
    flow, mode, placing = call.flow(0), call.string("mode", "nearest"), placement(call)
    matrices = {}
    for axis, (size, (count, scale)) in enumerate(zip(flow.shape, _targets(call, flow.shape), strict=True)):
        if count == size and scale == 1:
            continue
        if placing == "align_corners" and count != size * scale:
            raise call.refuse("LIP002", "align_corners with a scale that does not give a whole size")
        matrices[axis] = axis_matrix(call, mode, placing, size, count, scale)
    return matrices


def placement(call: Call) -> str:
    """How pixels are placed; refuses the modes that have no rule."""
    mode = call.string("mode", "nearest")
    if call.constant(1) is not None and present(call, 1) is not None:
        raise call.refuse("LIP002", "a region of interest has no rule")
    if mode not in ("nearest", "linear"):
        raise call.refuse("LIP002", f"mode='{mode}'; nearest and linear have a rule")
    if call.integer("antialias", 0) or call.integer("exclude_outside", 0):
        raise call.refuse("LIP002", "antialias and exclude_outside have no rule")
    if call.string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("LIP002", "only keep_aspect_ratio_policy='stretch' has a rule")
    placing = call.string("coordinate_transformation_mode", "half_pixel")
    if placing not in POSITIONS:
        raise call.refuse("LIP002", f"coordinate_transformation_mode='{placing}'")
    return placing


def _targets(call: Call, shape: tuple[int, ...]) -> list[tuple[int, Fraction]]:
    """(size, scale) of every axis but the batch axis, which must stay."""
    rank = len(shape) + 1
    given = call.integers("axes", ()) or tuple(range(rank))
    axes = [call.resolve_axis(axis, rank) for axis in given]
    scales, sizes = present(call, 2), present(call, 3)
    stated = sizes if scales is None else scales
    if stated is None or (scales is not None and sizes is not None):
        raise call.refuse("LIP013", "needs either scales or sizes")
    numbers = stated.array.reshape(-1).tolist()
    if len(numbers) != len(axes) or len(set(axes)) < len(axes):
        raise call.refuse("LIP013", f"{len(numbers)} targets for axes {axes}")
    result = [(size, Fraction(1)) for size in shape]
    for axis, number in zip(axes, numbers, strict=True):
        if axis == 0:
            if not (number == 1.0 if scales is not None else call.is_batch(number)):
                raise call.refuse("LIP005", "resizes the batch axis")
        elif number is BATCH:
            raise call.refuse("LIP005", "the number of samples becomes an image size")
        elif scales is not None:
            scale = Fraction(number)
            result[axis - 1] = (scaled_size(call, shape[axis - 1], scale), scale)
        else:
            result[axis - 1] = (int(number), Fraction(int(number), shape[axis - 1]))
    return result


def scaled_size(call: Call, size: int, scale: Fraction) -> int:
    """⌊size·scale⌋, refused where a runtime's float32 product may round up to the next whole number.

    Also where it is ``size`` again: an image whose sizes all stay is passed on unchanged by some runtimes.
    """
    exact = size * scale
    if scale != 1 and math.floor(exact) == size:
        raise call.refuse("LIP002", f"runtimes disagree about a scale of {float(scale)} that leaves {size} pixels")
    if exact.denominator > 1 and math.floor(exact * (1 - BLUR)) != math.floor(exact * (1 + BLUR)):
        hint = "state the sizes, or a scale whose product with the size is not just below a whole number"
        raise call.refuse("LIP002", f"runtimes may round {size} × {float(scale)} to another size", hint)
    return math.floor(exact)


def present(call: Call, index: int) -> Constant | None:
    """A stored input, if it is there and not empty."""
    constant = call.constant(index)
    return None if constant is None or constant.array.size == 0 else constant


def axis_matrix(call: Call, mode: str, placing: str, size: int, count: int, scale: Fraction) -> Array:
    """(count, size); every row has one 1, or two weights that sum to 1. Positions outside show the edge."""
    if max(size, count) > LARGEST_AXIS or count <= 0 or scale <= 0:
        raise call.refuse("LIP002", f"resizes an axis of {size} to {count}")
    matrix = np.zeros((count, size))
    choose = NEAREST.get(call.string("nearest_mode", "round_prefer_floor"))
    if choose is None:
        raise call.refuse("LIP002", f"nearest_mode='{call.string('nearest_mode', '')}'")
    for j in range(count):
        position = POSITIONS[placing](j, size, count, scale)
        if mode == "nearest":
            if not _is_clear(position, choose, scale, size):
                raise call.refuse("LIP002", "runtimes may round the position of a pixel to either of its neighbours")
            matrix[j, _inside(choose(position), size)] = 1.0
            continue
        position = min(max(position, Fraction(0)), Fraction(size - 1))
        left = min(math.floor(position), size - 1)
        weight = position - left
        matrix[j, left] += float(1 - weight)
        matrix[j, min(left + 1, size - 1)] += float(weight)
    return matrix


def _inside(pixel: int, size: int) -> int:
    return min(max(pixel, 0), size - 1)


def _is_clear(position: Fraction, choose: Callable[[Fraction], int], scale: Fraction, size: int) -> bool:
    """Whether small errors of the position cannot change the pixel, or the position is computed exactly.

    Divisions by powers of two are exact, and so are those with a whole quotient by a whole number.
    """
    whole = position.denominator == 1 and scale.denominator == 1
    return (
        whole
        or _is_power_of_two(scale)
        or _inside(choose(position - DOUBT), size) == _inside(choose(position + DOUBT), size)
    )


def _is_power_of_two(scale: Fraction) -> bool:
    one, other = sorted((scale.numerator, scale.denominator))
    return one == 1 and other & (other - 1) == 0
