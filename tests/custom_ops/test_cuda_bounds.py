"""CUDA kernels under the emulator touch nothing but their tensors and their tables, and pack only what is aligned.

A stand-in for compute-sanitizer, which needs a GPU: tensors lie against pages that nobody may touch; every index into
shared memory and every address of 16 bytes is checked by traps of the compiler; and threads take their turns in either
order, so that a missing barrier shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.custom_ops.compiling import EMULATED, KERNELS, compiled

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "bounds,alignment,null,signed-integer-overflow,shift-exponent,integer-divide-by-zero,float-cast-overflow"
TRAPS = ["-O1", f"-fsanitize={CHECKS}", "-fsanitize-undefined-trap-on-error"]

TRAPPED = """
#include "emulate_cuda.h"
__global__ void beyond(int* data) {
  __shared__ int tile[32];
  tile[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = tile[threadIdx.x];
}
extern "C" void run_beyond(int* data, int threads) { LIPDEPLOY_LAUNCH(1, threads, nullptr, beyond, data); }
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def trapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(EMULATED, tmp_path_factory.mktemp("trapping"), *TRAPS, KERNELS)


def test_no_kernel_leaves_its_memory(trapping: Path) -> None:
    result = run(str(ROOT / "tests" / "custom_ops" / "guarded.py"), str(trapping))
    assert result.returncode == 0, result.stderr + result.stdout
    assert result.stdout.endswith(" cases\n") and result.stdout.count("\n") == 1, result.stdout
    assert int(result.stdout.split()[0]) > 80


def test_one_that_leaves_its_tensor_is_killed(trapping: Path) -> None:
    result = run(str(ROOT / "tests" / "custom_ops" / "guarded.py"), str(trapping), "lie")
    assert result.returncode == -signal.SIGSEGV


def test_one_that_leaves_its_table_is_killed(tmp_path: Path) -> None:
    library = compiled(TRAPPED, tmp_path, *TRAPS)
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_beyond((ctypes.c_int * 64)(), int(sys.argv[2]))"
    assert run("-c", code, str(library), "32").returncode == 0
    assert run("-c", code, str(library), "33").returncode == -signal.SIGILL
