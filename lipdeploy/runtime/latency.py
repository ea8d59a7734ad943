"""How long one call takes, for every way to run a model. Contenders take turns: a busy machine slows them all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from lipdeploy.ops import DOMAIN
from lipdeploy.runtime.engine import LOAD_ERRORS, SILENT
from lipdeploy.runtime.inputs import probe_feeds
from lipdeploy.verify.source import read_source
from lipdeploy.verify.verdict import TensorSpec

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]
LEAST_CALLS = 5
BURST = 0.02  # seconds: long enough for each contender to find its own weights in the cache again


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of single calls on ``batch`` rows: how many were timed, and their percentiles."""

    contender: str
    batch: int
    calls: int
    p50: float
    p90: float
    p99: float

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second of median latency, by one caller."""
        return self.batch / self.p50


def measure(calls: Mapping[str, Call], batch: int, seconds: float) -> Iterator[Latency]:
    """Time ``calls`` in interleaved bursts for about ``seconds`` in all, and at least ``LEAST_CALLS`` calls of each."""
    bursts = {name: max(2, int(BURST / max(_seconds(call), 1e-7))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or min(map(len, times.values())) < LEAST_CALLS:
        for name, call in calls.items():
            times[name] += [_seconds(call) for _ in range(bursts[name])][1:]  # the first one warms the cache
    for name, values in times.items():
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        yield Latency(name, batch, len(values), float(p50), float(p90), float(p99))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows(given: Mapping[str, Array] | None, specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """``batch`` rows for every input: those given, repeated as needed, else random ones."""
    feeds = probe_feeds(specs) if given is None else given
    return {name: np.ascontiguousarray(_repeated(array, batch)) for name, array in feeds.items()}


def _repeated(array: Array, batch: int) -> Array:
    return array[np.array(list(itertools.islice(itertools.cycle(range(len(array))), batch)), dtype=np.intp)]


def has_own_operators(model: str) -> bool:
    """Whether the file calls operators of this project, so that running it without the library is another program."""
    return any(node.domain == DOMAIN for node in read_source(model).proto.graph.node)


def without_library(model: str, threads: int | None) -> onnxruntime.InferenceSession | None:
    """The file in ONNX Runtime as anybody would open it: default optimisation, function bodies for our operators.

    ``None`` when ONNX Runtime cannot load it so.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS:
        return None
