"""Workflow commands of GitHub Actions: an ``::error`` for everything found, a ``::notice`` for every proven model.

GitHub shows ten annotations of a kind per step and drops the rest, so the worst come first, after a count. All of them
stay in the log. Below them stands the report for people, with commands switched off: a path or a node name that looks
like a command is only text there. The word that switches them on again is a digest of the report, which no report can
contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from lipdeploy.cli import findings, report
from lipdeploy.cli.formats import text
from lipdeploy.cli.judging import Judged
from lipdeploy.cli.verdicts import limit_text

SHOWN = 10


def render(judged: Sequence[Judged]) -> str:
    """The report as lines for a workflow's log."""
    return "".join(f"{line}\n" for line in (*_errors(judged), *_notices(judged), *_log(text.render(judged))))


def _errors(judged: Sequence[Judged]) -> Iterator[str]:
    found = findings.worst_first(judged)
    if len(found) > SHOWN:
        yield _command("error", f"{len(found)} findings; GitHub shows {SHOWN}, the log has all", title="lipdeploy")
    for finding in found:
        message = f"{finding.sentence} (try: {finding.hint})"
        title = f"lipdeploy {finding.rule}: {findings.RULES[finding.rule].title}"
        yield _command("error", message, file=finding.path, title=title)


def _notices(judged: Sequence[Judged]) -> Iterator[str]:
    for one in judged:
        verdict = one.verdict
        if verdict is None or verdict.status != "verified" or one.problem is not None:
            continue
        limit = "no limit asked for" if verdict.max_lipschitz is None else f"limit {limit_text(verdict.max_lipschitz)}"
        message = f"proven Lipschitz bound {verdict.lipschitz_bound} ({verdict.norm}), {limit}"
        yield _command("notice", message, file=one.path, title="lipdeploy: verified")


def _command(kind: str, message: str, **properties: str) -> str:
    named = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{kind} {named}::{_data(message)}"


def _data(value: str) -> str:
    return report.printable(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def _log(body: str) -> Iterator[str]:
    token = hashlib.sha256(body.encode("utf-8", "backslashreplace")).hexdigest()
    yield f"::stop-commands::{token}"
    yield from body.splitlines()
    yield f"::{token}::"
