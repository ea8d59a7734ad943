"""The liar convolves with kernel [1, 1], stride 2 and dilation 2.

Forgetting that stride and dilation share a factor, the two taps seem never to meet again: √2. They do (tap 1 of one
window is tap 0 of the next), and the norm approaches 2: 1.9616 on sixteen pixels with a pad. The same in MaxPool.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, matrix, operator_norm, single


@pytest.mark.parametrize("pads", [[0, 0], [1, 0], [0, 2], [2, 2]])
@pytest.mark.parametrize("image", [16, 17, 200])
def test_the_taps_meet(image: int, pads: list[int]) -> None:
    kernel = np.ones((1, 1, 2), np.float32)
    proto = single("Conv", (1, image), {"W": kernel}, strides=[2], dilations=[2], pads=pads)
    truth = operator_norm(matrix(proto, (1, image))[0], "l2")
    assert truth > 1.9
    assert truth * (1 - 1e-12) <= bound(proto) <= 2.0 * (1 + 1e-9)


def test_pooling_windows_meet_too() -> None:
    assert bound(single("MaxPool", (1, 16), kernel_shape=[2], strides=[2], dilations=[2])) >= 2**0.5
