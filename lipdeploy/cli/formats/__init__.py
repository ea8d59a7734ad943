"""The forms of a verification report, one module per form: from what was judged to text, without printing any."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from lipdeploy.cli.judging import Judged

#: Form → module with ``render``. ``json`` would hide the standard library's name inside this package.
FORMATS = {
    "text": "text",
    "json": "document",
    "sarif": "sarif",
    "junit": "junit",
    "github": "github",
    "markdown": "markdown",
}


def render(form: str, judged: Sequence[Judged]) -> str:
    """The whole report in one form, for a file or a pipe."""
    text: str = importlib.import_module(f"{__name__}.{FORMATS[form]}").render(judged)
    return text
