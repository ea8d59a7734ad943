"""The arithmetic that the CUDA kernels do in fewer instructions than the header's: the same bits, also at the edges.

Truth: the processor's own division, and the NumPy meaning of LinearSpline.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from lipdeploy.ops import OPERATORS
from tests.custom_ops.compiling import KERNELS, compiled
from tests.ops.cases import TYPES, bits
from tests.ops.runners import Entries

PROBE = """
#include "../src/cuda/linear_spline.cu"
using namespace lipdeploy;
// How many floats of [1, 2) are divided by h otherwise than by the processor.
extern "C" int64_t wrong_quotients(float h) {
  const QuickSteps steps = QuickSteps::of({1, 1, 1, 1, 3, 0.f, h});
  int64_t wrong = 0;
  for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
    const float a = bits_as<float>(0x3f800000u | mantissa);
    wrong += bits_as<uint32_t>(steps.divided(a)) != bits_as<uint32_t>(a / h);
  }
  return wrong;
}
// How many of the numbers below 2^31 around multiples of the divisor are divided otherwise.
extern "C" int64_t wrong_whole_quotients(uint32_t divisor) {
  const Divider divider = Divider::by(divisor);
  const uint64_t multiples = (uint64_t{1} << 31) / divisor, step = multiples / 100000 + 1;
  int64_t wrong = 0;
  for (uint64_t k = 0; k <= multiples; k += step)
    for (int64_t near = -2; near <= 2; ++near) {
      const int64_t n = static_cast<int64_t>(k * divisor) + near;
      if (n >= 0 && n < int64_t{1} << 31) wrong += divider.quotient(static_cast<uint32_t>(n)) != n / divisor;
    }
  const uint32_t last = (1u << 31) - 1;
  return wrong + (divider.quotient(last) != last / divisor);
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(PROBE, tmp_path_factory.mktemp("arithmetic"), "-O2", KERNELS)))
    library.wrong_quotients.restype = library.wrong_whole_quotients.restype = ctypes.c_int64
    return library


def test_the_quotient_is_the_nearest(probe: ctypes.CDLL) -> None:
    """All 2²³ significands by spacings with awkward ones: next to 1 and 2, √2, thirds, and those of the papers."""
    near = [np.nextafter(np.float32(v), np.float32(w)) for v in (1, 2) for w in (0, 4)]
    drawn = np.random.default_rng(0).uniform(1, 2, 12).astype(np.float32)
    for h in (*near, 1.0, 2**0.5, 4 / 3, 5 / 3, 0.08, 0.1, 0.004, 2**-24, 2**24, *drawn):
        assert probe.wrong_quotients(ctypes.c_float(h)) == 0, h


def test_whole_numbers_below_two_to_the_31_are_divided(probe: ctypes.CDLL) -> None:
    drawn = np.random.default_rng(0).integers(1, 2**31, 40)
    for divisor in (*range(1, 70), 2**16 - 1, 2**16, 2**16 + 1, 2**30 + 1, 2**31 - 1, 2**31, *map(int, drawn)):
        assert probe.wrong_whole_quotients(ctypes.c_uint32(divisor)) == 0, divisor


def meant(x: np.ndarray, table: np.ndarray, lower: float, knot_spacing: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return OPERATORS["LinearSpline"].evaluate(x, table, lower=lower, knot_spacing=knot_spacing, axis=1)


@pytest.mark.parametrize("type_name", ["f16", "bf16"])
@pytest.mark.parametrize("spacing", [0.08, 1.0, 3.0e-4])
def test_every_16_bit_number(type_name: str, spacing: float, emulated_library: Path) -> None:
    """Packs of numbers: every number of the type, with a flat part, a jump to infinity and both zeros in the table."""
    dtype = TYPES[type_name][0]
    x = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(-1, 8)
    table = np.random.default_rng(1).standard_normal((8, 51)).astype(dtype)
    table[1], table[2, :20], table[3, 7], table[4] = -0.0, 0.0, np.inf, np.arange(51) % 2 * 6e-5
    h = float(np.float32(spacing))
    got = Entries(emulated_library, "emulated").linear_spline(type_name, x, table, lower=-2.0, knot_spacing=h, axis=1)
    np.testing.assert_array_equal(bits(got), bits(meant(x, table, -2.0, h)))


@pytest.mark.parametrize("knots", [2, 51, 1025])
@pytest.mark.parametrize("spacing", [2.0**-25, 2.0**-24, 1e-4, 0.08, 1.0, 7.3, 2.0**24, 2.0**25, 1e30])
def test_float32_at_the_edges(knots: int, spacing: float, emulated_library: Path) -> None:
    """Around every knot, and where products are huge, tiny, zero of either sign, infinite or no numbers."""
    rng = np.random.default_rng(knots)
    h, lower = np.float32(spacing), np.float32(-spacing * knots / 3)
    with np.errstate(over="ignore"):
        at_knots = (lower + np.arange(-2, knots + 2, dtype=np.float32) * h).astype(np.float32)
        around = [np.nextafter(at_knots, np.float32(side)) for side in (-np.inf, np.inf)]
        scales = rng.standard_normal(4000) * 10.0 ** rng.integers(-45, 39, 4000)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, np.finfo("f4").max, -np.finfo("f4").max]
        values = np.concatenate([at_knots, *around, scales, np.tile(special, 16)]).astype(np.float32)
    x = np.resize(rng.permutation(values), (len(values) // 8, 8))
    with np.errstate(over="ignore"):
        table = (rng.standard_normal((8, knots)) * 10.0 ** rng.integers(-3, 3, (8, 1))).astype(np.float32)
        table[0] *= np.float32(1e38)
        table[1] *= np.float32(1e-38)
        table[2], table[3, ::2], table[4, knots // 2] = -0.0, 0.0, np.inf
        table[5, knots // 2] = np.nan
    got = Entries(emulated_library, "emulated").linear_spline(
        "f32", x, table, lower=float(lower), knot_spacing=float(h), axis=1
    )
    np.testing.assert_array_equal(bits(got), bits(meant(x, table, float(lower), float(h))))
