"""Following a page as it stands: its blocks, and a PATH on which ``lipdeploy`` is this checkout's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Shell = Callable[..., subprocess.CompletedProcess[str]]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page of this repository in one language, in order."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def environment(programs: Path) -> dict[str, str]:
    """PATH with this interpreter's own programs; where ``lipdeploy`` is not installed, what its script would run."""
    own = Path(sys.executable).parent
    for name, words in (("python", ""), ("lipdeploy", "-m lipdeploy")):
        if not (own / name).exists():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            program.chmod(0o755)
    path = os.pathsep.join([str(own), str(programs), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """``shell(script, cwd=…, NAME="value")`` runs ``script`` as GitHub's runners run ``shell: bash``."""
    base = environment(tmp_path_factory.mktemp("bin"))

    def run(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
        return subprocess.run(words, cwd=cwd, env={**base, **variables}, capture_output=True, text=True)

    return run
