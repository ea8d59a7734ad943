"""No sampled pair beats a bound; looser parts never make a tighter whole; no program errs more than it states."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES
from tests.properties.graphs import grow, models, rooted
from tests.verify.models import best_ratio, bound, double_runner, judge, lengths, session

QUICK = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LINEAR = {"MatMul", "Conv", "ConvTranspose", "Mul"}
NORMS = ("l2", "linf", "l1", "l2-linf", "l1-linf")


def input_shape(proto: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:])


@QUICK
@seed(1)
@given(models)
def test_every_drawn_graph_is_judged(proto: onnx.ModelProto) -> None:
    """The strategy draws only operators with rules, so a refusal here would hide a gap in the other properties."""
    verdict = judge(proto)
    assert verdict.status == "verified", verdict.refusals


def test_every_operator_with_a_rule_is_drawn() -> None:
    """A rule that is added comes with a step in ``graphs.py``; else none of these properties would look at it."""
    drawn = {(node.domain, node.op_type) for seed in range(1500) for node in grow(seed, 6).graph.node}
    assert RULES.keys() <= drawn, sorted(RULES.keys() - drawn)


def test_no_operator_with_a_rule_is_listed_as_having_no_constant() -> None:
    assert not {operator for domain, operator in RULES if not domain} & NOT_LIPSCHITZ


@QUICK
@seed(2)
@given(models | rooted, st.sampled_from(NORMS))
def test_no_sampled_ratio_beats_the_bound(proto: onnx.ModelProto, norm: str) -> None:
    proven = bound(proto, norm)
    seen = best_ratio(double_runner(proto), input_shape(proto), norm, samples=48, rounds=3)
    assert seen <= proven * (1 + 1e-7) + 1e-9


@QUICK
@seed(3)
@given(models | rooted, st.sampled_from(NORMS))
def test_no_sampled_difference_of_scores_beats_its_pair_bound(proto: onnx.ModelProto, norm: str) -> None:
    verdict = judge(proto, norm)
    assume(verdict.pairwise is not None)
    assert verdict.pairwise is not None
    evaluate = double_runner(proto)
    pairs = verdict.pairwise
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, *input_shape(proto)))
    z = x + rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-4, 1, (64, *[1] * (x.ndim - 1)))
    moved = evaluate(z) - evaluate(x)
    ratio = np.abs(moved[:, :, None] - moved[:, None, :]) / lengths(
        z - x, {"linf": "linf", "l1": "l1", "l1-linf": "l1"}.get(norm, "l2")
    ).reshape(-1, 1, 1)
    assert np.all(ratio.max(axis=0) <= pairs * (1 + 1e-7) + 1e-9)
    assert np.all(np.diag(pairs) == 0.0)
    assert np.array_equal(pairs, pairs.T)


@QUICK
@seed(12)
@given(models | rooted)
def test_an_output_that_is_said_to_keep_its_sign_does(proto: onnx.ModelProto) -> None:
    verdict = judge(proto)
    scales = 10.0 ** np.linspace(-3, 3, 64).reshape(64, *[1] * len(input_shape(proto)))
    values = double_runner(proto)(scales * np.random.default_rng(0).standard_normal((64, *input_shape(proto))))
    assert not verdict.one_sided_by or np.all(values >= 0.0) or np.all(values <= 0.0)


@QUICK
@seed(4)
@given(models, st.floats(1.0, 50.0), st.integers(0, 10**6))
def test_looser_weights_never_tighten_the_bound(proto: onnx.ModelProto, factor: float, pick: int) -> None:
    weights = [
        (index, tensor)
        for index, tensor in enumerate(proto.graph.initializer)
        if any(node.op_type in LINEAR and tensor.name in node.input for node in proto.graph.node)
    ]  # fmt: skip
    assume(weights)
    index, tensor = weights[pick % len(weights)]
    looser = onnx.ModelProto()
    looser.CopyFrom(proto)
    scaled = numpy_helper.to_array(tensor) * np.float32(np.ceil(factor))
    looser.graph.initializer[index].CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    assert bound(looser) >= bound(proto) * (1 - 1e-9)


@QUICK
@seed(5)
@given(models)
def test_a_longer_norm_of_the_output_never_has_a_smaller_constant(proto: onnx.ModelProto) -> None:
    """‖·‖∞ ≤ ‖·‖₂: the 2 → ∞ bound is at most the 2 → 2 bound."""
    assert bound(proto, "l2-linf") <= bound(proto, "l2")
    assert bound(proto, "l1-linf") <= bound(proto, "l1") * (1 + 1e-12)


@QUICK
@seed(6)
@given(models, st.sampled_from(["l2", "linf"]))
def test_the_float32_program_errs_at_most_as_stated(proto: onnx.ModelProto, norm: str) -> None:
    error = judge(proto, norm).numeric_error["f32"]
    assume(error is not None)
    assert error is not None
    runnable = onnx.ModelProto()
    runnable.CopyFrom(proto)
    attach_functions(runnable, {TensorProto.FLOAT})
    rng = np.random.default_rng(0)
    shape = (32, *input_shape(proto))
    x = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, (32, *[1] * (len(shape) - 1)))).astype(np.float32)
    program = session(runnable).run(None, {"x": x})[0].astype(np.float64)
    size = lengths(x.astype(np.float64), norm)
    worst = np.abs(program - double_runner(proto)(x)).reshape(32, -1).max(axis=1)
    inside = size <= error.x_max
    assert np.all(worst[inside] <= (error.c0 + error.c1 * size)[inside] * (1 + 1e-9))


@QUICK
@seed(7)
@given(models)
def test_verdicts_are_repeatable(proto: onnx.ModelProto) -> None:
    first, second = judge(proto), judge(proto)
    assert first.lipschitz_bound == second.lipschitz_bound
    assert first.nodes == second.nodes
    assert first.semantic_sha256 == second.semantic_sha256


@pytest.mark.parametrize("norm", NORMS)
def test_the_sampler_would_notice(norm: str) -> None:
    """A bound that is 10 % too small would be caught on a plain linear map in every norm."""
    from tests.verify.models import operator_norm, single

    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    proto = single("MatMul", (3,), {"W": weight})
    seen = best_ratio(double_runner(proto), (3,), norm, samples=200, rounds=6)
    assert seen >= 0.9 * operator_norm(weight.T.astype(np.float64), norm)
