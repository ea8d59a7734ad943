"""SARIF 2.1.0 (OASIS, errata 01), as code-scanning services read it: one result for everything found.

Rules are the codes of refusals and the four reasons that have no code. A model file has no lines, so a result points at
its first, which is what GitHub needs, and names the node as a logical location. Fingerprints depend on rule, file, norm
and node only, so that a finding is recognised in the next run although the numbers in its message moved. What kept a
model from being judged is also a notification, and ``executionSuccessful`` is then false.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lipdeploy.cli import findings, report
from lipdeploy.cli.findings import RULES, Finding
from lipdeploy.cli.judging import Judged
from lipdeploy.cli.verdicts import limit_text

if TYPE_CHECKING:
    from lipdeploy.verify import Verdict

VERSION = "2.1.0"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULE_IDS = tuple(RULES)
Object = dict[str, object]


def render(judged: Sequence[Judged]) -> str:
    """The report as one SARIF log with one run."""
    return report.as_json({"$schema": SCHEMA, "version": VERSION, "runs": [_run(judged)]})


def _run(judged: Sequence[Judged]) -> Object:
    paths = list(dict.fromkeys(one.path for one in judged))
    found = findings.of(judged)
    return {
        "tool": {"driver": {"name": "lipdeploy", "version": report.version(), "rules": list(_rules())}},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(judged)],
        "artifacts": [_artifact(path, judged) for path in paths],
        "results": [_result(finding, paths, mark) for finding, mark in zip(found, _fingerprints(found), strict=True)],
        "properties": {"models": [_summary(one.verdict) for one in judged if one.verdict is not None]},
    }


def _rules() -> Iterator[Object]:
    for name, reason in RULES.items():
        yield {
            "id": name,
            "name": "".join(word.capitalize() for word in reason.title.replace("-", " ").split()).strip("?"),
            "shortDescription": {"text": _message(reason.title)},
            "fullDescription": {"text": _message(reason.explanation)},
            "help": {"text": _message(f"{reason.explanation} Try: {reason.hint}.")},
            "defaultConfiguration": {"level": "error"},
            "properties": {"tags": ["lipschitz"], "precision": "very-high"},
        }


def _invocation(judged: Sequence[Judged]) -> Object:
    failed = [finding for finding in findings.of(judged) if finding.rule == findings.NOT_JUDGED]
    return {
        "executionSuccessful": not any(one.problem is not None for one in judged),
        "exitCode": max((one.exit_code for one in judged), default=0),
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": _message(finding.message)},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(finding.path)}}}],
            }
            for finding in failed
        ],
    }


def _artifact(path: str, judged: Sequence[Judged]) -> Object:
    digests = [one.verdict.file_sha256 for one in judged if one.path == path and one.verdict is not None]
    known: Object = {"hashes": {"sha-256": digests[0]}} if digests and digests[0] else {}
    return {"location": {"uri": _uri(path)}, "roles": ["analysisTarget"], **known}


def _result(finding: Finding, paths: Sequence[str], fingerprint: str) -> Object:
    location: Object = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(finding.path), "index": paths.index(finding.path)},
            "region": {"startLine": 1},
        },
    }
    if finding.node:
        name = report.printable(finding.node)
        location["logicalLocations"] = [{"name": name, "fullyQualifiedName": name, "kind": "node"}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": RULE_IDS.index(finding.rule),
        "level": "error",
        "message": {"text": _message(f"{finding.sentence} (try: {finding.hint})")},
        "locations": [location],
        "partialFingerprints": {"lipdeploy/v1": fingerprint, "primaryLocationLineHash": f"{fingerprint[:16]}:1"},
    }


def _fingerprints(found: Sequence[Finding]) -> Iterator[str]:
    """What stays the same from run to run; equal ones are told apart by their order."""
    seen: Counter[tuple[str, ...]] = Counter()
    for finding in found:
        identity = (finding.rule, _uri(finding.path), finding.norm, finding.node)
        text = "\0".join((*identity, str(seen[identity])))
        seen[identity] += 1
        yield hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _summary(verdict: Verdict) -> Object:
    bound = verdict.lipschitz_bound
    return {
        "uri": _uri(verdict.path),
        "status": verdict.status,
        "norm": verdict.norm,
        "lipschitz_bound": None if bound is None else bound.value,
        "max_lipschitz": None if verdict.max_lipschitz is None else float(limit_text(verdict.max_lipschitz)),
        "semantic_sha256": verdict.semantic_sha256,
    }


def _uri(path: str) -> str:
    """Relative to the working folder where the file lies inside it, which services read as the repository's root."""
    relative = os.path.relpath(path)
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        return Path(os.path.abspath(path)).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")), safe="/")


def _message(text: str) -> str:
    """Plain text (§3.11): braces would be placeholders and ``[text](target)`` a link, so neither survives."""
    return report.printable(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")
