"""Multiplier certificates: never below the truth, tight to 1e-8, and nothing accepted that is not a multiplier.

Truth: the certificate's linear matrix inequality in the coordinates of the literature (input and bends stacked, with
λ = 1/τ), decided by LDLᵀ in exact rationals; closed forms; and the best ratio that ascent on the network finds.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lipdeploy.prove.multipliers import find_multipliers
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting, Stacked, parts_of
from lipdeploy.verify.lmi import certify, multiplier_count

Vector = np.ndarray
Rational = list[list[Fraction]]


def relu(size: int) -> Slopes:
    return Slopes(np.zeros(size), np.ones(size))


def absolute(size: int) -> Slopes:
    return Slopes(-np.ones(size), np.ones(size))


def uneven(size: int) -> Slopes:
    """Leaky, steep, decreasing and linear neurons in turn."""
    low, high = np.array([0.125, -0.5, -1.0, 0.75]), np.array([1.0, 2.0, -0.25, 0.75])
    return Slopes(np.resize(low, size), np.resize(high, size))


def pairs(size: int) -> Sorting:
    return Sorting(np.arange(size).reshape(-1, 2))


def strided(size: int) -> Sorting:
    return Sorting(np.arange(size).reshape(2, -1).T.copy())


def full(size: int) -> Sorting:
    return Sorting(np.arange(size).reshape(1, -1))


def mixed(size: int) -> Stacked:
    """A quarter that passes through, a quarter of ReLU, and one group of the other half (2 or 4 entries)."""
    quarter = size // 4
    passed = Slopes(np.repeat([1.0, 0.0], quarter), np.ones(2 * quarter))
    return Stacked((passed, Sorting(np.arange(2 * quarter).reshape(1, -1))))


def apply(activation: Activation, v: Vector) -> Vector:
    """One activation of the class, on rows: the extreme slopes on either side of 0, or sorting."""
    if isinstance(activation, Stacked):
        return np.concatenate([apply(part, v[..., entries]) for part, entries in parts_of(activation)], axis=-1)
    if isinstance(activation, Slopes):
        return np.where(v > 0, activation.high * v, activation.low * v)
    result = v.copy()
    for group in activation.groups:
        result[..., group] = np.sort(v[..., group], axis=-1)
    return result


def network(chain: Chain, x: Vector, biases: list[Vector]) -> Vector:
    for weight, bias, activation in zip(chain.weights, biases, chain.activations, strict=False):
        x = apply(activation, x @ weight.T + bias)
    return x @ chain.weights[-1].T


def gauss(sizes: tuple[int, ...], kind: Callable[[int], Activation], seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    return Chain(tuple(w / np.linalg.norm(w, 2) for w in weights), tuple(kind(n) for n in sizes[1:-1]))


def product(chain: Chain) -> float:
    return float(np.prod([np.linalg.norm(w, 2) for w in chain.weights]))


KINDS = [relu, absolute, uneven, pairs, strided, full, mixed]


def exact_maps(activation: Activation) -> tuple[Rational, Rational, Rational, list[int]]:
    """σ = P + R∘(bend)∘Q exactly, and the multiplier that each bend belongs to. For groups: s(I − mean) twice."""
    size = activation.size
    if isinstance(activation, Stacked):
        return side_by_side([exact_maps(part) for part in activation.parts])
    p = [[Fraction(0)] * size for _ in range(size)]
    if isinstance(activation, Slopes):
        bends = [k for k in range(size) if activation.low[k] != activation.high[k]]
        q = [[Fraction(int(k == j)) for j in range(size)] for k in bends]
        r = [[Fraction(0)] * len(bends) for _ in range(size)]
        for k in range(size):
            p[k][k] = (Fraction(activation.low[k]) + Fraction(activation.high[k])) / 2
        for position, k in enumerate(bends):
            r[k][position] = (Fraction(activation.high[k]) - Fraction(activation.low[k])) / 2
        return p, q, r, list(range(len(bends)))
    group_size = activation.groups.shape[1]
    centred = [[Fraction(0)] * size for _ in range(size)]
    for group in activation.groups:
        for i in group:
            for j in group:
                p[i][j] = Fraction(1, group_size)
                centred[i][j] = Fraction(int(i == j)) - Fraction(1, group_size)
    owner = [next(g for g, group in enumerate(activation.groups) if k in group) for k in range(size)]
    return p, centred, centred, owner


def side_by_side(
    parts: list[tuple[Rational, Rational, Rational, list[int]]],
) -> tuple[Rational, Rational, Rational, list[int]]:
    """Block-diagonal maps, and owners counted on."""
    maps: list[Rational] = []
    for which in range(3):
        blocks = [part[which] for part in parts]
        columns = [len(part[0]) if which < 2 else len(part[1]) for part in parts]
        rows: Rational = []
        for index, block in enumerate(blocks):
            before, after = sum(columns[:index]), sum(columns[index + 1 :])
            rows += [[Fraction(0)] * before + row + [Fraction(0)] * after for row in block]
        maps.append(rows)
    owners: list[int] = []
    for part in parts:
        start = max(owners, default=-1) + 1
        owners += [start + owner for owner in part[3]]
    return maps[0], maps[1], maps[2], owners


def times(a: Rational, b: Rational) -> Rational:
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in a]


def pair_scale(activation: Activation, bend: int) -> int:
    """The square of the factor between the checker's q of a bend and the one of ``exact_maps``."""
    for part, _ in parts_of(activation):
        size = part.groups.shape[1] if isinstance(part, Sorting) else 1
        bends = part.size if size > 1 else int(np.count_nonzero(part.low != part.high))  # type: ignore[union-attr]
        if bend < bends:
            return {1: 1, 2: 2}.get(size, size * size)
        bend -= bends
    raise IndexError(bend)


def exact_inequality(chain: Chain, multipliers: list[Vector], rho: Fraction) -> Rational:
    """ρ(I_x + Σ λ(eeᵀ − qqᵀ)) − OᵀO over ξ = (x, e₁, e₂, …), in rationals: ⪰ 0 proves ‖Δy‖² ≤ ρ‖Δx‖² (LipSDP)."""
    inputs = chain.weights[0].shape[1]
    parts = [exact_maps(a) for a in chain.activations]
    total = inputs + sum(len(q) for _, q, _, _ in parts)
    state = [[Fraction(int(i == j)) for j in range(total)] for i in range(inputs)]
    form = [[rho * int(i == j and i < inputs) for j in range(total)] for i in range(total)]
    start = inputs
    for weight, activation, (p, q, r, owner), tau in zip(
        chain.weights, chain.activations, parts, multipliers, strict=False
    ):
        values = times([[Fraction(w) for w in row] for row in weight], state)
        driven = times(q, values) if q else []
        # The checker scales groups: its q is s·(centred v), its τ that of the scaled pair; for pairs v_p − v_q.
        for k, row in enumerate(driven):
            lam = 1 / Fraction(tau[owner[k]]) * pair_scale(activation, k)
            for i in range(total):
                for j in range(total):
                    form[i][j] -= rho * lam * row[i] * row[j]
            form[start + k][start + k] += rho * lam
        bends = [[Fraction(int(j == start + k)) for j in range(total)] for k in range(len(q))]
        start += len(q)
        passed = times(p, values)
        bent = times(r, bends) if q else [[Fraction(0)] * total for _ in passed]
        state = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(passed, bent, strict=True)]
    for row in times([[Fraction(w) for w in row] for row in chain.weights[-1]], state):
        for i in range(total):
            for j in range(total):
                form[i][j] -= row[i] * row[j]
    return form


def is_psd(a: Rational) -> bool:
    """LDLᵀ in rationals."""
    a = [row[:] for row in a]
    for k in range(len(a)):
        if a[k][k] < 0 or (a[k][k] == 0 and any(a[i][k] for i in range(k + 1, len(a)))):
            return False
        for i in range(k + 1, len(a)):
            if a[k][k] != 0:
                factor = a[i][k] / a[k][k]
                a[i][k:] = [x - factor * y for x, y in zip(a[i][k:], a[k][k:], strict=True)]
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_certified_satisfies_the_exact_inequality(kind: Callable[[int], Activation], seed: int) -> None:
    chain = gauss((3, 4, 4, 2), kind, seed)
    found = find_multipliers(chain, 5.0)
    certified = certify(chain, found.multipliers)
    assert certified is not None
    rho = Fraction(certified.bound.value) ** 2
    assert is_psd(exact_inequality(chain, list(found.multipliers), rho))
    assert not is_psd(exact_inequality(chain, list(found.multipliers), rho * (1 - Fraction(1, 10**7)))), "loose"


@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_is_accepted_just_above_and_rejected_just_below(kind: Callable[[int], Activation]) -> None:
    """Bisection of ρ on the checker itself finds the edge; the edge is the exact one of the search to 1e-8."""
    chain = gauss((6, 8, 8, 3), kind, 5)
    found = find_multipliers(chain, 5.0)
    low, high = 0.0, 4.0 * found.rho
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if certify(chain, found.multipliers, middle) else (middle, high)
    assert high == pytest.approx(found.rho, rel=1e-8)
    assert certify(chain, found.multipliers, high * (1 + 1e-8)) is not None
    for factor in (0.999, 0.9, 1 - 1e-6, 0.0, float("nan")):
        assert certify(chain, found.multipliers, high * factor) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(5, 8, 4), (4, 8, 8, 3), (3, 4, 8, 4, 2)])
def test_no_pair_of_points_beats_the_bound(kind: Callable[[int], Activation], sizes: tuple[int, ...]) -> None:
    chain = gauss(sizes, kind, sum(sizes))
    certified = certify(chain, find_multipliers(chain, 3.0).multipliers)
    assert certified is not None
    rng = np.random.default_rng(1)
    best, best_pair = 0.0, np.zeros_like(certified.pairwise)
    for trial in range(40):
        biases = [rng.standard_normal(n) * (trial % 4) / 3 for n in sizes[1:]]
        x = rng.standard_normal((200, sizes[0]))
        step = rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-3, 1, (200, 1))
        for _ in range(15):  # ascent: keep the better of the pair and a perturbed one
            moved = network(chain, x + step, biases) - network(chain, x, biases)
            length = np.linalg.norm(step, axis=1)
            ratio = np.linalg.norm(moved, axis=1) / length
            best = max(best, float(ratio.max()))
            best_pair = np.maximum(
                best_pair, (np.abs(moved[:, :, None] - moved[:, None]) / length[:, None, None]).max(0)
            )
            top = np.argsort(ratio)[-20:].repeat(10)
            x, step = x[top], step[top] * (1 + 0.3 * rng.standard_normal(x.shape))
    assert best <= certified.bound.value
    assert np.all(best_pair <= certified.pairwise)
    assert best > 0.5 * certified.bound.value  # the comparison means something


@pytest.mark.parametrize("kind", KINDS)
def test_never_worse_than_the_product_and_often_better(kind: Callable[[int], Activation]) -> None:
    chain = gauss((10, 16, 16, 4), kind, 9)
    largest = product(chain) * (4.0 if kind is uneven else 1.0)
    certified = certify(chain, find_multipliers(chain, 5.0).multipliers)
    assert certified is not None
    assert certified.bound.value <= largest * (1 + 1e-5)
    if kind in (relu, pairs, strided):
        assert certified.bound.value < 0.9 * largest


@pytest.mark.parametrize("kind", [relu, pairs, strided, full])
def test_an_orthogonal_network_is_certified_at_one(kind: Callable[[int], Activation]) -> None:
    rng = np.random.default_rng(2)
    weights = tuple(np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(3))
    chain = Chain(weights, (kind(8), kind(8)))
    certified = certify(chain, find_multipliers(chain, 5.0).multipliers)
    assert certified is not None
    assert 1.0 - 1e-12 <= certified.bound.value <= 1.0 + 1e-4


def test_one_neuron_in_closed_form() -> None:
    """y = relu(x): the best multiplier gives exactly 1; |x| scaled by 3 gives 3; a linear chain gives its norm."""
    for activation, factor in ((relu(1), 1.0), (absolute(1), 3.0)):
        chain = Chain((np.array([[factor]]), np.eye(1)), (activation,))
        certified = certify(chain, find_multipliers(chain, 2.0).multipliers)
        assert certified is not None
        assert factor <= certified.bound.value <= factor * (1 + 1e-3)
    weight = np.random.default_rng(3).standard_normal((5, 7))
    linear = Chain((weight, 2 * np.eye(5)), (Slopes(np.full(5, -3.0), np.full(5, -3.0)),))
    for chain, truth in ((Chain((weight,), ()), 1.0), (linear, 6.0)):
        certified = certify(chain, [np.zeros(0)] * len(chain.activations))
        assert certified is not None
        assert certified.bound.value == pytest.approx(truth * np.linalg.norm(weight, 2), rel=1e-10)
        assert certified.bound.value >= truth * np.linalg.norm(weight, 2) * (1 - 1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_do_not_matter(kind: Callable[[int], Activation]) -> None:
    """Powers of two in one weight move the bound by exactly that factor, also far from 1 and for uneven neurons."""
    chain = gauss((4, 8, 8, 2), kind, 4)
    tau = find_multipliers(chain, 3.0).multipliers
    base = certify(chain, tau)
    tiny = Chain((chain.weights[0] * 2.0**-60, chain.weights[1] * 2.0**40, chain.weights[2]), chain.activations)
    moved = certify(tiny, (tau[0] * 2.0**-120, tau[1] * 2.0**-40))
    assert base is not None and moved is not None
    assert moved.bound.value == pytest.approx(base.bound.value * 2.0**-20, rel=1e-9)


def test_neurons_of_very_different_size() -> None:
    """A row scaled by 2^-30 and its column by 2^30: the same function, the same bound."""
    chain = gauss((6, 8, 3), relu, 6)
    tau = find_multipliers(chain, 3.0).multipliers[0]
    row = np.where(np.arange(8) % 2 == 0, 2.0**-30, 1.0)
    uneven_chain = Chain((chain.weights[0] * row[:, None], chain.weights[1] / row), chain.activations)
    base, moved = certify(chain, [tau]), certify(uneven_chain, [tau * row**2])
    assert base is not None and moved is not None
    assert moved.bound.value == pytest.approx(base.bound.value, rel=1e-8)


def refused_claims(tau: tuple[Vector, ...]) -> dict[str, list[object]]:
    """Things that are not multipliers."""
    first, second = tau
    negative, broken, infinite = first.copy(), first.copy(), first.copy()
    negative[3], broken[3], infinite[3] = -first[3], np.nan, np.inf
    return {
        "negative": [negative, second],
        "NaN": [broken, second],
        "infinite": [infinite, second],
        "one too few": [first[:-1], second],
        "one layer too few": [first],
        "one layer too many": [first, second, second],
        "layers swapped": [second, first],
        "coupled": [np.diag(first), second],
        "coupled off the diagonal": [np.diag(first) + 0.1, second],
        "a list": [list(first), second],
        "float32": [first.astype(np.float32), second],
        "object": [first.astype(object), second],
        "complex": [first.astype(complex), second],
        "zero": [first * 0.0, second],
        "too small to be feasible": [first * 1e-3, second],
        "tiny": [first * 1e-300, second],
    }


@pytest.mark.parametrize("kind", [relu, pairs])
@pytest.mark.parametrize("name", sorted(refused_claims((np.ones(4), np.ones(8)))))
def test_what_is_not_a_multiplier_proves_nothing(kind: Callable[[int], Activation], name: str) -> None:
    chain = gauss((5, 8, 12, 3), kind, 7)
    found = find_multipliers(chain, 2.0)
    assert certify(chain, found.multipliers) is not None
    assert certify(chain, refused_claims(found.multipliers)[name]) is None  # type: ignore[arg-type]


def test_any_multipliers_that_are_accepted_are_sound() -> None:
    """Random τ, far from optimal: the exact inequality holds at whatever bound comes out."""
    rng, accepted = np.random.default_rng(8), 0
    for trial in range(42):
        chain = gauss((3, 4, 4, 2), KINDS[trial % len(KINDS)], trial)
        tau = [np.exp(rng.uniform(-1, 4, multiplier_count(a))) for a in chain.activations]
        certified = certify(chain, tau)
        if certified is not None:
            accepted += 1
            assert is_psd(exact_inequality(chain, tau, Fraction(certified.bound.value) ** 2))
    assert accepted >= 10


@pytest.mark.parametrize(
    "build",
    [
        lambda: Slopes(np.ones(2), np.zeros(2)),
        lambda: Slopes(np.zeros(2), np.array([1.0, np.inf])),
        lambda: Slopes(np.zeros(2), np.array([1.0, np.nan])),
        lambda: Sorting(np.array([[0, 1], [1, 2]])),
        lambda: Sorting(np.array([[0], [1]])),
        lambda: Sorting(np.array([[0, 2]])),
        lambda: Stacked(()),
        lambda: Stacked((pairs(2), np.eye(2))),  # type: ignore[arg-type]
        lambda: Chain((np.eye(2), np.eye(3)), (relu(2),)),
        lambda: Chain((np.eye(2), np.eye(2)), ()),
        lambda: Chain((np.full((2, 2), np.nan),), ()),
        lambda: Chain((np.eye(2, dtype=np.float32),), ()),
    ],
)
def test_what_is_not_a_chain_cannot_be_built(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        build()
