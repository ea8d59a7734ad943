"""The search for multipliers: the gains that it must reach, exact gradients, any time, and its way to verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.errors import InputError
from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find, find_multipliers
from lipdeploy.prove.recursion import Problem
from lipdeploy.verify import verify
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting
from lipdeploy.verify.lmi import certify
from tests.verify.models import best_ratio, double_runner


def relu(size: int) -> Slopes:
    return Slopes(np.zeros(size), np.ones(size))


def absolute(size: int) -> Slopes:
    return Slopes(-np.ones(size), np.ones(size))


def sorting(group: int) -> Callable[[int], Sorting]:
    return lambda size: Sorting(np.arange(size).reshape(-1, group))


def normalised(sizes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Gaussian layers, each divided by its spectral norm, as float32."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    return [(w / np.linalg.norm(w, 2)).astype(np.float32) for w in weights]


def chain(sizes: tuple[int, ...], kind: Callable[[int], Activation], seed: int = 0) -> Chain:
    weights = tuple(w.astype(np.float64) for w in normalised(sizes, seed))
    return Chain(weights, tuple(kind(n) for n in sizes[1:-1]))


@pytest.mark.parametrize(("kind", "gain"), [(relu, 2.0), (sorting(2), 1.6)])
def test_gains_on_the_gaussian_network_of_the_contract(kind: Callable[[int], Activation], gain: float) -> None:
    """784-256-256-10, every layer of norm 1, so that the product is 1: the bound, the search and the check."""
    net = chain((784, 256, 256, 10), kind)
    found = find_multipliers(net, 20.0)
    started = time.process_time()
    certified = certify(net, found.multipliers)
    seconds = time.process_time() - started
    assert certified is not None
    assert certified.bound.value <= 1.0 / gain
    assert certified.bound.value == pytest.approx(found.rho**0.5, rel=1e-8)
    assert seconds <= 1.0
    assert found.seconds <= 20.0


@pytest.mark.parametrize("kind", [relu, absolute, sorting(2), sorting(4)])
def test_the_gradient_is_that_of_finite_differences(kind: Callable[[int], Activation]) -> None:
    problem = Problem(chain((6, 8, 8, 3), kind, 3))
    rng = np.random.default_rng(0)
    point = np.log(problem.greedy("even", 1.0)) + rng.uniform(-0.1, 0.1, problem.size)
    value = problem.value(point, 16.0, 0.01)
    assert value is not None
    for index in range(len(point)):
        shift = np.zeros_like(point)
        shift[index] = 1e-6
        ahead, behind = problem.value(point + shift, 16.0, 0.01), problem.value(point - shift, 16.0, 0.01)
        assert ahead is not None and behind is not None
        slope = (ahead.smooth - behind.smooth) / 2e-6
        assert value.gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_bound_is_convex_in_the_reciprocals() -> None:
    """Midpoints of 1/τ never lie above the chord: no bad local minima."""
    problem = Problem(chain((5, 6, 6, 3), sorting(2), 1))
    rng = np.random.default_rng(1)
    start = np.log(problem.greedy("even", 3.0))
    for _ in range(20):
        first, second = (start + rng.uniform(0.0, 1.0, len(start)) for _ in range(2))
        middle = -np.log((np.exp(-first) + np.exp(-second)) / 2)
        values = [problem.value(p, 64.0, 0.0, gradient=False) for p in (first, second, middle)]
        assert all(v is not None for v in values)
        one, two, between = (v.rho for v in values if v is not None)
        assert between <= (one + two) / 2 * (1 + 1e-12)


@pytest.mark.parametrize("kind", [relu, absolute, sorting(2), sorting(4)])
def test_without_time_the_closed_forms_still_prove_something(kind: Callable[[int], Activation]) -> None:
    """Any-time: zero seconds give a certificate near or below the product, more seconds never a larger one."""
    net = chain((10, 16, 16, 4), kind, 2)
    hasty, patient = (certify(net, find_multipliers(net, budget).multipliers) for budget in (0.0, 3.0))
    assert hasty is not None and patient is not None
    assert hasty.bound.value <= 1.0 + 1e-5
    assert patient.bound.value <= hasty.bound.value * (1 + 1e-8)


def saved(kind: str, weights: list[np.ndarray]) -> bytes:
    """x → MatMul → activation → … with the operator ``kind``."""
    nodes, name = [], "x"
    for index in range(len(weights)):
        last = index == len(weights) - 1
        nodes.append(helper.make_node("Gemm", [name, f"w{index}"], ["y" if last else f"v{index}"], transB=1))
        if not last:
            domain = {"domain": "lipdeploy", "group_size": 2} if kind == "GroupSort" else {}
            nodes.append(helper.make_node(kind, [f"v{index}"], [f"h{index}"], **domain))
            name = f"h{index}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", weights[0].shape[1]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", weights[-1].shape[0]])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    if kind == "GroupSort":
        attach_functions(model, {onnx.TensorProto.FLOAT})
    return model.SerializeToString()


@pytest.mark.parametrize("kind", ["Relu", "GroupSort", "Abs", "Tanh"])
def test_hints_travel_from_the_search_to_the_verdict(kind: str) -> None:
    data = saved(kind, normalised((12, 16, 16, 4), 5))
    hints = find(data, seconds=3.0)
    assert hints is not None
    product = verify(data)
    best, lmi = (verify(data, method=method, hints=hints) for method in ("best", "lmi"))  # type: ignore[arg-type]
    for verdict in (best, lmi):
        assert verdict.status == "verified" and verdict.lipschitz_bound is not None
        assert verdict.nodes[-1].rule == "diagonal multipliers" and verdict.nodes[:-1] == product.nodes
    assert best.lipschitz_bound is not None and product.lipschitz_bound is not None
    assert best.lipschitz_bound <= product.lipschitz_bound
    assert best.pairwise is not None and product.pairwise is not None
    assert np.all(best.pairwise <= product.pairwise)
    if kind != "Abs":
        assert best.lipschitz_bound.value < 0.9 * product.lipschitz_bound.value
        assert best.pairwise.max() < 0.9 * product.pairwise.max()
    run = double_runner(onnx.load_from_string(data))
    assert best_ratio(run, (12,)) <= best.lipschitz_bound.value
    first, second = np.random.default_rng(0).standard_normal((2, 500, 12))
    moved, length = run(first) - run(second), np.linalg.norm(first - second, axis=1)
    apart = np.abs(moved[:, :, None] - moved[:, None]) / length[:, None, None]
    assert np.all(apart.max(axis=0) <= best.pairwise)


def test_hints_that_prove_nothing_leave_the_product() -> None:
    data = saved("Relu", normalised((6, 8, 3), 6))
    found = find(data, seconds=1.0)
    assert found is not None
    hints, product = found["y"], verify(data)
    for wrong in ([], [-hints[0]], [hints[0] * np.nan], [hints[0][:-1]], [hints[0] * 1e-6], [hints[0], hints[0]]):
        verdict = verify(data, method="best", hints=wrong)
        assert verdict.lipschitz_bound == product.lipschitz_bound and verdict.nodes == product.nodes
    for options in ({"norm": "linf"}, {"norm": "l2-linf"}):
        assert (
            verify(data, method="best", hints=hints, **options).lipschitz_bound
            == verify(data, **options).lipschitz_bound
        )  # type: ignore[arg-type]
    assert verify(data, hints=hints).lipschitz_bound == product.lipschitz_bound


def test_a_limit_is_judged_by_the_tighter_bound() -> None:
    data = saved("Relu", normalised((12, 16, 16, 4), 5))
    assert verify(data, max_lipschitz=0.9).status == "exceeded"
    assert verify(data, max_lipschitz=0.9, method="best", hints=find(data, seconds=2.0)).status == "verified"


def test_a_graph_that_is_no_chain_has_no_hints() -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])
    nodes = [helper.make_node("Clip", ["x"], ["h"]), helper.make_node("Add", ["x", "h"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert find(model.SerializeToString()) is None
    assert verify(model.SerializeToString(), method="best", hints=[np.ones(3)]).status == "verified"


def test_an_unknown_method_is_an_input_error() -> None:
    with pytest.raises(InputError, match="unknown method 'sdp'"):
        verify(b"", method="sdp")  # type: ignore[arg-type]


def dead(weights: list[np.ndarray]) -> None:
    """A neuron that nothing feeds, one that nobody reads, and two that are always equal."""
    weights[0][0] = 0.0
    weights[1][:, 3] = 0.0
    weights[0][5] = weights[0][4]


def one_input(weights: list[np.ndarray]) -> None:
    """Only one coordinate matters, so that every ellipsoid is a segment."""
    weights[0][:, 1:] = 0.0


def graded(weights: list[np.ndarray]) -> None:
    """Neurons whose sizes differ by up to 1e12."""
    weights[0] *= np.logspace(-6, 6, 8)[:, None]
    weights[1] /= np.logspace(-6, 6, 8)


@pytest.mark.parametrize("spoil", [dead, one_input, graded])
@pytest.mark.parametrize("kind", [relu, absolute, sorting(2), sorting(4)])
def test_degenerate_networks_are_still_certified(
    kind: Callable[[int], Activation], spoil: Callable[[list[np.ndarray]], None]
) -> None:
    weights = [w.astype(np.float64) for w in normalised((5, 8, 8, 3), 11)]
    spoil(weights)
    net = Chain(tuple(weights), (kind(8), kind(8)))
    found = find_multipliers(net, 2.0)
    certified = certify(net, found.multipliers)
    assert certified is not None
    assert certified.bound.value <= float(np.prod([np.linalg.norm(w, 2) for w in weights])) * 1.01


def test_weights_beyond_the_range_of_the_proof_are_left_to_the_product() -> None:
    weights = [w.astype(np.float64) * 2.0**-210 for w in normalised((4, 4, 2), 1)]
    assert certify(Chain(tuple(weights), (relu(4),)), [np.ones(4)]) is None
    tiny = saved("Relu", [(w * 1e-30).astype(np.float32) for w in normalised((4, 4, 2), 1)])
    verdict = verify(tiny, method="best", hints=find(tiny, seconds=0.5))
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value <= 1e-59


@pytest.mark.parametrize("kind", [relu, sorting(2)])
def test_the_budget_is_kept_and_a_search_that_gains_nothing_ends_early(kind: Callable[[int], Activation]) -> None:
    """Seconds on the clock: a budget of one, then one that the search does not need."""
    net = chain((64, 160, 160, 10), kind, 3)
    hasty = find_multipliers(net, 1.0)
    assert hasty.seconds <= 4.0  # the machine may be busy; without a budget it runs far longer
    patient = find_multipliers(net, 600.0)
    assert patient.seconds < 120.0 and patient.rho <= hasty.rho * (1 + 1e-9)
    again = find_multipliers(net, 1200.0)
    assert again.iterations == patient.iterations and again.rho == patient.rho  # it ended by itself


@pytest.mark.parametrize("sizes", [(4, 16, 4, 16, 3), (12, 6, 6, 12, 2), (5, 10, 20, 10, 1)])
@pytest.mark.parametrize("kind", [relu, absolute, sorting(2)])
def test_the_search_over_smaller_states_means_the_same_numbers(
    kind: Callable[[int], Activation], sizes: tuple[int, ...]
) -> None:
    """What the recursion says about multipliers is what the checker proves, for layers that widen and narrow."""
    net = chain(sizes, kind, 4)
    problem = Problem(net)
    point = np.log(problem.greedy("even", 1.0))
    value = problem.value(point, 64.0, 0.0)
    certified = certify(net, problem.split(np.exp(point)))
    assert value is not None and certified is not None
    assert certified.bound.value == pytest.approx(value.rho**0.5, rel=1e-9)


def test_the_product_form_proves_the_product() -> None:
    for kind in (relu, absolute, sorting(2), sorting(4)):
        net = chain((9, 16, 8, 4), kind, 6)
        problem = Problem(net)
        certified = certify(net, problem.split(problem.product_form(1e-6)))
        assert certified is not None and certified.bound.value <= 1 + 1e-4
