"""Every line of the project's list of sharp edges, in its order: where an honest implementation would be wrong.

``ELSEWHERE`` names the tests of a line that live with their part; the first test here fails when one of them is gone.

Graph
 1  a body under the name of one of our operators, or of a standard one        here, ELSEWHERE
 2  broadcast data is replicated                                               here, ELSEWHERE
 3  stride and dilation share factors; wrap padding is circular only sometimes here, ELSEWHERE
 4  ReduceL2 and ℓ2 pooling are 1-Lipschitz in ℓ2 only                         here
 5  int64 → float32 is not exact                                               here, ELSEWHERE
 6  margins follow the output norm of the body                                 here, ELSEWHERE
 7  SLL after folding into float32; only slopes in [0, 1]; CReLU               here, ELSEWHERE
 8  which multipliers are sound; slope intervals, not only their maxima        here, ELSEWHERE
 9  Householder in branch form jumps                                           here, ELSEWHERE
Floating point
10  overflow inside the ball                                                   ELSEWHERE
11  one norm for error, size and radius                                        here
12  the dtype of the input                                                     ELSEWHERE
13  adaptive mode                                                              ELSEWHERE
14  certified = radius > 0 and ≥ ε; the radius is stepped down                 here, ELSEWHERE
15  labels come from the certified program                                     ELSEWHERE
16  one logit; constants that are 0                                            here, ELSEWHERE
17  weight-only int8                                                           here
18  splines near their knots                                                   ELSEWHERE
19  ±0 and NaN                                                                 ELSEWHERE
Files
20  file digests for integrity, the semantic digest for comparisons            here, ELSEWHERE
21  --normalize                                                                ELSEWHERE
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.verify.chain import GELU_INTERVALS, INTERVALS, SILU_INTERVAL
from lipdeploy.verify.radius import certified_rows
from lipdeploy.verify.verdict import ErrorBound
from tests.verify.models import best_ratio, bound, codes, double_runner, judge, model, operator_norm, single

TESTS = Path(__file__).resolve().parent.parent
ELSEWHERE: dict[int, tuple[str, ...]] = {
    1: (
        "attacks/test_lying_body.py::test_every_byte_of_the_body_counts",
        "attacks/test_function_over_an_inner_kernel.py::test_a_function_elsewhere_is_judged_by_its_body",
        "verify/test_inlined_bodies.py::test_one_change_in_a_spline_body_and_it_is_refused",
    ),
    2: ("attacks/test_replicating_broadcast.py::test_copies_are_counted",),
    3: (
        "attacks/test_stride_and_dilation.py::test_the_taps_meet",
        "verify/test_motifs.py::test_more_wrapping_than_the_kernel_reaches_is_not_a_circulant",
        "verify/test_sorting_forms.py::test_circular_padding_made_of_slices",
    ),
    5: ("attacks/test_integer_cast.py::test_wide_integers_are_no_input",),
    6: ("verify/test_pairwise.py::test_rows_of_the_last_layer",),
    7: (
        "verify/test_motifs.py::test_slopes_below_zero_do_not_count_as_sll",
        "verify/test_layer_motifs.py::test_what_is_nearly_sll_is_never_judged_below_the_truth",
    ),
    8: (
        "verify/test_lmi.py::test_what_is_not_a_multiplier_proves_nothing",
        "verify/test_chain.py::test_intervals_contain_all_slopes_and_are_close",
        "attacks/test_lying_multipliers.py::test_the_false_bound_is_below_the_truth",
    ),
    9: ("verify/test_blocks.py::test_the_branch_form_of_householder_jumps_and_is_refused",),
    10: ("attacks/test_overflow_in_the_ball.py::test_the_radius_ends_where_the_program_overflows",),
    12: ("runtime/test_inputs.py::test_values_that_float32_would_round_are_refused",),
    13: (
        "runtime/test_adaptive.py::test_float32_answers_what_it_certifies_and_float64_the_rest",
        "runtime/test_adaptive.py::test_no_point_of_a_ball_changes_the_answer_of_either_program",
    ),
    14: ("attacks/test_tie_in_logits.py::test_a_tie_has_no_radius",),
    15: ("attacks/test_tie_in_logits.py::test_scores_that_tie_only_in_float32",),
    16: ("verify/test_radius.py::test_one_logit", "verify/test_pairwise.py::test_other_outputs_have_no_pairs"),
    18: ("verify/test_numeric_error.py::test_splines_near_their_knots",),
    19: ("ops/test_group_sort.py::test_nan_takes_its_whole_group_and_zeros_keep_their_order",),
    20: ("verify/test_certificate.py::test_integrity_wins_over_the_limit",),
    21: (
        "export/test_normalize.py::test_the_proven_bound_meets_the_target",
        "export/test_normalize.py::test_only_the_last_layer_changes",
    ),
}


@pytest.mark.parametrize("line", sorted(ELSEWHERE))
def test_the_tests_named_here_exist(line: int) -> None:
    for place in ELSEWHERE[line]:
        file, name = place.split("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), place


def test_every_line_has_a_test() -> None:
    listed = {int(row[:2]) for row in (__doc__ or "").splitlines() if row[:2].strip().isdigit()}
    here = {int(name.split("_")[2]) for name in globals() if name.startswith("test_line_")}
    assert listed == set(range(1, 22)) == here | set(ELSEWHERE)


def test_line_1_a_body_that_does_something_else() -> None:
    """Mul(x, 100) under the name GroupSort; the same under the name of a standard operator; no import at all."""
    text = """<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>
        g (float[N,4] x) => (float[N,4] y) { y = lipdeploy.GroupSort(x) }
        <domain: "lipdeploy", opset_import: ["": 20]> GroupSort (X) => (Y)
        { c = Constant<value = float {100.0}>() Y = Mul(X, c) }"""
    assert [r.code for r in judge(onnx.parser.parse_model(text)).refusals] == ["LIP007"]
    shadowing = text.replace("lipdeploy.GroupSort(x)", "Relu(x)").replace('domain: "lipdeploy"', 'domain: "ai.onnx"')
    assert [
        r.code for r in judge(onnx.parser.parse_model(shadowing.replace("GroupSort (X)", "Relu (X)"))).refusals
    ] == ["LIP008"]
    plain = model("g (float[N,4] x) => (float[N,4] y) { y = lipdeploy.GroupSort(x) }", imports={"lipdeploy": 1})
    del plain.opset_import[1:]
    assert [r.code for r in judge(plain).refusals] == ["LIP020"]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_line_2_broadcast_data(operator: str) -> None:
    """(N, 1) with a constant (1, 4) of ones: √4."""
    proto = single(operator, (1,), {"c": np.ones((1, 4), np.float32)})
    assert bound(proto) == 2.0 and bound(proto, "linf") == 1.0 and bound(proto, "l1") == 4.0


def test_line_3_taps_of_a_strided_dilated_pool_meet() -> None:
    """k = s = d = 2: gcd(s, d) = 2, so an entry lies in two windows and the constant is √2."""
    options = {"kernel_shape": [2], "strides": [2], "dilations": [2]}
    pool = single("MaxPool", (1, 8), {}, **options)
    assert bound(pool) == math.sqrt(2)
    assert best_ratio(double_runner(pool), (1, 8), samples=128, rounds=8) > 1.2


def test_line_4_l2_norms_in_other_norms() -> None:
    axes = np.array([1])
    assert [bound(single("ReduceL2", (9,), {"axes": axes}), norm) for norm in ("l2", "l1", "linf")] == [1.0, 1.0, 3.0]
    pool = single("LpPool", (1, 8), {}, p=2, kernel_shape=[4], strides=[4])
    assert [bound(pool, norm) for norm in ("l2", "l1", "linf")] == [1.0, 1.0, 2.0]
    text = """g (float[N,1,8] x) => (float y) { q = Mul(x, x) p = AveragePool<kernel_shape = [4], strides = [4]>(q)
        f = Constant<value = float {4.0}>() m = Mul(p, f) y = Sqrt(m) }"""
    assert [round(bound(text, norm), 9) for norm in ("l2", "l1", "linf")] == [1.0, 1.0, 2.0]


def test_line_5_wide_integers() -> None:
    assert codes(single("Cast", (2,), {}, kind=TensorProto.INT64, to=TensorProto.FLOAT)) == ["LIP021"]
    assert bound(single("Cast", (2,), {}, kind=TensorProto.UINT8, to=TensorProto.FLOAT)) == 1.0


def test_line_6_a_pair_of_opposite_scores() -> None:
    """f(x) = (x, −x): with ℓ∞ outputs two scores move apart twice as fast as either, not √2 times."""
    pairs = judge("g (float[N,1] x) => (float[N,2] y) { n = Neg(x) y = Concat<axis = 1>(x, n) }", "l2-linf").pairwise
    assert pairs is not None and pairs[0, 1] >= 2.0


def test_line_7_folding_leaves_a_little_more_than_one() -> None:
    """G is not −2FᵀT⁻¹ after rounding: the bound says how far it is, and is not 1 by name."""
    rng = np.random.default_rng(0)
    inner = rng.standard_normal((9, 6)).astype(np.float32)
    scales = np.abs(inner.astype(np.float64) @ inner.T.astype(np.float64)).sum(axis=1)
    outer = (-2.0 * inner.T / scales).astype(np.float32)
    text = """g (float[N,6] x) => (float[N,6] y) {
        h = Gemm<transB = 1>(x, F) s = ACT(h) r = Gemm<transB = 1>(s, G) y = Add(x, r) }"""

    def layer(activation: str) -> float:
        proto = model(text.replace("ACT", activation))
        proto.graph.initializer.extend([numpy_helper.from_array(inner, "F"), numpy_helper.from_array(outer, "G")])
        return bound(proto)

    assert 1.0 < layer("Relu") < 1.0 + 1e-5
    assert layer("Abs") > 1.5
    crelu = "g (float[N,3] x) => (float y) { a = Relu(x) n = Neg(x) b = Relu(n) y = Concat<axis = 1>(a, b) }"
    assert [bound(crelu, norm) for norm in ("l1", "l2", "linf")] == [1.0, 1.0, 1.0]


def test_line_8_intervals_have_two_ends() -> None:
    assert GELU_INTERVALS["none"][0] < -0.1289 and GELU_INTERVALS["tanh"][0] < -0.1289 and SILU_INTERVAL[0] < -0.0998
    assert INTERVALS["Mish"] == (-0.112527, 1.088499) and INTERVALS["Abs"] == (-1.0, 1.0)
    assert INTERVALS["Sigmoid"] == (0.0, 0.25) and INTERVALS["Tanh"] == INTERVALS["Softplus"] == (0.0, 1.0)
    # x − 8·gelu(x) bends both ways: an interval that starts at 0 would give 1.
    text = (
        "g (float[N,2] x) => (float y) { w = Constant<value = float {8.0}>() t = Gelu(x) u = Mul(t, w) y = Sub(x, u) }"
    )
    assert bound(text) >= best_ratio(double_runner(model(text)), (2,), samples=128, rounds=8) > 7.0


def test_line_9_a_choice_by_the_sign_of_data_jumps() -> None:
    text = """g (float[N,2] x) => (float y) { z = Constant<value = float {0.0}>() o = Constant<value = float {0.015}>()
        far = Greater(x, z) s = Add(x, o) y = Where(far, s, x) }"""
    assert codes(text)[0] in ("LIP001", "LIP010")


def test_line_11_errors_are_in_the_norm_of_the_input() -> None:
    """‖x‖₂ ≤ √n·‖x‖∞: the ℓ∞ constant of the same program cannot be the ℓ2 one."""
    weight = np.full((784, 2), 1 / 28, np.float32)
    errors = {
        norm: judge(single("MatMul", (784,), {"W": weight}), norm).numeric_error["f32"] for norm in ("l2", "linf")
    }
    assert errors["l2"] is not None and errors["linf"] is not None
    assert errors["linf"].c1 > 20 * errors["l2"].c1


def test_line_14_a_tie_and_an_exact_quotient() -> None:
    error, pairs = ErrorBound(0.0, 0.0, math.inf), np.array([[0.0, 2.0], [2.0, 0.0]])
    rows = certified_rows(np.array([[1.0, 1.0], [3.0, 1.0]]), np.zeros(2), pairs, error, "network")
    assert rows.radius[0] == 0.0
    assert 0.999999 < rows.radius[1] < 1.0


def test_line_16_constants_that_are_zero() -> None:
    error = ErrorBound(0.0, 0.0, math.inf)
    rows = certified_rows(np.array([[3.0, 1.0]]), np.zeros(1), np.zeros((2, 2)), error, "network")
    assert rows.radius[0] == math.inf
    one = certified_rows(np.array([[0.0], [-2.0]]), np.zeros(2), np.array([[1.0]]), error, "network")
    assert one.radius[0] == 0.0 and one.label[1] == 0 and 1.999999 < one.radius[1] < 2.0


def test_line_17_quantised_weights_are_not_guessed() -> None:
    """(q − zp)·scale rounds in float32: a graph that dequantises inside is refused, or judged by the real weight."""
    q = np.array([[1, -2], [3, 4]], np.int8)
    text = "g (float[N,2] x) => (float y) { W = DequantizeLinear(q, s) y = MatMul(x, W) }"
    proto = model(text)
    proto.graph.initializer.extend([numpy_helper.from_array(q, "q"), numpy_helper.from_array(np.float32(0.1), "s")])
    verdict = judge(proto)
    if verdict.status == "verified":
        real = q.astype(np.float64) * float(np.float32(0.1))
        assert verdict.lipschitz_bound is not None
        assert verdict.lipschitz_bound >= operator_norm(real.T, "l2") * (1 - 1e-15)
    else:
        assert [refusal.code for refusal in verdict.refusals] == ["LIP017"]


def test_line_20_the_semantic_digest() -> None:
    """It sees −0, default attributes written out, and names of inputs; it does not see doc strings."""
    base = single("MatMul", (2,), {"W": np.array([[1.0, 0.0]], np.float32).T})
    digests = {judge(base).semantic_sha256}
    other = single("MatMul", (2,), {"W": np.array([[1.0, -0.0]], np.float32).T})
    assert judge(other).semantic_sha256 not in digests
    commented = single("MatMul", (2,), {"W": np.array([[1.0, 0.0]], np.float32).T})
    commented.doc_string, commented.graph.doc_string = "new words", "and more"
    assert judge(commented).semantic_sha256 in digests
    plain, written = single("LeakyRelu", (2,)), single("LeakyRelu", (2,))
    written.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.01))
    assert judge(plain).semantic_sha256 == judge(written).semantic_sha256
