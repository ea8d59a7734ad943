"""Pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call
from lipdeploy.verify.limits import MOST_AVERAGED, MOST_LISTED, check_listed
from lipdeploy.verify.norms import Gains, Norm, PerNorm, constant_norm, diagonal, per_norm
from lipdeploy.verify.open_sizes import stated
from lipdeploy.verify.operator_norm import dense_gains
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, div_up, down, mul_up, sqrt_up
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.rules.windows import Windows, windows
from lipdeploy.verify.step import EXACT, Rounding, Step

POOL = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def pooled_shape(call: Call) -> tuple[int, ...]:
    """(channels, *image) of the data. Without an image, a program that reduces "all axes from 2 on" takes them all."""
    shape = call.flow().shape
    if len(shape) < 2:
        raise call.refuse("LIP013", f"pooling needs (channels, *image), not {list(stated(shape))}")
    return shape


def _pool_windows(call: Call) -> tuple[int, Windows, tuple[int, ...]]:
    shape = pooled_shape(call)
    kernel = call.integers("kernel_shape")
    ceil = bool(call.integer("ceil_mode", 0))
    window = windows(call, shape[1:], kernel, ceil=ceil)
    check_listed(call, (n * k for n, k in zip(window.outputs, kernel, strict=True)), MOST_LISTED)
    same = call.string("auto_pad", "NOTSET").startswith("SAME")
    if same and max(window.dilations) > 1:
        raise call.refuse("LIP002", "runtimes disagree about auto_pad with dilations; state the pads")
    if same and window.passed_over(kernel) > 0:  # the padding would be negative
        raise call.refuse("LIP002", "runtimes disagree about auto_pad where strides pass over pixels; state the pads")
    if ceil and call.string("auto_pad", "NOTSET") != "NOTSET" and window != windows(call, shape[1:], kernel):
        raise call.refuse("LIP002", "runtimes disagree about auto_pad with ceil_mode; state the pads")
    if any(not inside for axis, taps in enumerate(kernel) for inside in _inside(window, axis, taps)):
        raise call.refuse("LIP002", "a window lies wholly in the padding")
    return shape[0], window, kernel


@rule("MaxPool", attributes=(*POOL, "storage_order"))
def max_pool(call: Call) -> Step:
    """An entry lies in at most Π c windows, c = ⌈k / (s / gcd(s, d))⌉ per axis: √Πc, 1, Πc. Padding is −∞."""
    channels, window, kernel = _pool_windows(call)
    copies = float(_coverage(window, kernel))
    gains = per_norm(Bound(copies), Bound(sqrt_up(copies)), ONE)
    return Step((channels, *window.outputs), (gains,), "window coverage", rounding=EXACT)


@rule("AveragePool", attributes=(*POOL, "count_include_pad"))
def average_pool(call: Call) -> Step:
    """The Kronecker product of one averaging matrix per axis: its norm is the product of theirs."""
    channels, window, kernel = _pool_windows(call)
    matrices = averaging_matrices(call)
    gains: dict[tuple[Norm, Norm], Bound] = dict(diagonal(ONE))
    for matrix in matrices:
        factors = dense_gains(matrix, tuple(Norm))
        gains = {pair: gain * factors[pair] * Bound(1.0 + 4 * UNIT_ROUNDOFF) for pair, gain in gains.items()}
    return Step((channels, *window.outputs), (gains,), "averaging", rounding=_means(math.prod(kernel)))


def averaging_matrices(call: Call) -> list[Array]:
    """(outputs, inputs) per axis, of an AveragePool."""
    _, window, kernel = _pool_windows(call)
    include = bool(call.integer("count_include_pad", 0))
    check_listed(call, (n * m for n, m in zip(window.inputs, window.outputs, strict=True)), MOST_AVERAGED)
    return [_averaging_matrix(window, axis, kernel[axis], include) for axis in range(len(kernel))]


def _averaging_matrix(window: Windows, axis: int, taps: int, include_pad: bool) -> Array:
    """(outputs, inputs); stored weights 1/count err by u relative, which ``average_pool`` adds to the norm.

    With ``include_pad`` the taps inside image and padding count. Some runtimes count those beyond it too, where
    ceil_mode lets a window reach there: their weights are smaller, and so are all norms of a non-negative matrix.
    """
    matrix = np.zeros((window.outputs[axis], window.inputs[axis]))
    end = window.inputs[axis] + window.pads[axis][1]
    for row, columns in enumerate(_inside(window, axis, taps)):
        start = row * window.strides[axis] - window.pads[axis][0]
        counted = sum(start + tap * window.dilations[axis] < end for tap in range(taps))
        matrix[row, columns] = 1.0 / (counted if include_pad else len(columns))
    return matrix


def _inside(window: Windows, axis: int, taps: int) -> list[list[int]]:
    """For every window along one axis, the pixels it reads."""
    size, begin, dilation = window.inputs[axis], window.pads[axis][0], window.dilations[axis]
    starts = (row * window.strides[axis] - begin for row in range(window.outputs[axis]))
    return [[s + t * dilation for t in range(taps) if 0 <= s + t * dilation < size] for s in starts]


@rule("LpPool", attributes=(*POOL, "p"))
def lp_pool(call: Call) -> Step:
    """‖window‖₂ moves no further than the window: √c in ℓ2, √k in ℓ∞, c in ℓ1 (k taps, an entry in c windows).

    ‖window‖₁ moves like a sum: √(c·k), k, c.
    """
    channels, window, kernel = _pool_windows(call)
    copies, taps = float(_coverage(window, kernel)), float(math.prod(kernel))
    order = _order(call)
    if order == 1:
        gains = per_norm(Bound(copies), Bound(sqrt_up(copies * taps)), Bound(taps))
    else:
        gains = per_norm(Bound(copies), Bound(sqrt_up(copies)), Bound(sqrt_up(taps)))
    return Step(
        (channels, *window.outputs), (gains,), f"ℓ{order} pooling", rounding=_power_sum(order, math.prod(kernel))
    )


def _power_sum(order: int, count: int) -> Rounding:
    """Σ|x| or √Σx² of ``count`` entries in the float64 program, which writes them out; others are unspecified."""
    if order == 2:
        return root_rounding(count, float(count), Bound(float(count)))
    peak = (Bound(float(count)), ZERO)
    return Rounding(terms=count, underflow=float(count), peak=peak, only=("f64",))


def root_rounding(
    terms: int, lost: float, growth: Bound, *, constant: Bound = ZERO, offset: PerNorm | None = None
) -> Rounding:
    """√ŝ in the float64 program, where |ŝ − s| ≤ γ_terms·s + lost·tiny for a sum s of squares (Lemma F7).

    No intermediate result of ŝ exceeds growth·‖x̂‖∞² + constant. ``offset`` bounds the norms of √s at x = 0.
    """
    lowest = mul_up(sqrt_up(mul_up(2.0, lost)), ROOT_OF_TINY)
    peak = (Bound(4.0 * ROOT_OF_TINY) * Bound(sqrt_up(growth.value)), Bound(4.0) * constant)
    return Rounding(terms=terms + 3, offset=offset or {}, underflow=lowest, peak=peak, only=("f64",))


ROOT_OF_TINY = 2.0**511  # √tiny is 2⁵¹¹·tiny in binary64: what an underflow of a square is worth after the root


def _order(call: Call) -> int:
    order = call.integer("p", 2)
    if order not in (1, 2):
        raise call.refuse("LIP002", f"p = {order}; only 1 and 2 have a rule")
    return order


def pool_coverage(call: Call) -> int:
    """In how many windows of a pool an entry can lie."""
    _, window, kernel = _pool_windows(call)
    return _coverage(window, kernel)


def _coverage(window: Windows, kernel: tuple[int, ...]) -> int:
    """In how many windows an entry can lie."""
    return math.prod(
        -(-k // (s // math.gcd(s, d))) for k, s, d in zip(kernel, window.strides, window.dilations, strict=True)
    )


def _means(count: int) -> Rounding:
    return Rounding(terms=count + 2, underflow=float(count + 2), peak=(Bound(float(count)), Bound(0.0)))


@rule("GlobalAveragePool")
def global_average_pool(call: Call) -> Step:
    """The mean of n entries per channel: 1/√n, 1, 1/n."""
    shape = pooled_shape(call)
    count = math.prod(shape[1:])
    return Step((shape[0], *(1 for _ in shape[1:])), (mean_gains(count),), "mean", rounding=_means(count))


@rule("GlobalMaxPool")
def global_max_pool(call: Call) -> Step:
    """|max a − max b| ≤ max |a − b|: 1 in every norm."""
    shape = pooled_shape(call)
    return Step((shape[0], *(1 for _ in shape[1:])), (diagonal(ONE),), "maximum", rounding=EXACT)


def mean_gains(count: int) -> Gains:
    """Gains of the mean of ``count`` entries."""
    return per_norm(Bound(div_up(1.0, float(count))), Bound(div_up(1.0, down(math.sqrt(count)))), ONE)


def sum_gains(count: int) -> Gains:
    """Gains of the sum of ``count`` entries."""
    return per_norm(ONE, Bound(sqrt_up(float(count))), Bound(float(count)))


REDUCE = ("axes", "keepdims", "noop_with_empty_axes")


@rule("ReduceMean", attributes=REDUCE, inputs=2)
def reduce_mean(call: Call) -> Step:
    """1/√n, 1, 1/n over n reduced entries."""
    shape, count = reduced(call)
    return Step(shape, (mean_gains(count),), "mean", rounding=_means(count))


@rule("ReduceSum", attributes=REDUCE, inputs=2)
def reduce_sum(call: Call) -> Step:
    """√n, n, 1 over n reduced entries."""
    shape, count = reduced(call)
    rounding = Rounding(terms=count, underflow=float(count), peak=(Bound(mul_up(float(count))), Bound(0.0)))
    return Step(shape, (sum_gains(count),), "sum", rounding=rounding)


@rule("ReduceMax", "ReduceMin", attributes=REDUCE, inputs=2)
def reduce_extremum(call: Call) -> Step:
    """|max a − max b| ≤ max |a − b|: 1 in every norm."""
    shape, _ = reduced(call)
    return Step(shape, (diagonal(ONE),), "extremum", rounding=EXACT)


@rule("ReduceL1", attributes=REDUCE, inputs=2)
def reduce_l1(call: Call) -> Step:
    """‖group‖₁ moves like a sum: √n, n, 1 over n reduced entries."""
    shape, count = reduced(call)
    rounding = Rounding(terms=count, underflow=float(count), peak=(Bound(float(count)), Bound(0.0)))
    return Step(shape, (sum_gains(count),), "ℓ1 norm", rounding=rounding)


@rule("ReduceL2", attributes=REDUCE, inputs=2)
def reduce_l2(call: Call) -> Step:
    """‖group‖₂ moves no further than the group: 1 in ℓ2 and ℓ1, √n in ℓ∞ over n reduced entries."""
    shape, count = reduced(call)
    return Step(shape, (per_norm(ONE, ONE, Bound(sqrt_up(float(count)))),), "ℓ2 norm", rounding=_power_sum(2, count))


@rule("ReduceLogSumExp", attributes=REDUCE, inputs=2)
def reduce_log_sum_exp(call: Call) -> Step:
    """Its gradient is a probability vector, whose ℓ1, ℓ2 and ℓ∞ norms are at most 1: 1 in every norm."""
    shape, count = reduced(call)
    at_zero = {norm: constant_norm(norm, Bound(float(count)), math.prod(shape)) for norm in Norm}
    return Step(shape, (diagonal(ONE),), "log-sum-exp", at_zero=at_zero, rounding=None)


@rule("GlobalLpPool", attributes=("p",))
def global_lp_pool(call: Call) -> Step:
    """‖map‖₂ per channel: 1 in ℓ2 and ℓ1, √n in ℓ∞. ‖map‖₁ moves like a sum: √n, n, 1."""
    shape = pooled_shape(call)
    count, order = math.prod(shape[1:]), _order(call)
    gains = sum_gains(count) if order == 1 else per_norm(ONE, ONE, Bound(sqrt_up(float(count))))
    sizes = (shape[0], *(1 for _ in shape[1:]))
    return Step(sizes, (gains,), f"ℓ{order} pooling", rounding=_power_sum(order, count))


def reduced(call: Call) -> tuple[tuple[int, ...], int]:
    """(shape after the reduction, entries reduced into one); the batch axis must not be among the axes."""
    flow = call.flow()
    axes = reduction_axes(call, len(flow.shape) + 1)
    keep = call.integer("keepdims", 1)
    shape = [1 if i + 1 in axes else n for i, n in enumerate(flow.shape) if keep or i + 1 not in axes]
    return tuple(shape), math.prod(n for i, n in enumerate(flow.shape) if i + 1 in axes)


def reduction_axes(call: Call, rank: int) -> set[int]:
    """The axes that a reduction takes together, counted from 0; the batch axis is refused."""
    given: Sequence[int] = call.integers("axes", ())
    constant = call.constant(1)
    if constant is not None:
        given = [int(axis) for axis in constant.array.reshape(-1)]
    if not given:
        if call.integer("noop_with_empty_axes", 0):
            raise call.refuse("LIP002", "no axes and noop_with_empty_axes")
        raise call.refuse("LIP005", "reduces every axis, the batch axis too")
    axes = {call.resolve_axis(axis, rank) for axis in given}
    if 0 in axes:
        raise call.refuse("LIP005", "reduces the batch axis")
    return axes
