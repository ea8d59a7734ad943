"""The liar feeds integers, because they do not obey the real-valued rules.

int64 → float32 rounds: 2²⁴ and 2²⁴ + 1 become one number, larger neighbours jump by many. int8 wraps: −(−128)
is −128, so Neg moves one step to 255. A float → integer Cast jumps. Only types whose every value the float holds pass,
and only through operators that do not compute (LIP015, LIP021).
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, codes, model, run


@pytest.mark.parametrize("kind", ["int64", "uint64", "int32", "uint32", "bool", "bfloat16", "string"])
def test_wide_integers_are_no_input(kind: str) -> None:
    proto = model(f"g ({kind}[N, 1] x) => (float[N, 1] y) {{ y = Cast<to = 1>(x) }}")
    assert codes(proto) == ["LIP021"]


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_narrow_integers_are_exact(kind: str) -> None:
    proto = model(f"g ({kind}[N, 1] x) => (float[N, 1] y) <float c = {{0.5}}> {{ f = Cast<to = 1>(x) y = Mul(f, c) }}")
    assert bound(proto) == 0.5


@pytest.mark.parametrize("operator", ["Neg", "Abs"])
def test_arithmetic_on_integers_wraps(operator: str) -> None:
    proto = model(f"g (int8[N, 1] x) => (float[N, 1] y) {{ a = {operator}(x) y = Cast<to = 1>(a) }}")
    low, next_to_it = run(proto, np.array([[-128], [-127]], np.int8)).reshape(-1)
    assert abs(low - next_to_it) == 255.0
    assert codes(proto) == ["LIP015"]


@pytest.mark.parametrize(("kind", "held"), [("uint8", True), ("int8", True), ("uint16", False), ("int16", False)])
def test_float16_holds_eight_bits_only(kind: str, held: bool) -> None:
    """2049 is no float16 number."""
    proto = model(f"g ({kind}[N, 1] x) => (float16[N, 1] y) {{ y = Cast<to = 10>(x) }}")
    assert bound(proto) == 1.0 if held else codes(proto) == ["LIP015"]


@pytest.mark.parametrize("target", [2, 3, 5, 6, 7, 9, 16])
def test_conversions_of_activations_to_other_types(target: int) -> None:
    text = f"g (float[N, 1] x) => (float[N, 1] y) {{ a = Cast<to = {target}>(x) y = Cast<to = 1>(a) }}"
    assert codes(model(text)) == ["LIP015"]


def test_constants_that_wrap_in_the_runtime() -> None:
    """int32: 2147483647 + 1 wraps to −2147483648; an exact evaluator would say 2147483648 and later 1."""
    text = """g (float[N, 1] x) => (float[N, 1] y) <int32[1] a = {2147483647}, int32[1] one = {1}, int64[1] b =
      {2147483647}>
      { c = Add(a, one) d = Cast<to = 7>(c) w = Sub(d, b) f = Cast<to = 1>(w) y = Mul(x, f) }"""
    proto = model(text)
    assert run(proto, np.ones((1, 1), np.float32)).item() == -4294967296.0
    assert codes(proto) == ["LIP017"]


def test_constants_beyond_any_integer() -> None:
    text = """g (float[N, 1] x) => (float[N, 1] y) <int64[1] a = {9223372036854775807}, int64[1] one = {1}>
      { c = Add(a, one) f = Cast<to = 1>(c) y = Mul(x, f) }"""
    assert codes(model(text)) == ["LIP017"]
