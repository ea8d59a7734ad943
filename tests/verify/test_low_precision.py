"""Error constants of programs on tensor cores: TF32, float16 and bfloat16, imitated in NumPy bit by bit.

Both factors lose their low bits (rounded to nearest; TF32 units may also drop them), the products are exact, the sums
are float32 with every addition truncated, in several orders, with partial sums aligned, and float16 and bfloat16 store
every result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.verify.models import judge
from tests.verify.test_numeric_error import lengths, network

Array = np.ndarray[Any, Any]
INPUTS, HIDDEN, OUTPUTS, ROWS = 6, 40, 3, 60


def cut(values: Array, bits: int) -> Array:
    """The leading ``bits`` bits of each float64 number's significand, the rest dropped."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.trunc(np.ldexp(fraction, bits)), exponent - bits)


def nearest(values: Array, bits: int) -> Array:
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


BITS = {"tf32": 11, "f16": 11, "bf16": 8}
SMALLEST = {"tf32": 2.0**-126, "f16": 2.0**-14, "bf16": 2.0**-126}


def narrow(values: Array, mode: str, how: Callable[[Array, int], Array]) -> Array:
    """To the format, subnormal numbers flushed."""
    rounded = how(values, BITS[mode])
    return np.where(np.abs(rounded) < SMALLEST[mode], 0.0, rounded)


def tensor_core(x: Array, weight: Array, bias: Array, order: Array, block: int) -> Array:
    """x·Wᵀ + b (batch, out): truncated float32 additions of blocks, in the order given."""
    total = np.zeros((len(x), len(weight))) if block % 2 else np.broadcast_to(bias, (len(x), len(weight))).copy()
    for start in range(0, len(order), block):
        chosen = order[start : start + block]
        products = x[:, None, chosen] * weight[None, :, chosen]  # exact: 11 + 11 bits
        largest = np.maximum(np.abs(products).max(axis=2), np.abs(total))
        grain = np.ldexp(1.0, np.frexp(largest)[1] - 24)  # every partial sum is aligned to the largest exponent
        aligned = np.trunc(products / grain[..., None]) * grain[..., None]
        total = cut(np.trunc(total / grain) * grain + aligned.sum(axis=2), 24)
    return cut(total + bias, 24) if block % 2 else total


def program(x: Array, stack: list[tuple[Array, Array]], mode: str, how: Any, order: int, block: int) -> Array:
    stored = mode != "tf32"
    h = narrow(x, mode, how) if stored else x
    for k, (weight, bias) in enumerate(stack):
        depth = weight.shape[1]
        route = [np.arange(depth), np.arange(depth)[::-1], np.random.default_rng(k).permutation(depth)][order]
        factors = (narrow(h, mode, how), narrow(weight, mode, how)) if not stored else (h, weight)
        h = tensor_core(*factors, bias, route, block)
        h = narrow(h, mode, how) if stored else h
        h = np.maximum(h, 0.0) if k + 1 < len(stack) else h
    return h


def layers(mode: str, scale: float, seed: int) -> list[tuple[Array, Array]]:
    """float32 weights that the format holds."""
    rng = np.random.default_rng(seed)
    sizes = (INPUTS, HIDDEN, HIDDEN, OUTPUTS)
    stack = []
    for depth, width in itertools.pairwise(sizes):
        weight = rng.standard_normal((width, depth)) * rng.choice([scale, 1.0, 1.0 / scale], (width, 1))
        weight[:, ::2] = np.abs(weight[:, ::2])  # sums that grow
        pair = (weight / np.sqrt(depth), rng.standard_normal(width))
        stored = [narrow(part, mode, nearest) if mode != "tf32" else part.astype(np.float32) for part in pair]
        stack.append((stored[0].astype(np.float32).astype(float), stored[1].astype(np.float32).astype(float)))
    return stack


def judged(stack: list[tuple[Array, Array]], norm: str = "l2") -> Any:
    return judge(network([(w.astype(np.float32), b.astype(np.float32)) for w, b in stack], "Relu"), norm).numeric_error


@pytest.mark.parametrize(("mode", "how"), [("tf32", cut), ("tf32", nearest), ("f16", nearest), ("bf16", nearest)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_measured_errors_stay_below(mode: str, scale: float, how: Any) -> None:
    rng = np.random.default_rng(5)
    for seed in range(3):
        stack = layers(mode, scale, seed)
        error = judged(stack)[mode]
        assert error is not None
        spread = 10.0 ** rng.uniform(-6 if mode == "f16" else -8, 1, (ROWS, 1))
        x = (rng.standard_normal((ROWS, INPUTS)) * spread).astype(np.float32).astype(float)
        size = lengths(x, "l2")
        inside = size <= error.x_max
        assert inside.sum() > ROWS // 2
        truth = x
        for k, (weight, bias) in enumerate(stack):
            truth = truth @ weight.T + bias
            truth = np.maximum(truth, 0.0) if k + 1 < len(stack) else truth
        for order in range(3):
            for block in (1, 4, 7, 8, HIDDEN):
                found = program(x, stack, mode, how, order, block)
                worst = np.abs(found - truth).max(axis=1)
                assert np.all(worst[inside] <= (error.c0 + error.c1 * size)[inside])


def test_the_constants_are_large_and_in_order() -> None:
    """Each format loses what it must: a bound below one rounding of the output would be a lie."""
    error = judged(layers("bf16", 1.0, 0))  # weights that bfloat16 and float16 both hold
    assert all(error[mode] is not None for mode in ("f64", "f32", "tf32", "f16", "bf16"))
    assert error["f64"].c1 < error["f32"].c1 < error["tf32"].c1 < error["bf16"].c1
    assert error["tf32"].c1 > 100 * error["f32"].c1
    assert error["f16"].x_max < 65504 < error["f32"].x_max


def test_weights_that_the_format_does_not_hold_have_no_constants() -> None:
    """The program would be another network's: nothing is claimed."""
    error = judged(layers("tf32", 1.0, 0))
    assert error["f16"] is None and error["bf16"] is None
    assert error["tf32"] is not None and error["f32"] is not None
    half = judged(layers("f16", 1.0, 0))
    assert half["f16"] is not None and half["bf16"] is None
