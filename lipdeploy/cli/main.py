"""Entry point: every way in which a command can end becomes one of the contract's exit codes.

=====  ==========================================================
0      proven, and within the limit
1      proven, but above the limit
2      usage, or unreadable input
3      refused: cannot be proven
4      integrity: what is here is not what was certified
5      internal error
130    interrupted from the keyboard
141    whoever read our output went away
=====  ==========================================================

Python ends with 1 after a traceback, which a CI gate would read as a verdict. So nothing but the standard library and
these numbers is imported before ``main`` has begun to watch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lipdeploy.exit_codes import BROKEN_PIPE, INTERNAL_ERROR, INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lipdeploy`` with ``arguments`` (default: those of this process) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except BaseException as problem:  # a crash must never look like a verdict
        return _end(problem, debug=_asks_for_debug(words))


def _run(words: list[str]) -> int:
    from lipdeploy.cli import app, report

    report.prepare(debug=_asks_for_debug(words))
    code = app.run(words)
    report.flush()
    return code


def _end(problem: BaseException, *, debug: bool) -> int:
    try:
        from lipdeploy.cli import outcome

        return outcome.end(problem, debug=debug)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except BaseException:  # not even the report could be made (click missing, stderr closed, no memory)
        _last_words(problem)
        return INTERNAL_ERROR


def _last_words(problem: BaseException) -> None:
    try:
        sys.stderr.write(f"error: internal error: {type(problem).__name__}: {problem}; is lipdeploy fully installed?\n")
        sys.stderr.flush()
    except BaseException:
        return


def _asks_for_debug(words: list[str]) -> bool:
    options = words[: words.index("--")] if "--" in words else words
    return "--debug" in options
