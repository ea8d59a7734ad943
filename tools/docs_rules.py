"""docs/rules.md, from the rule registry. ``tools/docs.py`` writes and checks it."""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path

import onnx

from lipdeploy.verify.constants import EXACT
from lipdeploy.verify.graph import OPSETS
from lipdeploy.verify.motifs import MOTIFS
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES, Rule

NEWEST = OPSETS.stop - 1
PAGE = Path(__file__).parent.parent / "docs" / "rules.md"
HEAD = """# Rules

Generated from the registry by `make docs`; edit the rules' docstrings instead. Gains are given for ℓ2, ℓ∞ and ℓ1 where
they differ. Every rule refuses attributes it does not list, and anything that touches the batch axis.
Every rule and motif holds in ℓ2, ℓ∞ and ℓ1; the linear residuals, sandwiches and circular convolutions are proven in ℓ2
only, and the node-by-node bound stays for the other norms. The lemmas, and why each holds, are in
[mathematics.md](mathematics.md): arithmetic S3 and S4, linear C and D, operators S1, S2 and S5, pooling and resize P1
and P2, motifs D6, E1 to E3 and S6 to S8.
"""


def page() -> str:
    """The whole page."""
    rows = sorted(RULES.items(), key=lambda item: (item[1].function.__module__, item[1].name, item[0]))
    parts = [HEAD]
    for module, entries in groupby(rows, key=lambda item: item[1].function.__module__):
        parts.append(f"\n## {module.rsplit('.', 1)[-1].capitalize()}\n")
        parts.append("| operators | claim | attributes | deployed |\n| --- | --- | --- | --- |")
        for function, group in groupby(entries, key=lambda item: item[1].function):
            parts.append(_row(function, list(group)))
    parts.append("\n## Motifs\n\nSub-graphs judged as a whole, when their structure matches exactly.\n")
    parts.append("| ends in | claim |\n| --- | --- |")
    for (domain, op), motifs in sorted(MOTIFS.items()):
        parts += [f"| {domain or 'ai.onnx'}.{op} | **{m.__name__}**: {_summary(m)} |" for m in motifs]
    parts.append("\n## Refused as not globally Lipschitz\n\n" + ", ".join(sorted(NOT_LIPSCHITZ)) + ".\n")
    parts.append("## Evaluated where they do not depend on the input, exactly\n\n" + ", ".join(sorted(EXACT)) + ".\n")
    parts.append("## Without a rule\n\nRefused by name (LIP001) where they meet data; of opset 23 and below.\n")
    parts.append(", ".join(_without_a_rule()) + ".\n")
    return "\n".join(parts)


def _without_a_rule() -> list[str]:
    known = {op for domain, op in (*RULES, *MOTIFS) if not domain} | NOT_LIPSCHITZ | EXACT.keys()
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if not s.domain and s.since_version <= NEWEST]
    newest = {s.name: s for s in sorted(schemas, key=lambda s: s.since_version)}
    return sorted(name for name, schema in newest.items() if not schema.deprecated and name not in known)


def _row(function: object, group: list[tuple[tuple[str, str], Rule]]) -> str:
    operators = ", ".join(f"{domain}.{op}" if domain else op for (domain, op), _ in group)
    attributes = ", ".join(sorted(group[0][1].attributes)) or "none"
    known = "no" if "rounding=None" in inspect.getsource(function) else "yes"
    return f"| {operators} | {_summary(function)} | {attributes} | {known} |"


def _summary(function: object) -> str:
    return " ".join((inspect.getdoc(function) or "").split()).replace("|", "\\|")
