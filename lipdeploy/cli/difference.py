"""Two statements side by side. Both are put into a certificate's terms, so that models and certificates compare."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.cli import ratchet
from lipdeploy.errors import IntegrityError

if TYPE_CHECKING:
    from lipdeploy.verify import Hints, Verdict

SCHEMA = "lipdeploy/diff/v1"
MODEL, CERTIFICATE = "model", "certificate"


@dataclass(frozen=True)
class Asked:
    """In which norm, and about which output, models are to be proven; ``None`` where nobody said."""

    norm: str | None = None
    output: str | None = None

    def completed_by(self, path: str) -> Asked:
        """What a certificate says where nobody else did."""
        if not is_certificate(path):
            return self
        statement = ratchet.load(Path(path))["statement"]
        norm, output = (str(statement[key]) for key in ("norm", "output"))
        return replace(self, norm=self.norm or norm, output=self.output or output)


@dataclass(frozen=True)
class Node:
    """One row of a proof."""

    name: str
    op: str
    gain: float | None
    rule: str

    @property
    def kind(self) -> tuple[str, str]:
        """What a rename keeps."""
        return self.op, self.rule


@dataclass(frozen=True)
class Side:
    """A statement: proven now (a model, with the head-room of certificates) or read (a certificate)."""

    path: str
    kind: str
    semantic_sha256: str
    norm: str
    output: str
    lipschitz_bound: float
    pairwise: float | None
    numeric_error: Mapping[str, tuple[float, float] | None]
    operators: Mapping[str, int]
    nodes: tuple[Node, ...]

    def to_json(self) -> dict[str, object]:
        """One side of a ``lipdeploy/diff/v1`` document, without the nodes."""
        content = {key: value for key, value in vars(self).items() if key != "nodes"}
        errors = {mode: error and {"c0": error[0], "c1": error[1]} for mode, error in self.numeric_error.items()}
        return {**content, "lipschitz_bound_hex": self.lipschitz_bound.hex(), "numeric_error": errors}


@dataclass(frozen=True)
class Difference:
    """What changed from ``old`` to ``new``."""

    old: Side
    new: Side
    added: tuple[Node, ...]
    removed: tuple[Node, ...]
    renamed: tuple[tuple[str, str], ...]
    gains: tuple[tuple[str, float | None, float | None], ...]

    @property
    def same_meaning(self) -> bool:
        """Whether both are about models that mean the same."""
        return self.old.semantic_sha256 == self.new.semantic_sha256

    @property
    def obstacle(self) -> str:
        """Why the bounds cannot be compared; empty where they can."""
        pairs = (("norm", self.old.norm, self.new.norm), ("output", self.old.output, self.new.output))
        return ", ".join(f"{what} '{then}' and '{now}'" for what, then, now in pairs if then != now)

    @property
    def comparable(self) -> bool:
        """Whether both state something about the same norm and output."""
        return not self.obstacle

    @property
    def is_worse(self) -> bool:
        """Whether the new bound is above the old one by more than proofs differ between machines."""
        from lipdeploy.verify.certificate import stated

        return self.comparable and self.new.lipschitz_bound > stated(self.old.lipschitz_bound)

    @property
    def conclusion(self) -> str:
        """The answer in one line."""
        meaning = "Both mean the same" if self.same_meaning else "The models do not mean the same"
        if not self.comparable:
            return f"{meaning}; their bounds cannot be compared."
        return f"{meaning}; the new bound is {'worse' if self.is_worse else 'not worse'}."

    def to_json(self) -> dict[str, object]:
        """The document ``lipdeploy/diff/v1``."""
        return {
            "schema": SCHEMA,
            "old": self.old.to_json(),
            "new": self.new.to_json(),
            "same_meaning": self.same_meaning,
            "comparable": self.comparable,
            "worse": self.is_worse if self.comparable else None,
            "nodes": {
                "added": [asdict(node) for node in self.added],
                "removed": [asdict(node) for node in self.removed],
                "renamed": [{"old": then, "new": now} for then, now in self.renamed],
                "gains": [{"name": name, "old": then, "new": now} for name, then, now in self.gains],
            },
        }


def is_certificate(path: str) -> bool:
    """A certificate is told from a model by its name."""
    return path.endswith(".json")


def side(path: str, asked: Asked, beside: str = "") -> Side:
    """The statement that ``path`` makes, when it is compared with ``beside``.

    A certificate beside a model must hold, as everywhere, unless it is the very one to compare the model with.
    Raises ``InputError`` when ``path`` cannot be read, ``Refused`` when a model cannot be proven, ``IntegrityError``
    when a certificate is malformed or contradicts its model.
    """
    if is_certificate(path):
        try:
            return _side(path, CERTIFICATE, ratchet.load(Path(path)))
        except ratchet.MALFORMED as problem:
            raise IntegrityError(f"{path}: malformed statement: {problem}", hint="write it again") from problem
    from lipdeploy.verify import version
    from lipdeploy.verify.certificate import document

    return _side(path, MODEL, document(_proven(path, asked, beside), version()))


def _proven(path: str, asked: Asked, beside: str) -> Verdict:
    """What is proven about a model, with the multipliers in its certificate or the other side's: the least of both."""
    from lipdeploy.verify.certificate import certificate_path
    from lipdeploy.verify.stored import Stored

    compared = Stored.read(Path(beside)).multipliers if is_certificate(beside) else None
    if beside and os.path.realpath(beside) == os.path.realpath(certificate_path(path)):
        return _verified(path, asked, check_certificate=False, hints=compared)
    own = _verified(path, asked, check_certificate=True)
    if compared is None:
        return own
    other = _verified(path, asked, check_certificate=False, hints=compared)
    return min(own, other, key=lambda verdict: verdict.lipschitz_bound or 0.0)


def _verified(path: str, asked: Asked, *, check_certificate: bool, hints: Hints | None = None) -> Verdict:
    from lipdeploy.verify import verify

    output = None if asked.output is None or _has_one_output(path) else asked.output
    verdict = verify(
        path,
        norm=asked.norm or "l2",
        output_name=output,
        check_certificate=check_certificate,
        method="best",
        hints=hints,
    )
    verdict.raise_for_status()
    return verdict


def _has_one_output(path: str) -> bool:
    """Whether the name of the output is no choice: under another name, it is a difference to report."""
    from lipdeploy.verify.source import read_as_far

    return len(read_as_far(path)[0].proto.graph.output) == 1


def _side(path: str, kind: str, content: Mapping[str, Any]) -> Side:
    from lipdeploy.verify.rounding import fraction_up

    statement = content["statement"]
    pairs = statement["pairwise"]
    return Side(
        path=path,
        kind=kind,
        semantic_sha256=str(content["model"]["semantic_sha256"]),
        norm=str(statement["norm"]),
        output=str(statement["output"]),
        lipschitz_bound=fraction_up(ratchet.stated_bound(dict(content))),
        pairwise=None if pairs is None else max(_number(value) for row in pairs for value in row),
        numeric_error={str(mode): _error(error) for mode, error in statement["numeric_error"].items()},
        operators={str(name): int(number) for name, number in content["ops"].items()},
        nodes=tuple(_node(node) for node in content["nodes"]),
    )


def _error(error: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if error is None else (_number(error["c0"]), _number(error["c1"]))


def _node(node: Mapping[str, Any]) -> Node:
    gain = None if node["gain"] is None else _number(node["gain"])
    return Node(str(node["name"]), str(node["op"]), gain, str(node["rule"]))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def of(old: Side, new: Side) -> Difference:
    """What changed from ``old`` to ``new``, node by node."""
    kept, removed, added = _aligned(old.nodes, new.nodes)
    renamed, removed, added = _renamed(removed, added)
    gains = tuple((now.name, then.gain, now.gain) for then, now in [*kept, *renamed] if not _close(then, now))
    names = tuple((then.name, now.name) for then, now in renamed)
    return Difference(old, new, tuple(added), tuple(removed), names, gains)


def _aligned(old: Sequence[Node], new: Sequence[Node]) -> tuple[list[tuple[Node, Node]], list[Node], list[Node]]:
    """Nodes of the same name and operator, in order; what only one side has."""
    matcher = SequenceMatcher(None, [(n.name, n.op) for n in old], [(n.name, n.op) for n in new], autojunk=False)
    kept: list[tuple[Node, Node]] = []
    removed: list[Node] = []
    added: list[Node] = []
    for tag, first, last, start, stop in matcher.get_opcodes():
        if tag == "equal":
            kept += zip(old[first:last], new[start:stop], strict=True)
        else:
            removed += old[first:last]
            added += new[start:stop]
    return kept, removed, added


def _renamed(removed: Sequence[Node], added: Sequence[Node]) -> tuple[list[tuple[Node, Node]], list[Node], list[Node]]:
    """Of what is gone and what is new: pairs in order with the same operator, rule and gain under another name."""
    pairs, gone, fresh = [], [], list(added)
    for then in removed:
        match = next((now for now in fresh if now.kind == then.kind and _close(then, now)), None)
        if match is None:
            gone.append(then)
        else:
            pairs.append((then, match))
            fresh.remove(match)
    return pairs, gone, fresh


def _close(then: Node, now: Node) -> bool:
    """Equal gains, up to the head-room of certificates."""
    if then.gain is None or now.gain is None:
        return then.gain is now.gain
    return math.isclose(then.gain, now.gain, rel_tol=2e-9)
