"""Probes: pooling, padding, reductions."""

from __future__ import annotations

import math

from tools.soundness import modules
from tools.soundness.probe import Probe, linear, shown

ROOT2, ROOT3 = math.sqrt(2), math.sqrt(3)
AXIS = "<int64[1] a = {1}>"


def row(size: int) -> str:
    """One channel of ``size`` pixels in a row."""
    return f"(float[N,1,{size}] x) => (float[N,C,L] y)"


PROBES: tuple[Probe, ...] = (
    linear(
        "average of disjoint windows",
        "(float[N,1,4,4] x) => (float[N,1,2,2] y) { y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) }",
        0.5,
        "‖(¼, ¼, ¼, ¼)‖",
        module=modules.average_2x2,
    ),
    linear(
        "average of overlapping windows",
        f"{row(5)} {{ y = AveragePool<kernel_shape = [2]>(x) }}",
        math.cos(math.pi / 10),
        "half of the valid convolution with (1, 1)",
        module=lambda: modules.average(2, 1),
    ),
    linear(
        "average without the padding",
        f"{row(2)} {{ y = AveragePool<kernel_shape = [2], pads = [1, 0]>(x) }}",
        math.sqrt(0.75 + math.sqrt(5) / 4),
        "[[1, 0], [½, ½]]: a window at the edge divides by 1",
    ),
    linear(
        "average with the padding",
        f"{row(2)} {{ y = AveragePool<kernel_shape = [2], pads = [1, 0], count_include_pad = 1>(x) }}",
        math.cos(math.pi / 5),
        "half of bidiagonal ones of size 2",
    ),
    linear(
        "average, ceil_mode",
        f"{row(5)} {{ y = AveragePool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x) }}",
        1.0,
        "the last window holds one pixel",
        module=lambda: modules.average(2, 2, ceil_mode=True),
    ),
    linear(
        "average, ceil_mode that adds nothing",
        f"{row(4)} {{ y = AveragePool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x) }}",
        math.sqrt(0.5),
        "two disjoint windows",
    ),
    shown(
        "maximum of overlapping windows",
        f"{row(3)} {{ y = MaxPool<kernel_shape = [2]>(x) }}",
        ROOT2,
        "the middle pixel wins two windows",
        ([[[0, 1, 0]]], [[[0, 2, 0]]]),
        module=lambda: modules.maximum(2, 1),
    ),
    shown(
        "maximum of overlapping windows, l1",
        f"{row(3)} {{ y = MaxPool<kernel_shape = [2]>(x) }}",
        2.0,
        "the middle pixel wins two windows",
        ([[[0, 1, 0]]], [[[0, 2, 0]]]),
        norm="l1",
    ),
    shown(
        "maximum, 3 by stride 2",
        f"{row(5)} {{ y = MaxPool<kernel_shape = [3], strides = [2]>(x) }}",
        ROOT2,
        "pixel 2 wins both windows",
        ([[[0, 0, 1, 0, 0]]], [[[0, 0, 2, 0, 0]]]),
        module=lambda: modules.maximum(3, 2),
    ),
    shown(
        "maximum, stride and dilation share a factor",
        f"{row(5)} {{ y = MaxPool<kernel_shape = [2], strides = [2], dilations = [2]>(x) }}",
        ROOT2,
        "pixel 2 wins both windows {0, 2} and {2, 4}",
        ([[[0, 0, 1, 0, 0]]], [[[0, 0, 2, 0, 0]]]),
    ),
    shown(
        "maximum, ceil_mode",
        f"{row(3)} {{ y = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x) }}",
        1.0,
        "disjoint windows",
        ([[[0, 1, 1]]], [[[0, 2, 1]]]),
        module=lambda: modules.maximum(2, 2, ceil_mode=True),
    ),
    shown(
        "3x3 maximum everywhere",
        "(float[N,1,3,3] x) => (float[N,1,3,3] y) { y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x) }",
        3.0,
        "the centre wins all nine windows",
        ([[[[0, 0, 0], [0, 1, 0], [0, 0, 0]]]], [[[[0, 0, 0], [0, 2, 0], [0, 0, 0]]]]),
        module=modules.maximum_3x3,
    ),
    shown(
        "l2 pooling of disjoint windows",
        f"{row(4)} {{ y = LpPool<kernel_shape = [2], strides = [2], p = 2>(x) }}",
        1.0,
        "‖·‖₂ is 1-Lipschitz",
        ([[[1, 0, 0, 0]]], [[[2, 0, 0, 0]]]),
        module=lambda: modules.l2_pool(2, 2),
    ),
    shown(
        "l2 pooling of overlapping windows",
        f"{row(3)} {{ y = LpPool<kernel_shape = [2], p = 2>(x) }}",
        ROOT2,
        "the middle pixel is in two windows",
        ([[[0, 1, 0]]], [[[0, 2, 0]]]),
    ),
    shown(
        "l2 pooling, linf",
        f"{row(2)} {{ y = LpPool<kernel_shape = [2], p = 2>(x) }}",
        ROOT2,
        "(1, 1) moves by √2 when each entry moves by 1",
        ([[[1, 1]]], [[[2, 2]]]),
        norm="linf",
    ),
    shown(
        "l1 pooling",
        f"{row(2)} {{ y = LpPool<kernel_shape = [2], p = 1>(x) }}",
        ROOT2,
        "|x0| + |x1|: twice what p = 2 would say, squared",
        ([[[1, 1]]], [[[2, 2]]]),
    ),
    linear("global average", f"{row(4)} {{ y = GlobalAveragePool(x) }}", 0.5, "1/√4", module=modules.global_average),
    shown("global l2", f"{row(2)} {{ y = GlobalLpPool<p = 2>(x) }}", 1.0, "‖·‖₂", ([[[3, 4]]], [[[6, 8]]])),
    linear(
        "zero padding",
        f"{row(2)} <int64[6] p = {{0, 0, 2, 0, 0, 2}}> {{ y = Pad(x, p) }}",
        1.0,
        "zeros do not move",
    ),
    linear(
        "edge padding",
        f'{row(2)} <int64[6] p = {{0, 0, 2, 0, 0, 0}}> {{ y = Pad<mode = "edge">(x, p) }}',
        ROOT3,
        "the first pixel occurs three times",
        module=modules.edge,
    ),
    linear(
        "wrapped padding",
        f'{row(2)} <int64[6] p = {{0, 0, 2, 0, 0, 2}}> {{ y = Pad<mode = "wrap">(x, p) }}',
        ROOT3,
        "every pixel occurs three times",
    ),
    linear(
        "reflected padding on two axes",
        '(float[N,2,2] x) => (float[N,C,L] y) <int64[6] p = {0, 1, 1, 0, 1, 1}> { y = Pad<mode = "reflect">(x, p) }',
        2.0,
        "every entry occurs 2·2 times",
    ),
    linear("sum", f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceSum(x, a) }}", 2.0, "‖(1, 1, 1, 1)‖"),
    linear("mean", f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceMean(x, a) }}", 0.5, "‖(¼, ¼, ¼, ¼)‖"),
    shown(
        "l1 norm",
        f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceL1(x, a) }}",
        2.0,
        "on positive vectors the sum",
        ([[1, 1, 1, 1]], [[2, 2, 2, 2]]),
    ),
    shown(
        "l2 norm, linf",
        f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceL2(x, a) }}",
        2.0,
        "‖(1, 1, 1, 1)‖ = 2",
        ([[1, 1, 1, 1]], [[2, 2, 2, 2]]),
        norm="linf",
    ),
    shown(
        "maximum of entries",
        f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceMax(x, a) }}",
        1.0,
        "|max a − max b| ≤ max |a − b|",
        ([[1, 0, 0, 0]], [[2, 0, 0, 0]]),
    ),
    shown(
        "log-sum-exp",
        f"(float[N,4] x) => (float[N,1] y) {AXIS} {{ y = ReduceLogSumExp(x, a) }}",
        1.0,
        "its gradient is a probability vector, near a corner of length 1",
        ([[64, 0, 0, 0]], [[65, 0, 0, 0]]),
    ),
    linear(
        "nearest upsampling",
        "(float[N,1,2] x) => (float[N,1,4] y) <float[3] s = {1, 1, 2}>"
        ' { y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        "(x, , s) }",
        ROOT2,
        "every pixel is copied once",
        module=modules.upsampled,
    ),
    linear(
        "space to depth",
        "(float[N,1,2,2] x) => (float[N,4,1,1] y) { y = SpaceToDepth<blocksize = 2>(x) }",
        1.0,
        "a permutation",
        module=modules.unshuffled,
    ),
)
