"""External data takes the place of a package's own files.

A model names the files of its external data. Called ``model.py``, with sixteen harmless weights behind a screen of
Python, one came into the package for Triton in place of ours: an honest, verified model, and a program of the
attacker's that may answer ``certified = true`` with any radius. ``lipdeploy.py`` beside the model is what MLServer
would import, ``config.pbtxt`` and ``model-settings.json`` decide what runs at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lipdeploy.errors import InputError
from lipdeploy.serve import packages
from tests.verify.models import model

CODE = b"class TritonPythonModel:\n    def execute(self, requests): return []\n#" + b" " * 56
KINDS: Mapping[str, Callable[[packages.Contents], packages.Files]] = {
    "triton, Python": lambda given: packages.for_triton(
        given, "python", mount="/m", batching=False, library=lambda: None
    ),
    "triton, ONNX": lambda given: packages.for_triton(
        given, "onnxruntime", mount="/m", batching=False, library=lambda: None
    ),
    "mlserver": packages.for_mlserver,
    "kserve": lambda given: packages.for_kserve(given, "image", "storage"),
}
NAMES = (
    *("model.py", "MODEL.PY", "lipdeploy.py", "lipdeploy/__init__.py", "triton_python_backend_utils.py", "numpy.so"),
    *("x.pyc", "x.pth", "config.pbtxt", "settings.json", "model-settings.json", "README.md", "model.onnx"),
    *("serving-runtime.yaml", "model.cert.json", "./model.py", "libtriton.so.1", "model.py."),
)


def with_external_data(folder: Path, name: str) -> packages.Contents:
    """A network of which 4 weights lie in the file ``name``, behind a page of Python."""
    proto = model("g (float[N,2] x) => (float[N,2] y) { h = MatMul(x, A) y = MatMul(h, B) }")
    folder.mkdir()
    weights = np.eye(2, dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "B"))
    stored = proto.graph.initializer.add(name="A", data_type=TensorProto.FLOAT, dims=[2, 2])
    stored.data_location = TensorProto.EXTERNAL
    offset = -len(CODE) % 4 + len(CODE)
    for key, value in (("location", name), ("offset", str(offset)), ("length", "16")):
        stored.external_data.add(key=key, value=value)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(CODE.ljust(offset) + weights.tobytes())
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return packages.contents(folder / "net.onnx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_package_takes_it(name: str, kind: str, tmp_path: Path) -> None:
    given = with_external_data(tmp_path / "given", name)
    assert given.verdict.status == "verified"
    with pytest.raises(InputError, match="external data"):
        KINDS[kind](given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.onnx.data", "net.bin", "layers.0.weight", "weights/a.data", "0b1f-77"])
def test_data_that_is_only_data_comes_along(name: str, kind: str, tmp_path: Path) -> None:
    files = KINDS[kind](with_external_data(tmp_path / "given", name))
    (place,) = (path for path in files if path.endswith(f"/{name}") or path == name)
    assert files[place].startswith(CODE)


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="has a name that the package needs"):
        packages.together({"a": b"ours"}, {"a": b"theirs"})
