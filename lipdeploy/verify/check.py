"""Proves a bound for one graph: inlines its functions, walks it, and checks the bodies of our operators."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.functions import check_bodies, inlined
from lipdeploy.verify.graph import opset_versions
from lipdeploy.verify.progress import NodeHints, Progress, Watch
from lipdeploy.verify.walk import Proof, Walk

IR_VERSIONS = range(7, 14)


def prove(
    proto: ModelProto,
    norm: str,
    output_name: str | None = None,
    *,
    hints: NodeHints | None = None,
    watch: Watch | None = None,
) -> Proof:
    """Prove a bound for ``proto`` (external data inlined). Raises ``Refused`` with every reason found.

    ``hints`` are what a certificate stores per node: tried first, never believed. ``watch`` hears of the progress.
    """
    return walked(proto, norm, output_name, hints=hints, watch=watch).proof()


def walked(
    proto: ModelProto,
    norm: str,
    output_name: str | None = None,
    *,
    hints: NodeHints | None = None,
    watch: Watch | None = None,
) -> Walk:
    """The walk behind ``prove``, whose bounds multipliers may still tighten. Raises ``Refused``."""
    if proto.ir_version not in IR_VERSIONS:
        message = f"IR version {proto.ir_version} is outside {IR_VERSIONS.start} to {IR_VERSIONS.stop - 1}"
        raise Refused([Refusal("LIP020", "", "", message)])
    flat = inlined(proto)
    with np.errstate(all="ignore"):
        walk = Walk(flat.graph, opset_versions(flat), norm, Progress(hints or {}, watch))
        walk.run(_chosen_output(flat.graph, output_name))
        walk.proven()
    check_bodies(flat, walk.judge.element_types or {TensorProto.FLOAT})
    return walk


def _chosen_output(graph: GraphProto, name: str | None) -> str:
    names = [str(output.name) for output in graph.output]
    if name is None:
        if len(names) > 1:
            raise Refused([Refusal("LIP016", "", "", f"the graph has {len(names)} outputs: {', '.join(names)}")])
        return names[0]
    if name not in names:
        raise Refused([Refusal("LIP016", name, "", f"the graph has no such output; it has {', '.join(names)}")])
    return name
