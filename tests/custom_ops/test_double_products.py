"""Gemm and Conv of the domain lipdeploy.f64 against NumPy's long double and torch, in every vector width."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.runtime.products import DOMAIN, panels

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(11)
UNIT = 2.0**-53
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
BAD_ARGUMENT = -1


class Products:
    """The C entry points, with one vector width."""

    def __init__(self, library: Path, lanes: int) -> None:
        self.lanes, handle = lanes, ctypes.CDLL(str(library))
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self._gemm, self._conv = handle.lipdeploy_gemm_f64_cpu, handle.lipdeploy_conv_f64_cpu
        self._gemm.argtypes = [pointer] * 4 + [size] * 3 + [number] * 2
        self._conv.argtypes = [pointer] * 5 + [number] * 2

    def gemm(self, x: Array, weight: Array, bias: Array) -> Array:
        """x · weight + bias, weight (depth, columns)."""
        y, packed = np.full((len(x), weight.shape[1]), np.nan), panels(weight)
        arrays = [array.ctypes.data for array in (x, packed, bias, y)]
        status = self._gemm(*arrays, len(x), *weight.shape, int(weight.dtype == np.float64), self.lanes)
        assert status == 0
        return y

    def conv(self, x: Array, weight: Array, bias: Array, groups: int, strides: Any, dilations: Any, pads: Any) -> Array:
        """ONNX's Conv."""
        rank = x.ndim - 2
        begin, end = pads[:rank], pads[rank:]
        output = [
            (n + b + e - (k - 1) * d - 1) // s + 1
            for n, k, s, d, b, e in zip(x.shape[2:], weight.shape[2:], strides, dilations, begin, end, strict=True)
        ]
        y = np.full((len(x), len(weight), *output), np.nan)
        head = [len(x), groups, weight.shape[1], len(weight) // groups, rank]
        sizes = np.array([*head, *x.shape[2:], *weight.shape[2:], *strides, *dilations, *begin, *output], np.int64)
        arrays = [array.ctypes.data for array in (x, weight, bias, y, sizes)]
        assert self._conv(*arrays, int(weight.dtype == np.float64), self.lanes) == 0
        return y


@pytest.fixture(scope="module", params=[0, 2, 4, 8], ids=["best", "portable", "avx2", "avx512"])
def products(request: pytest.FixtureRequest, ops_library: Path) -> Products:
    handle = ctypes.CDLL(str(ops_library))
    if handle.lipdeploy_gemm_f64_cpu(None, None, None, None, *map(ctypes.c_int64, (0, 0, 0)), 0, request.param) != 0:
        pytest.skip("this machine has no such vectors")
    return Products(ops_library, request.param)


def exact_enough(found: Array, expected: Array, sizes: Array, depth: int) -> None:
    """The error rule: at most depth + 1 roundings of each output; the expectation may err as much."""
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= 2.0 * (depth + 2) * UNIT * sizes + 1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [1, 3, 64, 131])
def test_gemm_of_every_shape(products: Products, depth: int, dtype: Any) -> None:
    for rows, columns in itertools.product((1, 2, 5, 6, 7, 12, 13, 31, 65), (1, 7, 8, 10, 31, 32, 33, 64, 77)):
        x, weight = RANDOM.standard_normal((rows, depth)), RANDOM.standard_normal((depth, columns)).astype(dtype)
        bias = RANDOM.standard_normal(columns)
        expected = x.astype(np.longdouble) @ weight.astype(np.longdouble) + bias
        sizes = np.abs(x) @ np.abs(weight.astype(np.float64)) + np.abs(bias)
        exact_enough(products.gemm(x, weight, bias), expected.astype(np.float64), sizes, depth)


def test_gemm_widens_every_kind_of_float32_exactly(products: Products) -> None:
    special = np.array([1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 0.1, 0.0, -0.0], np.float32)
    found = products.gemm(np.array([[1.0], [-0.5]]), special[None], np.zeros(8))
    np.testing.assert_array_equal(found, np.array([[1.0], [-0.5]]) * special.astype(np.float64))


def test_a_row_does_not_depend_on_its_neighbours(products: Products) -> None:
    x, weight = RANDOM.standard_normal((65, 130)), RANDOM.standard_normal((130, 45)).astype(np.float32)
    bias = RANDOM.standard_normal(45)
    together = products.gemm(x, weight, bias)
    for rows in (1, 5, 7, 50):
        np.testing.assert_array_equal(products.gemm(x[:rows], weight, bias), together[:rows])


def test_gemm_hands_nan_and_infinity_on_and_nowhere_else(products: Products) -> None:
    x, weight = RANDOM.standard_normal((14, 9)), RANDOM.standard_normal((9, 40)).astype(np.float32)
    x[3, 4], x[8, 0] = np.nan, np.inf
    found = products.gemm(x, weight, np.zeros(40))
    assert np.isnan(found[3]).all()
    assert np.array_equal(found[8], np.copysign(np.inf, weight[0]))
    assert np.isfinite(np.delete(found, [3, 8], axis=0)).all()


CONV_CASES = [
    (rank, groups, stride, dilation, pads)
    for rank in (1, 2, 3)
    for groups in (1, 2, 4)
    for stride in (1, 2, 3)
    for dilation in (1, 2)
    for pads in (0, 1, "uneven")
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conv_of_every_stride_dilation_and_padding(products: Products, dtype: Any) -> None:
    for rank, groups, stride, dilation, padding in CONV_CASES:
        x, kernel = RANDOM.standard_normal((3, 4, *(9, 8, 7)[:rank])), (3, 2, 2)[:rank]
        weight = RANDOM.standard_normal((8, 4 // groups, *kernel)).astype(dtype)
        bias = RANDOM.standard_normal(8)
        pads = [*(1, 0, 2)[:rank], *(2, 1, 0)[:rank]] if padding == "uneven" else [padding] * 2 * rank
        found = products.conv(x, weight, bias, groups, [stride] * rank, [dilation] * rank, pads)
        sides = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]

        def by_torch(a: Array, w: Array, b: Array, sides=sides, rank=rank, stride=stride, dilation=dilation, g=groups):  # type: ignore[no-untyped-def]
            padded = torch.nn.functional.pad(torch.tensor(a), sides)
            weights = torch.tensor(w.astype(np.float64))
            result = CONVOLUTIONS[rank - 1](
                padded, weights, torch.tensor(b), stride=stride, dilation=dilation, groups=g
            )
            return result.numpy()

        sizes = by_torch(np.abs(x), np.abs(weight), np.abs(bias))
        exact_enough(found, by_torch(x, weight, bias), sizes, int(np.prod(weight.shape[1:])))


@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "size", "kernel", "stride"),
    [(1, 3, 64, 32, 3, 1), (5, 70, 13, 7, 3, 1), (2, 130, 7, 6, 3, 2), (65, 2, 5, 3, 1, 1), (2, 1, 3, 40, 25, 1)],
    ids=["first layer", "channel blocks", "channel blocks, strided", "tiny maps", "huge kernel"],
)
def test_conv_of_every_size(
    products: Products, batch: int, channels: int, outputs: int, size: int, kernel: int, stride: int
) -> None:
    x = RANDOM.integers(-8, 8, (batch, channels, size, size)).astype(np.float64)
    weight = RANDOM.integers(-8, 8, (outputs, channels, kernel, kernel)).astype(np.float32)
    bias, pad = RANDOM.integers(-8, 8, outputs).astype(np.float64), kernel // 2
    found = products.conv(x, weight, bias, 1, [stride] * 2, [1, 1], [pad] * 4)
    arrays = torch.tensor(x), torch.tensor(weight.astype(np.float64)), torch.tensor(bias)
    expected = torch.conv2d(*arrays, stride=stride, padding=pad).numpy()
    np.testing.assert_array_equal(found, expected)  # small integers: every order is exact


def test_conv_hands_nan_and_infinity_on_and_nowhere_else(products: Products) -> None:
    x, weight = np.ones((2, 1, 6, 6)), np.ones((1, 1, 3, 3), np.float32)
    x[0, 0, 0, 0], x[1, 0, 5, 3] = np.nan, -np.inf
    found = products.conv(x, weight, np.zeros(1), 1, [1, 1], [1, 1], [1] * 4)
    touched = np.zeros(found.shape, bool)
    touched[0, 0, :2, :2] = touched[1, 0, 4:, 2:5] = True
    np.testing.assert_array_equal(np.isfinite(found), ~touched)
    assert np.isnan(found[0, 0, :2, :2]).all()
    assert (found[1, 0, 4:, 2:5] == -np.inf).all()


def test_bad_arguments_are_refused(ops_library: Path) -> None:
    handle = ctypes.CDLL(str(ops_library))
    sizes = np.array([1, 1, 1, 1, 2, 3, 3, 1, 1, 0, 1, 1, 1, 0, 0, 3, 3], np.int64)  # a stride of 0
    none = [None] * 4
    assert handle.lipdeploy_conv_f64_cpu(*none, ctypes.c_void_p(sizes.ctypes.data), 0, 0) == BAD_ARGUMENT
    assert handle.lipdeploy_gemm_f64_cpu(*none, *map(ctypes.c_int64, (-1, 1, 1)), 0, 0) == BAD_ARGUMENT
    assert handle.lipdeploy_gemm_f64_cpu(*none, *map(ctypes.c_int64, (1, 1, 1)), 0, 3) == BAD_ARGUMENT


# Through ONNX Runtime.


def one_node(op: str, x_shape: Any, weights: list[Array], **attributes: Any) -> onnx.ModelProto:
    names = [f"w{i}" for i in range(len(weights))]
    node = helper.make_node(op, ["x", *names], ["y"], domain=DOMAIN, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, x_shape)
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    stored = [numpy_helper.from_array(value, name) for value, name in zip(weights, names, strict=True)]
    graph = helper.make_graph([node], "g", [x], [y], stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def opened(model: onnx.ModelProto, library: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gemm_node(depth: int, columns: int) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((depth, columns)).astype(np.float32)
    return one_node("Gemm", ["N", depth], [panels(weight), np.ones(columns)])


def conv_node(**attributes: Any) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((24, 5, 3, 3)).astype(np.float32)
    given = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 2} | attributes
    return one_node("Conv", ["N", 10, 14, 14], [weight, np.ones(24)], **given)


@pytest.mark.parametrize("op", ["Gemm", "Conv"])
def test_threads_change_no_bit_and_an_empty_batch_is_fine(op: str, ops_library: Path) -> None:
    model, row = (gemm_node(700, 300), (700,)) if op == "Gemm" else (conv_node(), (10, 14, 14))
    one, two = opened(model, ops_library, 1), opened(model, ops_library, 2)
    for batch in (1, 3, 130):
        x = RANDOM.standard_normal((batch, *row))
        first = one.run(None, {"x": x})[0]
        for _ in range(3):
            np.testing.assert_array_equal(two.run(None, {"x": x})[0], first)
    assert one.run(None, {"x": np.zeros((0, *row))})[0].shape == (0, *first.shape[1:])


def test_gemm_keeps_all_leading_axes(ops_library: Path) -> None:
    weight = RANDOM.standard_normal((6, 9))
    x = RANDOM.standard_normal((4, 3, 6))
    model = one_node("Gemm", ["N", 3, 6], [panels(weight), np.zeros(9)])
    np.testing.assert_allclose(opened(model, ops_library).run(None, {"x": x})[0], x @ weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: one_node("Gemm", ["N", 4], [np.zeros((1, 5, 8)), np.zeros(3)]), r"must have shape \(1, 4, 8\), found"),
        (lambda: one_node("Gemm", ["N", 4], [np.zeros((1, 4, 8)), np.zeros((1, 3))]), "the bias must have one axis"),
        (lambda: conv_node(strides=[1]), "strides, dilations and pads must be written"),
        (lambda: conv_node(pads=[-1, 0, 0, 0]), "a pad is negative"),
        (lambda: conv_node(dilations=[9, 1]), "a window does not fit"),
        (lambda: conv_node(strides=[0, 1]), "a window does not fit"),
        (lambda: conv_node(group=3), "the weight does not fit X"),
    ],
)
def test_wrong_shapes_end_in_a_message(model: Any, message: str, ops_library: Path) -> None:
    with pytest.raises(Exception, match=message):
        built = model()
        sizes = [d.dim_value or 2 for d in built.graph.input[0].type.tensor_type.shape.dim]
        opened(built, ops_library).run(None, {"x": np.zeros(sizes)})
