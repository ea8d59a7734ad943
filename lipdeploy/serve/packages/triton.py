"""Triton's model repository: ``NAME/config.pbtxt`` and ``NAME/1/…``, in protobuf's text format.

The Python backend answers with certificates. The ONNX backend answers with logits at the speed of Triton's own core;
it knows nothing of certificates, so its client gets no guarantee with an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.serve.columns import CLASS_OUTPUTS
from lipdeploy.serve.oip import datatype_of
from lipdeploy.serve.packages.contents import Contents, Files, together

VERSION = "1"
MOST_ROWS = 64
LIBRARY_FILE = "liblipdeploy_ops.so"
MODEL_PY = b'''"""Certified predictions; needs lipdeploy[serve] in the Python that Triton's Python backend runs."""

from lipdeploy.serve.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
CERTIFIED_README = """# {name} for Triton, Python backend

    pip install 'lipdeploy[serve]'        # into the Python of Triton's Python backend
    tritonserver --model-repository .

Triton calls the model ready when `initialize` has verified it; otherwise it is UNAVAILABLE, with the reason. Outputs
are `label`, `radius`, `certified`, `abstain`, and on request `margin` and `logits`; request parameters
`lipdeploy_epsilon` and `lipdeploy_require_certificate`; response parameters as in `lipdeploy serve`. {shapes}
"""
LOGITS_README = """# {name} for Triton, ONNX Runtime backend

    tritonserver --model-repository {mount}

This serves the logits of the verified file, with graph optimisation off so that the executed graph is the verified one.
**No answer carries a guarantee**: radii need the Python backend (`--backend python`) or `lipdeploy serve`.
{library}"""
LIBRARY_README = """`{file}` holds the custom operators. It must be loadable by the ONNX Runtime in the container (API
version 20 or newer), and the repository must lie at `{mount}`: Triton wants an absolute path. Without it, delete
`model_operations` from the configuration: the file carries function bodies, which are slower.
"""


def for_triton(
    given: Contents, backend: str, *, mount: str, batching: bool, library: Callable[[], Path | None]
) -> Files:
    """A model repository for Triton Inference Server. ``backend`` is ``"python"`` or ``"onnxruntime"``."""
    if backend == "python":
        return _certified(given, batching=batching)
    return _logits_only(given, mount=mount, batching=batching, library=library)


def _certified(given: Contents, *, batching: bool) -> Files:
    """The repository for the Python backend."""
    shapes = (
        "With Triton's batching on, outputs of one number per row have shape [N, 1]."
        if batching
        else "Requests run one by one: write the package with `--batching` to let Triton merge them."
    )
    lines = [*_head(given.name, batching), 'backend: "python"']
    lines += [_tensor("input", spec.name, spec.dtype, _open(spec.shape), batching) for spec in given.verdict.inputs]
    lines += [_tensor("output", *output, batching) for output in _outputs(given, batching)]
    lines += [_parameter(key, text) for key, text in given.settings_as_text.items()]
    own = {
        f"{given.name}/config.pbtxt": _text(lines),
        f"{given.name}/README.md": CERTIFIED_README.format(name=given.name, shapes=shapes).encode(),
        f"{given.name}/{VERSION}/model.py": MODEL_PY,
    }
    return together(own, given.model_files(f"{given.name}/{VERSION}"))


def _logits_only(given: Contents, *, mount: str, batching: bool, library: Callable[[], Path | None]) -> Files:
    """The repository for the ONNX Runtime backend; ``mount`` is where the container sees it."""
    output = given.verdict.output
    assert output is not None  # a verified verdict has one
    if batching and given.verdict.inputs[0].shape[0] is not None:
        hint = "export with an open batch, or leave --batching out"
        raise InputError(f"--batching: the file's batch is fixed at {given.verdict.inputs[0].shape[0]}", hint=hint)
    lines = [*_head(given.name, batching), 'backend: "onnxruntime"']
    specs = [("input", spec) for spec in given.verdict.inputs] + [("output", output)]
    lines += [_tensor(kind, spec.name, spec.dtype, spec.shape, batching) for kind, spec in specs]
    lines += ["optimization { graph { level: 2 } }"]  # in this backend, 2 is none
    files: Files = {}
    about = ""
    if given.has_own_operators:
        path = library()
        if path is None:
            raise InputError("the operator library is not built", hint="pip install . (or make build)")
        files[f"{given.name}/{LIBRARY_FILE}"] = path.read_bytes()
        inside = PurePosixPath(mount) / given.name / LIBRARY_FILE
        if not inside.is_absolute():
            raise InputError(f"--mount: '{mount}' is not an absolute path", hint="--mount /models")
        lines.append(f"model_operations {{ op_library_filename: {_quoted(str(inside))} }}")
        about = LIBRARY_README.format(file=LIBRARY_FILE, mount=mount)
    files |= {
        f"{given.name}/config.pbtxt": _text(lines),
        f"{given.name}/README.md": LOGITS_README.format(name=given.name, mount=mount, library=about).encode(),
    }
    return together(files, given.model_files(f"{given.name}/{VERSION}"))


def _head(name: str, batching: bool) -> list[str]:
    lines = [f"name: {_quoted(name)}", f"max_batch_size: {MOST_ROWS if batching else 0}"]
    return [*lines, "dynamic_batching { }"] if batching else lines


def _outputs(given: Contents, batching: bool) -> Sequence[tuple[str, Any, Sequence[int | None]]]:
    """Name, datatype and shape (with the batch axis) of every output of the Python backend."""
    output = given.verdict.output
    assert output is not None  # a verified verdict has one
    if not given.classes:
        return [("y", output.dtype, _open(output.shape))]
    row: tuple[int | None, ...] = (None, 1) if batching else (None,)
    return [(name, kind, _open(output.shape) if name == "logits" else row) for name, kind in CLASS_OUTPUTS.items()]


def _open(shape: Sequence[int | None]) -> Sequence[int | None]:
    """Any number of rows, also where the file's batch is fixed: we fill it up."""
    return (None, *shape[1:])


def _tensor(kind: str, name: str, dtype: Any, shape: Sequence[int | None], batching: bool) -> str:
    datatype = dtype if isinstance(dtype, str) else datatype_of(np.dtype(dtype))
    sizes = ["-1" if size is None else str(size) for size in shape][1 if batching else 0 :]
    return f"{kind} [ {{ name: {_quoted(name)} data_type: TYPE_{datatype} dims: [ {', '.join(sizes)} ] }} ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: printable ASCII as it is, every other byte in octal."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii")
