"""A Markdown summary, made for ``$GITHUB_STEP_SUMMARY``, merge requests and wikis.

Names out of files stand in code spans and sentences are escaped, so that no model can add a link, an image, a mention,
a row or HTML. GitHub drops a summary above 1 MiB, so sentences are cut and a long list is counted instead of finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lipdeploy.cli import findings, report
from lipdeploy.cli.findings import Finding
from lipdeploy.cli.judging import Judged
from lipdeploy.cli.verdicts import UNKNOWN, limit_text

LISTED, LETTERS = 500, 600
MARKS = {"verified": "✅", "exceeded": "❌", "refused": "⛔", "integrity": "⛔"}
STRUCTURAL = re.compile(r"[\\`*_\[\]<>#!|~&$]|:(?=//)|(?<=www)\.")


def render(judged: Sequence[Judged]) -> str:
    """The report as one Markdown section."""
    return "\n".join([*_head(judged), "", *_table(judged), *_found(judged), *_assumptions(judged)]) + "\n"


def _head(judged: Sequence[Judged]) -> Iterator[str]:
    fine = sum(one.exit_code == 0 for one in judged)
    yield "## Lipschitz bounds"
    yield ""
    code = max((one.exit_code for one in judged), default=0)
    yield f"{fine} of {len(judged)} proven and within their limits (exit code {code})."


def _table(judged: Sequence[Judged]) -> Iterator[str]:
    yield "| model | status | norm | bound ≤ | limit | baseline |"
    yield "| --- | --- | --- | ---: | ---: | --- |"
    for one in judged:
        yield f"| {' | '.join(_row(one))} |"


def _row(one: Judged) -> tuple[str, ...]:
    verdict = one.verdict
    path = _cell(one.path)
    if verdict is None:
        return path, "⛔ no verdict", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN
    status = f"{MARKS[verdict.status]} {verdict.status}"
    bound = UNKNOWN if verdict.lipschitz_bound is None else f"{verdict.lipschitz_bound}"
    limit = UNKNOWN if verdict.max_lipschitz is None else limit_text(verdict.max_lipschitz)
    incomplete = ", ⛔ incomplete" if one.problem is not None else ""
    return path, status + incomplete, verdict.norm, bound, limit, _baseline(one)


def _baseline(one: Judged) -> str:
    if one.comparison is None:
        return UNKNOWN
    verdict = "worse than" if one.comparison.is_worse else "not above"
    return f"{verdict} {one.comparison.lipschitz_bound!r}"


def _found(judged: Sequence[Judged]) -> Iterator[str]:
    found = findings.worst_first(judged)
    if found:
        yield from ("", "### Why", "")
    yield from map(_item, found[:LISTED])
    if len(found) > LISTED:
        yield f"- … and {len(found) - LISTED} more; the other reports have all of them"


def _item(finding: Finding) -> str:
    node = f" node {_code(finding.node)}" if finding.node else ""
    op = f" ({_code(finding.op)})" if finding.op else ""
    return (
        f"- **{finding.rule}** {_code(finding.path)}{node}{op}: {_escaped(finding.message)}; "
        f"*try:* {_escaped(finding.hint)}"
    )


def _assumptions(judged: Sequence[Judged]) -> Iterator[str]:
    texts = dict.fromkeys(text for one in judged if one.verdict is not None for text in one.verdict.assumptions)
    if texts:
        yield from ("", "<details><summary>What is taken on trust</summary>", "")
        yield from (f"- {_escaped(text)}" for text in texts)
        yield from ("", "</details>")


def _code(text: str) -> str:
    """A code span that holds ``text`` whatever it is (CommonMark §6.1): a fence longer than any run of backticks."""
    shown = _cut(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown or not shown.strip() else f"{fence}{shown}{fence}"


def _cell(text: str) -> str:
    """A code span inside a table, where a bar ends the cell even in code."""
    return _code(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Plain words: what Markdown could take as structure, or as the beginning of a link, gets a backslash."""
    return STRUCTURAL.sub(lambda match: f"\\{match[0]}", _cut(text))


def _cut(text: str) -> str:
    shown = report.printable(" ".join(text.split()) if text.strip() else text)
    return shown if len(shown) <= LETTERS else f"{shown[:LETTERS]}…"
