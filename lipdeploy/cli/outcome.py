"""What an exception means: its exit code and the one line that a person reads."""

from __future__ import annotations

import traceback

import click

from lipdeploy.cli import report
from lipdeploy.errors import InputError, LipdeployError, Refused
from lipdeploy.exit_codes import BROKEN_PIPE, INTERNAL_ERROR, INTERRUPTED

USAGE = InputError.exit_code


def end(problem: BaseException, *, debug: bool) -> int:
    """Report ``problem`` on standard error and return the exit code of the process."""
    if isinstance(problem, click.exceptions.Exit):
        return problem.exit_code
    if isinstance(problem, BrokenPipeError):
        report.abandon()
        return BROKEN_PIPE
    if debug:
        report.diagnostic("".join(traceback.format_exception(problem)))
    if isinstance(problem, KeyboardInterrupt | click.Abort):
        report.diagnostic("interrupted")
        return INTERRUPTED
    report.error(*describe(problem))
    report.flush_quietly()
    return exit_code(problem)


def exit_code(problem: BaseException) -> int:
    """The contract's exit code for ``problem``."""
    if isinstance(problem, LipdeployError):
        return problem.exit_code
    return USAGE if isinstance(problem, click.ClickException) else INTERNAL_ERROR


def describe(problem: BaseException) -> tuple[str, str]:
    """What went wrong (with where), and what to try."""
    if isinstance(problem, Refused):
        return problem.message, f"{problem.hint}; see lipdeploy explain {problem.code}"
    if isinstance(problem, LipdeployError):
        return problem.message, problem.hint
    if isinstance(problem, click.ClickException):
        return _usage(problem)
    if isinstance(problem, MemoryError):
        return f"internal error: out of memory {problem}".rstrip(), "a smaller model or batch, or a machine with more"
    what = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    return f"internal error: {what}", "run again with --debug and send us the output"


def _usage(problem: click.ClickException) -> tuple[str, str]:
    context = getattr(problem, "ctx", None)
    command = context.command_path if context is not None else "lipdeploy"
    return f"{command}: {problem.format_message().rstrip('.')}", f"{command} --help"
