"""Attacks on the multipliers of graphs with branches: claims about what passes by, swapped parts, false neighbours.

A residual block is one layer whose activation stands beside entries that only pass by. A liar may claim multipliers for
those too, give the right numbers to the wrong neurons, or change one entry in the file; and a graph may look like a
residual, or like a cut behind which everything is eligible, without being one. What is proven is never below the truth.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import certify, multiplier_count
from tests.verify.models import best_ratio, double_runner

BODY = """v = MatMul(x, F) h = Relu(v) r = MatMul(h, G) z = Add(x, r)
    w = MatMul(z, F) s = lipdeploy.GroupSort(w) t = MatMul(s, G) y = Add(z, t)"""


def network(body: str = BODY, seed: int = 0) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>'
    text = f"{header} g (float[N, 5] x) => (float[N, 5] y) {{ {body} }}"
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in (("F", (5, 8)), ("G", (8, 5))):
        weight = rng.standard_normal(shape)
        weight = (weight / np.linalg.norm(weight, 2)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    if "lipdeploy." in body:
        attach_functions(model, {onnx.TensorProto.FLOAT})
    else:
        del model.opset_import[1:]
    return model


def bound(model: onnx.ModelProto, hints: object) -> float:
    verdict = verify(model.SerializeToString(), method="best", hints=hints)  # type: ignore[arg-type]
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None
    return verdict.lipschitz_bound.value


@pytest.fixture(scope="module")
def honest() -> tuple[onnx.ModelProto, list[np.ndarray], float, float]:
    """(model, multipliers, what they prove, the product)."""
    model = network()
    hints = find(model.SerializeToString(), seconds=3.0)
    assert hints is not None
    tight, product = bound(model, hints), bound(model, None)
    (hints,) = hints.values()
    assert tight < 0.9 * product
    return model, list(hints), tight, product


LIES = {
    "negative": lambda tau: -tau,
    "one negative": lambda tau: np.where(np.arange(len(tau)) == 1, -tau, tau),
    "NaN": lambda tau: np.full_like(tau, np.nan),
    "infinite": lambda tau: np.full_like(tau, np.inf),
    "huge": lambda tau: tau * 1e250,
    "tiny": lambda tau: tau * 1e-250,
    "zero": lambda tau: tau * 0.0,
    "one too many": lambda tau: np.append(tau, 1.0),
    "one too few": lambda tau: tau[:-1],
    "also for what passes by": lambda tau: np.concatenate([np.ones(5), tau]),
    "a column": lambda tau: tau[:, None],
    "coupled": lambda tau: np.diag(tau),
    "float32": lambda tau: tau.astype(np.float32),
    "text": lambda tau: tau.astype(str),
}


@pytest.mark.parametrize("lie", sorted(LIES))
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_not_a_multiplier_leaves_the_product(honest, lie: str, layer: int) -> None:  # type: ignore[no-untyped-def]
    model, hints, _, product = honest
    active = [i for i, tau in enumerate(hints) if len(tau)][layer]
    told = [LIES[lie](tau) if i == active else tau for i, tau in enumerate(hints)]
    assert bound(model, told) == product


def test_right_numbers_in_wrong_places_prove_nothing_false(honest) -> None:  # type: ignore[no-untyped-def]
    """Permuted, scaled and random multipliers: whatever is accepted stays above what pairs of points reach."""
    model, hints, tight, product = honest
    truth = best_ratio(double_runner(model), (5,), rounds=12, samples=256)
    assert truth <= tight
    rng, better = np.random.default_rng(1), 0
    for trial in range(60):
        told = [rng.permutation(tau) if trial % 2 else tau * np.exp(rng.uniform(-1, 1, tau.shape)) for tau in hints]
        claimed = bound(model, told)
        better += claimed < product
        assert truth <= claimed <= product
    assert better  # some lies still prove something true


def test_layers_in_another_order_or_number(honest) -> None:  # type: ignore[no-untyped-def]
    model, hints, _, product = honest
    for told in (hints[::-1], hints[:-1], [*hints, hints[-1]], [], [np.concatenate(hints)], [None, *hints]):
        assert bound(model, told) in (product, pytest.approx(product))


def test_multipliers_of_the_network_without_the_residual_prove_nothing_false() -> None:
    """The same weights without x + …: its multipliers, and its bound, are below the truth of the residual network."""
    straight = network(BODY.replace("z = Add(x, r)", "z = Identity(r)").replace("y = Add(z, t)", "y = Identity(t)"))
    model = network()
    found = find(straight.SerializeToString(), seconds=3.0)
    assert found is not None
    (hints,) = found.values()
    truth = best_ratio(double_runner(model), (5,), rounds=12)
    assert bound(straight, hints) < truth <= bound(model, hints)
    (chain,) = walked(model, "l2").segments()
    counts = [multiplier_count(activation) for activation in chain.activations]
    values = iter([tau for tau in hints if len(tau)])
    moved = [next(values) if count else np.zeros(0) for count in counts]
    certified = certify(chain, moved, bound(straight, hints) ** 2)
    assert certified is None or certified.bound.value >= truth


NEAR_MISSES = {
    "the residual starts elsewhere": BODY.replace("z = Add(x, r)", "q = Neg(x) z = Add(q, r)"),
    "added twice": BODY.replace("z = Add(x, r)", "q = Add(x, r) z = Add(x, q)"),
    "subtracted": BODY.replace("z = Add(x, r)", "z = Sub(x, r)"),
    "three times x": BODY.replace("z = Add(x, r)", "q = Add(x, x) u = Add(q, x) z = Add(u, r)"),
    "around both blocks": BODY.replace("y = Add(z, t)", "y = Add(x, t)"),
    "two heads of one sort": BODY.replace("y = Add(z, t)", "y = Add(t, t)"),
}


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_a_graph_that_is_nearly_the_same_gets_a_bound_of_its_own(honest, body: str) -> None:  # type: ignore[no-untyped-def]
    """One name or operator changed: with the old multipliers and with new ones, no pair of points is farther apart."""
    _, hints, _, _ = honest
    model = network(body)
    truth = best_ratio(double_runner(model), (5,), rounds=12)
    assert truth <= bound(model, hints)
    assert truth <= bound(model, find(model.SerializeToString(), seconds=1.0))
