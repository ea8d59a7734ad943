"""The list of operators that the float64 program keeps is asked of the ONNX Runtime that is installed."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.runtime.double import KERNELS
from lipdeploy.runtime.rewrites import REWRITES

DOUBLE, INT, BOOL = TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
ROW, IMAGE = ["N", 4], ["N", 4, 6, 6]
ONES, SCALAR, HALF = np.ones(4), np.float64(0.5), np.full((4, 4), 0.5)


def ints(*values):
    return np.array(values, dtype=np.int64)


# operator: (input type, input shape, further constant inputs, attributes, output type)
CASES = {
    **{op: (DOUBLE, ROW, [], {}, DOUBLE) for op in (
        "Abs", "Dropout", "Exp", "Flatten", "Floor", "Identity", "Log", "LogSoftmax", "Neg", "Reciprocal", "Relu",
        "Sign", "Sqrt", "Sum", "Transpose")},
    **{op: (DOUBLE, ROW, [ONES], {}, DOUBLE) for op in ("Add", "CastLike", "Div", "Max", "Min", "Mul", "Sub")},
    **{op: (DOUBLE, ROW, [ONES], {}, BOOL) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{op: (BOOL, ROW, [np.array([True] * 4)], {}, BOOL) for op in ("And", "Or", "Xor")},
    **{op: (DOUBLE, IMAGE, [ints(2, 3)], {}, DOUBLE) for op in (
        "ReduceL1", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare")},
    **{op: (DOUBLE, ROW, [], {}, BOOL) for op in ("IsInf", "IsNaN")},
    **{op: (DOUBLE, ROW, [], {}, INT) for op in ("Shape", "Size")},
    **{op: (DOUBLE, IMAGE, [], {"blocksize": 2}, DOUBLE) for op in ("DepthToSpace", "SpaceToDepth")},
    "Not": (BOOL, ROW, [], {}, BOOL),
    "BatchNormalization": (DOUBLE, IMAGE, [ONES] * 4, {}, DOUBLE),
    "Cast": (TensorProto.UINT8, ROW, [], {"to": DOUBLE}, DOUBLE),
    "Clip": (DOUBLE, ROW, [-SCALAR, SCALAR], {}, DOUBLE),
    "Concat": (DOUBLE, ROW, [HALF], {"axis": 0}, DOUBLE),
    "ConstantOfShape": (INT, [2], [], {"value": helper.make_tensor("v", DOUBLE, [1], [0.0])}, DOUBLE),
    "Einsum": (DOUBLE, ROW, [HALF], {"equation": "ab,bc->ac"}, DOUBLE),
    "Expand": (DOUBLE, ROW, [ints(3, 1, 4)], {}, DOUBLE),
    "Gather": (DOUBLE, ROW, [ints(1, 0)], {"axis": 1}, DOUBLE),
    "GatherElements": (DOUBLE, ROW, [ints(0, 1, 2, 3).reshape(1, 4)], {"axis": 1}, DOUBLE),
    "GatherND": (DOUBLE, ROW, [ints(0, 1).reshape(1, 2)], {}, DOUBLE),
    "Gemm": (DOUBLE, ROW, [HALF, ONES], {"alpha": 0.5}, DOUBLE),
    "MatMul": (DOUBLE, ROW, [HALF], {}, DOUBLE),
    "MaxPool": (DOUBLE, IMAGE, [], {"kernel_shape": [2, 2]}, DOUBLE),
    "Pad": (DOUBLE, ROW, [ints(0, 1, 0, 1)], {}, DOUBLE),
    "Range": (DOUBLE, [], [SCALAR * 8, SCALAR], {}, DOUBLE),
    "Reshape": (DOUBLE, IMAGE, [ints(0, -1)], {}, DOUBLE),
    "Slice": (DOUBLE, IMAGE, [ints(0), ints(9), ints(2), ints(2)], {}, DOUBLE),
    "Split": (DOUBLE, ROW, [], {"axis": 1, "num_outputs": 1}, DOUBLE),
    "Squeeze": (DOUBLE, ["N", 1, 4], [ints(1)], {}, DOUBLE),
    "Tile": (DOUBLE, ROW, [ints(1, 2)], {}, DOUBLE),
    "TopK": (DOUBLE, ROW, [ints(4)], {"axis": 1}, DOUBLE),
    "Unsqueeze": (DOUBLE, ROW, [ints(1)], {}, DOUBLE),
    "Where": (BOOL, ROW, [ONES, -ONES], {}, DOUBLE),
}  # fmt: skip


def open_with_one_node(op, element_type, shape, constants, attributes, result):
    names = [f"c{i}" for i in range(len(constants))]
    outputs = ["y", "indices"] if op == "TopK" else ["y"]
    node = helper.make_node(op, ["x", *names], outputs, **attributes)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)]
    x = helper.make_tensor_value_info("x", element_type, shape)
    y = helper.make_tensor_value_info("y", result, None)
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_every_kept_operator_has_a_kernel(op):
    open_with_one_node(op, *CASES[op])


def test_nothing_is_both_kept_and_rewritten():
    assert not KERNELS & set(REWRITES)
