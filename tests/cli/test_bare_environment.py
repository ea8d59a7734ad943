"""The gate where nothing is installed but what the base package declares, and its speed there.

A folder is filled with links to the files of numpy, onnx, click, rich and what these declare themselves, as pip
recorded them; an isolated Python sees that folder, the standard library and lipdeploy, and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

from tests.cli.conftest import ROOT

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
RUN = """
import sys
sys.path[:0] = [{packages!r}, {root!r}]
from lipdeploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
TIMED = """
import sys, time
sys.path[:0] = [{packages!r}, {root!r}]
from lipdeploy.verify import verify
times = []
for _ in range(3):
    started = time.process_time()
    verdict = verify(sys.argv[1], max_lipschitz=1e9)
    times.append(time.process_time() - started)
print(verdict.status, min(times))
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring with them, extras aside."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonical(requirement.name)
        if name not in found:
            found.add(name)
            waiting += [Requirement(text) for text in metadata.requires(requirement.name) or []]
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the declared packages only."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name in closure(DECLARED):
        for file in metadata.files(name) or []:
            source, target = Path(str(file.locate())), folder / file
            if ".." not in file.parts and source.exists() and source.suffix != ".pyc":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
    return folder


def python(code: str, *words: str, packages: Path) -> subprocess.CompletedProcess[str]:
    text = code.format(packages=str(packages), root=str(ROOT))
    return subprocess.run([sys.executable, "-I", "-S", "-c", text, *words], capture_output=True, text=True, check=False)


def test_the_environment_is_bare(packages: Path) -> None:
    assert {"numpy", "onnx", "click", "rich"} <= closure(DECLARED)
    for name in ("torch", "onnxruntime", "pytest", "scipy", "yaml"):
        done = python("import sys; sys.path[:0] = [{packages!r}, {root!r}]; import " + name, packages=packages)
        assert "ModuleNotFoundError" in done.stderr, name


@pytest.mark.parametrize(
    "words", [(), ("--json",), *(("--format", form) for form in ("sarif", "junit", "github", "markdown"))]
)
def test_verify_runs_there(words: tuple[str, ...], packages: Path, dense: Path) -> None:
    done = python(RUN, "verify", str(dense), *words, packages=packages)
    assert (done.returncode, done.stderr) == (0, "")
    if words == ("--json",):
        assert json.loads(done.stdout)["models"][0]["status"] == "verified"


@pytest.mark.parametrize(
    "words",
    [("inspect", "MODEL"), ("diff", "MODEL", "MODEL"), ("doctor",), ("explain", "LIP024")],
)
def test_the_other_commands_of_the_gate_run_there(words: tuple[str, ...], packages: Path, dense: Path) -> None:
    done = python(RUN, *(str(dense) if word == "MODEL" else word for word in words), packages=packages)
    assert done.returncode == 0, done.stderr


def test_five_megabytes_in_a_second(packages: Path, tmp_path: Path) -> None:
    """784-1024-512-10 with GroupSort, 5.3 MB of float32: CPU seconds of one thread after the import."""
    rng, nodes, tensors, name = np.random.default_rng(0), [], [], "x"
    for layer, (inputs, outputs) in enumerate([(784, 1024), (1024, 512), (512, 10)]):
        weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"W{layer}"))
        nodes.append(helper.make_node("MatMul", [name, f"W{layer}"], [f"h{layer}"]))
        name = f"a{layer}" if layer < 2 else f"h{layer}"
        if layer < 2:
            nodes.append(helper.make_node("GroupSort", [f"h{layer}"], [name], domain="lipdeploy", group_size=2))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 784), (name, 10))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
    path = tmp_path / "large.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    assert path.stat().st_size > 5_000_000
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TIMED.format(packages=str(packages), root=str(ROOT)), str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    status, seconds = done.stdout.split()
    assert status == "verified"
    assert float(seconds) < 1.0
