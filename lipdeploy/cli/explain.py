"""``lipdeploy explain``: what a refusal's code means and what to try."""

from __future__ import annotations

import difflib

import click

from lipdeploy.cli import report
from lipdeploy.cli.options import debug_option, json_option
from lipdeploy.errors import REASONS, InputError


@click.command("explain")
@click.argument("code", required=False)
@json_option
@debug_option
def command(code: str | None, as_json: bool) -> int:
    """Explain a refusal's CODE (LIP001 …); without one, list them all."""
    chosen = REASONS if code is None else {_known(code): REASONS[_known(code)]}
    if as_json:
        entries = [
            {"code": key, "title": reason.title, "explanation": reason.explanation, "hint": reason.hint}
            for key, reason in chosen.items()
        ]
        report.document({"schema": "lipdeploy/reasons/v1", "reasons": entries})
    elif code is None:
        rows = tuple((key, reason.title) for key, reason in chosen.items())
        report.show([report.Table(("code", "refused because"), rows)])
    else:
        _tell(_known(code))
    return 0


def _tell(code: str) -> None:
    reason = REASONS[code]
    report.show([f"{code}: {reason.title}", "", reason.explanation, f"Try: {reason.hint}."])


def _known(code: str) -> str:
    name = code.strip().upper()
    if name in REASONS:
        return name
    near = difflib.get_close_matches(name, REASONS, n=3, cutoff=0.5)
    hint = f"{', '.join(near)}, or " if near else ""
    raise InputError(f"unknown code '{code}'", hint=f"{hint}lipdeploy explain, which lists all codes")
