"""What a verification ends with: the verdict, and the constants that serving needs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipdeploy.errors import IntegrityError, LimitExceeded, Refusal, Refused
from lipdeploy.verify.bound import Bound, Estimate
from lipdeploy.verify.rounding import shortest_up

REPORT_SCHEMA = "lipdeploy/verify-report/v1"
USE_VALUES = "use session.run for the values and session.output_band(epsilon) for how far they can move"

NODES_NAMED = 3  # in the error of a bound above its limit


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a graph input or output; ``None`` is the batch axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ErrorBound:
    """Forward error of a float program: every output differs from the real one by ≤ ``c0 + c1·‖x‖``.

    ``‖x‖`` is in the input norm of the statement; valid for ``‖x‖ ≤ x_max`` (no overflow on the way).
    """

    c0: float
    c1: float
    x_max: float


@dataclass(frozen=True)
class NodeReport:
    """One row of the proof: the node's own gain and the bound from the graph's input to its output.

    ``hints`` are what the certificate stores so that proving it again needs no search; nobody believes them.
    ``unspecified`` names the programs whose error is known before this node and not after it.
    """

    name: str
    op: str
    gain: Bound
    bound_after: Bound
    rule: str
    shape: tuple[int | None, ...]
    hints: Mapping[str, Any] = field(default_factory=dict)
    unspecified: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The result of ``lipdeploy.verify``.

    ``status`` is ``"verified"``, ``"exceeded"``, ``"refused"`` or ``"integrity"``. ``pairwise`` is the matrix of
    proven Lipschitz constants of ``y_i − y_j`` (float64, classes × classes), or ``None`` where the output is not a
    row of class scores. ``one_sided_by`` names the operator that keeps the output on one side of 0, if one was found
    (`lipdeploy.verify.one_sided`). ``sizes`` are those of a sample of every tensor that depends on the input, as the
    proof means them; open ones are left out. ``numeric_error`` maps ``"f32"`` and ``"f64"`` to the program's forward
    error, or to ``None`` where an operator's rounding is unknown.
    """

    path: str
    status: str
    norm: str
    lipschitz_bound: Bound | None
    max_lipschitz: float | None = None
    nodes: tuple[NodeReport, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    assumptions: tuple[str, ...] = ()
    pairwise: np.ndarray[Any, np.dtype[np.float64]] | None = None
    numeric_error: Mapping[str, ErrorBound | None] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    output: TensorSpec | None = None
    one_sided_by: str = ""
    class_names: tuple[str, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    file_sha256: str = ""
    semantic_sha256: str = ""
    external_sha256: Mapping[str, str] = field(default_factory=dict)
    lower_estimate: Estimate | None = None
    elapsed_seconds: float = 0.0

    def __repr__(self) -> str:
        bound = "None" if self.lipschitz_bound is None else f"{self.lipschitz_bound}"
        refused = f", refusals={[refusal.code for refusal in self.refusals]}" if self.refusals else ""
        return f"Verdict({self.path!r}, {self.status!r}, norm={self.norm!r}, lipschitz_bound={bound}{refused})"

    @property
    def class_bounds(self) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """``pairwise``; for one score that can change sign its own constant, (1, 1); ``None``: there are no classes."""
        bound = self.lipschitz_bound
        if self.pairwise is not None or bound is None or self.one_sided_by or not self.output_is_one_number:
            return self.pairwise
        return np.array([[bound.value]])

    @property
    def output_is_one_number(self) -> bool:
        """Whether the output has the shape (batch, 1)."""
        return self.output is not None and len(self.output.shape) == 2 and self.output.shape[1] == 1

    def loosest_first(self) -> list[NodeReport]:
        """``nodes`` by their own gain, the largest first; equal gains in the graph's order."""
        return sorted(self.nodes, key=lambda node: -node.gain.value)

    def no_classes(self) -> Refusal:
        """Why labels and radii are refused, where ``class_bounds`` is ``None``."""
        name = self.output.name if self.output else ""
        if self.output_is_one_number and self.one_sided_by:
            why = f"the output comes from {self.one_sided_by} and never changes sign, so it tells no classes apart"
            hint = "export the score before it (of a probability 1/2 it is 0)"
            return Refusal("LIP019", name, "", why, f"{hint}, or {USE_VALUES}")
        shape = ", ".join("batch" if size is None else str(size) for size in self.output.shape) if self.output else ""
        return Refusal("LIP019", name, "", f"the output has shape ({shape})", USE_VALUES)

    def raise_for_status(self) -> None:
        """Raise the error that belongs to any status but ``"verified"``."""
        if self.status == "refused":
            raise Refused(self.refusals)
        if self.status == "integrity":
            refusal = self.refusals[0]
            raise IntegrityError(refusal.message, code=refusal.code, hint=refusal.hint)
        if self.status == "exceeded":
            limit = "its limit" if self.max_lipschitz is None else shortest_up(self.max_lipschitz)
            raise LimitExceeded(
                f"{self.path}: the proven Lipschitz bound {self.lipschitz_bound} exceeds {limit}{self._expanding()}",
                hint="raise --max-lipschitz, or export with --normalize; "
                "to see every node, export without the limit, then lipdeploy inspect",
                verdict=self,
            )

    def _expanding(self) -> str:
        """The loosest nodes that expand, for an error's one line; empty where none does."""
        nodes = [node for node in self.loosest_first()[:NODES_NAMED] if node.gain.value > 1.0]
        named = ", ".join(f"'{node.name}' ({node.op}) {node.gain}" for node in nodes)
        return f"; largest gains: {named}" if nodes else ""

    def write_certificate(self, path: str | os.PathLike[str]) -> None:
        """Write this verdict's certificate (schema lipdeploy/certificate/v1); temporary file, then rename."""
        from lipdeploy.verify import certificate, version

        certificate.write(self, path, version())

    def to_json(self) -> dict[str, Any]:
        """One entry of ``models`` in a ``lipdeploy/verify-report/v1`` document."""
        bound = self.lipschitz_bound
        return {
            "path": self.path,
            "status": self.status,
            "norm": self.norm,
            "lipschitz_bound": None if bound is None else bound.value,
            "lipschitz_bound_hex": None if bound is None else bound.hex(),
            "max_lipschitz": None if self.max_lipschitz is None else float(shortest_up(self.max_lipschitz)),
            "lower_estimate": None if self.lower_estimate is None else self.lower_estimate.value,
            "pairwise": self.pairwise is not None,
            "nodes": [_node_json(node) for node in self.nodes],
            "refusals": [refusal.to_json() for refusal in self.refusals],
            "assumptions": list(self.assumptions),
            "elapsed_seconds": self.elapsed_seconds,
        }


def _node_json(node: NodeReport) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "gain": _finite(node.gain),
        "bound_after": _finite(node.bound_after),
        "rule": node.rule,
    }


def _finite(bound: Bound) -> float | None:
    return bound.value if math.isfinite(bound.value) else None
