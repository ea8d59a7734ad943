"""What each serving mode costs over the bare float32 program, on one thread: ``python tools/bench/modes.py``.

Contenders take turns; the median is reported in milliseconds, and in brackets as a multiple of the bare ONNX Runtime
call on the stored float32 program (``session.run``: no checks, no radii). The floor of a float64 pass is 2×: half the
floating-point operations per instruction, twice the bytes. "pass" is the float64 program alone, "standard operators"
that program without the operator library's products, "certification" the norms, margins and radii alone (and of
these the "arithmetic": one call of the library), "predict" everything. Nine rows in ten are pushed away from the
decision boundary, so that ``adaptive`` may keep them in float32.
The float32 run is the session's, at the level of optimisation that stays verified. Times are of the calling thread's
processor, which does not count what other programs on the machine take.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
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

SECONDS = 3.0  # for each table column
BURST = 0.02  # seconds
CALLS = 5  # at least
MODES = ("f64", "adaptive", "f32", "network")
CERTAIN = 0.9
Array = np.ndarray[Any, Any]


def main() -> None:
    """Print the machine and one table per network."""
    torch.manual_seed(0)
    library = find_library()
    versions = f"NumPy {np.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{_processor()}, 1 thread; Python {platform.python_version()}, {versions}, ", end="")
    print(f"operator library {library.release if library else 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        for name, module, shape, batches in networks():
            path = Path(folder) / "model.onnx"
            export(module, torch.rand(2, *shape), path)
            inputs = certain_rows(module, np.random.default_rng(0).random((max(batches), *shape), dtype=np.float32))
            table(name, path, inputs, batches)


def networks() -> list[tuple[str, torch.nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """The two networks of the goals, untrained: name, module, shape of a row, batch sizes."""
    dense: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise((784, 512, 512, 512)):
        dense += [_orthogonal(torch.nn.Linear(inputs, outputs)), GroupSort(2)]
    mlp = torch.nn.Sequential(*dense, _orthogonal(torch.nn.Linear(512, 10)))
    convolutions: list[torch.nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 1), (64, 128, 2), (128, 256, 2)):
        convolutions += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1), GroupSort(2)]
    conv = torch.nn.Sequential(*convolutions, torch.nn.Flatten(), torch.nn.Linear(256 * 64, 10))
    return [
        ("MLP 784-512³-10", mlp.eval(), (784,), (1, 32, 256)),
        ("conv 3-64-128/2-256/2-10 at 32×32", conv.eval(), (3, 32, 32), (1, 32)),
    ]


def _orthogonal(layer: torch.nn.Linear) -> torch.nn.Linear:
    torch.nn.init.orthogonal_(layer.weight)
    return layer


def certain_rows(module: torch.nn.Module, rows: Array) -> Array:
    """The same rows; all but every tenth have climbed to a large margin."""
    x = torch.tensor(rows, requires_grad=True)
    climb = torch.optim.Adam([x], lr=0.05)
    for _ in range(40):
        best = module(x).topk(2, dim=1).values
        climb.zero_grad()
        (best[:, 1] - best[:, 0]).sum().backward()
        climb.step()
    certain = np.arange(len(rows)) % 10 < 10 * CERTAIN
    result = rows.copy()
    result[certain] = x.detach().numpy()[certain]
    return result


def table(name: str, path: Path, inputs: Array, batches: tuple[int, ...]) -> None:
    """All contenders at every batch size."""
    sessions = {mode: CertifiedSession(str(path), certify=mode, threads=1) for mode in MODES}
    passes = {"float64 pass": _double(path, True), "float64 pass, standard operators": _double(path, False)}
    rows: dict[str, list[str]] = {}
    for batch in batches:
        times = medians(contenders(sessions, passes, inputs[:batch]))
        bare = times["bare float32 run"]
        for label, seconds in times.items():
            rows.setdefault(label, []).append(f"{seconds * 1e3:.3f} ({seconds / bare:.2f}×)")
    print(f"\n| {name}, ms | " + " | ".join(f"batch {batch}" for batch in batches) + " |")
    print("| --- |" + " --- |" * len(batches))
    for label, cells in rows.items():
        print(f"| {label} | " + " | ".join(cells) + " |")
    kept = (sessions["adaptive"].predict(inputs[: batches[-1]]).program == "f32").mean()
    print(f"\nadaptive answered {kept:.0%} of these rows in float32")


def contenders(
    sessions: dict[str, CertifiedSession], passes: dict[str, onnxruntime.InferenceSession], x: Array
) -> dict[str, Callable[[], Any]]:
    """What is timed for one batch."""
    stored = sessions["f64"]
    calls: dict[str, Callable[[], Any]] = {"bare float32 run": partial(stored.run, None, {stored.inputs[0].name: x})}
    wide = {stored.inputs[0].name: x.astype(np.float64)}
    calls |= {label: partial(program.run, None, wide) for label, program in passes.items()}
    calls["certification"] = partial(_certify, stored, {stored.inputs[0].name: x}, stored.predict(x).logits)
    calls |= _arithmetic(sessions["adaptive"], x)
    return calls | {f"predict, {mode}": partial(session.predict, x) for mode, session in sessions.items()}


def _arithmetic(session: CertifiedSession, x: Array) -> dict[str, Callable[[], Any]]:
    """Norms, margins and radii by the library alone, without what a call from Python adds around them."""
    fast = session._at_once
    if fast is None:
        return {}
    scores, out = session.run(None, {session.inputs[0].name: x})[0], np.empty((4, len(x)))
    given = fast.address, x.ctypes.data, scores.ctypes.data, len(x), 0.0, out.ctypes.data
    keep = x, scores, out
    return {"certification, arithmetic": lambda: (fast.native.answers_function(*given), keep)}


def _certify(session: CertifiedSession, feeds: dict[str, Array], logits: Array) -> Any:
    _, norms = session._received(feeds)
    assert session._radius_rule is not None
    return session._radius_rule.rows(logits, norms)


def _double(path: Path, own: bool) -> onnxruntime.InferenceSession:
    opener = engine.Engine(choose(None), 1, find_library())
    return opener.open(double_model(onnx.load(path), None, own and opener.double_products), "float64 program")


def medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median processor seconds of each. They take turns in bursts, so that each finds its own weights in the cache."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    bursts = {name: max(1, int(BURST / _seconds(call))) for name, call in calls.items()}
    deadline = time.perf_counter() + SECONDS
    while time.perf_counter() < deadline or len(next(iter(times.values()))) < CALLS:
        for name, call in calls.items():
            burst = [_seconds(call) for _ in range(bursts[name])]
            times[name] += burst[1:] or burst
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
