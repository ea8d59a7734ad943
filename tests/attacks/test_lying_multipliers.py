"""Attacks on the multiplier certificate: a prover that lies, and networks that other tools get wrong.

1. GroupSort is not slope-restricted. Treating it as a [0, 1] neuron (as eclipse-nn does) "proves" numbers below the
   truth: 0.7071 for a network whose constant is 1. Here the activation comes from the graph, so whatever multipliers
   are claimed, also those that are right for the same network with ReLU, nothing below the truth comes out.
2. Coupled multipliers (LipSDP-Network, 2019) are unsound. There is no way to state them.
3. LAPACK may lie: factors and solutions full of rubbish prove nothing, or something true.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from lipdeploy.prove.multipliers import find_multipliers
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting, Stacked
from lipdeploy.verify.lmi import certify


def relu(size: int) -> Slopes:
    return Slopes(np.zeros(size), np.ones(size))


def pairs(size: int) -> Sorting:
    return Sorting(np.arange(size).reshape(-1, 2))


def beside(size: int) -> Stacked:
    """Half passes by, a quarter is ReLU, a quarter sorted."""
    half, quarter = size // 2, size // 4
    return Stacked((Slopes(np.repeat([1.0, 0.0], [half, quarter]), np.ones(half + quarter)), pairs(quarter)))


def sorting_network(weights: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    for weight in weights[:-1]:
        v = x @ weight.T
        x = np.sort(v.reshape(len(v), -1, 2), axis=2).reshape(v.shape)
    return x @ weights[-1].T


def steepest(weights: tuple[np.ndarray, ...], rng: np.random.Generator) -> float:
    """The largest singular value of the Jacobian over many points: a true lower bound."""
    best = 0.0
    for x in rng.standard_normal((400, weights[0].shape[1])):
        rows = x + 1e-6 * np.concatenate([np.zeros((1, len(x))), np.eye(len(x))])
        values = sorting_network(weights, rows)
        best = max(best, float(np.linalg.norm((values[1:] - values[0]).T / 1e-6, 2)))
    return best * (1 - 1e-6)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_network_that_eclipse_calls_less_than_one(layers: int) -> None:
    """Identity weights and GroupSort-2: the constant is 1, the false claims are 0.7071, 0.5 and 0.25."""
    weights = tuple(np.eye(4) for _ in range(layers))
    sorting = Chain(weights, (pairs(4),) * (layers - 1))
    honest = certify(sorting, find_multipliers(sorting, 3.0).multipliers)
    assert honest is not None and 1.0 <= honest.bound.value <= 1.001
    for value in np.geomspace(1e-3, 1e3, 61):
        claimed = certify(sorting, [np.full(2, value)] * (layers - 1))
        assert claimed is None or claimed.bound.value >= 1.0


@pytest.mark.parametrize("seed", range(4))
def test_multipliers_of_the_relu_network_prove_nothing_false_about_group_sort(seed: int) -> None:
    """On default-initialised layers LipSDP "as if ReLU" goes below what GroupSort really does."""
    rng = np.random.default_rng(seed)
    sizes = (10, 24, 24, 5)
    weights = tuple(rng.uniform(-1, 1, (b, a)) / np.sqrt(a) for a, b in pairwise(sizes))
    as_relu = Chain(weights, (relu(24), relu(24)))
    false_claim = certify(as_relu, find_multipliers(as_relu, 5.0).multipliers)
    assert false_claim is not None
    truth = steepest(weights, rng)
    chain = Chain(weights, (pairs(24), pairs(24)))
    found = find_multipliers(chain, 5.0)
    honest = certify(chain, found.multipliers)
    assert honest is not None and honest.bound.value >= truth
    relu_tau = find_multipliers(as_relu, 5.0).multipliers
    assert certify(chain, relu_tau) is None  # one number per neuron is not one per group
    for reduce in (np.min, np.max, np.mean):
        folded = [reduce(tau.reshape(-1, 2), axis=1) for tau in relu_tau]
        claimed = certify(chain, folded, false_claim.bound.value**2)
        assert claimed is None or claimed.bound.value >= truth


def test_the_false_bound_is_below_the_truth() -> None:
    """diag(1, .01), sort, diag(.01, 1): the larger entry moves to the second place, so the constant is 1."""
    weights = (np.diag([1.0, 0.01]), np.diag([0.01, 1.0]))
    as_relu, chain = Chain(weights, (relu(2),)), Chain(weights, (pairs(2),))
    false_claim = certify(as_relu, find_multipliers(as_relu, 2.0).multipliers)
    assert false_claim is not None and false_claim.bound.value < 0.1
    points = np.array([[5.0, 0.0], [6.0, 0.0]])
    moved = np.diff(sorting_network(weights, points), axis=0)
    assert np.linalg.norm(moved) == pytest.approx(1.0)
    honest = certify(chain, find_multipliers(chain, 2.0).multipliers)
    assert honest is not None and honest.bound.value >= 1.0
    for value in np.geomspace(1e-4, 1e4, 81):
        claimed = certify(chain, [np.array([value])])
        assert claimed is None or claimed.bound.value >= 1.0


GARBAGE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "zeros": lambda a, rng: np.zeros_like(a),
    "noise": lambda a, rng: a + 1e-3 * rng.standard_normal(a.shape),
    "small noise": lambda a, rng: a + 1e-8 * rng.standard_normal(a.shape),
    "scaled": lambda a, rng: a * 0.5,
    "NaN": lambda a, rng: np.full_like(a, np.nan),
    "infinite": lambda a, rng: np.full_like(a, np.inf),
}


@pytest.mark.parametrize("kind", [relu, pairs, beside])
@pytest.mark.parametrize("routine", ["cholesky", "solve", "eigvalsh"])
@pytest.mark.parametrize("garbage", sorted(GARBAGE))
def test_linear_algebra_that_lies(
    kind: Callable[[int], Activation], routine: str, garbage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    weights = tuple(rng.standard_normal(shape) / 3 for shape in ((8, 6), (8, 8), (3, 8)))
    chain = Chain(weights, (kind(8), kind(8)))
    found = find_multipliers(chain, 3.0)
    original = getattr(np.linalg, routine)
    monkeypatch.setattr(np.linalg, routine, lambda *args: GARBAGE[garbage](original(*args), rng))
    certified = certify(chain, found.multipliers)
    assert certified is None or certified.bound.value >= found.rho**0.5 * (1 - 1e-12)
