"""Probes: branches, residuals, shared tensors and weights, copies."""

from __future__ import annotations

import math

from tools.soundness import modules
from tools.soundness.probe import Probe, linear, shown

UP = ([[1, 1]], [[2, 2]])
ROOT2, ROOT3, ROOT6 = math.sqrt(2), math.sqrt(3), math.sqrt(6)
X2 = "(float[N,2] x) => (float[N,K] y)"

PROBES: tuple[Probe, ...] = (
    shown(
        "x + relu(x)",
        f"{X2} {{ r = Relu(x) y = Add(x, r) }}",
        2.0,
        "slope 2 for x > 0",
        UP,
        module=modules.residual_relu,
    ),
    shown(
        "2 relu(x)",
        f"{X2} <float c = {{2}}> {{ r = Relu(x) y = Mul(r, c) }}",
        2.0,
        "slope 2 for x > 0",
        UP,
        module=modules.twice_relu,
    ),
    shown(
        "relu(x) - (-relu(x))",
        f"{X2} {{ r = Relu(x) n = Neg(r) y = Sub(r, n) }}",
        2.0,
        "it is 2 relu(x)",
        UP,
        module=modules.difference_of_relus,
    ),
    shown("sum of one tensor three times", f"{X2} {{ r = Relu(x) y = Sum(r, r, r) }}", 3.0, "it is 3 relu(x)", UP),
    linear("doubled twice", f"{X2} {{ a = Add(x, x) y = Add(a, a) }}", 4.0, "it is 4x", module=modules.doubled_twice),
    linear("concat of one input", f"{X2} {{ y = Concat<axis = 1>(x, x) }}", ROOT2, "√(1 + 1)", module=modules.twin),
    linear("concat of one input, l1", f"{X2} {{ y = Concat<axis = 1>(x, x) }}", 2.0, "1 + 1", norm="l1"),
    linear("concat of one input, linf", f"{X2} {{ y = Concat<axis = 1>(x, x) }}", 1.0, "max(1, 1)", norm="linf"),
    shown(
        "concat of branches",
        f"{X2} {{ r = Relu(x) y = Concat<axis = 1>(x, r) }}",
        ROOT2,
        "for x > 0 it is (x, x)",
        UP,
        module=modules.concat_branches,
    ),
    linear(
        "split and concat as a permutation",
        "(float[N,4] x) => (float[N,K] y) { a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(b, a) }",
        1.0,
        "a permutation",
        module=modules.swapped_halves,
    ),
    linear(
        "one part used twice",
        "(float[N,4] x) => (float[N,K] y) { a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(a, a, b) }",
        ROOT2,
        "the first half is copied: √2; the second: 1",
    ),
    shown(
        "shared weight, used twice",
        f"{X2} <float[2,2] W = {{2, 0, 0, 1}}> {{ h = MatMul(x, W) r = Relu(h) y = MatMul(r, W) }}",
        4.0,
        "diag(2, 1) twice on positive inputs: 2·2",
        ([[1, 1]], [[2, 1]]),
        module=modules.shared_weight,
    ),
    linear(
        "weight and its transpose",
        f"{X2} <float[2,2] W = {{3, 0, 4, 0}}> {{ h = Gemm(x, W) y = Gemm<transB = 1>(h, W) }}",
        25.0,
        "WWᵀ has the eigenvalue 3² + 4²",
    ),
    linear(
        "two inputs",
        "(float[N,2] x, float[N,2] z) => (float[N,K] y) { y = Add(x, z) }",
        ROOT2,
        "the inputs count as one vector: [I I] has norm √2",
    ),
    linear(
        "x + Wx",
        f"{X2} <float[2,2] W = {{-0.5, 0, 0, 1}}> {{ h = MatMul(x, W) y = Add(x, h) }}",
        2.0,
        "I + diag(−½, 1) = diag(½, 2)",
        module=modules.linear_residual,
    ),
    linear(
        "x - Wx",
        f"{X2} <float[2,2] W = {{0.5, 0, 0, -1}}> {{ h = MatMul(x, W) y = Sub(x, h) }}",
        2.0,
        "I − diag(½, −1) = diag(½, 2)",
    ),
    linear(
        "Wx - x",
        f"{X2} <float[2,2] W = {{0.5, 0, 0, -1}}> {{ h = MatMul(x, W) y = Sub(h, x) }}",
        2.0,
        "diag(½, −1) − I = diag(−½, −2)",
    ),
    shown(
        "x - 2 relu(x)",
        f"{X2} <float[2,2] F = {{1, 0, 0, 1}}, float[2,2] G = {{-2, 0, 0, -2}}>"
        " { h = MatMul(x, F) r = Relu(h) b = MatMul(r, G) y = Add(x, b) }",
        1.0,
        "it is −|x|",
        UP,
        module=lambda: modules.relu_residual(-2.0),
    ),
    shown(
        "x - 3 relu(x)",
        f"{X2} <float[2,2] F = {{1, 0, 0, 1}}, float[2,2] G = {{-3, 0, 0, -3}}>"
        " { h = MatMul(x, F) r = Relu(h) b = MatMul(r, G) y = Add(x, b) }",
        2.0,
        "slope −2 for x > 0: just beyond what the SLL proof covers",
        UP,
        module=lambda: modules.relu_residual(-3.0),
    ),
    shown(
        "x + 2 relu(x)",
        f"{X2} <float[2,2] F = {{1, 0, 0, 1}}, float[2,2] G = {{2, 0, 0, 2}}>"
        " { h = MatMul(x, F) r = Relu(h) b = MatMul(r, G) y = Add(x, b) }",
        3.0,
        "the sign of the SLL layer turned round",
        UP,
        module=lambda: modules.relu_residual(2.0),
    ),
    shown(
        "2 relu(x) - x",
        f"{X2} <float[2,2] F = {{1, 0, 0, 1}}, float[2,2] G = {{2, 0, 0, 2}}>"
        " { h = MatMul(x, F) r = Relu(h) b = MatMul(r, G) y = Sub(b, x) }",
        1.0,
        "it is |x|",
        UP,
    ),
    shown(
        "x - 2 sort(x)",
        f"{X2} <float[2,2] F = {{1, 0, 0, 1}}, float[2,2] G = {{-2, 0, 0, -2}}>"
        " { h = MatMul(x, F) r = lipdeploy.GroupSort<group_size = 2>(h) b = MatMul(r, G) y = Add(x, b) }",
        3.0,
        "where sorting swaps, I − 2P has the eigenvalue 1 + 2 on (1, −1); SLL's proof needs slopes in [0, 1]",
        ([[3, 1]], [[4, 0]]),
        imports={"lipdeploy": 1},
    ),
    shown(
        "x - 2 |x|",
        f"{X2} <float c = {{2}}> {{ a = Abs(x) b = Mul(a, c) y = Sub(x, b) }}",
        3.0,
        "slope 1 + 2 for x < 0",
        ([[-1, -1]], [[-2, -2]]),
    ),
    shown(
        "x + relu(x) between linear layers",
        f"{X2} <float[2,2] W = {{1, 0, 0, 1}}> {{ a = MatMul(x, W) r = Relu(a) s = Add(a, r) y = MatMul(s, W) }}",
        2.0,
        "slope 2 for x > 0",
        UP,
        module=modules.residual_between_layers,
    ),
    linear(
        "a constant that copies the data",
        "(float[N,2,1] x) => (float[N,2,3] y) <float[3] c = {1, 2, 3}> { y = Add(x, c) }",
        ROOT3,
        "each entry is copied three times",
        module=modules.broadcast_add,
    ),
    linear(
        "a mask that copies the data",
        "(float[N,1] x) => (float[N,3] y) <float[3] c = {1, 2, 2}> { y = Mul(x, c) }",
        3.0,
        "√(1 + 4 + 4)",
        module=modules.broadcast_mul,
    ),
    linear(
        "all differences",
        "(float[N,3] x) => (float[N,3,3] y) <int64[3] a = {0, 3, 1}, int64[3] b = {0, 1, 3}>"
        " { u = Reshape(x, a) v = Reshape(x, b) y = Sub(u, v) }",
        ROOT6,
        "KᵀK = 6I − 2·11ᵀ for y_ij = x_i − x_j",
    ),
    linear("expand", "(float[N,2,1] x) => (float[N,2,3] y) <int64[3] s = {1, 2, 3}> { y = Expand(x, s) }", ROOT3, "√3"),
    linear("tile", "(float[N,2] x) => (float[N,6] y) <int64[2] r = {1, 3}> { y = Tile(x, r) }", ROOT3, "three copies"),
    linear(
        "gather with repeats",
        "(float[N,2] x) => (float[N,4] y) <int64[4] i = {0, 0, 0, 1}> { y = Gather<axis = 1>(x, i) }",
        ROOT3,
        "entry 0 is taken three times",
        module=modules.repeated_index,
    ),
    linear(
        "gather with a repeat in disguise",
        "(float[N,2] x) => (float[N,3] y) <int64[3] i = {0, -2, 1}> { y = Gather<axis = 1>(x, i) }",
        ROOT2,
        "index −2 is entry 0 again",
    ),
    linear(
        "x - mean(x)",
        "(float[N,3] x) => (float[N,3] y) <int64[1] a = {1}> { m = ReduceMean(x, a) y = Sub(x, m) }",
        1.0,
        "an orthogonal projection",
        module=modules.centering,
    ),
    linear(
        "x - mean(x), linf",
        "(float[N,3] x) => (float[N,3] y) <int64[1] a = {1}> { m = ReduceMean(x, a) y = Sub(x, m) }",
        4 / 3,
        "a row holds 2/3, −1/3, −1/3",
        norm="linf",
    ),
    linear(
        "x + mean(x)",
        "(float[N,3] x) => (float[N,3] y) <int64[1] a = {1}> { m = ReduceMean(x, a) y = Add(x, m) }",
        2.0,
        "on (1, 1, 1) it is 2x: the sign of centering turned round",
    ),
    linear(
        "mean(x) - x twice",
        "(float[N,3] x) => (float[N,3] y) <int64[1] a = {1}, float c = {2}>"
        " { s = Mul(x, c) m = ReduceMean(x, a) y = Sub(s, m) }",
        2.0,
        "2x minus the mean of x: 2 on vectors of mean 0",
    ),
)
