"""Constants that a file computes from what it stores: weights in float16 or bfloat16 behind a Cast, integers behind a
DequantizeLinear.

Two programs need their numbers: the float64 one those of the real network, and the comparison with the executed graph
those that ONNX Runtime folds, which float32 has rounded once where it does not hold the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.verify.dequantize import dequantised

Array = np.ndarray[Any, Any]
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
STANDARD = ("", "ai.onnx")


def fold_stored(graph: onnx.GraphProto) -> None:
    """Replace every Cast and DequantizeLinear of stored numbers by an initialiser with the exact numbers."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        value = real_value(node, constants)
        if value is None:
            kept.append(node)
            continue
        constants[node.output[0]] = numpy_helper.from_array(value, node.output[0])
        graph.initializer.append(constants[node.output[0]])
    del graph.node[:]
    graph.node.extend(kept)


def real_value(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Array | None:
    """The exact numbers of such a node; ``None`` for other nodes, and for a Cast that rounds."""
    if node.domain not in STANDARD or node.op_type not in ("Cast", "DequantizeLinear"):
        return None
    if any(name and name not in constants for name in node.input):
        return None
    values = [numpy_helper.to_array(constants[name]) if name else None for name in node.input]
    if node.op_type == "Cast":
        return cast(node, values)
    return _product(node, values)


def cast(node: onnx.NodeProto, values: list[Array | None]) -> Array | None:
    """A stored float tensor in the float type that a Cast asks for, where that holds it exactly."""
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
    stored = values[0] if values else None
    if stored is None or to not in FLOATS or not _is_float(stored):
        return None
    with np.errstate(all="ignore"):
        converted = stored.astype(helper.tensor_dtype_to_np_dtype(to))
    return converted if np.array_equal(converted.astype(np.float64), stored.astype(np.float64)) else None


def dequantise(node: onnx.NodeProto, values: list[Array | None]) -> Array | None:
    """What ONNX Runtime makes of stored integers: the exact product, rounded once to the type of the scale."""
    scale = values[1] if len(values) > 1 else None
    product = None if scale is None or not _is_float(scale) else _product(node, values)
    return None if product is None or scale is None else product.astype(scale.dtype)


def program_value(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Array | None:
    """The numbers that the stored program computes in such a node."""
    exact = real_value(node, constants)
    if exact is None or node.op_type == "Cast":
        return exact
    return dequantise(node, [numpy_helper.to_array(constants[name]) if name else None for name in node.input])


def _product(node: onnx.NodeProto, values: list[Array | None]) -> Array | None:
    given = {attribute.name: attribute.i for attribute in node.attribute}
    stored, scale, zero = (*values, None)[:3]
    if stored is None or scale is None:
        return None
    integers, zeros = _as_integers(stored), None if zero is None else _as_integers(zero)
    return dequantised(integers, scale, zeros, axis=given.get("axis", 1), block=given.get("block_size", 0))


def _as_integers(array: Array) -> Array:
    """NumPy knows four-bit integers as bytes only."""
    widened = {"int4": np.int8, "uint4": np.uint8}.get(array.dtype.name)
    return array if widened is None else array.astype(widened)


def _is_float(array: Array) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")
