"""Passes over a captured graph that leave it with few nodes, no constant arithmetic, and module paths for names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from lipdeploy.errors import InputError
from lipdeploy.export.affine import expand_batch_norms, fold_affine
from lipdeploy.export.graph import Array, Graph, attributes, like
from lipdeploy.export.naming import rename
from lipdeploy.export.standard import expand_sorts

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"})


def tidy(model: onnx.ModelProto, *, standard_ops: bool = False) -> Graph:
    """Fold, simplify and name; the result still has to be assembled into a model."""
    graph = Graph(model.graph)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    passes: tuple[Callable[[Graph], None], ...] = (
        drop_identities,
        lambda g: fold_constants(g, opset),
        gather_instead_of_gather_nd,
        fold_affine,
        expand_batch_norms,
        *([expand_sorts] if standard_ops else []),
        Graph.prune,
        rename,
    )
    for run in passes:
        run(graph)
    if any(graph.producer(name) is None for name in graph.outputs):
        raise InputError("an output of the network does not depend on its input", hint="check what forward returns")
    return graph


def drop_identities(graph: Graph) -> None:
    """Remove Identity, evaluation-mode Dropout and a Pad by nothing."""
    for node in list(graph.nodes):
        if not _is_identity(graph, node):
            continue
        source, result = node.input[0], node.output[0]
        if result not in graph.outputs:
            graph.replace_value(result, source)
            graph.nodes.remove(node)
            continue
        producer = graph.producer(source)
        if producer is None or source in graph.outputs:
            continue
        producer.output[list(producer.output).index(source)] = result
        graph.nodes.remove(node)
        graph.replace_value(source, result)


def _is_identity(graph: Graph, node: NodeProto) -> bool:
    if node.domain:
        return False
    if node.op_type == "Dropout":  # training mode is an input; without it the operator is the identity
        return len(node.input) < 3 or (node.input[2] in graph.constants and not bool(graph.constants[node.input[2]]))
    if node.op_type == "Pad":  # with axes named, the same: no pads on some axes and none on the others
        return node.input[1] in graph.constants and not graph.constants[node.input[1]].any()
    return node.op_type == "Identity"


def fold_constants(graph: Graph, opset: int) -> None:
    """Evaluate every standard node whose inputs are constants, and Shape of an axis whose size is known."""
    for node in list(graph.nodes):
        values = _shape_gather(graph, node)
        if values is None:
            values = _evaluate(graph, node, opset)
        if values is None:
            continue
        graph.constants.update(zip(node.output, values, strict=True))
        graph.nodes.remove(node)


def _shape_gather(graph: Graph, node: NodeProto) -> list[Array] | None:
    """Gather(Shape(x), k) where axis k of x is static: torch writes it for the k of a TopK."""
    if node.op_type != "Gather" or node.input[1] not in graph.constants:
        return None
    source = graph.producer(node.input[0])
    if source is None or source.op_type != "Shape" or len(source.output) != 1:
        return None
    shape = graph.shapes.get(source.input[0])
    given = attributes(source)
    if shape is None:
        return None
    indices = graph.constants[node.input[1]]
    sizes = [shape[given.get("start", 0) : given.get("end", len(shape))][int(k)] for k in indices.flatten()]
    if any(size is None for size in sizes):
        return None
    return [np.asarray(sizes, dtype=np.int64).reshape(indices.shape)]


def _evaluate(graph: Graph, node: NodeProto, opset: int) -> list[Array] | None:
    if node.domain or node.op_type in RANDOM or not node.input:
        return None
    if any(name and name not in graph.constants for name in node.input):
        return None
    feeds = {name: graph.constants[name] for name in node.input if name}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    body = helper.make_graph([node], "constant", inputs, outputs)
    single = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    try:
        return [np.asarray(value) for value in ReferenceEvaluator(single).run(None, feeds)]
    except Exception:  # it lacks some operators; what is left in the graph is for the verifier to judge
        return None


def gather_instead_of_gather_nd(graph: Graph) -> None:
    """Transpose(0↔k), GatherND, Transpose(0↔k), torch's x[:, order], becomes one Gather that leaves the batch alone."""
    for node in list(graph.nodes):
        if node.op_type != "GatherND" or attributes(node).get("batch_dims", 0) or node.input[1] not in graph.constants:
            continue
        indices = graph.constants[node.input[1]]
        before, after = graph.producer(node.input[0]), graph.only_consumer(node.output[0])
        if before is None or after is None or indices.ndim != 2 or indices.shape[1] != 1:
            continue
        axis = _swapped_axis(before)
        if axis is None or axis != _swapped_axis(after):
            continue
        order = graph.add_constant(f"{node.output[0]}_order", indices[:, 0])
        gather = like(node, "Gather", [before.input[0], order], [after.output[0]], axis=axis)
        graph.nodes[graph.nodes.index(node)] = gather
        graph.nodes.remove(after)
    graph.prune()


def _swapped_axis(node: NodeProto) -> int | None:
    """k when the node is a Transpose that swaps axes 0 and k and nothing else."""
    order = list(attributes(node).get("perm", [])) if node.op_type == "Transpose" else []
    axis = order[0] if order else 0
    expected = list(range(len(order)))
    if axis == 0:
        return None
    expected[0], expected[axis] = axis, 0
    return axis if order == expected else None
