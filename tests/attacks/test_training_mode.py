"""The liar exports in training mode: BatchNormalization then uses the batch's own statistics.

A neighbour in the batch moves the answer, and a batch of equal samples divides by √ε. Refused (LIP009), as is Dropout
in training mode and a Dropout whose mode is decided by the input.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, codes, judge, model, single

STATISTICS = {name: np.ones(2, np.float32) for name in "sbmv"}


def test_batch_normalization() -> None:
    assert bound(single("BatchNormalization", (2,), STATISTICS)) == pytest.approx(1.0, rel=1e-4)
    assert codes(single("BatchNormalization", (2,), STATISTICS, training_mode=1)) == ["LIP009"]


@pytest.mark.parametrize("opset", [13, 14, 15, 20])
def test_extra_outputs_mean_training(opset: int) -> None:
    proto = single("BatchNormalization", (2,), STATISTICS, opset=opset)
    proto.graph.node[0].output.extend(["mean", "var"])
    assert judge(proto).status == "refused"


def test_dropout() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) <float r = {{0.5}}, bool t = {{{mode}}}> {{ y = Dropout(x, r, t) }}"
    assert bound(model(text.format(mode=0))) == 1.0
    assert codes(model(text.format(mode=1))) == ["LIP009"]


@pytest.mark.parametrize("call", ["Dropout(x, z)", "Dropout(x, , z)"])
def test_dropout_steered_by_the_input(call: str) -> None:
    text = f"g (float[N, 2] x, float[N, 2] z) => (float[N, 2] y) {{ y = {call} }}"
    assert judge(model(text)).status == "refused"


@pytest.mark.parametrize("variance", [-1.0, -1e-5, 0.0])
def test_tiny_and_negative_variances(variance: float) -> None:
    """√(var + ε) is what divides: with ε = 0 or a negative variance the slope has no bound."""
    statistics = {**STATISTICS, "v": np.full(2, variance, np.float32)}
    assert judge(single("BatchNormalization", (2,), statistics, epsilon=0.0)).status == "refused"
    if variance == 0.0:
        proto = single("BatchNormalization", (2,), statistics, epsilon=1e-12)
        assert bound(proto) >= 1.0 / np.sqrt(np.float64(np.float32(1e-12))) * (1 - 1e-12)
