"""Does the wheel work where there is no compiler? ``python tools/check_wheel.py dist/lipdeploy-….whl``.

Installs the wheel into a fresh virtual environment, without its dependencies: those are borrowed from the environment
that runs this script, so that nothing is downloaded. Then it copies the tests of the operators and of the runtime to a
folder of their own, where the checkout cannot be imported, and runs them there with nothing but that environment on the
path: no compiler, no CMake, no nvcc. Exit status: pytest's, or 1 when something else was imported than the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/ops",
    "tests/custom_ops/test_errors.py",
    "tests/runtime/test_session.py",
)
# What needs the checkout itself: the emulated kernels, sources, documentation pages.
NOT_HERE = (
    "not emulat and not header and not registered_with and not has_a_page and not entry_points_return "
    "and not version_and_release"
)
COMPILERS = ("c++", "g++", "cc", "gcc", "clang", "cmake", "ninja", "nvcc")


def main() -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lipdeploy-wheel-") as folder:
        python = environment(Path(folder) / "venv", given.wheel.resolve())
        return run_tests(python, Path(folder) / "checks")


def environment(place: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel; its interpreter."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*install, "--disable-pip-version-check"], check=True)
    packages = next((place / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def run_tests(python: Path, place: Path) -> int:
    """Copy the tests to ``place`` and run them there."""
    for name in (*TESTS, "tests/conftest.py", "tests/runtime/conftest.py", "tests/verify/models.py", "pyproject.toml"):
        source, target = ROOT / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, target)
    path = str(python.parent)
    if found := [name for name in COMPILERS if shutil.which(name, path=path)]:
        print(f"there is a compiler on the path: {', '.join(found)}")
        return 1
    bare = {"PATH": path, "HOME": str(place), "OMP_NUM_THREADS": "1", "LANG": os.environ.get("LANG", "C.UTF-8")}
    where = "import lipdeploy.runtime as r; library = r.find_library(); print(library.path if library else 'none')"
    said = subprocess.run([str(python), "-c", where], cwd=place, env=bare, capture_output=True, text=True, check=True)
    library = Path(said.stdout.strip())
    if not library.is_relative_to(python.parents[1].resolve()):
        print(f"the library is not the wheel's: {library}")
        return 1
    tests = [name for name in TESTS if (place / name).exists()]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", NOT_HERE, *tests]
    return subprocess.run(
        command, cwd=place, env={**bare, "LIPDEPLOY_OPS_LIBRARY": str(library)}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
