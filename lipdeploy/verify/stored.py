"""The certificate that lies beside a model, read once: claims that may help the proof, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.errors import IntegrityError
from lipdeploy.verify import certificate
from lipdeploy.verify.certificate import Document

#: By the tensor that a part of the graph ends in: one vector for each of its activations.
Multipliers = Mapping[str, list[np.ndarray[Any, np.dtype[np.float64]]]]


@dataclass(frozen=True)
class Stored:
    """What lies where a certificate belongs: its content, or why it cannot be read."""

    path: Path
    content: Document = field(default_factory=dict)
    problem: IntegrityError | None = None

    @classmethod
    def read(cls, path: Path) -> Stored:
        """Read the certificate at ``path``; never raises on account of what is found there."""
        try:
            return cls(path, certificate.read(path))
        except IntegrityError as problem:
            return cls(path, problem=problem)

    @cached_property
    def multipliers(self) -> Multipliers | None:
        """The multipliers that are stored for parts of the graph; ``None``: none, or nothing readable."""
        rows = {node["name"]: node["hints"] for node in self._nodes if "multipliers" in node["hints"]}
        try:
            return {
                name: [np.array([float.fromhex(value) for value in layer], np.float64) for layer in row["multipliers"]]
                for name, row in rows.items()
            } or None
        except (TypeError, ValueError, OverflowError):
            return None

    @cached_property
    def node_hints(self) -> Mapping[str, Any]:
        """What is stored to make each node's proof faster, by node name."""
        return {node["name"]: node["hints"] for node in self._nodes}

    @property
    def _nodes(self) -> list[Document]:
        nodes: list[Document] = self.content.get("nodes", [])
        return nodes
