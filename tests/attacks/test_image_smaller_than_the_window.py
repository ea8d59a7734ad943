"""The liar leaves height open and serves an image that is smaller than the pooling window.

By the standard such a pool has no output. ONNX Runtime's integer division rounds towards zero, so with a stride above
one it makes one: the mean of the pixels that are there, which for one pixel is the pixel itself. A bound that divides
by the number of the window's taps is below that.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, model, run

GRAPH = """g (float[N, 1, H] x) => (float[N, 1, M] y)
    {{ y = AveragePool<kernel_shape = [{taps}], strides = [{stride}]{more}>(x) }}"""
NORMS = {"l2": 2, "l1": 1, "linf": np.inf}


def operator(proto, size: int):  # type: ignore[no-untyped-def]
    """The explicit matrix for one size, (outputs, size)."""
    return run(proto, np.eye(size, dtype=np.float32)[:, None, :])[:, 0].T.astype(np.float64)


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("more", ["", ", count_include_pad = 1"])
@pytest.mark.parametrize(("taps", "stride"), [(2, 3), (3, 3), (4, 2), (3, 2), (5, 4)])
def test_the_mean_of_what_is_there(taps: int, stride: int, more: str, norm: str) -> None:
    proto, judged = model(GRAPH.format(taps=taps, stride=stride, more=more)), 0
    proven = bound(proto, norm)
    for size in range(1, 4 * taps):
        try:
            matrix = operator(proto, size)
        except Exception:  # the runtime has no output, or no name for its failure, where nothing is left
            assert size < taps
            continue
        if matrix.size:
            judged += 1
            assert proven >= np.linalg.norm(matrix, NORMS[norm]) * (1.0 - 1e-6), size
    assert judged > taps


def test_the_smallest_image_reaches_the_bound() -> None:
    proto = model(GRAPH.format(taps=2, stride=3, more=""))
    assert operator(proto, 1).item() == 1.0
    assert bound(proto) == 1.0


@pytest.mark.parametrize("body", ["strides = [2], kernel_shape = [2], pads = [1, 0], count_include_pad = 1"])
def test_where_padding_keeps_every_image_large_enough_the_mean_is_divided(body: str) -> None:
    proto = model(f"g (float[N, 1, H] x) => (float[N, 1, M] y) {{ y = AveragePool<{body}>(x) }}")
    proven = bound(proto)
    assert proven == pytest.approx(0.5**0.5)
    for size in range(1, 9):
        assert proven >= np.linalg.norm(operator(proto, size), 2) * (1.0 - 1e-6)
