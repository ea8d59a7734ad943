"""The emulator itself: it runs barriers, and notices a barrier that not every thread of a block reaches."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "probe.cc").write_text(PROBE)
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{ROOT / 'custom_ops/tests'}"]
    subprocess.run([compiler, *flags, str(folder / "probe.cc"), "-o", str(folder / "probe.so")], check=True)
    return ctypes.CDLL(str(folder / "probe.so"))


def test_threads_meet_at_the_barrier(probe: ctypes.CDLL) -> None:
    data = (ctypes.c_int * 192)(*range(192))
    assert probe.run_reverse(data) == 0
    assert list(data) == [block * 64 + 63 - thread for block in range(3) for thread in range(64)]


def test_a_barrier_that_some_threads_miss_is_an_error(probe: ctypes.CDLL) -> None:
    assert probe.run_diverge((ctypes.c_int * 64)()) == 719
    # ... and the error is cleared, as cudaGetLastError clears it.
    assert probe.run_reverse((ctypes.c_int * 192)()) == 0
