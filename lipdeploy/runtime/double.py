"""The float64 program: the same real function as the verified file, computed in binary64.

Float constants are widened exactly, inputs and outputs retyped, casts between float types dropped to float64; the
bodies of lipdeploy's operators are generated anew for float64; operators without a float64 kernel are rewritten
exactly (``rewrites.py``) or refused by name (LIP018). Only the nodes that the chosen output needs are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper, shape_inference

from lipdeploy.errors import InputError
from lipdeploy.ops import DOMAIN, attach_functions
from lipdeploy.runtime import products
from lipdeploy.runtime.executed import constant_tensor
from lipdeploy.runtime.rewrites import REWRITES
from lipdeploy.runtime.rewriting import Rewriting, Shape, Sizes, attributes_of, unsupported
from lipdeploy.runtime.stored import fold_stored

STANDARD = ("", "ai.onnx")
LARGE = 1024  # entries of a float constant that holds no sizes
NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Operators whose float64 CPU kernel was seen to load and run in ONNX Runtime 1.31.1, and whose meaning does not
# depend on the element type; the list is asked again by tests/runtime/test_double_kernels.py.
KERNELS = frozenset(
    """
    Abs Add And BatchNormalization Cast CastLike Clip Concat ConstantOfShape DepthToSpace Div Dropout Einsum Equal
    Exp Expand Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual Identity IsInf IsNaN Less
    LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mul Neg Not Or Pad Range Reciprocal ReduceL1
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Shape Sign
    Size Slice SpaceToDepth Split Sqrt Squeeze Sub Sum Tile TopK Transpose Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)


def double_model(
    model: onnx.ModelProto, output_name: str | None = None, own: bool = False, verified: Sizes | None = None
) -> onnx.ModelProto:
    """The float64 program of ``model`` (external data already inlined) for one of its outputs.

    ``own``: products and convolutions through the operator library (``products.py``), not standard operators.
    ``verified``: the sizes of a sample of each tensor in the network that was proven (``Verdict.sizes``).

    Raises ``Refused`` (LIP018) naming the first node that has neither a float64 kernel nor an exact rewrite, or whose
    output has another size by ONNX's shape inference, for which the rewrites are made, and ``InputError`` when there is
    no output of that name.
    """
    wide = _inline_foreign_functions(model)
    graph = wide.graph
    del graph.value_info[:]  # claims of the file; sizes are inferred again from the inputs and constants
    _select_output(graph, output_name)
    _constants_to_initializers(graph)
    fold_stored(graph)
    _widen(graph)
    _prune(graph, graph.node)
    attach_functions(wide, {TensorProto.DOUBLE})
    rewriting = Rewriting(_opset(wide), tensor_shapes(wide), {t.name: t for t in graph.initializer}, _names(graph), own)
    for node in graph.node:
        _check_sizes(rewriting, node, verified or {})
        _translate(rewriting, node)
    _prune(graph, rewriting.nodes, rewriting.constants)
    _declare_own(wide, rewriting)
    return wide


def _declare_own(model: onnx.ModelProto, rewriting: Rewriting) -> None:
    """Import our products' domain where it is used, and write down the shapes that nobody else can infer."""
    outputs = [node.output[0] for node in model.graph.node if node.domain == products.DOMAIN]
    if outputs:
        model.opset_import.append(helper.make_opsetid(products.DOMAIN, products.VERSION))
    results = {value.name for value in model.graph.output}
    for name in outputs:
        if name in rewriting.shapes and name not in results:
            shape = helper.make_tensor_value_info(name, TensorProto.DOUBLE, rewriting.shapes[name])
            model.graph.value_info.append(shape)


def _inline_foreign_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every function except lipdeploy's own operators is replaced by its body."""
    foreign = [(f.domain, f.name) for f in model.functions if f.domain != DOMAIN]
    wide = inliner.inline_selected_functions(model, foreign) if foreign else model
    copy = onnx.ModelProto()
    copy.CopyFrom(wide)
    return copy


def _select_output(graph: onnx.GraphProto, output_name: str | None) -> None:
    chosen = [value for value in graph.output if output_name is None or value.name == output_name][:1]
    if not chosen:
        names = ", ".join(value.name for value in graph.output)
        raise InputError(f"the model has no output '{output_name}'; its outputs are: {names}")
    del graph.output[:]
    graph.output.extend(chosen)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Every Constant node becomes an initialiser, so that one home holds all constants."""
    constants = [node for node in graph.node if node.op_type == "Constant" and node.domain in STANDARD]
    others = [node for node in graph.node if not (node.op_type == "Constant" and node.domain in STANDARD)]
    graph.initializer.extend(_tensor_of(node) for node in constants)
    del graph.node[:]
    graph.node.extend(others)


def _tensor_of(node: onnx.NodeProto) -> onnx.TensorProto:
    tensor = constant_tensor(node)
    if tensor.data_type == TensorProto.UNDEFINED:
        raise unsupported(node, f"a constant given as {', '.join(entry.name for entry in node.attribute)}")
    return tensor


def _widen(graph: onnx.GraphProto) -> None:
    """Retype inputs, outputs, constants and casts from the narrow float types to float64, exactly."""
    if graph.sparse_initializer:
        raise unsupported(graph.node[0], "sparse initialisers")
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]  # an initialiser is not for callers to set
    del graph.input[:]
    graph.input.extend(inputs)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    tensors = [_widened(tensor) for tensor in graph.initializer]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    constants = {tensor.name: tensor for tensor in tensors}
    for node in graph.node:
        _widen_node(node, constants)


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in NARROW:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _widen_node(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise unsupported(node, "the node carries a sub-graph")
        if attribute.type == AttributeProto.TENSOR:
            attribute.t.CopyFrom(_widened(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
            _check_constant_cast(node, attribute.i, constants)
            attribute.i = TensorProto.DOUBLE


def _check_constant_cast(node: onnx.NodeProto, to: int, constants: dict[str, onnx.TensorProto]) -> None:
    """A Cast that rounds a *constant* changes the function itself, so it must not be dropped."""
    if node.input[0] not in constants:
        return
    value = numpy_helper.to_array(constants[node.input[0]])
    with np.errstate(all="ignore"):
        rounded = value.astype(helper.tensor_dtype_to_np_dtype(to))
    if not np.array_equal(rounded.astype(np.float64), value.astype(np.float64)):
        raise unsupported(node, "the Cast rounds a constant; fold constants before export")


def _prune(
    graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], constants: dict[str, onnx.TensorProto] | None = None
) -> None:
    """Keep what the output needs, in order."""
    tensors = constants if constants is not None else {tensor.name: tensor for tensor in graph.initializer}
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    used = [tensor for name, tensor in tensors.items() if name in needed]
    del graph.initializer[:]
    graph.initializer.extend(used)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 1)


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        names.update(node.input, node.output)
    return names


def tensor_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Every tensor's shape by ONNX shape inference; ``None`` marks an open size."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in _inferred(model):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Every tensor's ONNX element type, where inference finds it."""
    types = {value.name: value.type.tensor_type.elem_type for value in _inferred(model)}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _inferred(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    try:
        graph = shape_inference.infer_shapes(_without_bodies(model), data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise InputError(f"shape inference failed: {error}") from error
    return [*graph.input, *graph.output, *graph.value_info]


def _without_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """Our operators keep their input's shape and type, but inference through their bodies can lose sizes."""
    plain = _without_weights(model)
    for node in plain.graph.node:
        if node.domain == DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            del node.input[1:]
    foreign = [function for function in model.functions if function.domain != DOMAIN]
    del plain.functions[:]
    plain.functions.extend(foreign)
    return plain


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large float constants are inputs of that shape: nobody infers sizes from their values."""
    plain = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    plain.graph.node.extend(graph.node)
    plain.graph.input.extend(graph.input)
    plain.graph.output.extend(graph.output)
    plain.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if tensor.data_type in (*NARROW, TensorProto.DOUBLE) and math.prod(tensor.dims) > LARGE:
            stand_in = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            if all(value.name != tensor.name for value in graph.input):
                plain.graph.input.append(stand_in)
        else:
            plain.graph.initializer.append(tensor)
    return plain


def _translate(graph: Rewriting, node: onnx.NodeProto) -> None:
    own = products.PRODUCTS.get(node.op_type) if graph.own and node.domain in STANDARD else None
    if own is not None and own(graph, node):
        return
    if node.domain in STANDARD and node.op_type in REWRITES:
        REWRITES[node.op_type](graph, node)
    elif node.domain == DOMAIN or (node.domain in STANDARD and node.op_type in KERNELS):
        _check_kernel(node)
        graph.nodes.append(node)
    else:
        raise unsupported(node, "ONNX Runtime has no float64 kernel for it, and there is no exact rewrite")


def _check_sizes(graph: Rewriting, node: onnx.NodeProto, verified: Sizes) -> None:
    """Refuse a node of which shape inference makes another image than the verifier and the kernel.

    Up to opset 21 ONNX counts windows of ceil_mode that start in the padding: what follows would be rewritten for them.
    """
    for name in node.output:
        inferred = graph.shapes.get(name)
        if name not in verified or inferred is None or None in inferred[1:]:
            continue
        if inferred[1:] != verified[name]:
            meant = f"shape inference makes '{name}' {list(inferred[1:])}, and the proof {list(verified[name])}"
            raise unsupported(node, f"of each sample, {meant}")


def _check_kernel(node: onnx.NodeProto) -> None:
    """Attributes that send an operator with a float64 kernel to another meaning."""
    if node.op_type == "BatchNormalization" and attributes_of(node).get("training_mode", 0):
        raise unsupported(node, "training_mode = 1")


def elements_per_row(model: onnx.ModelProto) -> int:
    """How many float64 numbers one sample needs at most in one tensor of this program (for splitting batches)."""
    largest = 1
    for shape in tensor_shapes(model).values():
        if shape and shape[0] is None:
            largest = max(largest, int(np.prod([size or 1 for size in shape[1:]], dtype=np.float64)))
    return largest
