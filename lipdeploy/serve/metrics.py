"""Counters, gauges and histograms in Prometheus' text format.

Written here rather than taken from prometheus-client: a request touches about ten of them, so each must cost a fraction
of a microsecond, and the snapshots of several worker processes must add up without files that they share.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
RADII = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

#: A snapshot: name → kind, help, label names, bucket limits, and a list of [label values, value].
Snapshot = dict[str, dict[str, Any]]


class Value:
    """One counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count ``amount`` more (or less, for a gauge)."""
        self.value += amount

    def state(self) -> Any:
        """What a snapshot holds."""
        return self.value


class Histogram:
    """Counts per bucket and a sum."""

    __slots__ = ("counts", "limits", "sum")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.limits, value)] += 1
        self.sum += value

    def observe_all(self, values: np.ndarray[Any, Any]) -> None:
        """Count every finite value of an array; infinite ones only in their bucket."""
        if len(values) < 4:
            for value in values.tolist():
                self.counts[bisect_left(self.limits, value)] += 1
                self.sum += value if math.isfinite(value) else 0.0
            return
        found = np.bincount(np.searchsorted(self.limits, values), minlength=len(self.counts))
        self.counts = [old + int(new) for old, new in zip(self.counts, found, strict=True)]
        self.sum += float(values[np.isfinite(values)].sum())

    def state(self) -> Any:
        """What a snapshot holds."""
        return [*self.counts, self.sum]


class Family:
    """All metrics of one name, by the values of their labels."""

    def __init__(self, kind: str, text: str, labels: Sequence[str], limits: Sequence[float] = ()) -> None:
        self.kind, self.text, self.labels, self.limits = kind, text, tuple(labels), tuple(limits)
        self.children: dict[tuple[str, ...], Any] = {}

    def labelled(self, *values: str) -> Any:
        """The metric with these label values; made when first asked for."""
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = Histogram(self.limits) if self.kind == "histogram" else Value()
        return child

    def drop(self, *first: str) -> None:
        """Forget the metrics whose label values begin so."""
        for values in [values for values in self.children if values[: len(first)] == first]:
            del self.children[values]

    def snapshot(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        samples = [[list(values), child.state()] for values, child in self.children.items()]
        return {
            "kind": self.kind, "text": self.text, "labels": list(self.labels), "limits": list(self.limits),
            "samples": samples,
        }  # fmt: skip


class Metrics:
    """Everything that a server counts. ``code`` is the HTTP status (gRPC's are mapped onto it)."""

    def __init__(self) -> None:
        model = ("model", "version")
        self.requests = Family("counter", "Inference requests by status code.", (*model, "code"))
        self.request_seconds = Family("histogram", "Seconds from a parsed request to its answer.", model, SECONDS)
        self.queue_seconds = Family("histogram", "Seconds that a request waited for a batch.", model, SECONDS)
        self.infer_seconds = Family("histogram", "Seconds that a batch took, certification included.", model, SECONDS)
        self.batch_rows = Family("histogram", "Rows in a batch.", model, ROWS)
        self.predictions = Family("counter", "Rows by outcome: certified or abstained.", (*model, "outcome"))
        self.radius = Family("histogram", "Certified radii in the units of the input; 0: none.", model, RADII)
        self.queue_rows = Family("gauge", "Rows waiting for a batch.", model)
        self.inflight = Family("gauge", "Inference requests being answered.", ())
        self.rejected = Family("counter", "Requests turned away, by reason.", ("reason",))
        self.ready = Family("gauge", "1 while this version answers requests.", model)
        self.verify_seconds = Family("gauge", "Seconds from reading the file to ready.", model)
        self.certificate = Family(
            "gauge", "1; the certificate that answers rest on.",
            (*model, "sha256", "bound", "norm", "guarantee", "provider"),
        )  # fmt: skip
        self.cpu = Family("counter", "Processor seconds, user and system.", ())
        self.memory = Family("gauge", "Resident memory.", ())
        self.started = Family("gauge", "When the process started, in seconds since 1970.", ())
        self.started.labelled().value = time.time()
        self._families: dict[str, Family] = {
            "lipdeploy_requests_total": self.requests,
            "lipdeploy_request_seconds": self.request_seconds,
            "lipdeploy_queue_seconds": self.queue_seconds,
            "lipdeploy_infer_seconds": self.infer_seconds,
            "lipdeploy_batch_rows": self.batch_rows,
            "lipdeploy_predictions_total": self.predictions,
            "lipdeploy_radius": self.radius,
            "lipdeploy_queue_depth": self.queue_rows,
            "lipdeploy_inflight": self.inflight,
            "lipdeploy_rejected_total": self.rejected,
            "lipdeploy_model_ready": self.ready,
            "lipdeploy_verify_seconds": self.verify_seconds,
            "lipdeploy_certificate_info": self.certificate,
            "process_cpu_seconds_total": self.cpu,
            "process_resident_memory_bytes": self.memory,
            "process_start_time_seconds": self.started,
        }

    def snapshot(self) -> Snapshot:
        """Everything now, as plain data for another process or ``render``."""
        self.cpu.labelled().value = time.process_time()
        self.memory.labelled().value = _resident_bytes()
        return {name: family.snapshot() for name, family in self._families.items()}


#: Gauges that say something about the model or the oldest process, not about how much one worker does.
_LEAST = frozenset({"lipdeploy_model_ready", "process_start_time_seconds"})
_MOST = frozenset({"lipdeploy_certificate_info", "lipdeploy_verify_seconds"})


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The metrics of all workers together: sums, except where a sum would mean nothing."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, family in snapshot.items():
            into = total.setdefault(name, {**family, "samples": []})
            known = {tuple(sample[0]): sample for sample in into["samples"]}
            for labels, state in family["samples"]:
                sample = known.get(tuple(labels))
                if sample is None:
                    into["samples"].append([labels, state])
                else:
                    sample[1] = _together(name, sample[1], state)
    return total


def _together(name: str, one: Any, other: Any) -> Any:
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    if name in _LEAST:
        return min(one, other)
    return max(one, other) if name in _MOST else one + other


def render(snapshot: Snapshot) -> bytes:
    """Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for name, family in snapshot.items():
        lines += [f"# HELP {name} {family['text']}", f"# TYPE {name} {family['kind']}"]
        for values, state in family["samples"]:
            labels = dict(zip(family["labels"], values, strict=True))
            if family["kind"] == "histogram":
                lines += _histogram(name, labels, family["limits"], state)
            else:
                lines.append(f"{name}{_labels(labels)} {_number(state)}")
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, labels: Mapping[str, str], limits: Sequence[float], state: Sequence[float]) -> list[str]:
    lines, total = [], 0
    for limit, count in zip([*map(_number, limits), "+Inf"], state[:-1], strict=True):
        total += int(count)
        lines.append(f"{name}_bucket{_labels({**labels, 'le': limit})} {total}")
    return [*lines, f"{name}_sum{_labels(labels)} {_number(state[-1])}", f"{name}_count{_labels(labels)} {total}"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm", "rb") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0.0
