"""JUnit XML: one suite per run, one test case per model and one per refusal.

A model that is not within its limits is a failure; what kept a model from being judged is an error. Characters that XML
cannot hold are shown escaped, everything beyond ASCII as character references, so that no encoding can damage the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree as Tree

from lipdeploy.cli import findings, report
from lipdeploy.cli.findings import Finding
from lipdeploy.cli.judging import Judged
from lipdeploy.cli.verdicts import limit_text

FAILED_STATUSES = {"exceeded", "refused", "integrity"}


def render(judged: Sequence[Judged]) -> str:
    """The report as one XML document."""
    cases = _distinct(case for one in judged for case in _cases(one))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": "0",
        "time": _seconds(sum(_elapsed(one) for one in judged)),
    }
    root = Tree.Element("testsuites", {"name": "lipdeploy", **counts})
    suite = Tree.SubElement(root, "testsuite", {"name": "lipdeploy verify", **counts})
    _properties(suite, {"lipdeploy.version": report.version()})
    suite.extend(cases)
    Tree.indent(root)
    data: bytes = Tree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return data.decode("ascii") + "\n"


def _distinct(cases: Iterable[Tree.Element]) -> list[Tree.Element]:
    """The cases; of several with one name, as of a model under several requirements, the later ones are numbered.

    Readers take two cases of one name for one test that ran twice, and may show the last result only.
    """
    listed, seen = list(cases), set()
    for case in listed:
        name, count = case.attrib["name"], 1
        while (case.attrib["classname"], case.attrib["name"]) in seen:
            count += 1
            case.set("name", f"{name} ({count})")
        seen.add((case.attrib["classname"], case.attrib["name"]))
    return listed


def _cases(one: Judged) -> Iterator[Tree.Element]:
    yield _model_case(one)
    for finding in findings.of_one(one):
        if finding.rule not in (findings.EXCEEDED, findings.REGRESSED, findings.NOT_JUDGED):  # the model's own case
            case = _case(one.path, f"{finding.rule} {finding.node}".rstrip(), 0.0)
            _fault(case, "failure", [finding])
            yield case


def _model_case(one: Judged) -> Tree.Element:
    verdict = one.verdict
    norm = "" if verdict is None else f" in {verdict.norm}"
    case = _case(one.path, f"proven{norm}, within the limit", _elapsed(one))
    if verdict is not None and verdict.lipschitz_bound is not None:
        limit = {} if verdict.max_lipschitz is None else {"max_lipschitz": limit_text(verdict.max_lipschitz)}
        _properties(case, {"norm": verdict.norm, "lipschitz_bound": f"{verdict.lipschitz_bound}", **limit})
    found = list(findings.of_one(one))
    if verdict is None or one.problem is not None:
        _fault(case, "error", found)
    elif verdict.status in FAILED_STATUSES:
        _fault(case, "failure", found)
    return case


def _case(path: str, name: str, seconds: float) -> Tree.Element:
    attributes = {"classname": report.printable(path), "name": report.printable(name), "time": _seconds(seconds)}
    return Tree.Element("testcase", attributes)


def _fault(case: Tree.Element, kind: str, found: Sequence[Finding]) -> None:
    first, more = found[0], len(found) - 1
    message = report.printable(first.sentence) + (f" (and {more} more)" if more else "")
    fault = Tree.SubElement(case, kind, {"type": first.rule, "message": message})
    lines = (report.printable(f"{finding.rule} {finding.sentence} (try: {finding.hint})") for finding in found)
    fault.text = "\n".join(lines)


def _properties(parent: Tree.Element, values: dict[str, str]) -> None:
    properties = Tree.SubElement(parent, "properties")
    for name, value in values.items():
        Tree.SubElement(properties, "property", {"name": name, "value": report.printable(value)})


def _elapsed(one: Judged) -> float:
    return 0.0 if one.verdict is None else one.verdict.elapsed_seconds


def _seconds(value: float) -> str:
    return f"{value:.3f}"
