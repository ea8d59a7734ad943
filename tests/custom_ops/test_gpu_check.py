"""tools/gpu_check.py without a GPU: its cases run on the emulated kernels, and it says that it measured nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.custom_ops.host_memory import HostMemory

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_every_case_is_equal_under_the_emulator(gpu_check: ModuleType, emulated_library: Path) -> None:
    kernels = gpu_check.Kernels(ctypes.CDLL(str(emulated_library)), HostMemory())
    cases = list(gpu_check.check_cases())
    assert {case.op for case in cases} == set(gpu_check.ENTRY)
    small = [case for case in cases if np.prod(case.shape) <= 5000 and dict(case.attributes).get("group_size") != 1024]
    assert len(small) > len(cases) / 2  # fibers take turns: larger ones are left to tests/custom_ops/test_kernels.py
    assert list(gpu_check.check(kernels, small)) == []


def test_a_wrong_kernel_is_found(gpu_check: ModuleType, emulated_library: Path) -> None:
    """Sorting downwards in place of upwards must not pass."""

    class Wrong(gpu_check.Case):  # type: ignore[misc, name-defined]
        def arguments(self, constants: list[Any]) -> list[Any]:
            return [*super().arguments(constants)[:-1], ctypes.c_int64(1)]

    case = gpu_check.sort_case((4, 8), 4)
    kernels = gpu_check.Kernels(ctypes.CDLL(str(emulated_library)), HostMemory())
    found = list(gpu_check.check(kernels, [Wrong(case.op, case.shape, case.attributes)]))
    assert len(found) == 2 * len(gpu_check.TYPES)
    assert "elements differ" in found[0][2]


def test_its_table_and_what_torch_writes(
    gpu_check: ModuleType, emulated_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to the table, on the CPU: each contender runs once, and torch's equivalents mean the same in float32."""

    class Pretend(gpu_check.Gpu):  # type: ignore[misc, name-defined]
        suffix = "emulated"

        def put(self, data: np.ndarray, shift: int = 0) -> Any:
            room = torch.zeros(data.nbytes + 16, dtype=torch.uint8)
            memory = room[-room.data_ptr() % 16 :][: data.nbytes]
            return memory.copy_(torch.from_numpy(np.ascontiguousarray(data).reshape(-1).view(np.uint8)))

        def stream(self) -> int:
            return 0

    y: list[Any] = []
    shapes: list[tuple[int, ...]] = []

    def race(gpu: Any, runs: dict[str, Any]) -> dict[str, float]:
        y.append(runs["copy"]())
        runs["kernel"]()
        wanted = runs["eager"]()
        got = y[-1].view(torch.float32).view(shapes[len(y) - 1])
        torch.testing.assert_close(got, wanted.reshape(got.shape), rtol=0, atol=1e-5)
        return {"copy": 1.0, "kernel": 2.0, "eager": 8.0}

    def small(elements: int) -> list[Any]:
        sort, spline, reflect = gpu_check.sort_case, gpu_check.spline_case, gpu_check.reflect_case
        rows, images = (elements // 1024, 1024), (elements // 65536, 64, 32, 32)
        cases = [sort(rows, 2), sort(images, 8), spline(rows), spline(images), reflect(rows), reflect(images)]
        shapes.extend(case.shape for case in cases)
        return cases

    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *sizes, device: arange(*sizes))
    monkeypatch.setattr(gpu_check, "TYPES", [kind for kind in gpu_check.TYPES if kind.name == "f32"])
    monkeypatch.setattr(gpu_check, "timed_cases", small)
    monkeypatch.setattr(gpu_check, "race", race)
    kernels = gpu_check.Kernels(ctypes.CDLL(str(emulated_library)), Pretend())
    lines = list(gpu_check.time_all(kernels, kernels.device, (1,)))
    assert len(y) == len(shapes) == len(lines) - 2 == 6
    assert lines[2] == "| GroupSort group_size 2, layout 0 on 256×1024 | f32 | 1 | 1 | 2 | 0.50 | 8 | 4.0 |"


def test_its_bfloat16_is_bfloat16(gpu_check: ModuleType) -> None:
    kind = next(kind for kind in gpu_check.TYPES if kind.name == "bf16")
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(kind.decode(every), every.view(ml_dtypes.bfloat16).astype(np.float32))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 100000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        want = x.astype(ml_dtypes.bfloat16)
    same = kind.encode(x) == want.view(np.uint16)
    assert (same | np.isnan(x)).all()
    assert (kind.encode(x)[np.isnan(x)] == 0x7FC0).all()


def test_says_that_nothing_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False; sys.argv = sys.argv[1:]; "
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(SCRIPT), "--output", str(page)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert run.stdout == "not measured: PyTorch finds no CUDA device on this machine\n"
    assert "Not measured" in page.read_text()
    page.write_text("measured before")
    subprocess.run(command, capture_output=True, check=False)
    assert page.read_text() == "measured before"


def test_runs_where_onnx_is_not_installed(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name.split('.')[0] in ('onnx', 'torch') else real(name, *rest); "
        "sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(SCRIPT), "--output", str(tmp_path / "page.md")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert run.stdout.startswith("not measured: PyTorch is not installed")
