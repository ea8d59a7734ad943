"""The command tree. A command's module is imported when the command is used, its heavy imports when it runs."""

from __future__ import annotations

import difflib
import importlib
import os

import click
from click.shell_completion import shell_complete

from lipdeploy.cli import report
from lipdeploy.cli.options import debug_option

PROGRAM = "lipdeploy"
COMMANDS = (
    "export", "verify", "inspect", "diff", "sign", "predict", "serve", "package", "certify", "bench",
    "doctor", "explain", "schema", "completion",
)  # fmt: skip
COMPLETION_VARIABLE = "_LIPDEPLOY_COMPLETE"
USAGE = 2


class LazyGroup(click.Group):
    """A group whose command ``NAME`` is ``lipdeploy.cli.NAME.command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; ``None`` for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lipdeploy.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a name that is nearly a command's is answered with that one."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=2)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"no such command '{args[0]}'; did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)


@click.group(
    PROGRAM, cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--version", is_flag=True, help="Print the version and exit.")
@debug_option
@click.pass_context
def group(ctx: click.Context, version: bool) -> int:
    """Train with PyTorch, certify with a proof, serve with ONNX Runtime: Lipschitz networks with certified radii.

    Exit codes: 0 proven and within the limit; 1 proven, above the limit; 2 usage or unreadable input; 3 refused;
    4 integrity; 5 internal error.
    """
    if version:
        report.line(f"{PROGRAM} {report.version()}")
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        report.diagnostic(ctx.get_help())
        ctx.exit(USAGE)
    return 0


def run(words: list[str]) -> int:
    """Run one command line and return its exit code; exceptions are the caller's to map.

    ``click``'s own ``main`` is avoided on purpose: it ends with code 1 on a broken pipe.
    """
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        return shell_complete(group, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    with group.make_context(PROGRAM, list(words)) as context:
        code = group.invoke(context)
    return int(code or 0)
