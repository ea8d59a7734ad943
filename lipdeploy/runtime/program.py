"""Programs made of a model: the stored one, complete with function bodies, and the float64 one as a plain function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lipdeploy.errors import InputError
from lipdeploy.ops import DOMAIN, attach_functions
from lipdeploy.runtime import engine
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.providers import choose
from lipdeploy.runtime.rewriting import Sizes

ELEMENT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
WIDENED = "_in_float64"
Array = np.ndarray[Any, Any]


def stored_program(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, with the bodies of lipdeploy's operators where the file leaves them out.

    The bodies are the operators' definition, and verification accepts a file without them; ONNX Runtime does not,
    unless the operator library is registered.
    """
    uses = any(node.domain == DOMAIN for node in model.graph.node)
    if not uses or any(function.domain == DOMAIN for function in model.functions):
        return model
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    attach_functions(complete, {_float_type(model)})
    return complete


def rewritten_program(
    model: onnx.ModelProto, output_name: str, own: bool, verified: Sizes | None = None
) -> onnx.ModelProto | None:
    """What stands in for a program in float64 of which ONNX Runtime has no kernels: the same numbers, operators
    rewritten exactly (``double_model``), inputs of the types that were stored. ``None`` where ``model`` is none.
    """
    if _float_type(model) != onnx.TensorProto.DOUBLE:
        return None
    program = double_model(model, output_name, own, verified)
    stored = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    narrow = {value.name for value in program.graph.input if stored[value.name] != value.type.tensor_type.elem_type}
    for value in program.graph.input:
        value.type.tensor_type.elem_type = stored[value.name]
    nodes = [_reading_wide(node, narrow) for node in program.graph.node]
    used = sorted(
        narrow & {name.removesuffix(WIDENED) for node in nodes for name in node.input if name.endswith(WIDENED)}
    )
    casts = [helper.make_node("Cast", [name], [name + WIDENED], to=onnx.TensorProto.DOUBLE) for name in used]
    del program.graph.node[:]
    program.graph.node.extend([*casts, *nodes])
    return program


def _reading_wide(node: onnx.NodeProto, narrow: set[str]) -> onnx.NodeProto:
    """``node`` with its ``narrow`` inputs in float64; where the file has a Cast to that type, it is that one."""
    if node.input and node.input[0] in narrow and _is_to_double(node):
        return helper.make_node("Cast", node.input, node.output, node.name, to=onnx.TensorProto.DOUBLE)
    node.input[:] = [name + WIDENED if name in narrow else name for name in node.input]
    return node


def _is_to_double(node: onnx.NodeProto) -> bool:
    """Whether this is a cast to float64, or what the float64 program has in its place."""
    casts = any(entry.name == "to" and entry.i == onnx.TensorProto.DOUBLE for entry in node.attribute)
    return not node.domain and (node.op_type == "Identity" or (node.op_type == "Cast" and casts))


def _float_type(model: onnx.ModelProto) -> int:
    """The element type that the graph computes in: that of its output, else of its input."""
    values = (*model.graph.output, *model.graph.input)
    types = (value.type.tensor_type.elem_type for value in values)
    return next((kind for kind in types if kind in ELEMENT_TYPES), onnx.TensorProto.FLOAT)


def float64_function(model: onnx.ModelProto, output_name: str | None = None) -> Callable[[Array], Array]:
    """The real function of ``model`` in float64, for estimates: rows in, the chosen output out; no guarantee.

    ``model`` is a parsed file with its external data inlined (``Source.proto``). Raises ``Refused`` (LIP018) when an
    operator has no float64 program and ``InputError`` for several inputs or an integer input.
    """
    opener = engine.Engine(choose(None), 1, find_library())
    wide = double_model(model, output_name, opener.double_products)
    if len(wide.graph.input) != 1 or wide.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.DOUBLE:
        raise InputError("the model needs exactly one floating-point input for this")
    session = opener.open(wide, "float64 program")
    source, target = wide.graph.input[0].name, wide.graph.output[0].name
    return lambda rows: engine.run(session, target, {source: np.asarray(rows, dtype=np.float64)})
