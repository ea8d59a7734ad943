"""``normalize=True``: the last linear layer scaled so that the *proven* bound meets the target.

Weight and bias shrink by one positive factor, every entry rounded toward zero, so each logit shrinks by that factor
and the order of the classes stays (sharp_edges.md 21). Nothing here is believed: the result is verified again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from lipdeploy.errors import InputError, LipdeployError
from lipdeploy.export.graph import Array

ROUNDS = 12
SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")


def normalize(
    model: onnx.ModelProto, target: float, prove: Callable[[onnx.ModelProto], float]
) -> tuple[onnx.ModelProto, float]:
    """(model with a proven bound ≤ ``target``, the factor that its outputs were multiplied by).

    ``prove`` returns the proven bound of a model. A model that meets the target already is returned unchanged.
    """
    bound = prove(model)
    if bound <= target:
        return model, 1.0
    if not np.isfinite(bound):
        raise InputError(f"the proven bound is {bound}; there is nothing to scale it by")
    factor, step = target / bound, 2.0**-30
    for _ in range(ROUNDS):
        factor *= 1 - step
        scaled = scale_output(model, factor)
        bound = prove(scaled)
        if bound <= target:
            return scaled, factor
        factor, step = factor * min(1.0, target / bound), step * 4
    raise LipdeployError(f"normalisation to {target} did not converge: the proven bound is still {bound}")


def scale_output(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy of ``model`` whose last linear layer is multiplied by ``factor``, each entry rounded toward zero."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    for node, position in _last_linear(scaled.graph):
        name = node.input[position]
        old = next(tensor for tensor in scaled.graph.initializer if tensor.name == name)
        value = _toward_zero(numpy_helper.to_array(old), factor)
        shared = sum(name in other.input for other in scaled.graph.node) > 1
        if shared:
            name = node.input[position] = _fresh(scaled.graph, name)
            scaled.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            old.CopyFrom(numpy_helper.from_array(value, name))
    return scaled


def _last_linear(graph: onnx.GraphProto) -> list[tuple[NodeProto, int]]:
    """(node, input position) of the weight and the bias of the layer that the output comes from."""
    constants = {tensor.name for tensor in graph.initializer}
    producers = {value: node for node in graph.node for value in node.output}
    value, biases = graph.output[0].name, list[tuple[NodeProto, int]]()
    while value in producers and len(graph.output) == 1:
        node = producers[value]
        if sum(value in other.input for other in graph.node) > (value != graph.output[0].name):
            break  # another branch reads this value, too
        if node.op_type in ("Gemm", "Conv", "ConvTranspose", "MatMul") and node.input[1] in constants:
            own = [(node, 2)] if len(node.input) > 2 and node.input[2] in constants else []
            return [(node, 1), *own, *biases]
        if node.op_type == "Add" and any(name in constants for name in node.input):
            position = 1 if node.input[1] in constants else 0
            biases.append((node, position))
            value = node.input[1 - position]
        elif node.op_type in SHAPE_ONLY:
            value = node.input[0]
        else:
            break
    raise InputError(
        "normalize needs a network whose single output comes from a linear layer with constant weights",
        hint="end the network in Linear or Conv, or scale its layers yourself",
    )


def _toward_zero(value: Array, factor: float) -> Array:
    wide = value.astype(np.float64) * factor
    rounded = wide.astype(value.dtype)
    # The float64 product may itself have been rounded up, so equal counts as too far from zero in float64.
    too_far = np.abs(rounded.astype(np.float64)) > np.abs(wide)
    if value.dtype == np.float64:
        too_far = rounded != 0
    return np.where(too_far, np.nextafter(rounded, np.zeros_like(rounded)), rounded).astype(value.dtype)


def _fresh(graph: onnx.GraphProto, stem: str) -> str:
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    name = f"{stem}_normalized"
    while name in taken:
        name += "_"
    return name
