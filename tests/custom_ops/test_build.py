"""What the build must have produced: exactly our symbols, no GPU needed to load, no spills in the CUDA kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = ("group_sort", "linear_spline", "householder")
ARCHITECTURES = (80, 90)  # those that CMakeLists.txt makes machine code for
TYPE_NAMES = ("f16", "bf16", "f32", "f64")


def exported(library: Path) -> set[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm (binutils)")
    out = subprocess.run([nm, "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in out.splitlines()}


def test_exports_the_entry_points_and_nothing_else(ops_library: Path) -> None:
    symbols = exported(ops_library)
    cpu = {f"lipdeploy_{op}_{t}_cpu" for op in OPERATORS for t in TYPE_NAMES}
    training = {f"lipdeploy_linear_spline_{step}_{t}_cpu" for step in ("scaled", "gradient") for t in ("f32", "f64")}
    assert cpu | training | {"RegisterCustomOps", "lipdeploy_ops_version", "lipdeploy_ops_release"} <= symbols
    assert all(s == "RegisterCustomOps" or s.startswith("lipdeploy_") for s in symbols)


def test_needs_no_library_but_the_systems(ops_library: Path) -> None:
    """CUDA's runtime is inside, its driver is opened only when used: the library loads on a machine without a GPU."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf (binutils)")
    out = subprocess.run([readelf, "-d", str(ops_library)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", out))
    allowed = ("libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux")
    assert all(name.startswith(allowed) for name in needed), needed


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        pytest.skip("needs nvcc")
    return path


def test_has_cuda_kernels_where_nvcc_is(ops_library: Path, nvcc: str) -> None:
    symbols = exported(ops_library)
    assert {f"lipdeploy_{op}_{t}_cuda" for op in OPERATORS for t in TYPE_NAMES} <= symbols


@pytest.mark.parametrize("source", OPERATORS)
def test_cuda_kernels_do_not_spill(source: str, nvcc: str, tmp_path: Path) -> None:
    """`nvcc -Xptxas -v` lists stack frame, spill stores and spill loads of every kernel: all must be 0."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command = [nvcc, "-std=c++17", "-O3", "-fmad=false", *targets, "--threads=2", "-Xptxas=-v", "-c"]
    include = ["-I", str(ROOT / "custom_ops/include"), "-I", str(ROOT / "custom_ops/src")]
    file = ROOT / "custom_ops/src/cuda" / f"{source}.cu"
    run = subprocess.run(
        [*command, *include, str(file), "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", run.stderr)
    assert len(frames) >= len(TYPE_NAMES) * len(ARCHITECTURES)
    assert all(f"'sm_{arch}'" in run.stderr for arch in ARCHITECTURES)
    assert set(frames) == {("0", "0", "0")}
