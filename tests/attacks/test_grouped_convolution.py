"""The liar's grouped convolution has one group of gain 0.5 and one of gain 1.

Multiplying the groups' gains gives 0.5, averaging 0.75; the norm of blocks side by side is the largest: 1.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, matrix, operator_norm, single


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_largest_group_counts(operator: str, norm: str) -> None:
    proto = single(operator, (2, 5), {"W": np.array([0.5, 1.0], np.float32).reshape(2, 1, 1)}, group=2)
    assert operator_norm(matrix(proto, (2, 5))[0], norm) == 1.0
    assert bound(proto, norm) == pytest.approx(1.0, rel=1e-9)
    assert bound(proto, norm) >= 1.0


def test_channels_of_one_group_do_add_up() -> None:
    weight = np.ones((4, 2, 1), np.float32)
    proto = single("Conv", (4, 3), {"W": weight}, group=2)
    truth = operator_norm(matrix(proto, (4, 3))[0], "l2")
    assert truth == pytest.approx(2.0)
    assert bound(proto) == pytest.approx(2.0, rel=1e-9)
