"""Constants that a graph computes: what the verifier evaluates, ONNX Runtime computes, to the last bit and in type.

Random chains over all operators that the verifier evaluates, on numbers at the ends of their types, with axes and lists
that often do not fit. What the verifier refuses is left out; what ONNX Runtime refuses, no program computes.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from lipdeploy.errors import Refused
from lipdeploy.verify.constants import EXACT, evaluate
from lipdeploy.verify.element_types import check_element_types
from lipdeploy.verify.graph import Call, Constant, calls
from lipdeploy.verify.tensors import read_constant
from lipdeploy.verify.walk import MALFORMED

GRAPHS = int(os.environ.get("LIPDEPLOY_EXAMPLES", "3000"))
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 2.9, 1e20, 1e-40, 65504.0]
INTEGERS = [0, 1, 2, 3, -1, -2, 0, 1, 2, 3, -1, 4, 100, 255, -128, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**53 + 1]
TYPES = (np.float32, np.float64, np.float16, np.int64, np.int64, np.int64, np.int32, np.int8, np.uint8, np.bool_)
SMALL = [[0], [1], [-1], [2], [0, 1], [2, 2], [1, -1], [-2], [3], [-1, -2], [0, 2], [-100], [100]]
LISTS = [*SMALL, [2**63 - 1], [-(2**63)], [2**31 - 1]]
#: What operands each takes: any, lists of integers (L), single ones (S); behind a bar those that may be left out.
OPERANDS = {
    "Cast": "x", "CastLike": "xx", "Gather": "xL", "Concat": "x|xx", "Unsqueeze": "xL", "Squeeze": "x|L", "Shape": "x",
    "Slice": "xLL|LL", "Reshape": "xL", "Transpose": "x", "Expand": "xL", "ConstantOfShape": "L", "Range": "SSS",
    "Where": "xxx", "Constant": "", "DequantizeLinear": "xx|x", "Identity": "x",
}  # fmt: skip
Rng = np.random.Generator


def tensor(rng: Rng) -> Any:
    kind, least = TYPES[rng.integers(len(TYPES))], 0 if rng.random() < 0.1 else 1
    shape = tuple(rng.integers(least, 4, rng.integers(0, 4)))
    if kind is np.bool_:
        return rng.integers(0, 2, shape).astype(kind)
    if not np.issubdtype(kind, np.integer):
        return rng.choice(FLOATS, shape).astype(kind)
    limits = np.iinfo(kind)
    fitting = [n for n in INTEGERS if limits.min <= n <= limits.max]
    return np.array([fitting[k] for k in rng.integers(0, len(fitting), int(np.prod(shape)))], kind).reshape(shape)


def attributes(rng: Rng, op: str, opset: int) -> dict[str, Any]:
    axis = {"axis": int(rng.integers(-3, 3))}
    if op == "Constant":
        written = [{"value_ints": [1, 2]}, {"value_int": -1}, {"value_float": 0.1}, {"value_floats": [0.1, 1e10]}]
        return [*written, {"value": numpy_helper.from_array(tensor(rng))}][rng.integers(5)]
    if op == "Cast":
        return {"to": int(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 22]))}
    if op == "Concat":
        return axis
    if rng.random() < 0.4:
        return {}
    if op == "ConstantOfShape":
        return {"value": numpy_helper.from_array(tensor(rng).reshape(-1)[:1])}
    listed: dict[str, dict[str, Any]] = {"Gather": axis, "DequantizeLinear": axis}
    listed["Transpose"] = {"perm": [int(n) for n in rng.permutation(rng.integers(1, 4))]}
    listed["Shape"] = {"start": axis["axis"]} if opset >= 15 else {}
    listed["Reshape"] = {"allowzero": 1} if opset >= 14 else {}
    return listed.get(op, {})


def drawn(rng: Rng) -> tuple[int, onnx.GraphProto]:
    opset, nodes = int(rng.integers(13, 24)), []
    stored = {f"c{i}": tensor(rng) for i in range(rng.integers(2, 6))}
    names, lists, singles = list(stored), [f"l{i}" for i in range(len(LISTS))], [f"s{i}" for i in range(-3, 9, 2)]
    stored.update((name, np.array(numbers, np.int64)) for name, numbers in zip(lists, LISTS, strict=True))
    stored.update((name, np.array(name[1:], np.int64)) for name in singles)
    for number in range(rng.integers(1, 5)):
        op = str(rng.choice([*sorted(EXACT), "Shape", "CastLike", *["Slice"] * 5, "Range"]))
        needed, _, optional = OPERANDS.get(op, "xx").partition("|")
        operands = needed + optional[: rng.integers(0, len(optional) + 1)]
        sources = {"x": names, "L": [*lists, names[0]], "S": singles}
        inputs = [str(rng.choice(sources[kind])) for kind in operands]
        nodes.append(helper.make_node(op, inputs, [f"t{number}"], **attributes(rng, op, opset)))
        names.append(f"t{number}")
    return opset, helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(v, k) for k, v in stored.items()])


def evaluated(graph: onnx.GraphProto, opset: int) -> dict[str, Constant]:
    """What the verifier makes of the nodes, as far as it does."""
    values, known = {tensor.name: read_constant(tensor) for tensor in graph.initializer}, list[Call]()
    for call in calls(graph, {"": opset}, ()):
        if not values.keys() >= set(call.input_names):
            continue
        try:
            check_element_types(graph, [*known, call])
            found = evaluate(call.with_inputs([values[name] for name in call.input_names]))
        except (Refused, *MALFORMED):
            continue
        if found is not None:
            values[call.output_names[0]] = found
            known.append(call)
    return {call.output_names[0]: values[call.output_names[0]] for call in known}


def computed(graph: onnx.GraphProto, opset: int, names: list[str]) -> list[Any] | None:
    """What ONNX Runtime makes of them; ``None`` where it does not."""
    kept = [node for node in graph.node if node.output[0] in names]
    outputs = [helper.make_empty_tensor_value_info(node.output[0]) for node in kept]
    whole = helper.make_graph(kept, "g", [], outputs, graph.initializer)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found: list[Any] = session.run(None, {})
    except Exception as error:
        assert type(error).__module__.startswith("onnxruntime") or "No corresponding Numpy type" in str(error), error
        return None
    return found


def as_computed(constant: Constant) -> Any:
    """Shapes hold Python's integers; a product that float32 rounds is kept as it is before."""
    if constant.roundings:
        return constant.array.astype(np.float32)
    return constant.array.astype(np.int64) if constant.array.dtype == object else constant.array


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_constants_are_what_the_runtime_computes() -> None:
    compared = 0
    for number in range(GRAPHS):
        opset, graph = drawn(np.random.default_rng([GRAPHS, number]))
        try:
            ours = evaluated(graph, opset)
        except Refused:
            continue  # a stored number is not finite
        for (name, constant), theirs in zip(ours.items(), computed(graph, opset, list(ours)) or [], strict=False):
            want, theirs = as_computed(constant), np.asarray(theirs)
            told = f"graph {number} of {GRAPHS}, opset {opset}, {name}: {onnx.printer.to_text(graph)}"
            assert (theirs.dtype, theirs.shape) == (want.dtype, want.shape), told
            assert np.array_equal(theirs, want), told
            compared += 1
    assert compared > GRAPHS // 2, f"only {compared} constants were compared"
