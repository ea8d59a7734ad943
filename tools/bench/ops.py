"""The operators against a copy of the same bytes, on one thread: ``python tools/bench/ops.py [--quick]``.

Rows are printed and kept in ``--journal`` as they come; the same command with ``--resume`` goes on behind them. From 4
KiB to 256 MiB it takes about a quarter of an hour. ``--end-to-end`` measures whole networks instead: the same file with
the operator library and without.

Every contender runs in turn, over and over, and the median is reported, so that a slow moment of the machine hits all.

kernel     the operator library in ONNX Runtime (a model of one node, input and output bound once)
body       the same file without the library: its function body in standard operators
reference  what such a file holds today: for GroupSort-2 the five nodes Reshape, ReduceMin, ReduceMax, Concat, Reshape
           that torch exports, for larger groups Reshape, TopK, Reshape
torch      the lipdeploy.nn module in torch's eager mode
compiled   the same module through torch.compile (empty where there is no C++ compiler)
copy       numpy.copyto: the floor, because an activation reads its bytes and writes as many

``--clock cpu`` counts the CPU time of this thread instead of the wall's: for a machine shared with others.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import ctypes
import functools
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.nn.householder import StoredHouseholder, stored_reflections
from lipdeploy.nn.sorting import GroupSort
from lipdeploy.nn.spline import StoredLinearSpline
from lipdeploy.ops import DOMAIN, VERSION, attach_functions
from lipdeploy.runtime.library import find_library

SLOW = ("body", "reference", "torch", "compiled")
KIB, MIB = 1 << 10, 1 << 20
SIZES = (4 * KIB, 64 * KIB, MIB, 8 * MIB, 64 * MIB, 256 * MIB)
QUICK_SIZES = (64 * KIB, 8 * MIB)
LEAST_ROUNDS = 3
LONG_CALL = 0.5  # seconds; a contender this slow is called once more, and that is that
SHORTEST_SAMPLE = 50e-6  # seconds; faster contenders are called several times for one sample
LOWER, SPACING, KNOTS = -2.0, float(np.float32(0.08)), 51
PICTURE = Path("build/bench/ops.png")
JOURNAL = Path("build/bench/ops.jsonl")
DENSE, DENSE_BATCH = 512, 256  # units of a dense layer, rows of its batch
ZOO = Path(__file__).resolve().parents[2] / "zoo"

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One operator in one layout; ``channels`` and ``lanes`` are the tensor's shape behind its batch axis."""

    name: str
    channels: int
    lanes: int
    group_size: int | None  # None: another operator
    strided: bool = False
    op: str = "GroupSort"

    def shape(self, size: int) -> tuple[int, ...]:
        """The float32 tensor of about ``size`` bytes, at least one sample."""
        batch = max(1, size // (4 * self.channels * self.lanes))
        side = int(self.lanes**0.5)
        return (batch, self.channels) if self.lanes == 1 else (batch, self.channels, side, side)


CASES = (
    Case("GroupSort 2, NC", 1024, 1, 2),
    Case("GroupSort 2, NCHW", 64, 1024, 2),
    Case("GroupSort 2 strided, NC", 1024, 1, 2, strided=True),
    Case("GroupSort 2 strided, NCHW", 64, 1024, 2, strided=True),
    Case("GroupSort 8, NC", 1024, 1, 8),
    Case("GroupSort 8, NCHW", 64, 1024, 8),
    Case("FullSort 512, NC", 512, 1, 0),
    Case("GroupSort 5, NC", 1000, 1, 5),
    Case("LinearSpline 51 knots, NC", 64, 1, None, op="LinearSpline"),
    Case("LinearSpline 51 knots, NCHW", 64, 1024, None, op="LinearSpline"),
    Case("Householder, NC", 1024, 1, None, strided=True, op="Householder"),
    Case("Householder adjacent, NC", 1024, 1, None, op="Householder"),
    Case("Householder, NCHW", 64, 1024, None, strided=True, op="Householder"),
)


def main() -> None:
    """Measure, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, under a minute")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name contains this")
    parser.add_argument(
        "--mib", type=float, nargs="+", metavar="SIZE", help="tensor sizes in place of 4 KiB to 256 MiB"
    )
    parser.add_argument("--seconds", type=float, help="for each case and size (default 2, quick 1)")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="PNG")
    parser.add_argument("--journal", type=Path, default=JOURNAL, metavar="JSONL", help="where finished rows are kept")
    parser.add_argument("--resume", action="store_true", help="take the rows that the journal already holds")
    parser.add_argument("--end-to-end", action="store_true", help="whole networks, with and without the library")
    given = parser.parse_args()
    seconds = given.seconds or (1.0 if given.quick else 2.0)
    clock = time.perf_counter if given.clock == "wall" else time.thread_time
    torch.set_num_threads(1)
    print(f"{machine()}; one thread, {given.clock} time, medians\n")
    if given.end_to_end:
        return end_to_end(given.only, 2 * seconds, clock)
    sizes = [int(mib * MIB) for mib in given.mib or ()] or (QUICK_SIZES if given.quick else SIZES)
    slow = " | ".join(f"{name} ms" for name in SLOW)
    print(f"| float32 | MiB | copy ms | kernel ms | kernel / copy bandwidth | {slow} |")
    print("| --- " * (5 + len(SLOW)) + "|")
    journal = Journal(given.journal, f"{machine()}; {given.clock}; {library_digest()}", keep=given.resume)
    shares: dict[str, list[tuple[float, float]]] = {}
    for case in (case for case in CASES if given.only in case.name):
        for shape in dict.fromkeys(case.shape(size) for size in sizes):
            mib = 4 * int(np.prod(shape)) / MIB
            times = journal.find(case.name, shape)
            if times is None:
                times = race(contenders(case, shape), seconds, clock)
                journal.add(case.name, shape, times)
            print(row(case.name, mib, times), flush=True)
            shares.setdefault(case.name, []).append((mib, times["copy"] / times["kernel"]))
    draw(shares, given.picture)


class Journal:
    """Finished rows, one JSON object a line; those of another machine, library or clock are not looked at."""

    def __init__(self, path: Path, setting: str, *, keep: bool) -> None:
        self.path, self.setting = path, setting
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if keep and path.is_file() else []
        rows = [json.loads(line) for line in lines]
        self.rows = {(row["case"], tuple(row["shape"])): row["seconds"] for row in rows if row["setting"] == setting}
        if not keep:
            path.write_text("", encoding="utf-8")

    def find(self, case: str, shape: tuple[int, ...]) -> dict[str, float] | None:
        """The times of a row that was measured before."""
        return self.rows.get((case, shape))

    def add(self, case: str, shape: tuple[int, ...], seconds: dict[str, float]) -> None:
        """Keep a row."""
        row = {"case": case, "shape": shape, "seconds": seconds, "setting": self.setting}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def row(name: str, mib: float, times: dict[str, float]) -> str:
    """One line of the table."""
    slow = [f"{times[key] * 1e3:.3g}" if key in times else "" for key in SLOW]
    copy, kernel = times["copy"], times["kernel"]
    return f"| {name} | {mib:.4g} | {copy * 1e3:.3g} | {kernel * 1e3:.3g} | {copy / kernel:.2f} | {' | '.join(slow)} |"


def race(runs: dict[str, Run], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of one call of each contender. Who has had its share of the time sits out."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    calls, least = {}, {}
    for name, run in runs.items():
        long = timed(run, 1, clock) > LONG_CALL
        once = timed(run, 1, clock)
        calls[name] = max(1, int(SHORTEST_SAMPLE / max(once, 1e-9)))
        least[name] = 1 if long else LEAST_ROUNDS
        samples[name] += [once] if long else []
    spent = {name: sum(taken) for name, taken in samples.items()}
    share = seconds / len(runs)
    while any(spent[name] < share or len(samples[name]) < least[name] for name in runs):
        for name, run in runs.items():
            enough = spent[name] >= share and len(samples[name]) >= least[name]
            if enough and name not in ("kernel", "copy"):
                continue
            took = timed(run, calls[name], clock)
            spent[name] += took
            samples[name].append(took / calls[name])
    return {name: statistics.median(taken) for name, taken in samples.items()}


def timed(run: Run, calls: int, clock: Callable[[], float]) -> float:
    """Seconds of so many calls in a row."""
    start = clock()
    for _ in range(calls):
        run()
    return clock() - start


def contenders(case: Case, shape: tuple[int, ...]) -> dict[str, Run]:
    """What to measure, by name."""
    rng = np.random.default_rng(0)
    x = aligned(shape)
    x[...] = rng.standard_normal(shape, dtype=np.float32)
    y = aligned(shape)
    constants = constants_of(case)
    file = model(case, shape, constants)
    library = find_library()
    if library is None:
        raise SystemExit("the operator library is not built: make build")
    runs: dict[str, Run] = {
        "copy": lambda: np.copyto(y, x),
        "kernel": bound(file, x, y, library.path),
        "body": bound(file, x, y, None),
    }
    if case.group_size is not None:
        runs["reference"] = bound(exported_today(case, shape), x, y, None)
    module, tensor = torch_module(case, constants), torch.from_numpy(x)
    runs["torch"] = in_torch(module, tensor)
    if shutil.which("c++"):
        runs["compiled"] = in_torch(compiled(case), tensor)
    return runs


@functools.cache
def compiled(case: Case) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module through torch.compile, for every batch size at once."""
    return torch.compile(torch_module(case, constants_of(case)), dynamic=True)


def in_torch(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Run:
    """A call of a torch module."""

    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def constants_of(case: Case) -> list[np.ndarray]:
    """The operator's constant inputs, the same for every size."""
    rng = np.random.default_rng(1)
    if case.op == "LinearSpline":
        return [rng.standard_normal((case.channels, KNOTS)).astype(np.float32)]
    if case.op == "Householder":
        stored = stored_reflections(torch.from_numpy(rng.uniform(-3, 3, case.channels // 2)).float())
        return [stored.sine.numpy(), stored.cosine.numpy()]
    return []


def torch_module(case: Case, constants: list[np.ndarray]) -> torch.nn.Module:
    """The module of lipdeploy.nn that exports to this operator."""
    stored = [torch.from_numpy(constant) for constant in constants]
    if case.op == "LinearSpline":
        return StoredLinearSpline(case.channels, *stored, LOWER, SPACING)
    if case.op == "Householder":
        return StoredHouseholder(*stored, layout="strided" if case.strided else "adjacent")
    assert case.group_size is not None
    return GroupSort(case.group_size, layout="strided" if case.strided else "adjacent")


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array at an address like those of ONNX Runtime's tensors, its pages touched."""
    room = np.zeros(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def bound(file: onnx.ModelProto, x: np.ndarray, y: np.ndarray, library: str | None) -> Run:
    """A call of ONNX Runtime, one thread, from x to y: the memory that the copy uses too."""
    session = session_of(file, library)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def session_of(file: onnx.ModelProto, library: str | None) -> ort.InferenceSession:
    """A session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model(case: Case, shape: tuple[int, ...], constants: list[np.ndarray]) -> onnx.ModelProto:
    """A file of one lipdeploy node and its function body."""
    attributes: dict[str, float] = {"axis": 1}
    if case.op == "LinearSpline":
        attributes |= {"lower": LOWER, "knot_spacing": SPACING}
    else:
        attributes["layout"] = int(case.strided)
    if case.group_size is not None:
        attributes |= {"group_size": case.group_size, "descending": 0}
    stored = [numpy_helper.from_array(constant, f"c{i}") for i, constant in enumerate(constants)]
    node = helper.make_node(case.op, ["x", *(c.name for c in stored)], ["y"], domain=DOMAIN, **attributes)
    result = wrap([node], shape, stored)
    attach_functions(result, {TensorProto.FLOAT})
    return result


def exported_today(case: Case, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The same sort without lipdeploy."""
    size = case.group_size or case.channels
    groups = case.channels // size
    axis = 1 if case.strided else 2
    split = [shape[0], size, groups, *shape[2:]] if case.strided else [shape[0], groups, size, *shape[2:]]
    constants = [
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("grouped", split), ("flat", shape), ("axes", [axis]), ("size", [size]))
    ]
    if size == 2:
        middle = [
            helper.make_node("ReduceMin", ["g", "axes"], ["low"], keepdims=1),
            helper.make_node("ReduceMax", ["g", "axes"], ["high"], keepdims=1),
            helper.make_node("Concat", ["low", "high"], ["s"], axis=axis),
        ]
    else:
        middle = [helper.make_node("TopK", ["g", "size"], ["s", "places"], axis=axis, largest=0, sorted=1)]
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["g"]),
        *middle,
        helper.make_node("Reshape", ["s", "flat"], ["y"]),
    ]
    return wrap(nodes, shape, constants)


def wrap(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A model from x to y."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@dataclass(frozen=True)
class Network:
    """A whole network and one batch for it."""

    name: str
    file: onnx.ModelProto
    shape: tuple[int, ...]
    bare: onnx.ModelProto | None = None  # the same without its activations: what no operator can save


def networks() -> list[Network]:
    """Four convolutions at 32×32 or three dense layers, with either activation, and the networks of the zoo."""
    made = [
        Network(
            f"four Conv 3x3, {channels} channels, {name}",
            conv_net(channels, case, reference),
            (32, 3, 32, 32),
            conv_net(channels, None),
        )
        for channels in (8, 16, 32, 64)
        for name, case, reference in (
            ("LinearSpline 51 knots", Case("", channels, 1024, None, op="LinearSpline"), False),
            ("GroupSort 2", Case("", channels, 1024, 2), False),
            ("GroupSort 2 as torch exports it", Case("", channels, 1024, 2), True),
            ("GroupSort 8", Case("", channels, 1024, 8), False),
        )
    ]
    made += [
        Network(f"three Gemm of {DENSE}, {name}", dense_net(case), (DENSE_BATCH, DENSE), dense_net(None))
        for name, case in (
            ("LinearSpline 51 knots", Case("", DENSE, 1, None, op="LinearSpline")),
            ("GroupSort 2", Case("", DENSE, 1, 2)),
            ("GroupSort 8", Case("", DENSE, 1, 8)),
            ("full sort", Case("", DENSE, 1, 0)),
        )
    ]
    for folder in ("mnist_spline_conv", "mnist_group_sort_conv", "photo_spline_denoiser", "mnist_group_sort_mlp"):
        path = ZOO / folder / "model.onnx"
        if path.is_file():
            file = onnx.load(path)
            dims = file.graph.input[0].type.tensor_type.shape.dim
            shape = tuple(dim.dim_value or (32 if i == 0 else 64) for i, dim in enumerate(dims))
            made.append(Network(f"zoo: {folder}", file, shape))
    return made


def conv_net(channels: int, case: Case | None, reference: bool = False) -> onnx.ModelProto:
    """Conv, activation, four times; mean over the image; ten logits. ``reference``: as such files look today."""
    rng = np.random.default_rng(2)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    here, width = "x", 3
    for layer in range(4):
        weight = rng.standard_normal((channels, width, 3, 3)).astype(np.float32) / (3 * width**0.5)
        stored.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [here, f"w{layer}"], [f"z{layer}"], pads=[1, 1, 1, 1]))
        here, width = f"z{layer}", channels
        if case is not None:
            nodes += activation(case, (32, channels, 32, 32), layer, reference, stored)
            here = f"a{layer}"
    stored.append(numpy_helper.from_array(rng.standard_normal((channels, 10)).astype(np.float32), "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [here], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["y"]),
    ]
    return network_file(nodes, stored, (32, 3, 32, 32), (32, 10))


def dense_net(case: Case | None) -> onnx.ModelProto:
    """Gemm, activation, three times; ten logits."""
    rng = np.random.default_rng(2)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    here = "x"
    for layer, width in enumerate((DENSE, DENSE, DENSE, 10)):
        weight = rng.standard_normal((DENSE, width)).astype(np.float32) / DENSE**0.5
        stored.append(numpy_helper.from_array(weight, f"w{layer}"))
        last = layer == 3
        nodes.append(helper.make_node("Gemm", [here, f"w{layer}"], ["y" if last else f"z{layer}"]))
        here = f"z{layer}"
        if case is not None and not last:
            nodes += activation(case, (DENSE_BATCH, DENSE), layer, False, stored)
            here = f"a{layer}"
    return network_file(nodes, stored, (DENSE_BATCH, DENSE), (DENSE_BATCH, 10))


def network_file(
    nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto], x: tuple[int, ...], y: tuple[int, ...]
) -> onnx.ModelProto:
    """One file from ``x`` to ``y``, with the bodies of its operators."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    result = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    attach_functions(result, {TensorProto.FLOAT})
    return result


def activation(
    case: Case, shape: tuple[int, ...], layer: int, reference: bool, stored: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """The nodes of an activation from ``z…`` to ``a…``; its constants go to ``stored``."""
    inner = exported_today(case, shape) if reference else model(case, shape, constants_of(case))
    names = {"x": f"z{layer}", "y": f"a{layer}"}
    for tensor in inner.graph.initializer:
        names[tensor.name] = f"{tensor.name}_{layer}"
        tensor.name = names[tensor.name]
        stored.append(tensor)
    for node in inner.graph.node:
        node.input[:] = [names.get(name, f"{name}_{layer}") for name in node.input]
        node.output[:] = [names.get(name, f"{name}_{layer}") for name in node.output]
    return list(inner.graph.node)


def end_to_end(only: str, seconds: float, clock: Callable[[], float]) -> None:
    """The same file with the library and without, in turns."""
    library = find_library()
    if library is None:
        raise SystemExit("the operator library is not built: make build")
    print("| network | batch | with the library ms | without ms | without / with | no activations ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for network in (network for network in networks() if only in network.name):
        x = np.random.default_rng(0).standard_normal(network.shape).astype(np.float32)
        runs = {"with": whole(network.file, x, library.path), "without": whole(network.file, x, None)}
        if network.bare is not None:
            runs["bare"] = whole(network.bare, x, None)
        times = race(runs, seconds, clock)
        columns = [f"{times[name] * 1e3:.3g}" if name in times else "" for name in ("with", "without", "bare")]
        columns.insert(2, f"{times['without'] / times['with']:.2f}")
        print(f"| {network.name} | {'x'.join(map(str, network.shape))} | {' | '.join(columns)} |", flush=True)


def whole(file: onnx.ModelProto, x: np.ndarray, library: str | None) -> Run:
    """A call of ONNX Runtime on one thread."""
    session = session_of(file, library)
    feeds = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feeds)


def library_digest() -> str:
    """SHA-256 of the operator library."""
    library = find_library()
    return "none" if library is None else library.sha256


def machine() -> str:
    """Processor, instruction set and versions."""
    library = find_library()
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = named[0].split(":", 1)[1].strip() if named else processor
    used = "no library"
    if library is not None:
        name = ctypes.CDLL(library.path).lipdeploy_ops_instruction_set
        name.restype = ctypes.c_char_p
        used = f"lipdeploy {library.release} ({name().decode()})"
    return (
        f"{processor}; {used}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"onnxruntime {ort.__version__}, torch {torch.__version__}"
    )


COLOURS = 10  # of a figure, before they begin again


def draw(shares: dict[str, list[tuple[float, float]]], picture: Path) -> None:
    """Share of the copy's bandwidth over the size, as a PNG; left out where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("\nno picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for number, (name, points) in enumerate(shares.items()):
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linestyle="--" if number >= COLOURS else "-")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="MiB of input (float32)", ylabel="kernel's share of a copy's bandwidth")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130, bbox_inches="tight")
    print(f"\n{picture}")


if __name__ == "__main__":
    main()
