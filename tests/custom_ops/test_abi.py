"""Our ABI header against the official one: a file of static_asserts that compiles only where they agree.

The official header comes with Debian's libonnxruntime-dev; LIPDEPLOY_ORT_HEADERS names a folder that holds it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.custom_ops.compiling import COMPILER, ROOT

NAME = "onnxruntime_c_api.h"
SYSTEM = [Path("/usr/include/onnxruntime"), Path("/usr/include"), Path("/usr/local/include/onnxruntime")]


@pytest.fixture(scope="module")
def headers() -> Path:
    if given := os.environ.get("LIPDEPLOY_ORT_HEADERS"):
        found = [path.parent for path in sorted(Path(given).rglob(NAME))]
        assert found, f"LIPDEPLOY_ORT_HEADERS={given} has no {NAME} in it"
        return found[0]
    for folder in SYSTEM:
        if (folder / NAME).is_file():
            return folder
    pytest.skip(f"needs ONNX Runtime's {NAME}: install libonnxruntime-dev or set LIPDEPLOY_ORT_HEADERS=DIR")


def compile_check(headers: Path, include: Path) -> subprocess.CompletedProcess[str]:
    flags = ["-std=c++17", "-fsyntax-only", "-Wno-ignored-attributes", f"-I{include}", f"-isystem{headers}"]
    check = ROOT / "custom_ops/tests/abi_check.cc"
    return subprocess.run([COMPILER, *flags, str(check)], capture_output=True, text=True, check=False)


def test_agrees_with_the_official_header(headers: Path) -> None:
    run = compile_check(headers, ROOT / "custom_ops/include")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("truth", "lie", "complaint"),
    [
        ("Function<91,", "Function<92,", "slot of KernelContext_GetOutput"),
        ("size_t total, size_t batches, void*)", "size_t total, void*)", "signature of KernelContext_ParallelFor"),
        ("kBFloat16 = 16", "kBFloat16 = 15", "bfloat16"),
        ("  int (*GetVariadicInputMinArity)(const CustomOp*) = nullptr;\n", "", "OrtCustomOp"),
    ],
    ids=["slot", "signature", "constant", "layout"],
)
def test_the_check_notices_a_wrong_header(truth: str, lie: str, complaint: str, headers: Path, tmp_path: Path) -> None:
    ours = (ROOT / "custom_ops/include/lipdeploy/ort_abi.h").read_text()
    assert truth in ours
    (tmp_path / "lipdeploy").mkdir()
    (tmp_path / "lipdeploy/ort_abi.h").write_text(ours.replace(truth, lie))
    run = compile_check(headers, tmp_path)
    assert run.returncode != 0
    assert complaint in run.stderr
