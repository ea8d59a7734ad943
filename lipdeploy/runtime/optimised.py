"""Is a graph that ONNX Runtime rewrote still the verified one?

Both graphs become expressions of their inputs: a tensor is known by the operator, attributes and expressions that it
is made of, a constant by its bits, whatever the names. The rewritten graph may differ from the verified one only by
what is undone here, each without a change of one number:

- data movement on constants, done beforehand (Transpose, Reshape, Unsqueeze, Identity);
- stored weights widened beforehand (an exact Cast; DequantizeLinear, rounded once as its kernel rounds);
- Conv and Gemm that apply a Relu themselves (``FusedConv``, ``FusedGemm``);
- convolutions and maximum pools on channels in blocks (``com.microsoft.nchwc``), whose weights are reordered and padded
  with zeros: conventional sums of the same products;
- copies between devices, Identity.

Everything else makes another expression: recomputed weights, factors moved into attributes, sums that are added in
another place (a bias that joined a product may round more often than the error rule counted). Each operator of the
rewritten graph is then one of the verified graph, whose rounding has a rule, or one of the above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper

from lipdeploy.errors import IntegrityError
from lipdeploy.ops import DOMAIN
from lipdeploy.runtime.executed import COPIES, HINT, STANDARD, comparable_attributes, constant_tensor, opset_versions
from lipdeploy.runtime.stored import cast, dequantise

MALFORMED = (TypeError, ValueError, KeyError, IndexError)  # a node that this reader does not expect
BLOCKED = "com.microsoft.nchwc"
FUSED = "com.microsoft"
BLOCK_SIZES = (4, 8, 16, 32, 64)  # channels in a block; 8 and 16 were seen
Array = np.ndarray[Any, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class _Tensor:
    """A tensor as an expression.

    ``blocked``: it lies in blocks of channels, ``channels`` of which count (``None``: all that there were).
    """

    key: Key
    blocked: bool = False
    channels: int | None = None
    value: Array | None = None


ABSENT = _Tensor(("absent",))


class _Different(Exception):
    """The graph does something that is not undone here."""


def check_optimised(verified: onnx.ModelProto, executed: onnx.ModelProto, what: str) -> None:
    """Raise ``IntegrityError`` unless ``executed`` is ``verified``, up to the rewrites that this module undoes."""
    try:
        halves = _computes_in_halves(verified.graph)
        known = _Reader(opset_versions(verified), {}, halves)
        expected = known.read(_inlined_like(executed, verified))
        found = _Reader(opset_versions(verified), known.convolution_weights, halves).read(executed)
    except (_Different, *MALFORMED) as difference:
        raise IntegrityError(f"{what}: ONNX Runtime rewrote the graph: {difference}", hint=HINT) from difference
    if list(expected) != list(found):
        raise IntegrityError(f"{what}: ONNX Runtime changed the outputs", hint=HINT)
    for name, tensor in expected.items():
        if found[name].blocked or found[name].key != tensor.key:
            raise IntegrityError(f"{what}: ONNX Runtime computes '{name}' in another way", hint=HINT)


def _inlined_like(executed: onnx.ModelProto, verified: onnx.ModelProto) -> onnx.ModelProto:
    """``verified`` with its functions replaced by their bodies, except those that ``executed`` has kernels for."""
    kernels = {(node.domain, node.op_type) for node in executed.graph.node if node.domain == DOMAIN}
    inline = [(f.domain, f.name) for f in verified.functions if (f.domain, f.name) not in kernels]
    return inliner.inline_selected_functions(verified, inline) if inline else verified


def _computes_in_halves(graph: onnx.GraphProto) -> bool:
    """Whether some activation is float16: the CPU provider computes most of those in float32, between its own Casts."""
    if any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in graph.input):
        return True
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if fixed.issuperset(node.input):
            fixed.update(node.output)
        elif node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in node.attribute):
            return True
    return False


class _Reader:
    """Turns one graph into expressions.

    ``halves``: where it rounds to float16 does not count. No guarantee rests on such a program, whose error in f32 is
    not stated.
    """

    def __init__(self, opsets: dict[str, int], known_weights: Mapping[Key, Array], halves: bool = False) -> None:
        self.opsets = opsets
        self.halves = halves
        self.known_weights = known_weights  # those of the verified graph's convolutions
        self.convolution_weights: dict[Key, Array] = {}
        self.tensors: dict[str, _Tensor] = {"": ABSENT}

    def read(self, model: onnx.ModelProto) -> dict[str, _Tensor]:
        """The expressions of the outputs, in order. Raises ``_Different``."""
        graph = model.graph
        for value in graph.input:
            self.tensors[value.name] = _Tensor(("input", value.name))
        for tensor in graph.initializer:
            self.tensors[tensor.name] = self._fixed(numpy_helper.to_array(tensor))
        if graph.sparse_initializer:
            raise _Different("there are sparse constants")
        for node in graph.node:
            self._visit(node)
        return {value.name: self._of(value.name) for value in graph.output}

    def _fixed(self, value: Array) -> _Tensor:
        return _constant(value.astype(np.float32) if self.halves and value.dtype == np.float16 else value)

    def _is_copy(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Identity" or (self.halves and node.op_type == "Cast" and _between_floats(node))

    def _of(self, name: str) -> _Tensor:
        if name not in self.tensors:
            raise _Different(f"'{name}' comes from nowhere")
        return self.tensors[name]

    def _visit(self, node: onnx.NodeProto) -> None:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise _Different(f"{node.op_type} carries a sub-graph")
        inputs = [self._of(name) for name in node.input]
        while inputs and inputs[-1] is ABSENT:
            inputs.pop()
        if node.domain in STANDARD and node.op_type == "Constant":
            self.tensors[node.output[0]] = self._fixed(_value_of(node))
        elif node.op_type in COPIES or (node.domain in STANDARD and self._is_copy(node)):
            self.tensors[node.output[0]] = inputs[0]
        elif node.domain in (BLOCKED, FUSED):
            undo = UNDONE.get((node.domain, node.op_type))
            if undo is None:
                raise _Different(f"{node.domain}.{node.op_type} is not on the list")
            self.tensors[node.output[0]] = undo(self, node, inputs)
        else:
            self._standard(node, inputs)

    def _standard(self, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> None:
        domain = "" if node.domain in STANDARD else node.domain
        attributes = comparable_attributes(node, self.opsets)
        flows = [tensor for tensor in inputs if tensor.value is None and tensor is not ABSENT]
        blocked = [tensor for tensor in flows if tensor.blocked]
        if blocked and not (node.op_type == "Relu" and not domain):
            raise _Different(f"{node.op_type} reads channels in blocks")
        if not flows and not domain and node.op_type in MOVES:
            moved = MOVES[node.op_type](node, [tensor.value for tensor in inputs])
            if moved is not None:
                self.tensors[node.output[0]] = _constant(moved)
                return
        expression = self.expression(domain, node.op_type, attributes, inputs)
        for index, name in enumerate(node.output):
            if name:
                key = (*expression.key, index)
                self.tensors[name] = _Tensor(_short(key), bool(blocked), blocked[0].channels if blocked else None)

    def expression(self, domain: str, op: str, attributes: Mapping[str, bytes], inputs: Sequence[_Tensor]) -> _Tensor:
        """The node's first output, before its index is added; constant matrices of a Gemm are compared untransposed."""
        given = dict(attributes)
        if (domain, op) == ("", "Gemm") and len(inputs) > 1 and inputs[1].value is not None:
            inputs = [inputs[0], _plain_matrix(given, inputs[1].value), *inputs[2:]]
        if (domain, op) == ("", "Conv") and len(inputs) > 1 and inputs[1].value is not None:
            self.convolution_weights[inputs[1].key] = inputs[1].value
        return _Tensor((domain, op, tuple(sorted(given.items())), tuple(tensor.key for tensor in inputs)))

    def first_output(
        self, op: str, attributes: Mapping[str, bytes], inputs: Sequence[_Tensor], **layout: Any
    ) -> _Tensor:
        """The only output of a standard operator."""
        return _Tensor(_short((*self.expression("", op, attributes, inputs).key, 0)), **layout)

    def attributes(self, node: onnx.NodeProto, op: str, *, without: Sequence[str]) -> dict[str, bytes]:
        """The attributes that the standard operator ``op`` would have in the place of this node."""
        plain = helper.make_node(op, [], [])
        plain.attribute.extend(a for a in node.attribute if a.name not in without)
        return comparable_attributes(plain, self.opsets)

    def with_activation(self, node: onnx.NodeProto, result: _Tensor) -> _Tensor:
        """``result`` after the activation that the node applies itself: none, or Relu."""
        name = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
        if name == "":
            return result
        if name != "Relu":
            raise _Different(f"{node.op_type} applies {name}")
        return self.first_output("Relu", {}, [result], blocked=result.blocked, channels=result.channels)


ACTIVATION = ("activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma")


def _fused_conv(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    if len(inputs) > 3:
        raise _Different("FusedConv adds another tensor")
    if any(tensor.blocked for tensor in inputs):
        raise _Different("FusedConv reads channels in blocks")
    attributes = graph.attributes(node, "Conv", without=ACTIVATION)
    return graph.with_activation(node, graph.first_output("Conv", attributes, inputs))


def _fused_gemm(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    if any(tensor.blocked for tensor in inputs):
        raise _Different("FusedGemm reads channels in blocks")
    attributes = graph.attributes(node, "Gemm", without=ACTIVATION)
    return graph.with_activation(node, graph.first_output("Gemm", attributes, inputs))


def _reorder_input(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    _check_channels_first(node)
    if inputs[0].blocked:
        raise _Different("a tensor is put into blocks twice")
    return replace(inputs[0], blocked=True)


def _reorder_output(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    _check_channels_first(node)
    channels = next((a.i for a in node.attribute if a.name == "channels"), None)
    if not inputs[0].blocked or channels != inputs[0].channels:
        raise _Different(f"{channels} channels are taken out of {inputs[0].channels}")
    return replace(inputs[0], blocked=False, channels=None)


def _check_channels_first(node: onnx.NodeProto) -> None:
    if any(a.name == "channels_last" and a.i for a in node.attribute):
        raise _Different("the channels come last")


def _blocked_conv(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    x, weight, *rest = inputs
    if weight.value is None or len(rest) > 1:
        raise _Different("a convolution in blocks adds another tensor, or has a weight that is no constant")
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    for key, stored in graph.known_weights.items():
        fits = x.channels in (None, stored.shape[1] * group)
        if fits and any(_is_reordered(weight.value, stored, group, x.blocked, block) for block in BLOCK_SIZES):
            bias = [_Tensor(_shortened(rest[0], len(stored)).key)] if rest else []
            attributes = graph.attributes(node, "Conv", without=ACTIVATION)
            given = [replace(x, blocked=False), _Tensor(key), *bias]
            result = graph.first_output("Conv", attributes, given, blocked=True, channels=len(stored))
            return graph.with_activation(node, result)
    raise _Different("a convolution has a weight that is not a reordered verified one")


def _is_reordered(found: Array, stored: Array, group: int, blocked_input: bool, block: int) -> bool:
    """Whether ``found`` holds ``stored`` (out, in, taps...) as the kernel reads it, zeros where a block is not full.

    The kernel takes an input of fewer channels than a block as it is, and one channel a group one by one: then only the
    output channels are in blocks. Otherwise the input channels are, too.
    """
    outputs, depth = stored.shape[:2]
    single = depth == 1 and group == outputs > 1
    if blocked_input != (group > 1 or depth >= block) or found.dtype != stored.dtype:
        return False
    if group > 1 and (outputs % block or not (single or (depth % block == 0 and outputs // group % block == 0))):
        return False
    both = blocked_input and not single
    sizes = (_filled(outputs, block), _filled(depth, block) if both else depth)
    if found.shape != (*sizes, *stored.shape[2:]):
        return False
    padded: Array = np.zeros(found.shape, stored.dtype)
    padded[:outputs, :depth] = stored
    outer: Array = padded.reshape(-1, block, *padded.shape[1:])  # O/b, bo, I, taps
    if both:
        inner: Array = outer.reshape(len(outer), block, -1, block, *padded.shape[2:])  # O/b, bo, I/b, bi, taps
        outer = np.moveaxis(inner, 3, -1)  # O/b, bo, I/b, taps, bi
    return np.moveaxis(outer, 1, -1).tobytes() == found.tobytes()


def _filled(channels: int, block: int) -> int:
    return -(-channels // block) * block


def _shortened(bias: _Tensor, size: int) -> _Tensor:
    """A constant bias without the zeros that fill its last block."""
    if bias.value is None or bias.value.ndim != 1 or len(bias.value) < size:
        raise _Different("a convolution in blocks has a bias that is no constant")
    if bias.value[size:].tobytes().strip(b"\0"):
        raise _Different("a bias is padded with something else than zeros")
    return _constant(bias.value[:size])


def _blocked_max_pool(graph: _Reader, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> _Tensor:
    if not inputs[0].blocked or len([name for name in node.output if name]) > 1:
        raise _Different("a maximum pool in blocks that is not one")
    attributes = graph.attributes(node, "MaxPool", without=())
    plain = [replace(inputs[0], blocked=False)]
    return graph.first_output("MaxPool", attributes, plain, blocked=True, channels=inputs[0].channels)


UNDONE: dict[tuple[str, str], Callable[[_Reader, onnx.NodeProto, Sequence[_Tensor]], _Tensor]] = {
    (FUSED, "FusedConv"): _fused_conv,
    (FUSED, "FusedGemm"): _fused_gemm,
    (BLOCKED, "ReorderInput"): _reorder_input,
    (BLOCKED, "ReorderOutput"): _reorder_output,
    (BLOCKED, "Conv"): _blocked_conv,
    (BLOCKED, "MaxPool"): _blocked_max_pool,
}


# Constants.


def _constant(value: Array) -> _Tensor:
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
    return _Tensor(("constant", value.dtype.str, value.dtype.name, value.shape, digest), value=value)


def _between_floats(node: onnx.NodeProto) -> bool:
    return any(a.name == "to" and a.i in (TensorProto.FLOAT, TensorProto.FLOAT16) for a in node.attribute)


def _value_of(node: onnx.NodeProto) -> Array:
    return numpy_helper.to_array(constant_tensor(node))


def _short(key: Key) -> Key:
    """A key of bounded size, so that comparing deep graphs does not grow with their paths."""
    return ("node", key[0], key[1], hashlib.sha256(repr(key).encode()).digest())


def _plain_matrix(attributes: dict[str, bytes], matrix: Array) -> _Tensor:
    """A constant right factor of a Gemm without its transposition."""
    turned = AttributeProto.FromString(attributes.pop("transB")).i if "transB" in attributes else 0
    return _constant(np.ascontiguousarray(matrix.T) if turned else matrix)


def _transposed(node: onnx.NodeProto, values: Sequence[Array | None]) -> Array | None:
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    return None if values[0] is None else np.transpose(values[0], perm)


def _reshaped(node: onnx.NodeProto, values: Sequence[Array | None]) -> Array | None:
    value, shape = values[0], values[1] if len(values) > 1 else None
    if value is None or shape is None or np.any(shape == 0):
        return None
    return value.reshape([int(n) for n in shape.reshape(-1)])


def _unsqueezed(node: onnx.NodeProto, values: Sequence[Array | None]) -> Array | None:
    value, axes = values[0], values[1] if len(values) > 1 else None
    if value is None or axes is None:
        return None
    return np.expand_dims(value, tuple(int(axis) for axis in axes.reshape(-1)))


#: Operators on constants that this reader evaluates itself, to the bit as ONNX Runtime does.
MOVES: dict[str, Callable[[onnx.NodeProto, Sequence[Array | None]], Array | None]] = {
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Unsqueeze": _unsqueezed,
    "Cast": lambda node, values: cast(node, list(values)),
    "DequantizeLinear": lambda node, values: dequantise(node, list(values)),
}
