"""Untrusted help for a proof: what a certificate stored, what the next one may store, how much work is left.

Nothing here is believed. A hint names the embedding and the shift to try; a wrong one costs time, or gives a weaker
bound, and never a false one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Multiply-adds of all the plain proofs of one graph, together: about half an hour.
MOST_WORK = 1e13
#: Multiply-adds that one verification may spend on being tighter than it has to be: a fraction of a second …
EXTRA_WORK = 1e10
#: … and this part of what the plain proofs before have cost.
EXTRA_SHARE = 0.5
#: Entries that motifs may read back through nodes: seconds …
LOOKS = 2e8
#: … and this many for every multiply-add of the plain proofs before.
LOOKS_SHARE = 0.02
MOST_AXES = 8


@dataclass
class Effort:
    """Work (multiply-adds) left for proofs that are tighter, and dearer, than the plain ones."""

    left: float = EXTRA_WORK
    owed: float = MOST_WORK  # for the plain ones, all together
    looks: float = LOOKS
    kept: Any = None  # what the motif before may spare the next one

    def take(self, work: float) -> bool:
        """Spend ``work`` if that much is left."""
        if work > self.left + EXTRA_SHARE * (MOST_WORK - self.owed):
            return False
        self.left -= work
        return True

    def look(self, entries: float) -> bool:
        """Read ``entries`` back on the way to a motif, if that much is left."""
        if entries > self.looks + LOOKS_SHARE * (MOST_WORK - self.owed):
            return False
        self.looks -= entries
        return True

    def pay(self, work: float) -> bool:
        """Spend ``work`` on a proof that has to be made, if the verification may still take that long."""
        self.owed -= work
        return self.owed >= 0.0


def nobody(fraction: float) -> None:
    """Nobody watches."""


@dataclass
class Guide:
    """The help for one node: ``hint`` to read, ``found`` to fill, ``watch`` told the done fraction of the node."""

    hint: Mapping[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)
    watch: Callable[[float], None] = nobody

    def shift(self, name: str) -> float | None:
        """A positive number that the hint gives in hexadecimal; ``None`` when there is none, or rubbish."""
        try:
            value = float.fromhex(self.hint[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return value if 0.0 < value < math.inf else None

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """A short list of integers that the hint gives; ``None`` when there is none, or rubbish."""
        stored = self.hint.get(name)
        if not isinstance(stored, (list, tuple)) or not 1 <= len(stored) <= MOST_AXES:
            return None
        if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**31 for n in stored):
            return None
        return tuple(stored)
