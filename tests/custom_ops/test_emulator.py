"""The emulator itself: it runs barriers, and notices a barrier that not every thread of a block reaches."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from lipdeploy.ops import OPERATORS
from tests.custom_ops.compiling import EMULATED, KERNELS, compiled
from tests.ops.cases import (
    SORT_CASES,
    TYPES,
    ReflectCase,
    SortCase,
    SplineCase,
    bits,
    reflect_angles,
    reflect_input,
    sort_input,
    spline_coefficients,
    spline_input,
)
from tests.ops.runners import Entries

PROBE = """
#include "emulate_cuda.h"
__global__ void reverse(int* data) {
  __shared__ int tile[64];
  tile[threadIdx.x] = data[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  data[blockIdx.x * blockDim.x + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
__global__ void diverge(int* data) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  data[threadIdx.x] = 1;
}
template <bool Block>
__global__ void pass_on(int* data) {
  __shared__ int tile[64];
  tile[threadIdx.x] = -1;
  __syncthreads();
  tile[threadIdx.x] = data[threadIdx.x];
  if (Block) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  data[threadIdx.x] = tile[(threadIdx.x + 16) % 64];
}
__global__ void take_from_before(int* data) {
  __shared__ int tile[64];
  tile[threadIdx.x] = -1;
  __syncthreads();
  tile[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = tile[threadIdx.x / 2];
}
__global__ void diverge_in_a_warp(int* data) {
  if (threadIdx.x % 2 == 0) __syncwarp();
  data[threadIdx.x] = 1;
}
extern "C" int run_pass_on(int* data, int block) {
  if (block) {
    LIPDEPLOY_LAUNCH(1, 64, nullptr, pass_on<true>, data);
  } else {
    LIPDEPLOY_LAUNCH(1, 64, nullptr, pass_on<false>, data);
  }
  return cudaGetLastError();
}
extern "C" int run_take_from_before(int* data) {
  LIPDEPLOY_LAUNCH(1, 64, nullptr, take_from_before, data);
  return cudaGetLastError();
}
extern "C" int run_diverge_in_a_warp(int* data) {
  LIPDEPLOY_LAUNCH(1, 64, nullptr, diverge_in_a_warp, data);
  return cudaGetLastError();
}
extern "C" int run_reverse(int* data) {
  LIPDEPLOY_LAUNCH(3, 64, nullptr, reverse, data);
  return cudaGetLastError();
}
extern "C" int run_diverge(int* data) {
  LIPDEPLOY_LAUNCH(1, 64, nullptr, diverge, data);
  return cudaGetLastError();
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(compiled(PROBE, tmp_path_factory.mktemp("emulator"), "-O1")))


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """The kernels with 32-bit positions for 96 elements, not 2³¹: larger tensors take the ways of huge ones."""
    folder = tmp_path_factory.mktemp("pieces")
    return Entries(compiled(EMULATED, folder, "-O0", KERNELS, "-DLIPDEPLOY_MOST_AT_ONCE=96"), "emulated")


@pytest.fixture(scope="module")
def by_halves(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """The kernels as GPUs before sm_90 run them, which have no instruction for two 16-bit keys."""
    folder = tmp_path_factory.mktemp("halves")
    return Entries(compiled(EMULATED, folder, "-O0", KERNELS, "-DLIPDEPLOY_SORT_HALVES"), "emulated")


@pytest.mark.parametrize("type_name", ["f16", "bf16"])
def test_pairs_of_keys_by_halves(by_halves: Entries, type_name: str) -> None:
    sizes = [case for case in SORT_CASES if np.prod(case.shape) < 5000]
    assert len(sizes) > 40
    for case in sizes:
        x = sort_input(case, TYPES[type_name][0], special=True)
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
        np.testing.assert_array_equal(
            bits(by_halves.group_sort(type_name, x, **case.attributes)), bits(want), str(case)
        )


@pytest.fixture(params=["forwards", "backwards"])
def either_way(in_pieces: Entries, request: pytest.FixtureRequest) -> Iterator[Entries]:
    in_pieces.library.lipdeploy_emulate_backwards(request.param == "backwards")
    yield in_pieces
    in_pieces.library.lipdeploy_emulate_backwards(0)


@pytest.mark.parametrize("type_name", ["f16", "f64"])
def test_tensors_beyond_32_bits(either_way: Entries, type_name: str) -> None:
    dtype, in_pieces = TYPES[type_name][0], either_way
    sorts = [
        SortCase((40, 16), 2),
        SortCase((40, 16), 8),
        SortCase((9, 15), 5),
        SortCase((7, 4, 32), 4),
        SortCase((3, 50), 0),
    ]
    for case in (*sorts, SortCase((3, 8, 24), 8, layout=1)):
        x = sort_input(case, dtype, special=True)
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
        np.testing.assert_array_equal(
            bits(in_pieces.group_sort(type_name, x, **case.attributes)), bits(want), str(case)
        )
    for spline in (SplineCase((40, 16), 9), SplineCase((3, 4, 32), 5, shared=True)):
        x, table = spline_input(spline, dtype, special=True), spline_coefficients(spline, dtype)
        want = OPERATORS["LinearSpline"].evaluate(x, table, **spline.attributes)
        got = in_pieces.linear_spline(type_name, x, table, **spline.attributes)
        np.testing.assert_array_equal(bits(got), bits(want), str(spline))
    for reflect in (ReflectCase((40, 16)), ReflectCase((40, 16), 0), ReflectCase((3, 4, 32), 0)):
        x, angles = reflect_input(reflect, dtype, special=True), reflect_angles(reflect, dtype)
        want = OPERATORS["Householder"].evaluate(x, *angles, **reflect.attributes)
        got = in_pieces.householder(type_name, x, *angles, **reflect.attributes)
        np.testing.assert_array_equal(bits(got), bits(want), str(reflect))


def test_threads_meet_at_the_barrier(probe: ctypes.CDLL) -> None:
    data = (ctypes.c_int * 192)(*range(192))
    assert probe.run_reverse(data) == 0
    assert list(data) == [block * 64 + 63 - thread for block in range(3) for thread in range(64)]


def test_a_barrier_of_a_warp_does_not_hold_the_others(probe: ctypes.CDLL) -> None:
    """Where threads read what another warp writes, the weaker barrier gives wrong numbers, as it may on a GPU."""
    for block, want in ((1, [(i + 16) % 64 for i in range(64)]), (0, [*range(16, 32), *[-1] * 16])):
        data = (ctypes.c_int * 64)(*range(64))
        assert probe.run_pass_on(data, block) == 0
        assert list(data)[: len(want)] == want


def test_a_missing_barrier_shows_in_one_of_the_orders(probe: ctypes.CDLL) -> None:
    """Threads that take from threads before them find it there, unless those come after them."""
    for backwards, want in ((0, [i // 2 for i in range(64)]), (1, [0, *[-1] * 63])):
        data = (ctypes.c_int * 64)(*range(64))
        probe.lipdeploy_emulate_backwards(backwards)
        try:
            assert probe.run_take_from_before(data) == 0
        finally:
            probe.lipdeploy_emulate_backwards(0)
        assert list(data) == want


def test_a_barrier_of_a_warp_that_some_threads_miss_is_an_error(probe: ctypes.CDLL) -> None:
    assert probe.run_diverge_in_a_warp((ctypes.c_int * 64)()) == 719


def test_a_barrier_that_some_threads_miss_is_an_error(probe: ctypes.CDLL) -> None:
    assert probe.run_diverge((ctypes.c_int * 64)()) == 719
    # ... and the error is cleared, as cudaGetLastError clears it.
    assert probe.run_reverse((ctypes.c_int * 192)()) == 0
