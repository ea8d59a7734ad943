"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.runners import Entries


@pytest.fixture(params=("baseline", "avx2", "avx512"))
def entries(request: pytest.FixtureRequest, ops_library: Path) -> Iterator[Entries]:
    """The C entry points with one instruction set chosen. The choice is the process's, so it is taken back."""
    entries = Entries(ops_library, "cpu")
    if entries.library.lipdeploy_ops_use_instruction_set(request.param.encode()) != 0:
        pytest.skip(f"needs a processor with {request.param}")
    yield entries
    assert entries.library.lipdeploy_ops_use_instruction_set(None) == 0
