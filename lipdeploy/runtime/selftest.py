"""Start-up test: the registered kernels and the function bodies in the file must mean the same.

The certificate is about the operator's definition. The session runs a probe through each operator that the model
uses, once with the operator library and once without it, in the element type in which it is used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lipdeploy.errors import IntegrityError
from lipdeploy.ops import DOMAIN, attach_functions
from lipdeploy.runtime.double import tensor_shapes, tensor_types
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.library import REINSTALL
from lipdeploy.runtime.rewriting import Shape
from lipdeploy.runtime.stored import program_value

Array = np.ndarray[Any, Any]
SPATIAL = 3


def check_kernels(engine: Engine, model: onnx.ModelProto) -> None:
    """Raise ``IntegrityError`` when a kernel of the library and the operator's function body disagree.

    ``model`` is the program that will run. Nothing to do without a library.
    """
    if engine.library is None:
        return
    bodies = dataclasses.replace(engine, library=None)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    calls = [node for node in model.graph.node if node.domain == DOMAIN]
    _add_computed(stored, model, {name for node in calls for name in node.input})
    shapes, types = (tensor_shapes(model), tensor_types(model)) if calls else ({}, {})
    seen: set[bytes] = set()
    for node in calls:
        if node.input[0] not in shapes:
            continue
        probe_model, probe = _probe(model, node, stored, shapes[node.input[0]], types[node.input[0]])
        key = probe_model.SerializeToString(deterministic=True)
        if key not in seen:
            seen.add(key)
            _compare(engine, bodies, probe_model, probe, node)


def _add_computed(stored: dict[str, onnx.TensorProto], model: onnx.ModelProto, wanted: set[str]) -> None:
    """Constants that a node makes of a tensor in fewer bits."""
    for node in model.graph.node:
        value = program_value(node, stored) if node.output[0] in wanted else None
        if value is not None:
            stored[node.output[0]] = numpy_helper.from_array(value, node.output[0])


def _probe(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    shape: Shape,
    element_type: int,
) -> tuple[onnx.ModelProto, Array]:
    """A model of this one node, with its own constants, and an input for it (small where the operator allows)."""
    constants = [stored[name] for name in node.input[1:] if name in stored]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % len(shape)
    sizes = [size if i == axis and size else min(size or 2, SPATIAL) for i, size in enumerate(shape)]
    call = helper.make_node(node.op_type, ["x", *node.input[1:]], ["y"], domain=DOMAIN)
    call.attribute.extend(node.attribute)
    values = [helper.make_tensor_value_info(name, element_type, sizes) for name in ("x", "y")]
    graph = helper.make_graph([call], "probe", values[:1], values[1:], constants)
    probe = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    attach_functions(probe, {element_type})
    return probe, _values(node, sizes, element_type)


def _values(node: onnx.NodeProto, sizes: list[int], element_type: int) -> Array:
    """Random values with ties, signed zeros, huge and tiny ones among them, around a spline's knots if it has any."""
    random = np.random.default_rng(0)
    given = {a.name: a.f for a in node.attribute if a.type == onnx.AttributeProto.FLOAT}
    scale = 3.0 * max(abs(given.get("lower", 1.0)), given.get("knot_spacing", 0.0))
    values = np.round(random.standard_normal(sizes) * 16.0) / 16.0 * scale
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-40, -1e-40])
    flat = values.reshape(-1)
    flat[: len(special)] = special[: len(flat)]
    with np.errstate(over="ignore"):
        probe: Array = values.astype(helper.tensor_dtype_to_np_dtype(element_type))
        return probe


def _compare(engine: Engine, bodies: Engine, model: onnx.ModelProto, probe: Array, node: onnx.NodeProto) -> None:
    with_kernel = engine.open(model, "self-test with the library").run(None, {"x": probe})[0]
    with_body = bodies.open(model, "self-test without the library").run(None, {"x": probe})[0]
    # Equal as numbers: the contract leaves open the signs of zeros and the payloads of NaNs.
    if not np.array_equal(with_kernel, with_body, equal_nan=True):
        path = engine.library.path if engine.library else ""
        raise IntegrityError(f"{node.op_type}: the kernel in {path} and the function body disagree", hint=REINSTALL)
