"""Random graphs with one to three faults: what is still proven is what every program computes, for each row by itself.

Operands change places, an input comes from elsewhere, an attribute or a stored number is another, an operator is
replaced by its neighbour, something stands in between, weights are stored in fewer bits, the batch is fixed or the
opset another: patterns that are recognised as a whole are then not what they look like. Most of these graphs are
refused, and some do not run. The truth is ONNX Runtime without optimisation, in float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from lipdeploy.errors import Refused
from lipdeploy.ops import attach_functions
from lipdeploy.runtime import engine as engines
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.providers import choose
from lipdeploy.verify import Verdict
from tests.properties import graphs
from tests.properties.graphs import grow
from tests.verify.models import best_ratio, judge, session

GRAPHS = int(os.environ.get("LIPDEPLOY_EXAMPLES", "700"))
NORMS = ("l2", "l2", "linf", "l1", "l2-linf")
Rng = np.random.Generator
Array = np.ndarray[Any, Any]
NEIGHBOURS = (
    ("Max", "Min", "Add", "Sub", "Mul", "Div"),
    ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceL2"),
    ("Relu", "Abs", "Neg", "Tanh", "Sigmoid", "Softplus", "Identity", "Sqrt"),
    ("MaxPool", "AveragePool", "LpPool"),
    ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    ("DepthToSpace", "SpaceToDepth"),
    ("Sum", "Mean", "Max"),
)
#: Steps of several nodes that are recognised as a whole; half of the graphs end in one.
PATTERNS = (
    graphs.silu, graphs.centering, graphs.rectified_twice, graphs.hinges, graphs.root_of_squares, graphs.log_sigmoid,
    graphs.scaled_spline, graphs.residual, graphs.rearrange,
)  # fmt: skip


def chosen(rng: Rng, among: Iterable[Any]) -> Any:
    listed = list(among)
    return listed[rng.integers(0, len(listed))]


def replaced(graph: onnx.GraphProto, nodes: Iterable[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def other_operator(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    node = proto.graph.node[place]
    kind = next((kind for kind in NEIGHBOURS if node.op_type in kind), None)
    node.op_type = chosen(rng, kind) if kind else node.op_type


def other_source(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    """From the input, a constant, or a node before: anything that has a name there."""
    graph, node = proto.graph, proto.graph.node[place]
    names = [value.name for value in (*graph.input, *graph.initializer)]
    made = [name for before in graph.node[:place] for name in before.output]
    names = made[-3:] if made and rng.integers(0, 2) else names + made
    node.input[rng.integers(0, len(node.input))] = chosen(rng, names)


def exchanged(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    node = proto.graph.node[place]
    node.input[:] = [node.input[i] for i in rng.permutation(len(node.input))]


def other_attribute(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    kinds = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
    found = [a for node in proto.graph.node[place:] for a in node.attribute if a.type in kinds]
    attribute = chosen(rng, found or [AttributeProto()])
    if attribute.type == AttributeProto.INTS:
        attribute.ints[:] = rng.permutation(attribute.ints).tolist()
    attribute.f *= float(rng.choice([-1.0, 0.5, 2.0]))
    attribute.i = int(rng.integers(-3, 4)) if attribute.type == AttributeProto.INT else 0


def other_numbers(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    tensor = chosen(rng, proto.graph.initializer or [TensorProto(data_type=TensorProto.FLOAT, dims=[0])])
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    if flat.size and values.dtype != np.bool_:
        flat[rng.integers(0, flat.size)] += rng.choice([-1, 1, 2])
    if rng.integers(0, 3) == 0:  # as many as there are samples, perhaps
        values = np.stack([values, *[values * 2] * (shape_of(proto)[0] - 1)])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def something_between(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    graph, name = proto.graph, f"between_{len(proto.graph.node)}"
    node, slot = graph.node[place], int(rng.integers(0, len(graph.node[place].input)))
    operator = str(rng.choice(["Neg", "Relu", "Abs", "Identity", "Mul", "Flatten", "Transpose"]))
    order = {"perm": rng.permutation(len(shape_of(proto))).tolist()} if operator == "Transpose" else {}
    second = [name + "_two"] if operator == "Mul" else []
    graph.initializer.extend(numpy_helper.from_array(np.float32(2.0), two) for two in second)
    between = helper.make_node(operator, [node.input[slot], *second], [name], **order)
    node.input[slot] = name
    replaced(graph, [*graph.node[:place], between, *graph.node[place:]])


def shape_of(proto: onnx.ModelProto) -> list[int]:
    """The input's, the batch first: 0 where it is open."""
    return [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]


def fewer_bits(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    graph = proto.graph
    floats = [t for t in graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 0]
    if not floats:
        return
    tensor = chosen(rng, floats)
    name, values = tensor.name, numpy_helper.to_array(tensor)
    if rng.integers(0, 2):
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_stored"))
        widened = helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)
    else:
        scale = np.float32(np.abs(values).max() / 100 + 1e-3)
        tensor.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}_stored"))
        zero = numpy_helper.from_array(np.int8(rng.integers(-20, 20)), f"{name}_zero")
        graph.initializer.extend([numpy_helper.from_array(scale, f"{name}_scale"), zero])
        widened = helper.make_node("DequantizeLinear", [tensor.name, f"{name}_scale", zero.name], [name])
    replaced(graph, [widened, *graph.node])


def fixed_batch(rng: Rng, proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = int(rng.integers(1, 5))


def other_opset(rng: Rng, proto: onnx.ModelProto, place: int) -> None:
    proto.opset_import[0].version = int(rng.integers(17, 24))


FAULTS: tuple[Callable[[Rng, onnx.ModelProto, int], None], ...] = (
    other_operator, other_source, other_source, exchanged, other_attribute, other_numbers, something_between,
    something_between, fewer_bits, other_opset,
)  # fmt: skip


def faulty(rng: Rng) -> onnx.ModelProto:
    seed, pattern = int(rng.integers(0, 10**6)), chosen(rng, PATTERNS)
    proto = grow(seed, 1, pattern) if rng.integers(0, 2) else grow(seed, int(rng.integers(2, 7)))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if rng.integers(0, 3) == 0:
        fixed_batch(rng, proto)
    for _ in range(int(rng.integers(1, 4))):
        chosen(rng, FAULTS)(rng, proto, int(rng.integers(0, len(proto.graph.node))))
    return proto


class Program:
    """ONNX Runtime on rows of samples; a file that fixes its batch gets as many at a time, the last row repeated."""

    def __init__(self, run: Callable[[Array], Array], batch: int) -> None:
        self.run, self.batch = run, batch

    def __call__(self, rows: Array) -> Array:
        if not self.batch:
            return self.run(rows)
        full = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % self.batch, axis=0)])
        parts = [self.run(full[k : k + self.batch]) for k in range(0, len(full), self.batch)]
        return np.concatenate(parts)[: len(rows)]


def programs(proto: onnx.ModelProto, verdict: Verdict, batch: int) -> list[Program]:
    """The float64 programs of a proven graph, with the library's products and without."""
    found = []
    for own in (False, True):
        opener = Engine(choose(None), 1, find_library() if own else None)
        try:
            program = double_model(proto, "y", own, verdict.sizes)
        except Refused:
            continue
        opened = opener.open_to_compare(program, "float64 program")
        found.append(Program(lambda x, o=opened: engines.run(o, "y", {"x": x.astype(np.float64)}), batch))
    return found


def stored_program(proto: onnx.ModelProto, batch: int) -> Program:
    complete = onnx.ModelProto()
    complete.CopyFrom(proto)
    attach_functions(complete, {TensorProto.FLOAT})
    runtime = session(complete)
    return Program(lambda x: np.asarray(runtime.run(None, {"x": x.astype(np.float32)})[0]), batch)


def check(proto: onnx.ModelProto, norm: str, rng: Rng) -> bool:
    """Whether a graph was proven and ran, and so could be looked at."""
    verdict = judge(proto, norm)
    if verdict.status != "verified":
        return False
    assert verdict.output is not None and verdict.lipschitz_bound is not None
    first, *shape = shape_of(proto)
    x = rng.standard_normal((first or 4, *shape)).astype(np.float32)
    try:
        program = stored_program(proto, first)
        y = program(x)
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            return False  # what does not run answers nothing
        raise
    assert y.shape == (len(x), *verdict.output.shape[1:])
    if not np.all(np.isfinite(y)):
        return False
    near = {"rtol": 1e-4, "atol": 1e-4 * float(np.abs(y).max(initial=1e-2))}
    np.testing.assert_allclose(program(x[::-1])[::-1], y, **near)
    beside = np.concatenate([x[:1], rng.standard_normal(x[1:].shape)])
    np.testing.assert_allclose(program(beside)[0], y[0], **near)
    for wide in programs(proto, verdict, first):
        np.testing.assert_allclose(wide(x), y, **near)
        seen = best_ratio(wide, shape, norm, samples=32, rounds=3)  # short moves drown in float32
        assert seen <= verdict.lipschitz_bound.value * (1 + 1e-6) + 1e-9
    return True


@pytest.mark.parametrize("part", range(4))
def test_what_is_still_proven_is_true(part: int) -> None:
    looked_at = 0
    for number in range(part, GRAPHS, 4):
        rng = np.random.default_rng([GRAPHS, number])  # another number of graphs draws others
        proto, norm = faulty(rng), str(rng.choice(NORMS))
        try:
            looked_at += check(proto, norm, rng)
        except BaseException as error:
            error.add_note(f"graph {number} of {GRAPHS} in {norm}: {onnx.printer.to_text(proto.graph)}")
            raise
    assert looked_at > GRAPHS // 20, f"only {looked_at} graphs were accepted and ran"
