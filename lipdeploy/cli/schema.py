"""``lipdeploy schema``: the published JSON schemas of everything that lipdeploy writes for programs."""

from __future__ import annotations

from importlib import resources

import click

from lipdeploy.cli import report
from lipdeploy.cli.options import debug_option

NAMES = (
    "certificate/v1",
    "verify-report/v1",
    "diff/v1",
    "prediction/v1",
    "certification-report/v1",
    "export-report/v1",
    "bench-report/v1",
    "doctor-report/v1",
    "reasons/v1",
)


@click.command("schema")
@click.argument("name", type=click.Choice(NAMES))
@debug_option
def command(name: str) -> int:
    """Print the JSON schema (draft 2020-12) of lipdeploy/NAME."""
    report.text(read(name))
    return 0


def read(name: str) -> str:
    """The schema's text: ``certificate/v1`` is ``schemas/certificate-v1.json``."""
    return (resources.files("lipdeploy.cli") / "schemas" / f"{name.replace('/', '-')}.json").read_text("utf-8")
