"""How a verdict reads: bounds rounded up, estimates rounded down, refusals by name, assumptions listed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lipdeploy.cli.report import Block, Table

if TYPE_CHECKING:
    from lipdeploy.verify import Verdict

EXIT_CODES = {"verified": 0, "exceeded": 1, "refused": 3, "integrity": 4}
UNKNOWN = "-"


def exit_code(verdict: Verdict) -> int:
    """The contract's exit code for a verdict's status."""
    return EXIT_CODES[verdict.status]


def summary(verdicts: Sequence[Verdict]) -> Table:
    """One row per model."""
    columns = ["model", "status", "norm", "bound ≤", "limit"]
    estimated = any(verdict.lower_estimate is not None for verdict in verdicts)
    return Table(
        (*columns, "estimate ≥") if estimated else tuple(columns),
        tuple((*_row(verdict), _estimate(verdict)) if estimated else _row(verdict) for verdict in verdicts),
    )


def _row(verdict: Verdict) -> tuple[str, ...]:
    bound = UNKNOWN if verdict.lipschitz_bound is None else f"{verdict.lipschitz_bound}"
    limit = "none" if verdict.max_lipschitz is None else limit_text(verdict.max_lipschitz)
    return verdict.path, verdict.status, verdict.norm, bound, limit


def limit_text(limit: float) -> str:
    """A limit as it was written, or a decimal just above it: what was written was rounded down."""
    from lipdeploy.verify.rounding import shortest_up

    return shortest_up(limit)


def _estimate(verdict: Verdict) -> str:
    return UNKNOWN if verdict.lower_estimate is None else f"{verdict.lower_estimate}"


def reasons(verdict: Verdict) -> list[Block]:
    """Why a model was refused or does not match, one line each, and where to read more."""
    lines: list[Block] = [f"{verdict.path}: {refusal} (try: {refusal.hint})" for refusal in verdict.refusals]
    codes = dict.fromkeys(refusal.code for refusal in verdict.refusals)
    return [*lines, f"See: {', '.join(f'lipdeploy explain {code}' for code in codes)}."] if lines else []


def advice(verdict: Verdict) -> list[Block]:
    """What the end of a network does to its radii, in one line; nothing where it does nothing."""
    end, output = verdict.one_sided_by, verdict.output
    if output is None or not end:
        return []
    if verdict.pairwise is not None and end in ("Softmax", "Sigmoid"):
        return [f"{output.name} comes from {end}: radii are those of probabilities, smaller than the scores' radii."]
    if verdict.class_bounds is None and verdict.output_is_one_number:
        refusal = verdict.no_classes()
        return [f"No labels: {refusal.message} (try: {refusal.hint})"]
    return []


def assumptions(verdicts: Iterable[Verdict]) -> list[Block]:
    """What is taken on trust, each assumption once."""
    texts = dict.fromkeys(text for verdict in verdicts for text in verdict.assumptions)
    return ["Assuming:", *(f"  {text}" for text in texts)] if texts else []


def nodes(verdict: Verdict) -> Table:
    """The proof, loosest nodes first: the node's own gain and the bound from the input to its output."""
    rows = (
        (node.name, node.op, shape(node.shape), f"{node.gain}", f"{node.bound_after}", node.rule)
        for node in verdict.loosest_first()
    )
    return Table(("node", "op", "shape", "gain ≤", "bound after ≤", "rule"), tuple(rows))


def shape(sizes: Sequence[int | None]) -> str:
    """``N×3×32×32``: the batch axis, or any open size, reads N."""
    return "×".join("N" if size is None else str(size) for size in sizes) or "scalar"
