"""Sums in blocks, in trees, permuted, fused: whatever order a float32 kernel takes, the constants cover it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.verify.models import judge
from tests.verify.test_numeric_error import lengths, network

Array = np.ndarray[Any, Any]
INPUTS, HIDDEN, ROWS = 6, 150, 80


def single(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def product_sum(x: Array, weight: Array, start: Array, order: Array, fused: bool) -> Array:
    """start + Σ x_k w_k in float32, one rounding an operation; fused: one for product and addition together.

    The product of two float32 numbers is exact in float64. Adding it there and rounding again is a fused multiply-add
    but for a double rounding of 2⁻⁵³ relative: far below what is tested.
    """
    total = start
    for k in order:
        product = x[:, None, k] * weight[None, :, k]
        total = single(total + (product if fused else single(product)))
    return total


def dense(x: Array, weight: Array, bias: Array, order: Array, block: int, fused: bool, bias_first: bool) -> Array:
    """Blocks of ``block`` terms, whose sums are added as a tree; the bias starts the first block or comes last."""
    zero = np.zeros((len(x), len(weight)))
    parts = [order[start : start + block] for start in range(0, len(order), block)]
    sums = [
        product_sum(x, weight, zero + bias if bias_first and i == 0 else zero, part, fused)
        for i, part in enumerate(parts)
    ]
    while len(sums) > 1:
        sums = [single(sum(pair[1:], pair[0])) for pair in (sums[i : i + 2] for i in range(0, len(sums), 2))]
    return sums[0] if bias_first else single(sums[0] + bias)


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e9])
@pytest.mark.parametrize("fused", [False, True])
def test_any_order_stays_within(fused: bool, scale: float, cancelling: bool) -> None:
    rng = np.random.default_rng(21)
    stack = []
    for depth, width in itertools.pairwise((INPUTS, HIDDEN, 12, 3)):
        weight = rng.standard_normal((width, depth)) * scale ** (1 if depth == INPUTS else -0.5)
        if cancelling:  # neighbours that nearly take each other away
            weight[:, 1 : 2 * (depth // 2) : 2] = -weight[:, : 2 * (depth // 2) : 2] * (1 + 1e-6)
        stack.append((single(weight), single(rng.standard_normal(width) * scale)))
    error = judge(network([(w.astype(np.float32), b.astype(np.float32)) for w, b in stack], "Relu")).numeric_error[
        "f32"
    ]
    assert error is not None
    x = single(rng.standard_normal((ROWS, INPUTS)) * 10.0 ** rng.uniform(-6, 6, (ROWS, 1)))
    size = lengths(x, "l2")
    truth = x
    for k, (weight, bias) in enumerate(stack):
        truth = truth @ weight.T + bias
        truth = np.maximum(truth, 0.0) if k < 2 else truth
    worst = 0.0
    for order, block, bias_first in itertools.product(range(3), (1, 8, 16, HIDDEN), (False, True)):
        h = x
        for k, (weight, bias) in enumerate(stack):
            depth = weight.shape[1]
            route = (np.arange(depth), np.arange(depth)[::-1], np.random.default_rng(k).permutation(depth))[order]
            h = dense(h, weight, bias, route, block, fused, bias_first)
            h = np.maximum(h, 0.0) if k < 2 else h
        allowed = error.c0 + error.c1 * size
        found = np.abs(h - truth).max(axis=1)
        assert np.all(found <= allowed)
        worst = max(worst, float((found / allowed).max()))
    assert worst > 1e-6, "no rounding was seen: the test measures nothing"
