"""Build, check and time the CUDA kernels on a machine with a GPU: ``python tools/gpu_check.py``.

Needs CUDA, CMake, ninja, NumPy and PyTorch, and installs nothing. It builds the operator library, compares every
operator in every type with its NumPy meaning, bit for bit, through the plain C entry points (and through ONNX Runtime's
CUDA provider where that is installed), replays each kernel from a CUDA graph, times the kernels against a copy from
device to device of the same bytes, and writes a Markdown page.

Exit status: 0 all equal; 1 a kernel differs; 2 not measured, because there is no GPU or a tool is missing.

    --checks-only    no timing, no page; run it so under `compute-sanitizer --error-exitcode 9`
    --library FILE   use this library instead of building one
    --output FILE    the page (default docs/benchmarks_gpu.md)
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import math
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("onnx") is None:
    # The meanings are NumPy's; onnx is only there to write function bodies, which nothing here does.
    sys.modules |= {name: mock.MagicMock() for name in ("onnx", "onnx.helper")}

from lipdeploy.ops.group_sort import evaluate as group_sort
from lipdeploy.ops.householder import evaluate as householder
from lipdeploy.ops.linear_spline import evaluate as linear_spline

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]
PAGE = ROOT / "docs" / "benchmarks_gpu.md"
BUILD = ROOT / "build" / "gpu"
ENTRY = {"GroupSort": "group_sort", "LinearSpline": "linear_spline", "Householder": "householder"}
LOWER, SPACING, KNOTS = -2.0, float(np.float32(0.08)), 51
MIB = 1 << 20


class NotMeasured(Exception):
    """Why there is nothing to measure here."""


# ---- the four types as bits, so that no library for bfloat16 is needed


@dataclass(frozen=True)
class Type:
    """An element type: how it is stored, and the type in which NumPy computes its meaning."""

    name: str
    stored: np.dtype[Any]
    work: np.dtype[Any]

    def encode(self, values: Array) -> Array:
        """Values of ``work`` as stored, rounded to nearest even; every NaN canonical."""
        if self.name != "bf16":
            return values.astype(self.stored)
        bits = values.astype(np.float32).view(np.uint32)
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)

    def decode(self, stored: Array) -> Array:
        """Stored numbers in ``work``, exactly."""
        if self.name != "bf16":
            return stored.astype(self.work)
        return (stored.astype(np.uint32) << 16).view(np.float32)


TYPES = (
    Type("f16", np.dtype(np.float16), np.dtype(np.float32)),
    Type("bf16", np.dtype(np.uint16), np.dtype(np.float32)),
    Type("f32", np.dtype(np.float32), np.dtype(np.float32)),
    Type("f64", np.dtype(np.float64), np.dtype(np.float64)),
)


# ---- the cases


@dataclass(frozen=True)
class Case:
    """One operator on one shape; the channels are axis 1."""

    op: str
    shape: tuple[int, ...]
    attributes: tuple[tuple[str, float], ...]
    knots: int = 0
    shared: bool = False

    def __str__(self) -> str:
        written = ", ".join(f"{name} {value:g}" for name, value in self.attributes if name in ("group_size", "layout"))
        extra = f"{self.knots} knots{' shared' if self.shared else ''}" if self.knots else ""
        return f"{self.op} {', '.join(filter(None, (written, extra)))} on {'×'.join(map(str, self.shape))}"

    @property
    def group(self) -> int:
        """How many numbers a NaN makes NaN."""
        return int(dict(self.attributes).get("group_size", 1)) or self.shape[1]

    def evaluate(self, kind: Type, x: Array, constants: list[Array]) -> Array:
        """The NumPy meaning on stored numbers."""
        function = {"GroupSort": group_sort, "LinearSpline": linear_spline, "Householder": householder}[self.op]
        with np.errstate(all="ignore"):
            y = function(*map(kind.decode, (x, *constants)), **dict(self.attributes))
            return kind.encode(y)

    def arguments(self, constants: list[Array]) -> list[Any]:
        """What the C entry point takes behind its pointers."""
        sizes = [self.shape[0], self.shape[1], math.prod(self.shape[2:])]
        given = dict(self.attributes)
        if self.op == "GroupSort":
            return [ctypes.c_int64(int(v)) for v in (*sizes, given["group_size"], given["layout"], given["descending"])]
        if self.op == "Householder":
            return [ctypes.c_int64(int(v)) for v in (*sizes, given["layout"])]
        floats = [ctypes.c_float(given["lower"]), ctypes.c_float(given["knot_spacing"])]
        return [*(ctypes.c_int64(v) for v in (*sizes, *constants[0].shape)), *floats]


def sort_case(shape: tuple[int, ...], group_size: int, layout: int = 0, descending: int = 0) -> Case:
    return Case("GroupSort", shape, (("group_size", group_size), ("layout", layout), ("descending", descending)))


def spline_case(shape: tuple[int, ...], knots: int = KNOTS, shared: bool = False) -> Case:
    return Case("LinearSpline", shape, (("lower", LOWER), ("knot_spacing", SPACING)), knots, shared)


def reflect_case(shape: tuple[int, ...], layout: int = 1) -> Case:
    return Case("Householder", shape, (("layout", layout),))


def check_cases() -> Iterator[Case]:
    """Every kernel, every remainder: packs of 16 bytes and what does not fill them, shared memory and beyond."""
    for layout in (0, 1):
        for size in (1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 33, 64, 100, 1024, 0):
            channels = 3 * size or 192
            for shape in ((5, channels), (8, channels), (5, channels, 8, 8), (5, channels, 5, 7)):
                for descending in (0, 1):
                    yield sort_case(shape, size, layout, descending)
    yield sort_case((2, 65536), 0)
    yield sort_case((1, 20000, 3), 0, descending=1)
    for knots in (2, 5, 51, 1025):
        for shared in (False, True):
            for shape in ((64, 33), (70, 64), (3, 4, 16, 16), (3, 5, 7, 7), (1, 64)):
                yield spline_case(shape, knots, shared)
    for shape in ((256, 16), (4, 16, 8, 8), (64, 15, 3)):  # tables in shared memory, several rows
        yield spline_case(shape, 9)
    for layout in (0, 1):
        for shape in ((64, 34), (70, 64), (3, 4, 16, 16), (3, 6, 7, 7), (1, 2)):
            yield reflect_case(shape, layout)
    yield sort_case((0, 8), 2)
    yield spline_case((2, 4, 0))
    yield reflect_case((0, 8))


def inputs(case: Case, kind: Type, seed: int = 0) -> tuple[Array, list[Array]]:
    """Random numbers with ties, ±0, ±Inf, subnormals and NaNs, and the operator's constants; as stored."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal(case.shape) * 2, 1)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40])
    chosen = rng.random(case.shape) < 0.02
    values = np.where(chosen, special[rng.integers(0, len(special), case.shape)], values)
    # One NaN makes a whole group NaN, which tests no sort: half of the groups have none.
    values[rng.random(case.shape) < min(0.003, 0.7 / case.group)] = np.nan
    channels, constants = case.shape[1], []
    if case.op == "LinearSpline":
        constants = [rng.standard_normal((1 if case.shared else channels, case.knots))]
    elif case.op == "Householder":
        half = rng.uniform(-4, 4, channels // 2)
        constants = [np.sin(half), np.cos(half)]
    with np.errstate(all="ignore"):
        return kind.encode(values.astype(kind.work)), [kind.encode(c.astype(kind.work)) for c in constants]


# ---- the device


class Device(Protocol):
    """Memory that kernels see. ``suffix`` ends the names of the entry points."""

    suffix: str

    def put(self, data: Array, shift: int = 0) -> Any:
        """A copy there, ``shift`` bytes behind an address that suits 16-byte accesses."""
        ...

    def pointer(self, memory: Any) -> int:
        """Where it lies."""
        ...

    def get(self, memory: Any, like: Array) -> Array:
        """What lies there now, with the type and shape of ``like``."""
        ...

    def stream(self) -> int:
        """The stream on which kernels are put."""
        ...


class Gpu:
    """The first CUDA device, through PyTorch."""

    suffix = "cuda"

    def __init__(self) -> None:
        self.torch: Any = importlib.import_module("torch")

    def put(self, data: Array, shift: int = 0) -> Any:
        """See ``Device``."""
        room = self.torch.zeros(data.nbytes + shift + 16, dtype=self.torch.uint8, device="cuda")
        memory = room[shift : shift + data.nbytes]
        memory.copy_(self.torch.from_numpy(np.ascontiguousarray(data).reshape(-1).view(np.uint8)))
        return memory

    def pointer(self, memory: Any) -> int:
        """See ``Device``."""
        return int(memory.data_ptr())

    def get(self, memory: Any, like: Array) -> Array:
        """See ``Device``."""
        self.torch.cuda.synchronize()
        data: Array = memory.cpu().numpy().view(like.dtype).reshape(like.shape)
        return data

    def stream(self) -> int:
        """See ``Device``."""
        return int(self.torch.cuda.current_stream().cuda_stream)


@dataclass(frozen=True)
class Kernels:
    """The entry points of a library on a device."""

    library: ctypes.CDLL
    device: Device

    def bound(
        self, case: Case, kind: Type, constants: list[Array], x: Any, y: Any, held: list[Any]
    ) -> Callable[[], None]:
        """A call of the kernel from ``x`` to ``y``; ``held`` are the constants' copies on the device."""
        name = f"lipdeploy_{ENTRY[case.op]}_{kind.name}_{self.device.suffix}"
        function = getattr(self.library, name)
        function.restype = ctypes.c_int32
        pointers = [ctypes.c_void_p(self.device.pointer(memory)) for memory in (x, *held, y)]
        rest = case.arguments(constants)

        def call() -> None:
            status = function(*pointers, *rest, ctypes.c_void_p(self.device.stream()))
            if status != 0:
                raise RuntimeError(f"{name} on {case} returned {status}")

        return call

    def run(self, case: Case, kind: Type, shift: int = 0) -> tuple[Array, Array]:
        """(got, want) as bits. ``shift``: bytes by which the tensors are off a 16-byte address."""
        x, constants = inputs(case, kind)
        there, held = self.device.put(x, shift), [self.device.put(constant) for constant in constants]
        y = self.device.put(np.zeros_like(x), shift)
        if x.size:
            self.bound(case, kind, constants, there, y, held)()
        return as_bits(self.device.get(y, x)), as_bits(case.evaluate(kind, x, constants))


def as_bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def check(kernels: Kernels, cases: list[Case]) -> Iterator[tuple[Case, Type, str]]:
    """Every case in every type, aligned and not; yields those that differ."""
    for case in cases:
        for kind in TYPES:
            for shift in (0, kind.stored.itemsize):
                got, want = kernels.run(case, kind, shift)
                if not np.array_equal(got, want):
                    wrong = int((got != want).sum())
                    yield case, kind, f"{wrong} of {want.size} elements differ (shift {shift})"


def check_graph(kernels: Kernels, gpu: Gpu) -> Iterator[tuple[Case, Type, str]]:
    """Captured into a CUDA graph and replayed on other numbers: nothing may allocate or synchronise."""
    torch = gpu.torch
    for case in (sort_case((64, 64), 2), sort_case((64, 60), 5), sort_case((9, 500), 0), spline_case((64, 64)),
                 reflect_case((64, 64))):  # fmt: skip
        for kind in TYPES:
            x, constants = inputs(case, kind)
            there, held, y = gpu.put(np.zeros_like(x)), [gpu.put(c) for c in constants], gpu.put(np.zeros_like(x))
            call = kernels.bound(case, kind, constants, there, y, held)
            call()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            there.copy_(gpu.put(x))
            graph.replay()
            if not np.array_equal(as_bits(gpu.get(y, x)), as_bits(case.evaluate(kind, x, constants))):
                yield case, kind, "replayed from a CUDA graph it differs"


def check_onnxruntime(library: Path) -> tuple[str, list[tuple[Case, Type, str]]]:
    """The same through ONNX Runtime's CUDA provider: (what was done, what differs)."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return "not installed", []
    ort = importlib.import_module("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no CUDA provider", []
    wrong = []
    for case in (sort_case((64, 64), 2), sort_case((5, 60, 7), 5, 1), spline_case((64, 64)), reflect_case((64, 64))):
        for kind in (kind for kind in TYPES if kind.name != "bf16"):  # NumPy cannot hand over bfloat16
            x, constants = inputs(case, kind)
            got = through_onnxruntime(ort, library, case, x, constants)
            if not np.array_equal(as_bits(got), as_bits(case.evaluate(kind, x, constants))):
                wrong.append((case, kind, "through ONNX Runtime's CUDA provider it differs"))
    return f"onnxruntime {ort.__version__}, CUDA provider, bit for bit", wrong


def through_onnxruntime(ort: Any, library: Path, case: Case, x: Array, constants: list[Array]) -> Array:
    """One node on the CUDA provider, and on no other."""
    helper = importlib.import_module("onnx.helper")
    numpy_helper = importlib.import_module("onnx.numpy_helper")
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    stored = [numpy_helper.from_array(constant, f"c{i}") for i, constant in enumerate(constants)]
    floats = ("lower", "knot_spacing")
    attributes = {name: value if name in floats else int(value) for name, value in case.attributes}
    node = helper.make_node(case.op, ["x", *(c.name for c in stored)], ["y"], domain="lipdeploy", **attributes)
    ends = [helper.make_tensor_value_info(name, element, case.shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    got: Array = session.run(None, {"x": x})[0]
    return got


# ---- timing


def timed_cases(elements: int) -> Iterator[Case]:
    """Dense layers and images of so many numbers."""
    rows, images = (elements // 1024, 1024), (elements // (64 * 1024), 64, 32, 32)
    for size in (2, 4, 8, 16, 32):
        yield sort_case(rows, size)
        yield sort_case(images, size)
    yield sort_case((elements // 512, 512), 0)
    yield spline_case((elements // 64, 64))
    yield spline_case(images)
    yield reflect_case(rows)
    yield reflect_case(images)


def eager(gpu: Gpu, case: Case, kind: Type, x: Any, constants: list[Array]) -> Callable[[], Any]:
    """What a user of torch writes today."""
    torch = gpu.torch
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}[kind.name]
    tensor = x.view(dtype).view(case.shape)
    held = [gpu.put(c).view(dtype).view(c.shape) for c in constants]
    trailing = [1] * (len(case.shape) - 2)
    if case.op == "GroupSort":
        size = int(dict(case.attributes)["group_size"]) or case.shape[1]
        grouped = tensor.view(case.shape[0], -1, size, *case.shape[2:])
        if size == 2:
            return lambda: torch.cat([grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)], 2)
        return lambda: torch.sort(grouped, dim=2)[0]
    if case.op == "Householder":
        sine, cosine = (h.view(-1, *trailing) for h in held)

        def reflect() -> Any:
            a, b = tensor.chunk(2, 1)
            m = 2 * torch.relu(a * sine - b * cosine)
            return torch.cat([a - sine * m, b + cosine * m], 1)

        return reflect
    table, starts = held[0].reshape(-1), torch.arange(case.shape[1], device="cuda").view(-1, *trailing) * case.knots

    def interpolate() -> Any:
        k = ((tensor - LOWER) / SPACING).floor().clamp(0, case.knots - 2)
        place = k.long() + starts
        left = table[place]
        return left + (tensor - (LOWER + k * SPACING)) * (table[place + 1] - left) / SPACING

    return interpolate


def race(gpu: Gpu, runs: dict[str, Callable[[], Any]], rounds: int = 15, calls: int = 5) -> dict[str, float]:
    """Median milliseconds of one call of each, in turns; torch eager gets fewer."""
    torch = gpu.torch
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for turn in range(rounds):
        for name, run in runs.items():
            if name == "eager" and turn >= 3:
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) / calls)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def time_all(kernels: Kernels, gpu: Gpu, sizes: tuple[int, ...] = (64, 256)) -> Iterator[str]:
    """Lines of the table, for tensors of so many MiB."""
    yield "| operator | type | MiB | copy ms | kernel ms | kernel / copy bandwidth | torch eager ms | eager / kernel |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for mib in sizes:
        for kind in TYPES:
            elements = mib * MIB // kind.stored.itemsize
            sample = kind.encode(np.random.default_rng(0).standard_normal(1 << 20).astype(kind.work))
            x = gpu.put(np.resize(sample, elements))
            for case in timed_cases(elements):
                copy, kernel, slow = time_one(kernels, gpu, case, kind, x)
                times = f"{copy:.3g} | {kernel:.3g} | {copy / kernel:.2f} | {slow:.3g} | {slow / kernel:.1f}"
                yield f"| {case} | {kind.name} | {mib} | {times} |"


def time_one(kernels: Kernels, gpu: Gpu, case: Case, kind: Type, x: Any) -> tuple[float, float, float]:
    """Milliseconds of a copy, of the kernel, of torch."""
    y = gpu.torch.empty_like(x)
    _, constants = inputs(Case(case.op, (1, *case.shape[1:]), case.attributes, case.knots), kind)
    held = [gpu.put(constant) for constant in constants]
    runs: dict[str, Callable[[], Any]] = {
        "copy": lambda: y.copy_(x),
        "kernel": kernels.bound(case, kind, constants, x, y, held),
        "eager": eager(gpu, case, kind, x, constants),
    }
    took = race(gpu, runs)
    return took["copy"], took["kernel"], took["eager"]


# ---- the whole


def build() -> Path:
    """The library with its CUDA kernels, built from this checkout."""
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            raise NotMeasured(f"{tool} is not on the path, so the kernels cannot be built")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(BUILD),
        *generator,
        "-DLIPDEPLOY_CUDA=ON",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    for command in (configure, ["cmake", "--build", str(BUILD), "--target", "lipdeploy_ops", "--parallel"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return BUILD / "liblipdeploy_ops.so"


def require_gpu() -> Gpu:
    """The GPU, or why there is none."""
    if importlib.util.find_spec("torch") is None:
        raise NotMeasured("PyTorch is not installed, so device memory cannot be had")
    gpu = Gpu()
    if not gpu.torch.cuda.is_available():
        raise NotMeasured("PyTorch finds no CUDA device on this machine")
    return gpu


def machine(gpu: Gpu) -> str:
    """Device, driver and versions."""
    torch = gpu.torch
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = (
            subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip() or driver
        )
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, driver {driver}, CUDA "
        f"{torch.version.cuda} in torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    )


def page(body: list[str]) -> str:
    """The Markdown page."""
    head = [
        "# Operators on a GPU",
        "",
        "Made by `python tools/gpu_check.py` on a machine with a GPU: it builds the library, compares every operator",
        "in every type with its NumPy meaning, bit for bit, and times the kernels against a copy from device to device",
        "of the same bytes, in turns, medians of CUDA events.",
        "",
    ]
    return "\n".join([*head, *body, ""])


def measured(gpu: Gpu, library: Path, *, checks_only: bool) -> tuple[list[str], bool]:
    """(the page's body, whether everything was equal)."""
    kernels = Kernels(ctypes.CDLL(str(library)), gpu)
    cases = list(check_cases())
    through, wrong = check_onnxruntime(library)
    wrong += [*check(kernels, cases), *check_graph(kernels, gpu)]
    for case, kind, what in wrong:
        print(f"WRONG  {kind.name}  {case}: {what}")
    summary = (
        f"{len(cases)} cases in {len(TYPES)} types, aligned and not: {len(wrong)} differ. ONNX Runtime: {through}."
    )
    print(summary)
    lines = [machine(gpu), "", summary, ""]
    if not checks_only and not wrong:
        for line in time_all(kernels, gpu):
            print(line, flush=True)
            lines.append(line)
    return lines, not wrong


def main(arguments: list[str] | None = None) -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--library", type=Path)
    parser.add_argument("--output", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    try:
        gpu = require_gpu()
        lines, equal = measured(gpu, given.library or build(), checks_only=given.checks_only)
    except NotMeasured as reason:
        print(f"not measured: {reason}")
        if not given.output.exists():
            given.output.write_text(page(["**Not measured**: no machine with a GPU has run it yet."]), encoding="utf-8")
        return 2
    if not given.checks_only and equal:
        given.output.write_text(page(lines), encoding="utf-8")
        print(f"\n{given.output}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
