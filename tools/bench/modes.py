"""What each serving mode costs over the bare float32 program, on one thread: ``python tools/bench/modes.py``.

Contenders take turns, and the median is reported: milliseconds of ``predict`` and, in brackets, how many times the
bare ONNX Runtime call on the stored float32 program (``session.run``: no checks, no radii). The floor of float64 is
2×: half the floating-point operations per cycle, twice the bytes. "pass" is the float64 program alone, without checks,
norms and radii; "standard" is that program without the operator library's products (``products.py``).
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from lipdeploy import CertifiedSession, export
from lipdeploy.nn import GroupSort
from lipdeploy.runtime import engine
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.providers import choose

BATCHES = (1, 32, 256)
SECONDS = 1.0  # for each contender and batch size
CALLS = 5  # at least
MODES = ("f64", "adaptive", "f32", "network")


def main() -> None:
    """Print the machine and one table per network."""
    torch.manual_seed(0)
    print(f"{_processor()}, 1 thread; Python {platform.python_version()}, NumPy {np.__version__}, ", end="")
    library = find_library()
    print(f"onnxruntime {onnxruntime.__version__}, operator library {library.release if library else 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        for name, module, shape in networks():
            path = Path(folder) / "model.onnx"
            export(module, torch.rand(2, *shape), path)
            table(name, path, shape)


def networks() -> list[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """The two networks of the goals, with random orthogonal dense layers and small convolutions."""
    sizes = (784, 512, 512, 512)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [_orthogonal(torch.nn.Linear(inputs, outputs)), GroupSort(2)]
    mlp = torch.nn.Sequential(*layers, _orthogonal(torch.nn.Linear(512, 10)))
    convolutions: list[torch.nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 1), (64, 128, 2), (128, 256, 2)):
        convolutions += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1), GroupSort(2)]
    head = [torch.nn.Flatten(), torch.nn.Linear(256 * 64, 10)]
    conv = torch.nn.Sequential(*convolutions, *head)
    return [("MLP 784-512³-10", mlp.eval(), (784,)), ("conv 3-64-128/2-256/2-10 at 32×32", conv.eval(), (3, 32, 32))]


def _orthogonal(layer: torch.nn.Linear) -> torch.nn.Linear:
    torch.nn.init.orthogonal_(layer.weight)
    return layer


def table(name: str, path: Path, shape: tuple[int, ...]) -> None:
    """All contenders at every batch size."""
    sessions = {mode: CertifiedSession(str(path), certify=mode, threads=1) for mode in MODES}
    passes = {"float64 pass": True, "float64 pass, standard operators": False}
    wide = {label: _double(path, own) for label, own in passes.items()}
    stored = sessions["f64"]
    rows: dict[str, list[str]] = {}
    for batch in BATCHES:
        x = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
        doubles = x.astype(np.float64)
        contenders: dict[str, Callable[[], Any]] = {"bare float32 run": lambda x=x: stored.run(None, {_input(stored): x})}  # type: ignore[misc]
        contenders |= {label: lambda s=s, x=doubles: s.run(None, {_input(s): x}) for label, s in wide.items()}  # type: ignore[misc]
        contenders |= {f"predict, {mode}": lambda s=s, x=x: s.predict(x) for mode, s in sessions.items()}  # type: ignore[misc]
        times = medians(contenders)
        for label, seconds in times.items():
            ratio = f" ({seconds / times['bare float32 run']:.2f}×)"
            rows.setdefault(label, []).append(f"{seconds * 1e3:.3f}{ratio}")
    print(f"\n| {name}, ms | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |")
    print("| --- |" + " --- |" * len(BATCHES))
    for label, cells in rows.items():
        print(f"| {label} | " + " | ".join(cells) + " |")


def _double(path: Path, own: bool) -> onnxruntime.InferenceSession:
    opener = engine.Engine(choose(None), 1, find_library())
    return opener.open(double_model(onnx.load(path), None, own and opener.double_products), "float64 program")


def _input(session: Any) -> str:
    name: str = session.get_inputs()[0].name
    return name


def medians(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median wall-clock seconds of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    deadline = time.perf_counter() + SECONDS * len(contenders)
    while time.perf_counter() < deadline or len(next(iter(times.values()))) < CALLS:
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
