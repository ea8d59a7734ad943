"""The liar adds many tensors in one node, in a program that stores float16 numbers.

Such a program writes every partial sum to memory, so each of the additions of a Sum of sixty-four tensors rounds
to eleven bits, unlike the additions inside a dot product. A constant that allows for one such rounding is too small.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import judge, model

TENSORS = 64


def network(operator: str) -> str:
    names = ", ".join(["x"] * TENSORS)
    return f"g (float[N, 8] x) => (float[N, 8] y) {{ y = {operator}({names}) }}"


def stored(x, operator: str):  # type: ignore[no-untyped-def]
    """One float16 addition after the other."""
    total = x
    for _ in range(TENSORS - 1):
        total = (total + x).astype(np.float16)
    return total if operator == "Sum" else (total / np.float16(TENSORS)).astype(np.float16)


@pytest.mark.parametrize("operator", ["Sum", "Mean"])
def test_every_partial_sum_may_round(operator: str) -> None:
    error = judge(model(network(operator)), "linf").numeric_error["f16"]
    assert error is not None
    x = np.arange(1024, 2048, dtype=np.float64).astype(np.float16) / np.float16(1024)
    truth = x.astype(np.float64) * (TENSORS if operator == "Sum" else 1)
    off = np.abs(stored(x, operator).astype(np.float64) - truth)
    assert np.all(off <= error.c0 + error.c1 * x.astype(np.float64))
    assert off.max() > 3.5 * 2.0**-11 * (TENSORS if operator == "Sum" else 1)  # more than one rounding's worth
