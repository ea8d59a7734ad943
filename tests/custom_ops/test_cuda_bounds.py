"""CUDA kernels under the emulator touch nothing but their tensors and their tables, and pack only what is aligned.

A stand-in for compute-sanitizer, which needs a GPU: tensors lie against pages that nobody may touch; every index into
shared memory and every address of 16 bytes is checked by traps of the compiler.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or "g++"
CHECKS = "bounds,alignment,null,signed-integer-overflow,shift-exponent,integer-divide-by-zero,float-cast-overflow"
TRAPS = [f"-fsanitize={CHECKS}", "-fsanitize-undefined-trap-on-error"]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
FOLDERS = [f"-I{ROOT / 'custom_ops' / name}" for name in ("include", "src", "tests")]

TRAPPED = """
#include "emulate_cuda.h"
__global__ void beyond(int* data) {
  __shared__ int tile[32];
  tile[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = tile[threadIdx.x];
}
extern "C" void run_beyond(int* data, int threads) { LIPDEPLOY_LAUNCH(1, threads, nullptr, beyond, data); }
"""


def compiled(source: Path, out: Path, *defines: str) -> Path:
    subprocess.run([COMPILER, *FLAGS, *TRAPS, *defines, *FOLDERS, str(source), "-o", str(out)], check=True)
    return out


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def trapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = ROOT / "custom_ops" / "tests" / "emulated.cc"
    return compiled(source, tmp_path_factory.mktemp("trapping") / "kernels.so", "-DLIPDEPLOY_EMULATE_CUDA")


def test_no_kernel_leaves_its_memory(trapping: Path) -> None:
    result = run(str(ROOT / "tests" / "custom_ops" / "guarded.py"), str(trapping))
    assert result.returncode == 0, result.stderr + result.stdout
    assert result.stdout.endswith(" cases\n") and result.stdout.count("\n") == 1, result.stdout
    assert int(result.stdout.split()[0]) > 80


def test_one_that_leaves_its_tensor_is_killed(trapping: Path) -> None:
    result = run(str(ROOT / "tests" / "custom_ops" / "guarded.py"), str(trapping), "lie")
    assert result.returncode == -signal.SIGSEGV


def test_one_that_leaves_its_table_is_killed(tmp_path: Path) -> None:
    (tmp_path / "trapped.cc").write_text(TRAPPED)
    library = compiled(tmp_path / "trapped.cc", tmp_path / "trapped.so")
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_beyond((ctypes.c_int * 64)(), int(sys.argv[2]))"
    assert run("-c", code, str(library), "32").returncode == 0
    assert run("-c", code, str(library), "33").returncode == -signal.SIGILL
