"""Ways to run one operator on one tensor, each from its own artefact."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipdeploy.ops import DOMAIN, VERSION, attach_functions
from tests.ops.proxy import Proxy, proxy

Array = np.ndarray[Any, Any]


def model(
    op: str,
    shape: tuple[int, ...],
    element_type: int,
    attributes: Mapping[str, Any],
    constants: Array | Sequence[Array] | None = None,
    *,
    opset: int = 20,
    functions: bool = True,
    casts: bool = False,
) -> onnx.ModelProto:
    """A model of one node. ``casts`` puts float32 on the outside, for types that Python cannot hand to ONNX Runtime."""
    inner_in, inner_out = ("x_", "y_") if casts else ("x", "y")
    tensors = [] if constants is None else [constants] if isinstance(constants, np.ndarray) else list(constants)
    initializers = [numpy_helper.from_array(tensor, f"c{i}") for i, tensor in enumerate(tensors)]
    inputs = [inner_in, *(tensor.name for tensor in initializers)]
    nodes = [helper.make_node(op, inputs, [inner_out], name="op", domain=DOMAIN, **attributes)]
    outer = TensorProto.FLOAT if casts else element_type
    if casts:
        nodes = [
            helper.make_node("Cast", ["x"], ["x_"], to=element_type),
            *nodes,
            helper.make_node("Cast", ["y_"], ["y"], to=TensorProto.FLOAT),
        ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", outer, shape)],
        [helper.make_tensor_value_info("y", outer, shape)],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    result = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if functions:
        attach_functions(result, {element_type})
    return result


def in_onnxruntime(file: onnx.ModelProto, x: Array, library: Path | None = None) -> Array:
    """Run in ONNX Runtime's CPU provider, with the operator library or without it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def in_reference(file: onnx.ModelProto, x: Array) -> Array:
    """Run in onnx's reference evaluator."""
    with np.errstate(all="ignore"):
        result: Array = ReferenceEvaluator(file).run(None, {"x": x})[0]
    return result


def around_axis(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


class Fenced:
    """An output between two fences, which a kernel that writes out of bounds would break.

    It lies ``SHIFT`` bytes behind an address that suits the widest vectors, as ONNX Runtime's tensors do.
    """

    FENCE = 256
    SHIFT = 0

    def __init__(self, like: Array) -> None:
        self._all = np.full(like.nbytes + 2 * self.FENCE + 64 + self.SHIFT, 0xA5, np.uint8)
        self._start = self.FENCE + self.SHIFT + -self._all.ctypes.data % 64
        self.inside: Array = self._all[self._start : self._start + like.nbytes].view(like.dtype).reshape(like.shape)

    def checked(self) -> Array:
        fences = (self._all[: self._start], self._all[self._start + self.inside.nbytes :])
        if any((fence != 0xA5).any() for fence in fences):
            raise ValueError("the kernel wrote outside its output")
        return self.inside


class Entries:
    """The plain C entry points of a library: suffix ``cpu``, or ``emulated`` for the CUDA sources run as C++."""

    def __init__(self, library: Path, suffix: str) -> None:
        elsewhere = os.environ.get("LIPDEPLOY_PROXY") if suffix == "cpu" else None
        self.library: Any = proxy(elsewhere) if elsewhere else ctypes.CDLL(str(library))
        self.suffix = suffix

    def has(self, op: str, type_name: str) -> bool:
        return hasattr(self.library, f"lipdeploy_{op}_{type_name}_{self.suffix}")

    def group_sort(
        self, type_name: str, x: Array, *, group_size: int, axis: int, layout: int, descending: int
    ) -> Array:
        x, fenced = np.ascontiguousarray(x), Fenced(x)
        sizes = [*around_axis(x.shape, axis), group_size, layout, descending]
        self._call(f"group_sort_{type_name}", [x, fenced.inside], [ctypes.c_int64(size) for size in sizes])
        return fenced.checked()

    def linear_spline(
        self, type_name: str, x: Array, coefficients: Array, *, lower: float, knot_spacing: float, axis: int
    ) -> Array:
        x, fenced = np.ascontiguousarray(x), Fenced(x)
        sizes = [ctypes.c_int64(size) for size in (*around_axis(x.shape, axis), *coefficients.shape)]
        floats = [ctypes.c_float(lower), ctypes.c_float(knot_spacing)]
        self._call(
            f"linear_spline_{type_name}", [x, np.ascontiguousarray(coefficients), fenced.inside], [*sizes, *floats]
        )
        return fenced.checked()

    def linear_spline_scaled(
        self, type_name: str, x: Array, coefficients: Array, scale: Array | None, inverse: Array | None,
        *, lower: float, knot_spacing: float, axis: int, threads: int = 1,
    ) -> Array:  # fmt: skip
        x, fenced = np.ascontiguousarray(x), Fenced(x)
        sizes = [ctypes.c_int64(size) for size in (*around_axis(x.shape, axis), *coefficients.shape)]
        rest = [*sizes, ctypes.c_float(lower), ctypes.c_float(knot_spacing), ctypes.c_int64(threads)]
        self._call(f"linear_spline_scaled_{type_name}", [x, coefficients, scale, inverse, fenced.inside], rest)
        return fenced.checked()

    def linear_spline_gradient(
        self, type_name: str, x: Array, grad: Array, coefficients: Array, scale: Array | None, inverse: Array | None,
        *, lower: float, knot_spacing: float, axis: int, threads: int = 1, wanted: str = "xcsi",
    ) -> list[Array | None]:  # fmt: skip
        """The gradients of x, coefficients, scale and inverse; None for those not ``wanted``."""
        x = np.ascontiguousarray(x)
        given = zip("xcsi", (x, coefficients, scale, inverse), strict=True)
        fenced = [Fenced(like) if name in wanted and like is not None else None for name, like in given]
        outputs = [None if result is None else result.inside for result in fenced]
        sizes = [ctypes.c_int64(size) for size in (*around_axis(x.shape, axis), *coefficients.shape)]
        floats = [ctypes.c_float(lower), ctypes.c_float(knot_spacing), ctypes.c_double(0.0)]
        rest = [*sizes, *floats, ctypes.c_int64(0), ctypes.c_int64(threads)]
        inputs = [x, np.ascontiguousarray(grad), None, coefficients, scale, inverse]
        self._call(f"linear_spline_gradient_{type_name}", [*inputs, *outputs], rest)
        return [None if result is None else result.checked() for result in fenced]

    def householder(self, type_name: str, x: Array, sine: Array, cosine: Array, *, axis: int, layout: int) -> Array:
        x, fenced = np.ascontiguousarray(x), Fenced(x)
        sizes = [ctypes.c_int64(size) for size in (*around_axis(x.shape, axis), layout)]
        self._call(f"householder_{type_name}", [x, sine, cosine, fenced.inside], sizes)
        return fenced.checked()

    def _call(self, name: str, arrays: Sequence[Array | None], rest: list[Any]) -> None:
        if isinstance(self.library, Proxy):
            status = self.library.call(f"lipdeploy_{name}_cpu", arrays, rest)
        else:
            status = self._here(name, arrays, rest)
        if status != 0:
            raise ValueError(f"lipdeploy_{name}_{self.suffix} returned {status}")

    def _here(self, name: str, arrays: Sequence[Array | None], rest: list[Any]) -> int:
        function = getattr(self.library, f"lipdeploy_{name}_{self.suffix}")
        function.restype = ctypes.c_int32
        stream = [] if self.suffix == "cpu" else [ctypes.c_void_p(None)]
        pointers = [ctypes.c_void_p(None if array is None else array.ctypes.data) for array in arrays]
        return int(function(*pointers, *rest, *stream))
