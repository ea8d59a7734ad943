"""What a command loads: the gate must work, and start fast, where neither torch nor onnxruntime exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lipdeploy.cli.formats import FORMATS
from tests.cli.conftest import ROOT

PROBE = """
import sys
from lipdeploy.cli.main import main
code = main({words!r})
heavy = {{'torch', 'onnxruntime', 'onnx', 'numpy', 'matplotlib', 'PIL', 'rich'}} & set(sys.modules)
print(code, *sorted(heavy), file=sys.stderr)
"""

BLOCKED = """
import importlib.util
import sys
hidden, find_spec = ('torch', 'onnxruntime', 'PIL'), importlib.util.find_spec
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find_spec(name, package)
from lipdeploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

TIMING = """
import sys, time
start = time.process_time()
from lipdeploy.cli.main import main
main(['explain', 'LIP001'])
print(time.process_time() - start, file=sys.stderr)
"""

NO_RUNTIME = "predict needs onnxruntime, which is not installed (try: pip install 'lipdeploy[runtime]')"
NO_TORCH = "export needs torch, which is not installed (try: pip install 'lipdeploy[export]')"


def loaded(*words: str) -> list[str]:
    """The exit code, then the heavy modules that the command loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(words=list(words))], capture_output=True, text=True, cwd=ROOT
    )
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("verify", "--help"),
        ("export", "--help"),
        ("serve", "--help"),
        ("explain",),
        ("explain", "LIP001"),
        ("schema", "certificate/v1"),
        ("completion", "bash"),
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(words: tuple[str, ...]) -> None:
    assert loaded(*words) == ["0"]


@pytest.mark.parametrize("words", [(), ("--json",), *(("--format", form) for form in FORMATS)], ids=" ".join)
def test_verify_loads_numpy_and_onnx_only(words: tuple[str, ...], dense: Path) -> None:
    assert loaded("verify", str(dense), *words) == ["0", "numpy", "onnx"]


@pytest.mark.parametrize(
    ("words", "code", "phrase"),
    [
        (("verify", "MODEL"), 0, ""),
        (("inspect", "MODEL"), 0, ""),
        (("diff", "MODEL", "MODEL"), 0, ""),
        (("doctor",), 0, ""),
        (("predict", "MODEL", "x.npy"), 2, NO_RUNTIME),
        (("serve", "MODEL"), 2, "serve needs onnxruntime, which is not installed (try: pip install 'lipdeploy[serve]"),
        (("verify", "MODEL", "--estimate"), 2, "needs onnxruntime, which is not installed"),
        (("export", "net.py:build", "-o", "m.onnx", "--input-shape", "2"), 2, NO_TORCH),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_without_torch_and_onnxruntime(words: tuple[str, ...], code: int, phrase: str, dense: Path) -> None:
    arguments = [str(dense) if word == "MODEL" else word for word in words]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, phrase in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_asking_for_help_is_fast() -> None:
    done = subprocess.run([sys.executable, "-c", TIMING], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stderr) < 1.0
