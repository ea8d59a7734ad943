"""What a graph may be given: inputs of known element type and rank, one batch axis for all of them."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, ValueInfoProto, helper

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.limits import MOST_ENTRIES, MOST_RANK
from lipdeploy.verify.verdict import TensorSpec

FLOATS = (np.float16, np.float32, np.float64)
INPUT_TYPES = frozenset({np.dtype(t) for t in (*FLOATS, np.uint8, np.int8, np.uint16, np.int16)})


def input_specs(graph: GraphProto) -> tuple[TensorSpec, ...]:
    """The graph's inputs; ``None`` for the batch axis where it is open, and for open sizes of images."""
    specs = tuple(_input_spec(value) for value in graph.input)
    _refuse_different_batches(graph)
    return specs


def _refuse_different_batches(graph: GraphProto) -> None:
    """Samples of one input could be regrouped by the batch size of another."""
    axes = [value.type.tensor_type.shape.dim[0] for value in graph.input]
    stated = {dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in axes}
    if len(axes) > 1 and (len(stated) > 1 or "" in stated):
        message = f"the inputs' batch axes are not the same: {sorted(map(str, stated))}"
        hint = "give axis 0 of every input the same name or size"
        raise Refused([Refusal("LIP005", graph.input[0].name, "input", message, hint)])


def _input_spec(value: ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise Refused([Refusal("LIP006", value.name, "input", "the input is not a tensor of known rank")])
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError) as error:
        raise Refused([Refusal("LIP021", value.name, "input", f"element type {tensor.elem_type}")]) from error
    if dtype not in INPUT_TYPES:
        raise Refused([Refusal("LIP021", value.name, "input", f"inputs of type {dtype} are not supported")])
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if not dims:
        raise Refused([Refusal("LIP005", value.name, "input", "the input has no batch axis")])
    if math.prod(n or 1 for n in dims[1:]) > MOST_ENTRIES or len(dims) > MOST_RANK:
        message = f"more than {MOST_ENTRIES} entries per sample, or {MOST_RANK} axes"
        raise Refused([Refusal("LIP024", value.name, "input", message)])
    if any(n is None for n in dims[1:2]) or any(n is not None and n < 1 for n in dims):
        message = f"shape {dims}: sizes are positive; only the batch axis and an image's, from 2 on, may be open"
        raise Refused([Refusal("LIP006", value.name, "input", message)])
    return TensorSpec(value.name, dtype, tuple(dims))
