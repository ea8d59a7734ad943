"""The report for people: one table, what was refused or too large and why, and what all of it assumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lipdeploy.cli import findings, report, verdicts
from lipdeploy.cli.judging import Judged


def render(judged: Sequence[Judged]) -> str:
    """The report as plain text."""
    return report.plain(blocks(judged))


def blocks(judged: Sequence[Judged]) -> list[report.Block]:
    """The report as lines and tables."""
    proven = [one.verdict for one in judged if one.verdict is not None]
    head: list[report.Block] = [verdicts.summary(proven)] if proven else []
    return [*head, *(line for one in judged for line in _lines(one)), *verdicts.assumptions(proven)]


def _lines(one: Judged) -> Iterator[report.Block]:
    if one.verdict is not None:
        yield from verdicts.reasons(one.verdict)
    for rule, sentence in findings.excesses(one):
        yield f"{one.path}: {sentence} (try: {findings.RULES[rule].hint})"
    if one.comparison is not None and not one.comparison.is_worse:
        yield f"{one.path}: not above its baseline: {one.comparison}"
    yield from (f"{one.path}: certificate written to {path}" for path in one.certificates)
