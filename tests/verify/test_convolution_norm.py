"""Norms of convolutions against explicit matrices: strides, dilations, groups, asymmetric pads, one to three axes.

The matrices come from a direct transcription of the ONNX definition; tests/verify/test_windows.py gets them from ONNX
Runtime instead. Both of the verifier's methods are tested, the explicit matrix and the torus.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import flint
import numpy as np
import pytest
from scipy.sparse.linalg import svds

from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import Convolution, convolution, embedding
from lipdeploy.verify.operator_norm.embedding import chosen
from lipdeploy.verify.operator_norm.symbol import Grid, Symbol, symbol_norm_up
from tests.verify.models import operator_norm

NAMES = {"l2": (Norm.L2, Norm.L2), "linf": (Norm.LINF, Norm.LINF), "l1": (Norm.L1, Norm.L1)}


@dataclass(frozen=True)
class Case:
    kernel: np.ndarray
    image: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(
            (n + sum(pad) - (k - 1) * d - 1) // s + 1
            for n, pad, k, d, s in zip(
                self.image, self.pads, self.kernel.shape[2:], self.dilations, self.strides, strict=True
            )
        )

    def convolution(self) -> Convolution:
        return Convolution(self.kernel, self.image, self.pads, self.strides, self.dilations, self.groups, self.outputs)

    def matrix(self) -> np.ndarray:
        """y[o, p] = Σ K[o, i, t]·x[i, p·s + t·d − pad], zero outside the image."""
        out, per_group = self.kernel.shape[:2]
        channels = per_group * self.groups
        rows = np.zeros((out, *self.outputs, channels, *self.image))
        for o, i in itertools.product(range(out), range(per_group)):
            channel = o // (out // self.groups) * per_group + i
            for position in itertools.product(*map(range, self.outputs)):
                for tap in itertools.product(*map(range, self.kernel.shape[2:])):
                    pixel = tuple(
                        p * s + t * d - pad[0]
                        for p, s, t, d, pad in zip(position, self.strides, tap, self.dilations, self.pads, strict=True)
                    )
                    if all(0 <= x < n for x, n in zip(pixel, self.image, strict=True)):
                        rows[(o, *position, channel, *pixel)] += self.kernel[(o, i, *tap)]
        return rows.reshape(out * math.prod(self.outputs), -1)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(1, 4))
    while True:
        groups = int(rng.choice([1, 1, 2, 3]))
        case = Case(
            kernel=rng.standard_normal(
                (groups * int(rng.integers(1, 3)), int(rng.integers(1, 3)), *rng.integers(1, 4, axes))
            ),
            image=tuple(int(n) for n in rng.integers(1, (0, 12, 6, 4)[axes] + 1, axes)),
            pads=tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (axes, 2))),
            strides=tuple(int(s) for s in rng.integers(1, 4, axes)),
            dilations=tuple(int(d) for d in rng.integers(1, 4, axes)),
            groups=groups,
        )
        if min(case.outputs) > 0:
            return case


@pytest.mark.parametrize("explicit", [True, False], ids=["matrix", "torus"])
@pytest.mark.parametrize("start", range(0, 120, 30))
def test_random_convolutions(start: int, explicit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not explicit:
        monkeypatch.setattr(convolution, "EXPLICIT_SIZE", 0)
    for seed in range(start, start + 30):
        case = random_case(seed)
        truth, operator = case.matrix(), case.convolution()
        gains, adjoint = operator.gains(tuple(Norm)), operator.adjoint_gains(tuple(Norm))
        for name, pair in NAMES.items():
            assert gains[pair].value >= operator_norm(truth, name) * (1 - 1e-13), (name, case)
            assert adjoint[pair].value >= operator_norm(truth.T, name) * (1 - 1e-13), (name, case)
        if explicit:
            assert gains[Norm.L2, Norm.L2].value <= operator_norm(truth, "l2") * (1 + 1e-9), case
        absolute = operator.absolute_gains(gains)[Norm.L2, Norm.L2].value
        assert absolute >= operator_norm(np.abs(truth), "l2") * (1 - 1e-13), case


@pytest.mark.parametrize(("image", "limit"), [(16, 1.1), (64, 1.02), (256, 1.002)])
def test_the_torus_gets_tight_for_large_images(image: int, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "EXPLICIT_SIZE", 0)
    kernel = np.random.default_rng(5).standard_normal((3, 2, 3))
    case = Case(kernel, (image,), ((1, 1),), (1,), (1,), 1)
    truth = operator_norm(case.matrix(), "l2")
    proven = case.convolution().gains((Norm.L2, Norm.LINF))[Norm.L2, Norm.L2].value
    assert truth <= proven <= truth * limit


def test_stride_and_dilation_that_share_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """K = [1, 1], s = d = 2: the taps meet again after the stride, so the norm is 1.96, not √2."""
    case = Case(np.ones((1, 1, 2)), (16,), ((0, 0),), (2,), (2,), 1)
    truth = operator_norm(case.matrix(), "l2")
    assert truth == pytest.approx(1.9499, abs=0.02)
    for limit in (1024, 0):
        monkeypatch.setattr(convolution, "EXPLICIT_SIZE", limit)
        assert case.convolution().gains((Norm.L2, Norm.LINF))[Norm.L2, Norm.L2].value >= truth


def test_groups_are_blocks_and_take_the_maximum() -> None:
    kernel = np.array([3.0, 4.0]).reshape(2, 1, 1)
    case = Case(kernel, (5,), ((0, 0),), (1,), (1,), 2)
    assert case.convolution().gains((Norm.L2, Norm.LINF))[Norm.L2, Norm.L2].value == pytest.approx(4.0, rel=1e-9)


@pytest.mark.parametrize("torus", [(6,), (9,), (4, 5), (3, 4, 3)])
def test_the_torus_norm_is_the_circulant_norm(torus: tuple[int, ...]) -> None:
    """Tight and never below: the circulant operator, written out with NumPy's FFT as an independent route."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        taps = tuple(int(rng.integers(1, n + 1)) for n in torus)
        kernel = rng.standard_normal((3, 2, *taps))
        padded = np.zeros((3, 2, *torus))
        padded[(slice(None), slice(None), *(slice(0, t) for t in taps))] = kernel
        symbols = np.moveaxis(np.fft.fftn(padded, axes=tuple(range(2, 2 + len(torus)))), (0, 1), (-2, -1))
        truth = float(np.linalg.norm(symbols, 2, axis=(-2, -1)).max())
        proven = symbol_norm_up(Symbol(kernel[None]), Grid(torus, (0,) * len(torus))).value
        assert truth * (1 - 1e-12) <= proven <= truth * (1 + 1e-8)


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_every_torus_and_twist_dominates_the_operator(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever embedding a hint names: at least as many rows as the smallest torus, any twist."""
    monkeypatch.setattr(convolution, "EXPLICIT_SIZE", 0)
    for seed in range(start, start + 20):
        case = random_case(seed)
        operator, truth = case.convolution(), operator_norm(case.matrix(), "l2")
        for extra in (0, 1, 2):
            for twist in itertools.product((0, 1), repeat=len(case.image)):
                torus = [n + extra for n in operator.torus]
                guide = Guide({"torus": torus, "twist": list(twist)})
                assert operator.spectral_norm_up(guide).value >= truth * (1 - 1e-13), (case, torus, twist)
                assert guide.found["torus"] == torus and guide.found["twist"] == list(twist)


def test_a_smaller_torus_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """K = [1, 0, −1] without room: the circulant on two pixels is 0, the operator is not."""
    monkeypatch.setattr(convolution, "EXPLICIT_SIZE", 0)
    case = Case(np.array([[[1.0, 0.0, -1.0]]]), (2,), ((1, 1),), (1,), (1,), 1)
    truth = operator_norm(case.matrix(), "l2")
    assert symbol_norm_up(Symbol(case.kernel[None]), Grid((2,), (0,))).value < 1e-6 < truth
    for torus in ([1], [2], [0], [3, 3], ["3"], None):
        guide = Guide({"torus": torus, "twist": [0]})
        assert case.convolution().spectral_norm_up(guide).value >= truth


def test_the_twist_chosen_is_the_best_of_those_tried() -> None:
    for seed in range(8):
        kernel = np.random.default_rng(seed).standard_normal((1, 3, 4, 3, 3))
        symbol = Symbol(kernel)
        best = symbol_norm_up(symbol, chosen(symbol, (5, 6), Guide())).value
        for extra, twist in itertools.product((0, 1, 2), itertools.product((0, 1), repeat=2)):
            assert best <= symbol_norm_up(symbol, Grid((5 + extra, 6 + extra), twist)).value * (1 + 1e-6)


@pytest.mark.parametrize("twist", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_twisted_frequencies_against_a_direct_sum(twist: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((3, 2, 3, 2))
    truth = 0.0
    for i, j in itertools.product(range(5), range(4)):
        w = np.array([2 * np.pi * (i + twist[0] / 2) / 5, 2 * np.pi * (j + twist[1] / 2) / 4])
        symbol = sum(kernel[:, :, a, b] * np.exp(1j * (a * w[0] + b * w[1])) for a in range(3) for b in range(2))
        truth = max(truth, float(np.linalg.norm(symbol, 2)))
    proven = symbol_norm_up(Symbol(kernel[None]), Grid((5, 4), twist)).value
    assert truth * (1 - 1e-13) <= proven <= truth * (1 + 1e-8)


@pytest.mark.parametrize(("torus", "twist"), [((3,), (0,)), ((7,), (1,)), ((4, 5), (1, 0)), ((3, 2, 5), (0, 1, 1))])
def test_symbols_against_ball_arithmetic(torus: tuple[int, ...], twist: tuple[int, ...]) -> None:
    """λ_max at every frequency in 200-bit balls: none above the square of what is proven."""
    previous, flint.ctx.prec = flint.ctx.prec, 200
    try:
        rng = np.random.default_rng(len(torus))
        kernel = rng.standard_normal((3, 4, *(2 for _ in torus)))
        proven = flint.arb(symbol_norm_up(Symbol(kernel[None]), Grid(torus, twist)).value)
        largest = 0.0
        for index in np.ndindex(*torus):
            symbol = flint.acb_mat(3, 4)
            for tap in np.ndindex(*kernel.shape[2:]):
                turns = sum(
                    (flint.arb(2 * i + t) / n * b for i, t, n, b in zip(index, twist, torus, tap, strict=True)),
                    flint.arb(0),
                )
                symbol += flint.acb_mat(kernel[(slice(None), slice(None), *tap)].tolist()) * flint.acb(turns).exp_pi_i()
            values = (symbol * symbol.conjugate().transpose()).eig(algorithm="rump", tol=1e-40)
            top = max((value.real for value in values), key=lambda ball: float(ball.mid()))
            assert top.sqrt() <= proven
            largest = max(largest, float(top.sqrt().mid()))
        assert float(proven.mid()) <= largest * (1 + 1e-9)
    finally:
        flint.ctx.prec = previous


@pytest.mark.parametrize(("channels", "size", "stride"), [(20, 8, 1), (40, 8, 2), (90, 4, 1)])
def test_larger_maps_are_tight_against_arpack(channels: int, size: int, stride: int) -> None:
    """1,280 to 1,440 rows: above the size that is always written out, within the extra work."""
    rng = np.random.default_rng(channels)
    kernel = rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)
    case = Case(kernel, (size, size), ((1, 1), (1, 1)), (stride, stride), (1, 1), 1)
    guide = Guide()
    proven = case.convolution().spectral_norm_up(guide).value
    assert "matrix" in guide.found
    truth = float(svds(case.convolution()._matrix(kernel), k=1, return_singular_vectors=False, tol=1e-14)[0])
    assert truth * (1 - 1e-12) <= proven <= truth * (1 + 1e-9)
    assert case.convolution().spectral_norm_up(Guide(dict(guide.found))).value <= proven * (1 + 1e-12)


def test_the_extra_work_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = np.random.default_rng(0).standard_normal((20, 20, 3, 3))
    case = Case(kernel, (8, 8), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    guide = Guide()
    guide.effort.left = 1e6
    assert case.convolution().spectral_norm_up(guide) > case.convolution().spectral_norm_up()
    assert "torus" in guide.found and guide.effort.left == 1e6


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e150])
def test_kernels_of_any_size(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(7)
    scaled = Case(case.kernel * scale, case.image, case.pads, case.strides, case.dilations, case.groups)
    for limit in (1024, 0):
        monkeypatch.setattr(convolution, "EXPLICIT_SIZE", limit)
        plain = case.convolution().spectral_norm_up().value
        assert scaled.convolution().spectral_norm_up().value == pytest.approx(plain * scale, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_shorter_look_at_later_grids_finds_as_good_a_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a third of their frequencies are ranked, near to where the first grid was large."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((1, 32, 32, 3, 3)) * 2.0 ** rng.uniform(-1, 1, (1, 1, 1, 3, 3))
    symbol = Symbol(kernel)
    short = symbol_norm_up(symbol, chosen(symbol, (15, 15), Guide())).value
    monkeypatch.setattr(embedding, "COMPARED", 0)
    assert short <= symbol_norm_up(symbol, chosen(symbol, (15, 15), Guide())).value * (1 + 1e-4)
