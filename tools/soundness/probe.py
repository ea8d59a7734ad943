"""What a probe is: a small graph, its exact Lipschitz constant, and why that is the constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

Array = np.ndarray[Any, np.dtype[Any]]
Points = tuple[Sequence[Any], Sequence[Any]]

#: The graph is linear (or affine): its exact constant is the operator norm of the matrix that a runtime computes.
LINEAR = "linear"
#: No finite constant holds, or the file must not be believed: the only sound answer is a refusal.
REFUSE = None


@dataclass(frozen=True)
class Probe:
    """One network.

    ``truth`` is the least L with ‖f(x) − f(y)‖_q ≤ L·‖x − y‖_p in ``norm`` (``REFUSE``: there is none).
    ``shown`` proves that nothing less is true: ``LINEAR``, two points that attain it, or "" where ``why`` must do.
    ``module`` builds the same network in torch, for tools that do not read ONNX files.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    truth: float | None
    why: str
    shown: str | Points = ""
    norm: str = "l2"
    module: Callable[[], Any] | None = field(default=None, compare=False)


def graph(
    text: str,
    *,
    opset: int = 20,
    imports: Mapping[str, int] | None = None,
    weights: Mapping[str, Array] | None = None,
    functions: str = "",
) -> Callable[[], onnx.ModelProto]:
    """A builder from ONNX text: ``(inputs) => (outputs) <constants> { nodes }``; ``weights`` are further constants."""

    def build() -> onnx.ModelProto:
        versions = {"": opset, **(imports or {})}
        header = ", ".join(f'"{domain}": {version}' for domain, version in versions.items())
        model = parser.parse_model(f"<ir_version: 10, opset_import: [{header}]>\ng {text}\n{functions}")
        for name, value in (weights or {}).items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        return model

    return build


def linear(name: str, text: str, truth: float, why: str, **options: Any) -> Probe:
    """A probe whose graph is affine."""
    norm, module = options.pop("norm", "l2"), options.pop("module", None)
    return Probe(name, graph(text, **options), truth, why, LINEAR, norm, module)


def shown(name: str, text: str, truth: float, why: str, points: Points | str, **options: Any) -> Probe:
    """A probe with two points whose images are ``truth`` times as far apart as they are."""
    norm, module = options.pop("norm", "l2"), options.pop("module", None)
    return Probe(name, graph(text, **options), truth, why, points, norm, module)


def refused(name: str, text: str, why: str, **options: Any) -> Probe:
    """A probe about which nothing finite, or nothing at all, is true."""
    norm, module = options.pop("norm", "l2"), options.pop("module", None)
    return Probe(name, graph(text, **options), REFUSE, why, "", norm, module)
