"""Probes: convolutions. Toeplitz matrices of small kernels have singular values in closed form."""

from __future__ import annotations

import math

from tools.soundness import modules
from tools.soundness.probe import Probe, linear

PI = math.pi
ONES2 = "float[1,1,2] K = {1, 1}"
ONES3 = "float[1,1,3] K = {1, 1, 1}"


def row(size: int) -> str:
    """One channel of ``size`` pixels in a row."""
    return f"(float[N,1,{size}] x) => (float[N,C,L] y)"


PROBES: tuple[Probe, ...] = (
    linear(
        "grouped convolution",
        "(float[N,2,4] x) => (float[N,C,L] y) <float[2,1,1] K = {0.5, 1}> { y = Conv<group = 2>(x, K) }",
        1.0,
        "blocks of norms ½ and 1: their largest",
        module=lambda: modules.grouped((0.5, 1.0)),
    ),
    linear(
        "grouped convolution above 1",
        "(float[N,2,4] x) => (float[N,C,L] y) <float[2,1,1] K = {3, 0.25}> { y = Conv<group = 2>(x, K) }",
        3.0,
        "blocks of norms 3 and ¼: their largest, not their product",
        module=lambda: modules.grouped((3.0, 0.25)),
    ),
    linear(
        "groups of two channels",
        "(float[N,4,3] x) => (float[N,C,L] y) <float[2,2,1] K = {3, 4, 1, 0}> { y = Conv<group = 2>(x, K) }",
        5.0,
        "blocks (3 4) and (1 0)",
    ),
    linear(
        "1x1 convolution",
        "(float[N,2,3] x) => (float[N,C,L] y) <float[1,2,1] K = {3, 4}> { y = Conv(x, K) }",
        5.0,
        "‖(3, 4)‖ at each pixel",
        module=modules.pointwise,
    ),
    linear(
        "valid convolution",
        f"{row(5)} <{ONES2}> {{ y = Conv(x, K) }}",
        2 * math.cos(PI / 10),
        "AAᵀ = tridiag(1, 2, 1) of size 4: 2cos(π/10)",
        module=lambda: modules.ones(2),
    ),
    linear(
        "zero padding on both sides",
        f"{row(4)} <{ONES2}> {{ y = Conv<pads = [1, 1]>(x, K) }}",
        2 * math.cos(PI / 10),
        "AᵀA = tridiag(1, 2, 1) of size 4: 2cos(π/10)",
        module=lambda: modules.ones(2, padding=1),
    ),
    linear(
        "zero padding on one side",
        f"{row(4)} <{ONES2}> {{ y = Conv<pads = [1, 0]>(x, K) }}",
        2 * math.cos(PI / 9),
        "bidiagonal ones of size 4: 2cos(π/9)",
    ),
    linear(
        "auto_pad SAME_UPPER",
        f'{row(4)} <{ONES2}> {{ y = Conv<auto_pad = "SAME_UPPER">(x, K) }}',
        2 * math.cos(PI / 9),
        "one pixel of padding, at the end",
    ),
    linear(
        "auto_pad SAME_LOWER",
        f'{row(4)} <{ONES2}> {{ y = Conv<auto_pad = "SAME_LOWER">(x, K) }}',
        2 * math.cos(PI / 9),
        "one pixel of padding, at the beginning",
    ),
    linear(
        "stride",
        f"{row(6)} <{ONES2}> {{ y = Conv<strides = [2]>(x, K) }}",
        math.sqrt(2),
        "disjoint windows of two ones each",
        module=lambda: modules.ones(2, stride=2),
    ),
    linear(
        "stride with overlap",
        f"{row(5)} <{ONES3}> {{ y = Conv<strides = [2]>(x, K) }}",
        2.0,
        "AAᵀ = [[3, 1], [1, 3]]",
        module=lambda: modules.ones(3, stride=2),
    ),
    linear(
        "stride that meets the same taps",
        f"{row(6)} <float[1,1,2] K = {{1, 0}}> {{ y = Conv<strides = [2]>(x, K) }}",
        1.0,
        "a selection of pixels",
    ),
    linear(
        "dilation",
        f"{row(6)} <{ONES2}> {{ y = Conv<dilations = [2]>(x, K) }}",
        math.sqrt(3),
        "even and odd pixels apart: 2cos(π/6) each",
        module=lambda: modules.ones(2, dilation=2),
    ),
    linear(
        "stride and dilation share a factor",
        f"{row(5)} <{ONES2}> {{ y = Conv<strides = [2], dilations = [2]>(x, K) }}",
        math.sqrt(3),
        "rows x0 + x2 and x2 + x4: AAᵀ = [[2, 1], [1, 2]]",
        module=lambda: modules.ones(2, stride=2, dilation=2),
    ),
    linear(
        "sign-changing kernel",
        f"{row(5)} <float[1,1,2] K = {{1, -1}}> {{ y = Conv(x, K) }}",
        2 * math.cos(PI / 10),
        "the same singular values as for (1, 1)",
        module=modules.difference,
    ),
    linear(
        "3x3 ones on 3x3",
        "(float[N,1,3,3] x) => (float[N,C,H,W] y) <float[1,1,3,3] K = {1, 1, 1, 1, 1, 1, 1, 1, 1}>"
        " { y = Conv<pads = [1, 1, 1, 1]>(x, K) }",
        (1 + math.sqrt(2)) ** 2,
        "T ⊗ T with T = tridiag(1, 1, 1) of size 3: (1 + 2cos(π/4))²",
        module=modules.ones_3x3,
    ),
    linear(
        "a long row",
        f"{row(64)} <{ONES3}> {{ y = Conv<pads = [1, 1]>(x, K) }}",
        1 + 2 * math.cos(PI / 65),
        "tridiag(1, 1, 1) of size 64",
        module=lambda: modules.ones(3, padding=1),
    ),
    linear(
        "a row too long to write out",
        f"{row(4000)} <{ONES3}> {{ y = Conv<pads = [1, 1]>(x, K) }}",
        1 + 2 * math.cos(PI / 4001),
        "tridiag(1, 1, 1) of size 4000",
    ),
    linear(
        "asymmetric channels and size",
        "(float[N,1,2,3] x) => (float[N,C,H,W] y) <float[1,1,1,3] K = {1, 1, 1}>"
        " { y = Conv<pads = [0, 1, 0, 1]>(x, K) }",
        1 + math.sqrt(2),
        "two rows, each tridiag(1, 1, 1) of size 3",
    ),
    linear(
        "three axes",
        "(float[N,1,2,2,2] x) => (float[N,C,D,H,W] y)"
        " <float[1,1,2,2,2] K = {1, 1, 1, 1, 1, 1, 1, 1}> { y = Conv(x, K) }",
        math.sqrt(8),
        "one sum of eight entries",
        module=modules.cube,
    ),
    linear(
        "circular padding",
        f'{row(4)} <{ONES3}, int64[6] p = {{0, 0, 1, 0, 0, 1}}> {{ w = Pad<mode = "wrap">(x, p) y = Conv(w, K) }}',
        3.0,
        "a circulant of three ones: 3 on the constant vector",
        module=modules.circular,
    ),
    linear(
        "circular padding on two axes",
        "(float[N,1,4,4] x) => (float[N,C,H,W] y) <float[1,1,3,3] K = {-1, 1, -1, 1, 1, 1, -1, 1, -1},"
        ' int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> { w = Pad<mode = "wrap">(x, p) y = Conv(w, K) }',
        7.0,
        "the symbol 1 + 2cos u + 2cos v − 4cos u·cos v is −7 at (π, π)",
        module=modules.circular_2d,
    ),
    linear(
        "circular padding of too much",
        f'{row(2)} <{ONES2}, int64[6] p = {{0, 0, 2, 0, 0, 2}}> {{ w = Pad<mode = "wrap">(x, p) y = Conv(w, K) }}',
        2 * math.sqrt(2.5),
        "five sums x0 + x1: √(5·2)",
    ),
    linear(
        "reflected padding",
        f'{row(3)} <float[1,1,1] K = {{1}}, int64[6] p = {{0, 0, 2, 0, 0, 2}}> {{ w = Pad<mode = "reflect">(x, p)'
        " y = Conv(w, K) }",
        math.sqrt(3),
        "the middle pixel occurs three times",
        module=modules.reflected,
    ),
    linear(
        "linear residual of a convolution",
        f"{row(4)} <{ONES3}> {{ c = Conv<pads = [1, 1]>(x, K) y = Add(x, c) }}",
        2 + 2 * math.cos(PI / 5),
        "tridiag(1, 2, 1) of size 4",
        module=modules.convolution_residual,
    ),
    linear(
        "transposed convolution",
        f"{row(4)} <{ONES2}> {{ y = ConvTranspose(x, K) }}",
        2 * math.cos(PI / 10),
        "the adjoint of the valid convolution on 5 pixels",
        module=lambda: modules.transposed(2),
    ),
    linear(
        "transposed convolution with stride and output padding",
        f"{row(2)} <{ONES3}> {{ y = ConvTranspose<strides = [2], output_padding = [1]>(x, K) }}",
        2.0,
        "AᵀA = [[3, 1], [1, 3]]",
        module=lambda: modules.transposed(3, stride=2, output_padding=1),
    ),
    linear(
        "transposed convolution in groups",
        "(float[N,2,3] x) => (float[N,C,L] y) <float[2,1,1] K = {2, 0.5}> { y = ConvTranspose<group = 2>(x, K) }",
        2.0,
        "blocks 2 and ½",
    ),
    linear(
        "convolution, linf",
        f"{row(5)} <float[1,1,2] K = {{1, -3}}> {{ y = Conv(x, K) }}",
        4.0,
        "row sum 1 + 3",
        norm="linf",
    ),
    linear(
        "strided convolution, l1",
        f"{row(5)} <float[1,1,3] K = {{1, 5, 1}}> {{ y = Conv<strides = [2]>(x, K) }}",
        5.0,
        "columns hold 1, 5, 1 + 1, 5, 1",
        norm="l1",
    ),
    linear(
        "transposed convolution, linf",
        f"{row(3)} <float[1,1,2] K = {{1, -3}}> {{ y = ConvTranspose(x, K) }}",
        4.0,
        "an inner pixel receives 1 and 3",
        norm="linf",
    ),
    linear(
        "two convolutions",
        f"{row(4)} <{ONES3}> {{ c = Conv<pads = [1, 1]>(x, K) y = Conv<pads = [1, 1]>(c, K) }}",
        (1 + 2 * math.cos(PI / 5)) ** 2,
        "the square of a symmetric matrix",
        module=modules.two_convolutions,
    ),
    linear(
        "convolution, mean, linear head",
        "(float[N,1,4] x) => (float[N,2] y) <float[2,1,1] K = {1, 1}, float[2,2] W = {1, 0, 0, 1}>"
        " { c = Conv(x, K) m = GlobalAveragePool(c) f = Flatten(m) y = Gemm(f, W) }",
        math.sqrt(2) / 2,
        "two copies of the mean of four entries: √2·½",
    ),
    linear(
        "convolution on an image of any size",
        "(float[N,1,H,W] x) => (float[N,C,P,Q] y) <float[1,1,1,3] K = {1, 1, 1}>"
        " { y = Conv<pads = [0, 1, 0, 1]>(x, K) }",
        3.0,
        "the supremum over all widths of 1 + 2cos(π/(n + 1))",
    ),
)
