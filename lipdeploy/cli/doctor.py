"""``lipdeploy doctor``: what a bug report needs to say about this machine, and whether proofs can be trusted on it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipdeploy.cli import needs, report
from lipdeploy.cli.options import debug_option, json_option
from lipdeploy.errors import IntegrityError, LipdeployError

if TYPE_CHECKING:
    import numpy as np

    from lipdeploy.cli.inputs import Array
    from lipdeploy.runtime import OperatorLibrary

SCHEMA = "lipdeploy/doctor-report/v1"
TINY = '<ir_version: 9, opset_import: ["": 20]> tiny (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'
OK, MISSING, FAILED = "ok", "missing", "failed"
BASE = ("numpy", "onnx", "click", "rich")
OPTIONAL = ("torch", "onnxscript", "pillow")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis. ``missing`` limits what can be done here; ``failed`` is a fault to repair."""

    name: str
    status: str
    detail: str
    hint: str = ""


@click.command("doctor")
@json_option
@debug_option
def command(as_json: bool) -> int:
    """Show versions, the operator library, the providers and the arithmetic of this machine."""
    with report.working("looking around"):
        checks = list(examine())
    if as_json:
        report.document({"schema": SCHEMA, "checks": [asdict(check) for check in checks]})
    else:
        rows = tuple((check.name, check.status, check.detail) for check in checks)
        repairs = [f"{check.name}: try: {check.hint}" for check in checks if check.hint]
        report.show([report.Table(("what", "status", "detail"), rows), *repairs])
    return IntegrityError.exit_code if any(check.status == FAILED for check in checks) else 0


def examine() -> Iterator[Check]:
    """Every check, cheapest first."""
    yield Check("lipdeploy", OK, f"{report.version()} in {Path(__file__).resolve().parent.parent}")
    yield Check("python", OK, f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})")
    yield Check("machine", OK, f"{platform.platform()}, {processor()}, {os.cpu_count()} cores")
    for name in BASE:
        yield _package(name)
    for name in OPTIONAL:
        yield _package(name)
    yield _arithmetic()
    yield _runtime()
    yield from _providers_and_library()


def _package(name: str) -> Check:
    version = needs.distribution_version(name)
    if version is not None:
        return Check(name, OK, version)
    return Check(name, FAILED if name in BASE else MISSING, "not installed", f"pip install {name}")


def _runtime() -> Check:
    found = {name: version for name in RUNTIMES if (version := needs.distribution_version(name)) is not None}
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        hint = f"pip uninstall -y {' '.join(RUNTIMES)}, then pip install 'lipdeploy[runtime]'"
        return Check("onnxruntime", FAILED, f"{detail}: two wheels overwrite each other's files", hint)
    if not found:
        return Check("onnxruntime", MISSING, "not installed: no predict", "pip install 'lipdeploy[runtime]'")
    return Check("onnxruntime", OK, detail)


def _arithmetic() -> Check:
    """Assumption A1: round to nearest even and gradual underflow, in binary64 and binary32, in NumPy and its BLAS."""
    import numpy as np

    wrong = [f"{kind}: {fault}" for kind in ("float64", "float32") for fault in _faults(np.dtype(kind))]
    if wrong:
        hint = "undo -ffast-math or flush-to-zero in this process; proofs do not hold here"
        return Check("arithmetic", FAILED, "; ".join(wrong), hint)
    return Check("arithmetic", OK, "round to nearest, subnormals kept")


def _faults(dtype: np.dtype[Any]) -> Iterator[str]:
    import numpy as np

    def array(value: float) -> Array:
        return np.full((4, 4), value, dtype)

    info = np.finfo(dtype)
    ulp = float(info.eps)
    one, half = array(1.0), array(ulp / 2)
    ties_go_to_even = ((one + half) == one) & ((array(1.0 + ulp) + half) == array(1.0 + 2 * ulp))
    if not (ties_go_to_even & ((one - array(ulp / 4)) == one) & ((-one - half) == -one)).all():
        yield "does not round to nearest even"
    small = array(float(info.tiny)) / array(4.0)
    if not ((small > 0) & ((small @ np.eye(4, dtype=dtype)) == small)).all():
        yield "subnormal numbers are flushed to zero"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        described = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        described = []
    models = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _providers_and_library() -> Iterator[Check]:
    """What sessions would run on: each is really opened on a tiny model, where ONNX Runtime is installed."""
    if not needs.installed("onnxruntime"):
        return
    from lipdeploy.runtime import find_library
    from lipdeploy.runtime.providers import PINNED

    for name in PINNED:
        problem = _trial(name, None)
        yield Check(name, OK, "opens") if problem is None else Check(name, MISSING, problem.message, problem.hint)
    try:
        library = find_library()
    except LipdeployError as failure:
        yield Check("operator library", FAILED, failure.message, failure.hint)
        return
    if library is None:
        hint = "pip install . (or make build) compiles it"
        yield Check("operator library", MISSING, "operators run from their definitions in the file, slower", hint)
        return
    problem = _trial("CPUExecutionProvider", library)
    kernels = f"CPU kernels {_instruction_set(library)}, CUDA kernels {'yes' if library.has_cuda else 'no'}"
    release = f"version {library.version} of lipdeploy {library.release}"
    described = f"{release}, {kernels}, {library.path}, sha256 {library.sha256}"
    yield (
        Check("operator library", FAILED, problem.message, problem.hint)
        if problem
        else Check("operator library", OK, described)
    )


def _instruction_set(library: OperatorLibrary) -> str:
    """What the library's CPU kernels use on this processor; it was loaded and recognised before."""
    name = getattr(ctypes.CDLL(library.path), "lipdeploy_ops_instruction_set", None)
    if name is None:  # built before there was a choice
        return "of unknown instruction set"
    name.restype = ctypes.c_char_p
    return bytes(name()).decode()


def _trial(provider: str, library: OperatorLibrary | None) -> LipdeployError | None:
    """What prevents a session on this provider with this library, or ``None``."""
    import onnx

    from lipdeploy.runtime.engine import Engine
    from lipdeploy.runtime.providers import choose

    try:
        Engine(choose([provider]), 1, library).open(onnx.parser.parse_model(TINY), "doctor's trial")
    except LipdeployError as problem:
        return problem
    return None
