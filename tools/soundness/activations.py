"""Probes: activations, sorting, splines. Largest slopes of smooth activations are computed with 40 digits in tests."""

from __future__ import annotations

import math
from typing import Any

from tools.soundness import modules
from tools.soundness.probe import Points, Probe, linear, refused, shown

X2 = "(float[N,2] x) => (float[N,K] y)"
SORT = {"lipdeploy": 1}


def pointwise(name: str, nodes: str, slope: float, why: str, at: float, step: float = 1.0, **options: Any) -> Probe:
    """A scalar activation, shown by the two points ``at`` and ``at + step``."""
    points: Points = ([[at, 0.0]], [[at + step, 0.0]])
    return shown(name, f"{X2} {nodes}", slope, why, points, **options)


#: (name, nodes, largest slope, where it is): maxima of φ' to more digits than float64 has.
GELU_SLOPE, GELU_AT = 1.1289043442154, math.sqrt(2.0)
GELU_TANH_SLOPE, GELU_TANH_AT = 1.1289939576654, 1.4145
SILU_SLOPE, SILU_AT = 1.0998393201394, 2.3993572805
MISH_SLOPE, MISH_AT = 1.0884996, 1.4906

PROBES: tuple[Probe, ...] = (
    pointwise("leaky slope above 1", "{ y = LeakyRelu<alpha = 3.0>(x) }", 3.0, "slope 3 for x < 0", -2.0,
              module=lambda: modules.leaky(3.0)),
    pointwise("negative leaky slope", "{ y = LeakyRelu<alpha = -2.0>(x) }", 2.0, "slope −2 for x < 0", -2.0,
              module=lambda: modules.leaky(-2.0)),
    pointwise("PRelu slope", "<float[2] a = {-2.0, 0.5}> { y = PRelu(x, a) }", 2.0, "slope −2 for x < 0", -2.0,
              module=modules.prelu),
    shown("Elu, alpha 2", f"{X2} {{ y = Elu<alpha = 2.0>(x) }}", 2.0, "slope 2eˣ just below 0",
          ([[-1e-4, 0]], [[0, 0]]), module=lambda: modules.elu(2.0)),
    shown("Elu, alpha -2", f"{X2} {{ y = Elu<alpha = -2.0>(x) }}", 2.0, "slope −2eˣ just below 0",
          ([[-1e-4, 0]], [[0, 0]])),
    shown("Selu", f"{X2} {{ y = Selu(x) }}", 1.0507009873554805 * 1.6732632423543772, "slope γαeˣ just below 0",
          ([[-1e-4, 0]], [[0, 0]]), module=modules.selu),
    shown("Gelu", f"{X2} {{ y = Gelu(x) }}", GELU_SLOPE, "Φ(x) + xφ(x) is largest at √2",
          ([[GELU_AT - 1e-2, 0]], [[GELU_AT + 1e-2, 0]]), module=modules.gelu),
    shown("Gelu, tanh form", f'{X2} {{ y = Gelu<approximate = "tanh">(x) }}', GELU_TANH_SLOPE,
          "a little steeper than the exact form",
          ([[GELU_TANH_AT - 1e-2, 0]], [[GELU_TANH_AT + 1e-2, 0]]), module=modules.gelu_tanh),
    shown("SiLU", f"{X2} {{ s = Sigmoid(x) y = Mul(x, s) }}", SILU_SLOPE, "x·sigmoid(x) is steepest at 2.3994",
          ([[SILU_AT - 1e-2, 0]], [[SILU_AT + 1e-2, 0]]), module=modules.silu),
    shown("SiLU of half its input", f"{X2} <float c = {{0.5}}> {{ h = Mul(x, c) s = Sigmoid(h) y = Mul(x, s) }}",
          SILU_SLOPE, "2·silu(x/2)", ([[2 * SILU_AT - 2e-2, 0]], [[2 * SILU_AT + 2e-2, 0]])),
    shown("Mish", f"{X2} {{ y = Mish(x) }}", MISH_SLOPE - 5e-6, "x·tanh(softplus(x)) is steepest at 1.4906",
          ([[MISH_AT - 1e-2, 0]], [[MISH_AT + 1e-2, 0]]), module=modules.mish),
    shown("HardSwish", f"{X2} {{ y = HardSwish(x) }}", 1.5, "x(x + 3)/6 has slope 3/2 at 3",
          ([[2.998, 0]], [[3.0, 0]]), module=modules.hard_swish),
    pointwise("HardSigmoid", "{ y = HardSigmoid<alpha = 0.5, beta = 0.5>(x) }", 0.5, "slope alpha", -0.5),
    shown("Softplus", f"{X2} {{ y = Softplus(x) }}", 1.0, "slope sigmoid(x), towards 1", ([[20, 0]], [[21, 0]]),
          module=modules.softplus),
    shown("Sigmoid", f"{X2} {{ y = Sigmoid(x) }}", 0.25, "slope ¼ at 0", ([[-1e-2, 0]], [[1e-2, 0]]),
          module=modules.sigmoid),
    shown("Tanh", f"{X2} {{ y = Tanh(x) }}", 1.0, "slope 1 at 0", ([[-1e-3, 0]], [[1e-3, 0]]), module=modules.tanh),
    shown("Erf", f"{X2} {{ y = Erf(x) }}", 2 / math.sqrt(math.pi), "slope 2/√π at 0", ([[-1e-3, 0]], [[1e-3, 0]])),
    shown("Softmax", f"{X2} {{ y = Softmax<axis = 1>(x) }}", 0.5, "diag(p) − ppᵀ at p = (½, ½)",
          ([[-1e-2, 1e-2]], [[1e-2, -1e-2]]), module=modules.softmax),
    pointwise("Clip", "<float a = {-1.0}, float b = {1.0}> { y = Clip(x, a, b) }", 1.0, "a projection", -0.5,
              module=modules.clip),
    pointwise("Softsign", "{ y = Softsign(x) }", 1.0, "slope 1 at 0", -5e-4, 1e-3),
    pointwise("Celu", "{ y = Celu<alpha = 0.5>(x) }", 1.0, "slopes in (0, 1]", 1.0),
    shown("x·tanh(x)", f"{X2} {{ t = Tanh(x) y = Mul(x, t) }}", 1.1996786, "its slope is largest at 1.1997",
          ([[1.19, 0]], [[1.21, 0]])),
    shown("GroupSort", f"{X2} {{ y = lipdeploy.GroupSort<group_size = 2>(x) }}", 1.0, "sorting",
          ([[1, 0]], [[2, 0]]), imports=SORT, module=modules.sort_pairs),
    refused("GroupSort with groups that do not fit",
            "(float[N,3] x) => (float[N,K] y) { y = lipdeploy.GroupSort<group_size = 2>(x) }",
            "2 does not divide 3: no such operator", imports=SORT),
    shown("GroupSort pairs between diagonals",
          f"{X2} <float[2,2] A = {{1, 0, 0, 0.01}}, float[2] b = {{10, -10}}, float[2,2] B = {{0.01, 0, 0, 1}}>"
          " { h = Gemm(x, A, b) s = lipdeploy.GroupSort<group_size = 2>(h) y = Gemm(s, B) }",
          1.0, "the large first entry is sorted last: 1·1, not 1·0.01", ([[1, 0]], [[2, 0]]), imports=SORT,
          module=modules.sorting_chain),
    shown("MaxMin, half split",
          "(float[N,4] x) => (float[N,K] y) { a, b = Split<axis = 1, num_outputs = 2>(x) u = Max(a, b)"
          " l = Min(a, b) y = Concat<axis = 1>(u, l) }",
          1.0, "sorted pairs", ([[1, 0, 0, 0]], [[2, 0, 0, 0]]), module=modules.max_min),
    shown("maximum twice",
          "(float[N,4] x) => (float[N,K] y) { a, b = Split<axis = 1, num_outputs = 2>(x) u = Max(a, b)"
          " l = Max(b, a) y = Concat<axis = 1>(u, l) }",
          math.sqrt(2), "the maximum is copied: MaxMin with one word changed", ([[1, 0, 0, 0]], [[2, 0, 0, 0]]),
          module=modules.max_max),
    shown("CReLU", f"{X2} {{ n = Neg(x) p = Relu(x) q = Relu(n) y = Concat<axis = 1>(p, q) }}", 1.0,
          "the parts move in turn", ([[1, 0]], [[2, 0]]), module=modules.crelu),
    shown("relu and its double", f"{X2} {{ p = Relu(x) q = Relu(x) y = Concat<axis = 1>(p, q) }}", math.sqrt(2),
          "CReLU without the minus sign", ([[1, 0]], [[2, 0]])),
    shown("linear spline", "(float[N,1] x) => (float[N,1] y) <float[1,3] c = {0.0, 0.5, 3.0}>"
          " { y = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 1.0>(x, c) }",
          2.5, "the steepest segment rises from 0.5 to 3", ([[1]], [[2]]), imports=SORT),
    shown("linear spline beyond its knots", "(float[N,1] x) => (float[N,1] y) <float[1,3] c = {4.0, 0.0, 1.0}>"
          " { y = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 0.5>(x, c) }",
          8.0, "the first segment continues to the left: 4/0.5", ([[-2]], [[-1]]), imports=SORT),
    refused("ThresholdedRelu", f"{X2} {{ y = ThresholdedRelu<alpha = 1.0>(x) }}", "jumps at 1"),
    refused("Shrink", f"{X2} {{ y = Shrink<lambd = 0.5, bias = 0.0>(x) }}", "jumps at ½"),
    refused("Sign", f"{X2} {{ y = Sign(x) }}", "jumps at 0"),
    refused("Round", f"{X2} {{ y = Round(x) }}", "jumps", module=modules.rounded),
    refused("step through Where",
            f"{X2} <float z = {{0}}, float a = {{1}}, float b = {{2}}> {{ c = Greater(x, z) y = Where(c, a, b) }}",
            "jumps from 2 to 1 at 0"),
    shown("TopK of all, sorted", "(float[N,3] x) => (float[N,3] y) <int64[1] k = {3}> { y, i = TopK<axis = 1>(x, k) }",
          1.0, "sorting", ([[3, 1, 2]], [[4, 1, 2]]), module=modules.full_sort),
    refused("indices of TopK",
            "(float[N,3] x) => (float[N,1] y) <int64[1] k = {1}> { v, i = TopK<axis = 1>(x, k) y = Cast<to = 1>(i) }",
            "the index of the largest entry jumps"),
    refused("one-hot of the largest", "(float[N,3] x) => (float[N,3] y) { y = Hardmax<axis = 1>(x) }", "jumps"),
    linear("minus x", f"{X2} {{ y = Neg(x) }}", 1.0, "an isometry"),
    shown("relu chain, deep",
          f"{X2} <float[2,2] W = {{1.5, 0, 0, 1}}> {{ a = MatMul(x, W) b = Relu(a) c = MatMul(b, W) d = Relu(c)"
          " e = MatMul(d, W) f = Relu(e) y = MatMul(f, W) }",
          1.5**4, "1.5 four times on positive inputs", ([[1, 0]], [[2, 0]]), module=modules.deep_relu),
    shown("twice relu inside a chain",
          f"{X2} <float[2,2] W = {{1, 0, 0, 1}}, float c = {{2}}> {{ a = MatMul(x, W) b = Relu(a) d = Mul(b, c)"
          " y = MatMul(d, W) }",
          2.0, "an activation of slope 2 between identities", ([[1, 0]], [[2, 0]]), module=modules.steep_chain),
)  # fmt: skip
