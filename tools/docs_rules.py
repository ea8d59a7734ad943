"""docs/rules.md, from the rule registry. ``tools/docs.py`` writes and checks it."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx

from lipdeploy.verify.constants import EXACT
from lipdeploy.verify.graph import OPSETS
from lipdeploy.verify.motifs import MOTIFS
from lipdeploy.verify.rules import NOT_LIPSCHITZ, RULES, Rule

Function = Any  # a plain function: typeshed's type has no __globals__ for callables
NEWEST = OPSETS.stop - 1
FLOAT64_ONLY = ("written_out(", "root_rounding(", "_power_sum(", 'only=("f64",)')
PAGE = Path(__file__).parent.parent / "docs" / "rules.md"
HEAD = """# Rules

Generated from the registry by `make docs`; edit the rules' docstrings instead. Gains are given for ℓ2, ℓ∞ and ℓ1 where
they differ. Every rule refuses attributes it does not list, and anything that touches the batch axis.
"Mixed" are the gains from one norm to another that a chain such as ℓ2 → ℓ∞ needs. A motif in ℓ2 leaves the node-by-node
bound for the other norms. Preconditions are read out of the rules' code: inputs (from 0) that must be stored in the
file, and the words with which a rule refuses (… is filled in), beside inputs that do not fit the operator (LIP013) and
proofs that fail (LIP014). The lemmas, and why each holds, are in
[mathematics.md](mathematics.md): arithmetic S3 and S4, linear C and D, operators S1, S2 and S5, pooling and resize P1
and P2, motifs D6, E1 to E4 and S6 to S9.
"Deployed" says where the rounding is known: in every program (yes), in the float64 program, which writes the operator
out (f64: modes `f64`, `adaptive` and `network` answer, F5 to F8), or nowhere (no: `verify` only).
"""


def page() -> str:
    """The whole page."""
    rows = sorted(RULES.items(), key=lambda item: (item[1].function.__module__, item[1].name, item[0]))
    parts = [HEAD]
    for module, entries in groupby(rows, key=lambda item: item[1].function.__module__):
        parts.append(f"\n## {module.rsplit('.', 1)[-1].capitalize()}\n")
        parts.append("| operators | claim | norms | stored inputs | refused | attributes | deployed |")
        parts.append("| --- | --- | --- | --- | --- | --- | --- |")
        for function, group in groupby(entries, key=lambda item: item[1].function):
            parts.append(_row(function, list(group)))
    parts.append("\n## Motifs\n\nSub-graphs judged as a whole, when their structure matches exactly.\n")
    parts.append("| ends in | claim | norms |\n| --- | --- | --- |")
    for (domain, op), motifs in sorted(MOTIFS.items()):
        parts += [f"| {domain or 'ai.onnx'}.{op} | **{m.__name__}**: {_summary(m)} | {_norms(m)} |" for m in motifs]
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


@functools.cache
def _reached(function: Function) -> list[tuple[Function, ast.AST]]:
    """A rule or motif and the functions of its own package that it calls by name, with their code."""
    found: dict[Function, ast.AST] = {}
    waiting = [function]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found[current] = tree = ast.parse(textwrap.dedent(inspect.getsource(current)))
        called = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        known = (current.__globals__.get(name) for name in called)
        waiting += [other for other in known if inspect.isfunction(other) and _package(other) == _package(function)]
    return list(found.items())


def _package(function: Function) -> str:
    return str(function.__module__).rsplit(".", 1)[0]


def _method_calls(function: Function) -> Iterator[tuple[str, list[ast.expr]]]:
    for _, tree in _reached(function):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.args


def _norms(function: Function) -> str:
    """ℓ2 alone where nothing is proven without it; mixed where the gains come from a whole matrix."""
    trees = [tree for _, tree in _reached(function)]
    if "Norm.L2 not in call.norms" in ast.unparse(trees[0]):
        return "ℓ2"
    used = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))]
    names = {node.id if isinstance(node, ast.Name) else f".{node.attr}" for node in used}
    return "ℓ2, ℓ∞, ℓ1, mixed" if names & {"dense_gains", ".gains", ".adjoint_gains"} else "ℓ2, ℓ∞, ℓ1"


def _stored(function: Function) -> str:
    """The inputs that the rule and its helpers take from the file only."""
    asked = [args[0] for name, args in _method_calls(function) if name in ("constant", "required_constant")]
    numbers = {int(place.value) for place in asked if isinstance(place, ast.Constant)}
    return ", ".join(map(str, sorted(numbers))) or "none"


def _refused(function: Function) -> str:
    """Why the rule and its helpers refuse, in their own words."""
    calls = [args for name, args in _method_calls(function) if name == "refuse"]
    reasons = [(_text(args[0]), _text(args[1])) for args in calls]
    told = dict.fromkeys(text for code, text in reasons if code not in ("LIP013", "LIP014") and text != "…")
    return "; ".join(f"“{text}”" for text in told).replace("|", "\\|") or "–"


def _text(node: ast.expr) -> str:
    """A message as its code spells it, with … for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return "…"


def _row(function: Function, group: list[tuple[tuple[str, str], Rule]]) -> str:
    operators = ", ".join(f"{domain}.{op}" if domain else op for (domain, op), _ in group)
    attributes = ", ".join(sorted(group[0][1].attributes)) or "none"
    source = inspect.getsource(function)
    known = "f64" if any(word in source for word in FLOAT64_ONLY) else "no" if "rounding=None" in source else "yes"
    cells = (operators, _summary(function), _norms(function), _stored(function), _refused(function), attributes, known)
    return f"| {' | '.join(cells)} |"


def _summary(function: object) -> str:
    return " ".join((inspect.getdoc(function) or "").split()).replace("|", "\\|")
