"""Random graphs on images of open size: the bound holds at every size that runs, however small.

Truth: ONNX Runtime without optimisation, in float32. Finite differences say which way to go. Windows may leave no pixel
of a small image: what is answered then must still have the shape that was stated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.verify.models import judge, lengths, session

GRAPHS = int(os.environ.get("LIPDEPLOY_EXAMPLES", "600"))
NORMS = {"l2": ("l2", "l2"), "linf": ("linf", "linf"), "l1": ("l1", "l1"), "l2-linf": ("l2", "linf")}
CHANNELS, SIZES = 2, ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (2, 5), (5, 3), (6, 6))
Array = np.ndarray[Any, Any]


class Growing:
    """A graph under construction: the name of its last tensor, and how many channels that has."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.opset = rng, int(rng.integers(13, 24))
        self.name, self.channels = "x", CHANNELS
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []

    def constant(self, values: Any) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(values), f"c{len(self.stored)}"))
        return self.stored[-1].name

    def add(self, op: str, *inputs: str, **attributes: Any) -> None:
        self.name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.name], **attributes))

    def numbers(self, low: int, high: int, count: int) -> list[int]:
        return [int(n) for n in self.rng.integers(low, high, count)]


def conv(g: Growing) -> None:
    op, outputs = str(g.rng.choice(["Conv", "Conv", "ConvTranspose"])), int(g.rng.integers(1, 4))
    shape = (outputs, g.channels) if op == "Conv" else (g.channels, outputs)
    windows = {"strides": g.numbers(1, 3, 2), "dilations": g.numbers(1, 3, 2), "pads": g.numbers(0, 3, 4)}
    g.add(op, g.name, g.constant(np.float32(g.rng.standard_normal((*shape, *g.numbers(1, 4, 2))))), **windows)
    g.channels = outputs


def residual(g: Growing) -> None:
    before, kernel = g.name, g.constant(np.float32(g.rng.standard_normal((g.channels, g.channels, 3, 3))))
    g.add("Conv", g.name, kernel, pads=[1, 1, 1, 1])
    g.add(str(g.rng.choice(["Add", "Sub", "Max", "Min"])), before, g.name)


def pool(g: Growing) -> None:
    op, kernel = str(g.rng.choice(["MaxPool", "AveragePool"])), g.numbers(1, 5, 2)
    windows = {"strides": g.numbers(1, 3, 2), "pads": [int(g.rng.integers(0, k // 2 + 1)) for k in kernel * 2]}
    g.add(op, g.name, kernel_shape=kernel, **windows, **({} if op == "MaxPool" else {"count_include_pad": 1}))


def change(g: Growing) -> None:
    kind, mode = g.rng.integers(0, 3), int(g.rng.integers(0, 2))
    pads, scales = [0, 0, *g.numbers(0, 3, 2), 0, 0, *g.numbers(0, 3, 2)], [1, 1, *g.rng.choice([0.5, 1, 2, 3], 2)]
    if kind == 0:
        g.add("Pad", g.name, g.constant(pads), mode=("constant", "edge")[mode])
    elif kind == 1:
        g.add("Resize", g.name, "", g.constant(np.float32(scales)), mode=("nearest", "linear")[mode])
    else:
        g.add(str(g.rng.choice(["Relu", "Abs", "Neg", "LeakyRelu", "Sigmoid", "Softplus"])), g.name)


def ending(g: Growing) -> None:
    """One number per channel, from axes counted from either end."""
    op, axes = str(g.rng.choice(["ReduceMean", "ReduceMax", "ReduceMin"])), [(2, 3), (-2, -1)][g.rng.integers(0, 2)]
    listed: dict[str, Any] = {"axes": axes} if g.opset < 18 else {}
    g.add(op, g.name, *([] if listed else [g.constant(axes)]), keepdims=0, **listed)


STEPS: tuple[Callable[[Growing], None], ...] = (conv, conv, residual, pool, pool, change, change, change)


def grown(rng: np.random.Generator) -> onnx.ModelProto:
    g = Growing(rng)
    for _ in range(int(rng.integers(1, 5))):
        STEPS[rng.integers(0, len(STEPS))](g)
    if rng.random() < 0.5:
        ending(g)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, "H", str(rng.choice(["W", "H", "N"]))])
    y = helper.make_tensor_value_info(g.name, TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", g.opset)]
    return helper.make_model(helper.make_graph(g.nodes, "g", [x], [y], g.stored), opset_imports=imports, ir_version=8)


def farthest(run: Callable[[Array], Array], x: Array, ins: str, outs: str) -> Array:
    """Where the output moves farthest for a step of length 1, by the Jacobian at ``x``, up to the kinks."""
    points = np.repeat(x, x.size + 1, axis=0)
    points.reshape(len(points), -1)[np.arange(1, len(points)), np.arange(x.size)] += np.float32(0.05)
    y = run(points).astype(np.float64).reshape(len(points), -1)
    jacobian = (y[1:] - y[0]).T
    if ins != "l2":
        sums = np.abs(jacobian).sum(axis=0 if ins == "l1" else 1)
        return np.eye(x.size)[sums.argmax()] if ins == "l1" else np.sign(jacobian[sums.argmax()])
    best = jacobian[np.square(jacobian).sum(axis=1).argmax()] if outs == "linf" else np.linalg.svd(jacobian)[2][0]
    return best / max(np.linalg.norm(best), 1e-30)


def check(proto: onnx.ModelProto, norm: str, rng: np.random.Generator) -> int:
    """At how many sizes a graph was proven and ran, and so could be looked at."""
    verdict, (ins, outs), looked_at = judge(proto, norm), NORMS[norm], 0
    if verdict.output is None or verdict.lipschitz_bound is None:
        return 0
    runtime = session(proto)
    for size in SIZES:
        x = rng.standard_normal((1, CHANNELS, *size)).astype(np.float32)
        try:
            y = runtime.run(None, {"x": x})[0]
        except (Fail, InvalidArgument, RuntimeException):
            continue  # what does not run answers nothing
        stated = verdict.output.shape
        assert len(y.shape) == len(stated) and all(n in (None, m) for n, m in zip(stated, y.shape, strict=True)), size
        if y.size and np.all(np.isfinite(y)):
            step = farthest(lambda rows: runtime.run(None, {"x": rows})[0], x, ins, outs).reshape(x.shape)
            other = (x + step * rng.choice([0.05, -0.05, 1.0])).astype(np.float32)
            both = runtime.run(None, {"x": np.concatenate([x, other])})[0].astype(np.float64)
            np.testing.assert_allclose(both[:1], y, rtol=1e-4, atol=1e-4 * float(np.abs(y).max()))
            moved, by = lengths(both[1:] - both[:1], outs)[0], lengths(other.astype(np.float64) - x, ins)[0]
            most = verdict.lipschitz_bound.value * by * (1 + 1e-4) + 1e-5 * float(lengths(both, outs).max())
            assert moved <= most, f"at {size}: {moved / by} > {verdict.lipschitz_bound}"
            looked_at += 1
    return looked_at


def test_a_bound_holds_at_every_size() -> None:
    looked_at = 0
    for number in range(GRAPHS):
        rng = np.random.default_rng([GRAPHS, number])  # another number of graphs draws others
        proto, norm = grown(rng), str(rng.choice(list(NORMS)))
        try:
            looked_at += check(proto, norm, rng)
        except BaseException as error:
            error.add_note(f"graph {number} of {GRAPHS} in {norm}: {onnx.printer.to_text(proto.graph)}")
            raise
    assert looked_at > GRAPHS, f"only {looked_at} sizes were looked at"
