"""Fixtures that the whole suite shares: the operator library and the emulated CUDA kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Two cores and a shared machine: time per example says nothing about the code.
settings.register_profile("lipdeploy", deadline=None, max_examples=50)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lipdeploy"))


def _built(path: Path) -> Path:
    if not path.is_file():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: run `make build` first", pytrace=False)
    return path


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """The operator library: LIPDEPLOY_OPS_LIBRARY, or the one that `make build` puts beside the package."""
    given = os.environ.get("LIPDEPLOY_OPS_LIBRARY")
    return Path(given) if given else _built(ROOT / "lipdeploy" / "custom_ops_lib" / "liblipdeploy_ops.so")


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The CUDA kernel sources compiled as C++ under the emulator of custom_ops/tests."""
    return _built(ROOT / "build" / "checkout" / "liblipdeploy_ops_emulated.so")
