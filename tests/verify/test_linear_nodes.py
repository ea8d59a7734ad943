"""Every operator that moves, copies, sums or scales entries, against its explicit matrix from ONNX Runtime.

Random shapes, attributes and opsets; five norms. A bound below the matrix's norm is a false certificate; a shape that
differs from ONNX Runtime's makes every later rule wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from tests.verify.models import bound, judge, matrix, operator_norm, run, single

NORMS = ("l2", "linf", "l1", "l2-linf", "l1-linf")
Made = tuple[ModelProto, tuple[int, ...]]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def shapes(rng: np.random.Generator, low: int = 1, high: int = 4) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 5, int(rng.integers(low, high))))


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def slice_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    axis = int(rng.integers(1, len(shape) + 1))
    size = shape[axis - 1]
    edges = [-(2**63), -(2**31), -size - 2, -size - 1, -size, -1, 0, 1, size - 1, size, size + 3, 2**31 - 1, 2**63 - 1]
    start, end = (int(rng.choice(edges)) for _ in range(2))
    step = int(rng.choice([1, 1, 2, -1, -2, 3]))
    stated = axis if rng.random() < 0.5 else axis - len(shape) - 1
    constants = {"s": ints(start), "e": ints(end), "a": ints(stated), "t": ints(step)}
    return single("Slice", shape, constants), shape


def gather_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    axis = int(rng.integers(1, len(shape) + 1))
    size = shape[axis - 1]
    indices = rng.integers(-size, size, shapes(rng, 0, 3)).astype(rng.choice([np.int64, np.int32]))
    stated = axis if rng.random() < 0.5 else axis - len(shape) - 1
    return single("Gather", shape, {"i": np.asarray(indices)}, axis=stated), shape


def expand_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    target = [n if n > 1 else int(rng.integers(1, 5)) for n in shape]
    target = target[int(rng.integers(0, len(target))) :]
    return single("Expand", shape, {"s": ints(*([1, *target] if len(target) == len(shape) else target))}), shape


def pad_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    mode = str(rng.choice(["constant", "edge", "reflect", "wrap"]))
    pads = rng.integers(-1, 4, (2, len(shape) + 1))
    pads[:, 0] = 0
    constants: dict[str, Any] = {"p": pads.reshape(-1).astype(np.int64)}
    if mode == "constant":
        constants["v"] = np.float32(0.75).reshape(())
    if rng.random() < 0.4:
        axes = rng.permutation(np.arange(1, len(shape) + 1))
        constants = {"p": pads[:, axes].reshape(-1).astype(np.int64), "v": None, "a": axes - len(shape) - 1}
    return single("Pad", shape, constants, mode=mode), shape


def concat_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    model = single("Concat", shape, {}, axis=int(rng.integers(1, len(shape) + 1)))
    model.graph.node[0].input.extend(["x"] * int(rng.integers(0, 3)))
    return model, shape


def split_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    axis = int(rng.integers(1, len(shape) + 1))
    size = shape[axis - 1]
    if rng.random() < 0.5:
        first = int(rng.integers(0, size + 1))
        model = single("Split", shape, {"s": ints(first, size - first)}, axis=axis, opset=int(rng.choice([13, 20])))
    else:
        model = single("Split", shape, {}, axis=axis, num_outputs=2)
    model.graph.node[0].output.append("other")
    return model, shape


def transpose_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    return single("Transpose", shape, {}, perm=[0, *(rng.permutation(len(shape)) + 1).tolist()]), shape


def reshape_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    size = int(np.prod(shape))
    options = [(0, -1), (-1, size), (0, size, 1), (0, 0, -1), (-1, 1, size), (0, 1, -1, 1)]
    target = options[int(rng.integers(0, len(options)))]
    return single("Reshape", shape, {"s": ints(*target)}), shape


def flatten_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    return single("Flatten", shape, {}, axis=int(rng.integers(-len(shape) - 1, len(shape) + 2))), shape


def depth_node(rng: np.random.Generator) -> Made:
    block = int(rng.integers(1, 3))
    if rng.random() < 0.5:
        shape = (block**2 * int(rng.integers(1, 3)), 2, 3)
        return single("DepthToSpace", shape, {}, blocksize=block, mode=str(rng.choice(["DCR", "CRD"]))), shape
    shape = (2, block * 2, block)
    return single("SpaceToDepth", shape, {}, blocksize=block), shape


def squeeze_node(rng: np.random.Generator) -> Made:
    shape = (1, 3, 1)
    axes = [(1,), (3,), (1, 3), (-1,), (-3, 3)][int(rng.integers(0, 5))]
    return single("Squeeze", shape, {"a": ints(*axes)}), shape


def unsqueeze_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    axes = [(1,), (-1,), (1, 2), (1, -1), (2,)][int(rng.integers(0, 5))]
    return single("Unsqueeze", shape, {"a": ints(*axes)}), shape


def reduce_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    operator = str(rng.choice(["ReduceSum", "ReduceMean"]))
    axes = (rng.permutation(len(shape))[: int(rng.integers(1, len(shape) + 1))] + 1).tolist()
    axes = [axis if rng.random() < 0.5 else axis - len(shape) - 1 for axis in axes]
    keep = int(rng.integers(0, 2))
    if operator == "ReduceMean" and rng.random() < 0.5:
        return single(operator, shape, {}, axes=axes, keepdims=keep, opset=17), shape
    return single(operator, shape, {"a": ints(*axes)}, keepdims=keep), shape


def global_node(rng: np.random.Generator) -> Made:
    shape = (int(rng.integers(1, 3)), *shapes(rng))
    return single("GlobalAveragePool", shape), shape


def gemm_node(rng: np.random.Generator) -> Made:
    features, outputs = (int(n) for n in rng.integers(1, 6, 2))
    flip = int(rng.integers(0, 2))
    weight = weights(rng, outputs, features) if flip else weights(rng, features, outputs)
    bias = [None, (outputs,), (1, outputs), (1,), (), (1, 1)][int(rng.integers(0, 6))]
    constants = {"W": weight, "b": None if bias is None else np.zeros(bias, np.float32)}
    alpha, beta = (float(v) for v in rng.choice([1.0, 0.5, -2.0, 0.25, 0.0], 2))
    return single("Gemm", (features,), constants, transB=flip, alpha=alpha, beta=beta), (features,)


def matmul_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    weight = weights(rng, shape[-1], 3) if rng.random() < 0.7 else weights(rng, shape[-1])
    return single("MatMul", shape, {"W": weight}), shape


def matmul_left_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng, 2, 4)
    model = single("MatMul", shape, {"W": weights(rng, 3, shape[-2])})
    model.graph.node[0].input[:] = ["W", "x"]
    return model, shape


def scale_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    operator = str(rng.choice(["Mul", "Div"]))
    other = tuple(n if rng.random() < 0.5 else (1 if n > 1 else int(rng.integers(1, 4))) for n in shape)
    other = other[int(rng.integers(0, len(other))) :]
    if len(other) == len(shape) and rng.random() < 0.5:
        other = (1, *other)
    # powers of two: dividing by them is exact
    values = np.ldexp(rng.choice([-1.0, 1.0], other), rng.integers(-3, 4, other)).astype(np.float32)
    model = single(operator, shape, {"c": values})
    if operator == "Mul" and rng.random() < 0.5:
        model.graph.node[0].input[:] = ["c", "x"]
    return model, shape


def add_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    operator = str(rng.choice(["Add", "Sub"]))
    other = tuple(n if n > 1 else int(rng.integers(1, 4)) for n in shape)
    model = single(operator, shape, {"c": np.zeros(other, np.float32)})
    if rng.random() < 0.5:
        model.graph.node[0].input[:] = ["c", "x"]
    return model, shape


def twice_node(rng: np.random.Generator) -> Made:
    shape = shapes(rng)
    model = single(str(rng.choice(["Add", "Sum"])), shape)
    model.graph.node[0].input.append("x")
    return model, shape


MAKERS: dict[str, Callable[[np.random.Generator], Made]] = {
    name.removesuffix("_node"): value for name, value in globals().items() if name.endswith("_node")
}


def cases(maker: str) -> Iterator[Made]:
    for seed in range(60):
        yield MAKERS[maker](np.random.default_rng([seed, *maker.encode()]))


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_no_bound_is_below_the_matrix(maker: str) -> None:
    judged = 0
    for model, shape in cases(maker):
        verdict = judge(model)
        if verdict.status == "refused":
            continue
        try:
            rows, output = matrix(model, shape)
        except Exception as error:  # what ONNX Runtime cannot run needs no bound
            assert "ONNXRuntimeError" in str(error) or "onnxruntime" in type(error).__module__, error
            continue
        judged += 1
        context = (maker, shape, model.graph.node[0])
        assert verdict.output is not None
        assert verdict.output.shape[1:] == output, context
        for norm in NORMS:
            truth = operator_norm(rows, norm)
            exact = maker not in {"reduce", "global"}
            assert bound(model, norm) >= truth * (1 - (1e-12 if exact else 1e-6)), (norm, *context)
    assert judged >= 10, f"only {judged} graphs were judged"


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_samples_are_never_mixed(maker: str) -> None:
    """Whatever is accepted gives each sample of a batch of three the same answer as alone."""
    rng = np.random.default_rng(1)
    for model, shape in cases(maker):
        if judge(model).status == "refused":
            continue
        batch = rng.standard_normal((3, *shape)).astype(np.float32)
        try:
            together = run(model, batch)
            alone = np.concatenate([run(model, row[None]) for row in batch])
        except Exception as error:
            assert "ONNXRuntimeError" in str(error) or "onnxruntime" in type(error).__module__, error
            continue
        assert together.shape == alone.shape, (maker, shape, model.graph.node[0])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
