"""``lipdeploy completion``: a shell script that completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lipdeploy.cli import report
from lipdeploy.cli.options import debug_option

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@debug_option
def command(shell: str) -> int:
    """Print a completion script; in bash: eval "$(lipdeploy completion bash)"."""
    from lipdeploy.cli.app import COMPLETION_VARIABLE, PROGRAM, group

    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - click knows the three shells of the choice
        raise click.BadParameter(f"click cannot complete in {shell}")
    report.text(kind(group, {}, PROGRAM, COMPLETION_VARIABLE).source())
    return 0
