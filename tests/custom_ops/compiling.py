"""C++ of a test, or the emulated kernels with other settings, as a shared library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or "g++"
EMULATED = (ROOT / "custom_ops" / "tests" / "emulated.cc").read_text()
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
FOLDERS = [f"-I{ROOT / 'custom_ops' / name}" for name in ("tests", "include", "src")]
KERNELS = "-DLIPDEPLOY_EMULATE_CUDA"


def compiled(code: str, folder: Path, *options: str) -> Path:
    """The library that ``code`` makes. Its includes are found from the folders of the operators."""
    source, library = folder / "code.cc", folder / "code.so"
    source.write_text(code)
    subprocess.run([COMPILER, *FLAGS, *FOLDERS, *options, str(source), "-o", str(library)], check=True)
    return library
