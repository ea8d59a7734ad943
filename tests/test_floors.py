"""Imports point down (design §11): the floors of the house, read off the source with ``ast``.

Imports inside functions count too: a lazy import is still a dependency. So do imports under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lipdeploy"

#: What each part may import from lipdeploy besides itself: everything below it.
BELOW: dict[str, frozenset[str]] = {}
for part, floor in (
    ("exit_codes", ()),
    ("errors", ()),
    ("ops", ("errors",)),
    ("verify", ("ops", "errors")),
    ("prove", ("verify", "ops", "errors")),
    ("signing", ("verify", "ops", "errors")),
    ("nn", ("verify", "ops", "errors")),
    ("export", ("prove", "nn", "verify", "ops", "errors")),
    ("runtime", ("prove", "nn", "verify", "ops", "errors")),
    ("serve", ("export", "runtime", "prove", "nn", "verify", "ops", "errors", "exit_codes")),
    ("certify", ("runtime", "verify", "ops", "errors")),
    (
        "cli",
        ("serve", "certify", "export", "runtime", "signing", "prove", "nn", "verify", "ops", "errors", "exit_codes"),
    ),
    ("__main__", ("cli",)),
):
    BELOW[part] = frozenset(floor)

#: Packages that live on one floor only.
HOME: dict[str, frozenset[str]] = {
    "torch": frozenset({"nn", "export"}),
    "onnxscript": frozenset({"export"}),
    "deel": frozenset({"export"}),
    "onnxruntime": frozenset({"runtime"}),
    "click": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "PIL": frozenset({"certify"}),
    "starlette": frozenset({"serve"}),
    "uvicorn": frozenset({"serve"}),
    "ray": frozenset({"serve", "certify"}),
    "pyarrow": frozenset({"certify"}),
    "cryptography": frozenset({"signing"}),
}

#: The trusted floor is an afternoon's read: these and the standard library, nothing else.
TRUSTED = frozenset({"numpy", "onnx", "google", "lipdeploy"})

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to; "" for lipdeploy/__init__.py, which is the front door."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0].removesuffix(".py") if inside != ("__init__.py",) else ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a module imports, wherever in the file."""
    package = ("lipdeploy", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from ((node.lineno, str(word.value)) for word in node.args[:1] if isinstance(word, ast.Constant))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_the_walk_sees_the_house() -> None:
    assert {part_of(path) for path in MODULES} >= {"cli", "verify", "errors"}
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "":
        return
    assert part in BELOW, f"{path}: '{part}' is not a part of the house; give it a floor here"
    for line, name in imports(path):
        words = name.split(".")
        if words[0] == "lipdeploy" and len(words) > 1 and words[1] in BELOW and words[1] != part:
            assert words[1] in BELOW[part], f"{path}:{line}: {part} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_on_their_floor(path: Path) -> None:
    for line, name in imports(path):
        home = HOME.get(name.split(".")[0])
        assert home is None or part_of(path) in home, f"{path}:{line}: {name} belongs to {sorted(home or ())}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if part_of(path) in {"verify", "ops", "errors"}],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)  # fmt: skip
def test_the_trusted_floor_needs_numpy_and_onnx_only(path: Path) -> None:
    for line, name in imports(path):
        root = name.split(".")[0]
        assert root in TRUSTED or root in sys.stdlib_module_names, f"{path}:{line}: {name} on the trusted floor"


def test_only_the_report_prints() -> None:
    for path in MODULES:
        if path == PACKAGE / "cli" / "report.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                pytest.fail(f"{path}:{node.lineno}: print")
            if isinstance(node, ast.Call) and _called(node) in {"echo", "secho"}:
                pytest.fail(f"{path}:{node.lineno}: click prints")


@pytest.mark.parametrize("code", ["import lipdeploy", "import lipdeploy.verify", "from lipdeploy import verify"])
def test_importing_lipdeploy_loads_neither_torch_nor_onnxruntime(code: str) -> None:
    probe = f"{code}\nimport sys\nprint(sorted({{'torch', 'onnxruntime'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
