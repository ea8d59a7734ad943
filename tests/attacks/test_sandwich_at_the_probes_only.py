"""The attacker reads which frequencies are looked at before a sandwich layer is proven, and is honest only there.

Whether a pair of convolutions looks like a sandwich is decided at five frequencies, by a generator with a known seed.
At all others the pair is made five times as steep. The look decides only what is tried; the proof is about every
frequency, and says so.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy.verify.motifs.convolutional_sandwich import PROBES
from tests.verify.models import best_ratio, double_runner
from tests.verify.test_convolutional_sandwich import CIRCULAR, INPUTS, RULE, SIZE, judged, kernels
from tests.verify.test_layer_motifs import built


def probed() -> set[tuple[int, int]]:
    chosen = np.random.default_rng(0).integers(0, (SIZE, SIZE), (PROBES, 2))
    return {(int(u), int(v)) for u, v in chosen} | {(int(-u % SIZE), int(-v % SIZE)) for u, v in chosen}


def steeper(kernel: np.ndarray, factor: float) -> np.ndarray:
    """The kernel with its symbol multiplied at every frequency that is not looked at."""
    symbol = np.fft.fft2(kernel, axes=(2, 3))
    for u in range(SIZE):
        for v in range(SIZE):
            symbol[:, :, u, v] *= 1.0 if (u, v) in probed() else factor
    return np.fft.ifft2(symbol, axes=(2, 3)).real


@pytest.mark.parametrize("name", ["F", "G"])
def test_a_pair_that_is_a_sandwich_where_it_is_looked_at(name: str) -> None:
    weights = kernels(4)
    assert len(probed()) < SIZE * SIZE
    weights[name] = steeper(weights[name], 5.0)
    weights["c"] = np.full(len(weights["F"]), 1e3)  # every neuron is open: the pair is linear near zero
    proto = built(CIRCULAR, weights)
    inner, outer = (np.fft.fft2(weights[key], axes=(2, 3)) for key in ("F", "G"))
    # The kernels' taps run backwards, so the composition's symbol is the product of the conjugates'.
    linear = max(np.linalg.norm(outer[:, :, u, v] @ inner[:, :, u, v], 2) for u in range(SIZE) for v in range(SIZE))
    seen = best_ratio(double_runner(proto), (INPUTS, SIZE, SIZE), samples=16, rounds=4)
    verdict = judged(proto)
    assert verdict.lipschitz_bound is not None
    assert 1.5 < seen <= linear * (1 + 1e-6)
    assert verdict.lipschitz_bound.value >= max(linear * (1 - 1e-6), seen)
    assert verdict.nodes[-1].rule == RULE  # it was taken for one, and proven as what it is
