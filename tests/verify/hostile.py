"""Files that are built to exhaust, to crash or to mislead a reader: a few bytes that describe a great deal.

Run as a program it judges each of them in this process, whose memory is capped, and prints one JSON line per file.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.errors import LipdeployError
from lipdeploy.verify import verify

MEMORY = 4 * 2**30  # address space, of which Python, NumPy and onnx take a good part
FLOAT = TensorProto.FLOAT
node = helper.make_node


def value(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def integers(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int] = (2,),
    stored: dict[str, Any] | None = None,
    *,
    output: str = "y",
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    tensors = [
        array if isinstance(array, TensorProto) else numpy_helper.from_array(np.asarray(array), name)
        for name, array in (stored or {}).items()
    ]
    graph = helper.make_graph(list(nodes), "g", [value("x", ["N", *shape])], [value(output, None)], tensors)
    imports = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def single(op: str, shape: Sequence[int], *stored: Any, **attributes: Any) -> onnx.ModelProto:
    names = {f"c{i}": array for i, array in enumerate(stored)}
    return model([node(op, ["x", *names], ["y"], **attributes)], shape, names)


def function(name: str, nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function(
        "d", name, ["X"], ["Y"], list(nodes), [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    )


ONES = np.ones((1, 1, 3), np.float32)
ONES_2D = np.ones((1, 1, 3, 3), np.float32)


def tensor(dims: Sequence[int], kind: int = FLOAT, **fields: Any) -> onnx.ModelProto:
    """x + c with a stored tensor c that is not what it says."""
    return model(
        [node("Add", ["x", "c"], ["y"])], (2,), {"c": TensorProto(name="c", dims=dims, data_type=kind, **fields)}
    )


def doubled(op: str, times: int) -> onnx.ModelProto:
    """A constant that a node after the other doubles."""
    options = {"axis": 0} if op == "Concat" else {}
    nodes = [node(op, [f"c{i}"] * 2, [f"c{i + 1}"], **options) for i in range(times)]
    start = np.ones(4, np.float32) if op == "Concat" else integers(3)
    return model([*nodes, node("Add", ["x", f"c{times}"], ["y"])], (1,), {"c0": start})


def gathered(times: int) -> onnx.ModelProto:
    nodes = [node("Gather", [f"c{i}", "index"], [f"c{i + 1}"], axis=0) for i in range(times)]
    stored = {"c0": np.ones(4, np.float32), "index": np.zeros((1000, 1000), np.int64)}
    return model([*nodes, node("Add", ["x", f"c{times}"], ["y"])], (1,), stored)


def doubled_shape() -> onnx.ModelProto:
    nodes = [node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=0) for i in range(36)]
    return model([node("Shape", ["x"], ["s0"]), *nodes, node("Reshape", ["x", "s36"], ["y"])])


def nested(depth: int) -> onnx.ModelProto:
    inner = helper.make_graph([node("Relu", ["x"], ["t"])], "s", [], [value("t", None)])
    for _ in range(depth):
        branch = node(
            "If",
            ["c"],
            ["t"],
            then_branch=inner,
            else_branch=inner if depth < 4 else helper.make_graph([], "e", [], []),
        )
        inner = helper.make_graph([branch], "s", [], [value("t", None)])
    return model([node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], (2,), {"c": np.array(True)})


def calling(count: int, times: int) -> onnx.ModelProto:
    """Functions that call the next one ``times`` times."""
    functions = [
        function(
            f"f{i}", [node(f"f{i + 1}", ["X" if j == 0 else f"a{j}"], [f"a{j + 1}"], domain="d") for j in range(times)]
        )
        for i in range(count)
    ]
    for body in functions:
        body.node[-1].output[0] = "Y"
    last = function(f"f{count}", [node("Relu", ["X"], ["Y"])])
    return model([node("f0", ["x"], ["y"], domain="d")], functions=[*functions, last], domains=["d"])


def recursive(inside: bool) -> onnx.ModelProto:
    """A function that calls itself, in its body or in a branch of an If in its body."""
    call = node("f", ["X"], ["Y"], domain="d")
    if inside:
        branch = helper.make_graph([node("f", ["X"], ["t"], domain="d")], "s", [], [value("t", None)])
        call = node("If", ["c"], ["Y"], then_branch=branch, else_branch=branch)
        start = [node("Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.BOOL, [], [1])), call]
        return model([node("f", ["x"], ["y"], domain="d")], functions=[function("f", start)], domains=["d"])
    return model([node("f", ["x"], ["y"], domain="d")], functions=[function("f", [call])], domains=["d"])


def sparse() -> onnx.ModelProto:
    proto = model([node("Add", ["x", "c"], ["y"])])
    values = numpy_helper.from_array(np.ones(1, np.float32), "c")
    sparse_tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(integers(0), "i"), [2**40])
    proto.graph.sparse_initializer.append(sparse_tensor)
    return proto


def many_names(doubled_names: bool) -> onnx.ModelProto:
    proto = model([node("Relu", ["x"], ["y"])])
    one = numpy_helper.from_array(np.ones(1, np.float32), "")
    for i in range(20000):
        one.name = f"c{i % 10000 if doubled_names else i}"
        proto.graph.initializer.append(one)
    return proto


def twisted_names() -> onnx.ModelProto:
    proto = model([node("Unknown\x1b[2J", ["x"], ["y"], name="\x1b]0;owned\x07\r\n::error::x\x00\u202e")])
    proto.graph.name = "\x1b[31m"
    return proto


def hidden_giant() -> onnx.ModelProto:
    """A stored tensor that no node uses and that claims two terabytes."""
    return model([node("Relu", ["x"], ["y"])], (2,), {"c": TensorProto(name="c", dims=[2**39], data_type=FLOAT)})


def shape_with_two_outputs() -> onnx.ModelProto:
    return model([node("Shape", ["x"], ["s", "t"]), node("Reshape", ["x", "t"], ["y"])])


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    "constant doubled forty times": lambda: doubled("Concat", 40),
    "integers multiplied forty times": lambda: doubled("Mul", 40),
    "constant gathered a million times, again": lambda: gathered(40),
    "shape doubled": doubled_shape,
    "integer table": lambda: model(
        [node("Add", ["a", "b"], ["c"]), node("Reshape", ["x", "c"], ["y"])],
        (1,),
        {"a": np.zeros((100000, 1), np.int64), "b": np.zeros(100000, np.int64)},
    ),
    "comparison table": lambda: model(
        [node("Less", ["a", "b"], ["c"]), node("Add", ["x", "c"], ["y"])],
        (1,),
        {"a": np.zeros((100000, 1), np.int64), "b": np.zeros(100000, np.int64)},
    ),
    "broadcast by a constant": lambda: single("Add", (100000, 1), np.zeros(100000, np.float32)),
    "maximum with a broadcast constant": lambda: single("Max", (100000, 100), np.zeros((100000, 100), np.float32)[:1]),
    "tiled to a terabyte": lambda: single("Tile", (10,), integers(1, 2**40)),
    "expanded to a terabyte": lambda: single("Expand", (1,), integers(1, 2**40)),
    "expanded, then used": lambda: model(
        [node("Expand", ["x", "s"], ["t"]), node("Max", ["t", "b"], ["y"])],
        (1,),
        {"s": integers(1, 2**36), "b": np.ones(1, np.float32)},
    ),
    "input of a terabyte": lambda: single("Relu", (2**40,)),
    "padded axis": lambda: single("Pad", (2**27,), integers(0, 1, 0, 1), mode="edge"),
    "gather at the end": lambda: single("Gather", (2**28,), integers(2**28 - 1), axis=1),
    "average of a long row": lambda: single("AveragePool", (1, 10**6), kernel_shape=[2]),
    "average of long windows": lambda: single("AveragePool", (1, 20000), kernel_shape=[10000]),
    "maximum of long windows": lambda: single("MaxPool", (1, 10**8), kernel_shape=[10**7]),
    "convolution of a long row": lambda: single("Conv", (1, 10**8), ONES),
    "convolution of a large image": lambda: single("Conv", (1, 16000, 16000), ONES_2D),
    "dilation": lambda: single("Conv", (1, 10**8), ONES, dilations=[10**7]),
    "dilation on two axes": lambda: single("Conv", (1, 16000, 16000), ONES_2D, dilations=[5000, 5000]),
    "stride": lambda: single("Conv", (1, 10**8), ONES, strides=[10**7]),
    "stride on two axes": lambda: single("Conv", (1, 16000, 16000), ONES_2D, strides=[5000, 5000]),
    "padding": lambda: single("Conv", (1, 10), ONES, pads=[10**9, 10**9]),
    "padding beyond 64 bits": lambda: single("Conv", (1, 10), ONES, pads=[2**62, 2**62]),
    "transposed stride": lambda: single("ConvTranspose", (1, 10**8), ONES, strides=[10**6]),
    "twelve axes": lambda: single("Conv", (1, *[5] * 12), np.ones((1, 1, *[3] * 12), np.float32)),
    "a hundred thousand groups": lambda: single("Conv", (10**5, 3), np.ones((10**5, 1, 1), np.float32), group=10**5),
    "wide on a large image": lambda: single("Conv", (512, 512, 1024), np.ones((512, 512, 1, 2), np.float32)),
    "thousand axes": lambda: single("Transpose", [1] * 1000),
    "huge dims, four bytes": lambda: tensor([2**40, 2**40], raw_data=b"1234"),
    "huge dims, no bytes": lambda: tensor([2**40]),
    "zero times huge": lambda: tensor([2**62, 0, 2**62]),
    "negative dims": lambda: tensor([-2, -1], raw_data=b"12345678"),
    "a hundred dims": lambda: tensor([1] * 100, raw_data=b"1234"),
    "three bytes for a float": lambda: tensor([1], raw_data=b"123"),
    "raw and typed": lambda: tensor([1], raw_data=b"1234", float_data=[1.0]),
    "unknown element type": lambda: tensor([1], kind=77, raw_data=b"1234"),
    "no element type": lambda: tensor([1], kind=0, raw_data=b"1234"),
    "strings": lambda: tensor([1], kind=TensorProto.STRING, string_data=[b"1"]),
    "complex numbers": lambda: tensor([1], kind=TensorProto.COMPLEX64, raw_data=b"12345678"),
    "unused giant": hidden_giant,
    "sparse": sparse,
    "twenty thousand names": lambda: many_names(False),
    "names twice": lambda: many_names(True),
    "names for terminals": twisted_names,
    "nested graphs": lambda: nested(20),
    "functions that double": lambda: calling(30, 2),
    "functions in a long row": lambda: calling(3000, 1),
    "function that calls itself": lambda: recursive(False),
    "function that calls itself in a branch": lambda: recursive(True),
    "cycle": lambda: model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
    "defined twice": lambda: model([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])]),
    "input defined again": lambda: model([node("Relu", ["x"], ["x"]), node("Abs", ["x"], ["y"])]),
    "shape with two outputs": shape_with_two_outputs,
    "concat of nothing": lambda: model(
        [node("Concat", ["", "c"], ["d"], axis=0), node("Add", ["x", "d"], ["y"])], (2,), {"c": integers(1)}
    ),
    "no inputs": lambda: model([node("Add", [], ["y"])]),
    "only empty inputs": lambda: model([node("Add", ["", ""], ["y"])]),
    "two thousand nodes": lambda: model(
        [node("Relu", ["x" if i == 0 else f"h{i}"], [f"h{i + 1}"]) for i in range(2000)], output="h2000"
    ),
    "five thousand inputs": lambda: model([node("Concat", ["x"] * 5000, ["y"], axis=1)]),
    "huge attribute": lambda: single("LpPool", (1, 4), kernel_shape=[2**62], p=2),
    "huge power": lambda: single("GlobalLpPool", (2, 2), p=2**62),
    "sum of everything": lambda: single("ReduceSum", (2**14, 2**14), integers(1, 2)),
}  # fmt: skip


def judged(build: Callable[[], onnx.ModelProto]) -> dict[str, Any]:
    """(outcome, CPU seconds, megabytes more than before)."""
    data = build().SerializeToString()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        verdict = verify(data)
        outcome = verdict.refusals[0].code if verdict.refusals else f"bound {verdict.lipschitz_bound}"
    except LipdeployError as error:
        outcome = f"exit {error.exit_code}"
    except BaseException as error:
        outcome = f"crash {type(error).__name__}: {error}"[:200]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"outcome": outcome, "seconds": time.process_time() - started, "megabytes": (after - before) / 1024}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name, build in CASES.items():
        print(json.dumps({"name": name, **judged(build)}), flush=True)
