"""Weights that ``forward`` computes from parameters alone, made constants before torch's exporter translates them.

ONNX has no operator for a solve, an inverse, a matrix exponential or a spectral norm, and needs none where every number
that enters is stored. They are computed here once, in the module's own precision, as its evaluation mode would.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def folded(module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """``module`` as a program in which everything that no input reaches is a stored constant."""
    # Layers that emit an ONNX operator ask torch whether it exports, which it affirms only within torch.onnx.export.
    with mock.patch.object(torch.onnx, "is_in_onnx_export", lambda: True):
        captured = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes, strict=False)
        # Without its table this leaves all but operations in place, which become functions of their arguments.
        program: torch.export.ExportedProgram = captured.run_decompositions({})
    known = _known(program)
    for node in [node for node in known if node.op != "placeholder"]:
        if isinstance(known[node], Tensor) and not known.keys() >= node.users.keys():
            _store(program, node, known[node])
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _known(program: torch.export.ExportedProgram) -> dict[fx.Node, Any]:
    """The value of every node that depends on stored numbers only."""
    stored = {**program.constants, **program.state_dict}
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind in STORED}
    known: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            known[node] = stored[targets[node.name]].detach()
        elif _is_computed(node) and all(source in known for source in node.all_input_nodes):
            known[node] = node.target(
                *fx.node.map_arg(node.args, known.__getitem__), **fx.node.map_arg(node.kwargs, known.__getitem__)
            )
    return known


def _is_computed(node: fx.Node) -> bool:
    """Whether torch's own arithmetic makes this node's value, the same at every call."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return node.target.namespace == "aten" and torch.Tag.nondeterministic_seeded not in node.target.tags


def _store(program: torch.export.ExportedProgram, node: fx.Node, value: Tensor) -> None:
    """Let ``value`` enter the program as a constant under the node's name, before the user's inputs."""
    specs, name = program.graph_signature.input_specs, node.name
    position = next(k for k, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT)
    first = next(other for other in program.graph.nodes if other.name == specs[position].arg.name)
    target = f"folded_{name}"
    with program.graph.inserting_before(first):
        constant = program.graph.placeholder(target)
    constant.meta = {"val": node.meta["val"]}
    node.replace_all_uses_with(constant)
    program.graph.erase_node(node)
    constant.name = constant.target = name
    specs.insert(position, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name), target))
    program.constants[target] = value
