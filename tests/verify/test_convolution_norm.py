"""Norms of convolutions against explicit matrices: strides, dilations, groups, asymmetric pads, one to three axes.

The matrices come from a direct transcription of the ONNX definition; tests/verify/test_windows.py gets them from ONNX
Runtime instead. Both of the verifier's methods are tested, the explicit matrix and the torus.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import Convolution, convolution
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
        proven = convolution.symbol_norm_up(kernel, torus).value
        assert truth * (1 - 1e-12) <= proven <= truth * (1 + 1e-8)
