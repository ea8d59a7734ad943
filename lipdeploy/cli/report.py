"""Everything that lipdeploy prints, and the only place that prints it.

Results go to standard output: rich tables on a terminal, aligned columns when piped. Progress, notes and errors go
to standard error. Text that comes out of files (node names, class names, paths) is shown with its control characters
escaped, so that no model can forge a line of a report or move the cursor.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lipdeploy.errors import InputError


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


#: Characters that a column of words keeps on a narrow terminal, and those between columns.
LEAST_WORD, PADDING = 8, 3
#: What a report is made of: a line of text, or a table.
Block = str | Table


def prepare(*, debug: bool) -> None:
    """Make the standard streams safe for any text, and third-party warnings silent unless ``debug``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")


def version() -> str:
    """The version of lipdeploy."""
    import lipdeploy

    return str(lipdeploy.__version__)


def line(text: str = "") -> None:
    """One line of the result."""
    _write(printable(text) + "\n")


def text(body: str) -> None:
    """Text of our own making, as it is (a shell script, a rendered report)."""
    _write(body)


def document(content: object) -> None:
    """One JSON document, the whole of standard output."""
    _write(as_json(content))


def as_json(content: object) -> str:
    """JSON in which every number reads back as the same binary64 number; what is not finite becomes null.

    Pure ASCII, so that no terminal or pipe encoding can damage it.
    """
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def show(blocks: Iterable[Block]) -> None:
    """Lines and tables: drawn on a terminal, aligned columns when piped."""
    if sys.stdout is None or not sys.stdout.isatty():
        text(plain(blocks))
        return
    for block in blocks:
        _draw(block) if isinstance(block, Table) else line(block)


def plain(blocks: Iterable[Block]) -> str:
    """The same lines and tables as plain text."""
    return "".join(_plain_table(block) if isinstance(block, Table) else printable(block) + "\n" for block in blocks)


def _plain_table(table: Table) -> str:
    cells = [[printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"{row.rstrip()}\n" for row in padded)


def note(text: str) -> None:
    """One line on standard error that is not an error."""
    diagnostic(printable(text))


def diagnostic(text: str) -> None:
    """Lines on standard error; a closed standard error is no reason to fail."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()


def error(message: str, hint: str = "") -> None:
    """Exactly one line: what is wrong, where, and what to try."""
    diagnostic(error_line(message, hint))


def error_line(message: str, hint: str = "") -> str:
    """The line that ``error`` prints."""
    one_line = " ".join(message.split())
    return "error: " + printable(f"{one_line} (try: {' '.join(hint.split())})" if hint else one_line)


@contextlib.contextmanager
def working(activity: str) -> Iterator[None]:
    """Keep what others print away from standard output, and show a spinner when someone is watching."""
    with contextlib.redirect_stdout(sys.stderr), _spinner(activity):
        yield


@contextlib.contextmanager
def progress(activity: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count up to ``total`` on standard error: a bar with the time left for who watches, a line now and then else.

    Yields the function that is told how many more are done.
    """
    stream: TextIO | None = sys.stderr
    with contextlib.redirect_stdout(sys.stderr):
        if stream is not None and stream.isatty():
            yield from _bar(stream, activity, total)
        else:
            yield _Lines(activity, total).advance


def flush() -> None:
    """Flush standard output now: at interpreter exit a failure would change the exit code to 120."""
    with _guarded_output() as stream:
        stream.flush()


def flush_quietly() -> None:
    """Flush standard output while another error is being reported."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        abandon()


def abandon() -> None:
    """Point standard output at nothing, so that no later flush can fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def save(path: str, content: str) -> None:
    """Write ``content`` to ``path`` whole or not at all; ``InputError`` when that is impossible."""
    from lipdeploy.verify.atomic import write_atomically

    data = content.encode("utf-8", "backslashreplace")
    if os.path.isfile(path) or not os.path.exists(path):
        write_atomically(Path(os.path.realpath(path)), data)  # through a link: the link stays
        return
    try:
        Path(path).write_bytes(data)  # a device or a pipe must not be replaced by a file
    except OSError as problem:
        message = f"{path}: cannot be written: {problem.strerror or problem}"
        raise InputError(message, hint="choose a folder that exists and is writable") from problem


def printable(text: str) -> str:
    """``text`` with control, format and surrogate characters escaped, so that it can neither move nor hide."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _harmless(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _harmless(char: str) -> bool:
    return unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _write(body: str) -> None:
    with _guarded_output() as stream:
        stream.write(body)


@contextlib.contextmanager
def _guarded_output() -> Iterator[TextIO]:
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as problem:
        abandon()
        message = f"standard output: cannot write: {problem.strerror or problem}"
        raise InputError(message, hint="free some space, or send the output elsewhere") from problem


def _draw(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing, least = Drawing(box=box.SIMPLE_HEAD), 0
    for place, column in enumerate(table.columns):
        widest = max((len(row[place]) for row in table.rows if _is_number(row[place])), default=0)
        drawing.add_column(Text(column), overflow="fold", min_width=widest)  # half a number is another number
        least += max(widest, LEAST_WORD) + PADDING
    for row in table.rows:
        drawing.add_row(*(Text(printable(cell), style=_style(cell)) for cell in row))
    with _guarded_output() as stream:
        console = Console(file=stream)
        console.print(drawing, width=max(console.width, least), crop=False, no_wrap=True)


def _is_number(cell: str) -> bool:
    return cell.lstrip("-≥≤ ")[:1].isdigit()


def _style(cell: str) -> str:
    return {
        "verified": "green", "yes": "green", "ok": "green", "exceeded": "yellow", "no": "yellow",
        "refused": "red", "integrity": "red", "failed": "red",
    }.get(cell, "")  # fmt: skip


def _spinner(activity: str) -> contextlib.AbstractContextManager[Any]:
    stream: TextIO | None = sys.stderr
    if stream is None or not stream.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(file=stream).status(printable(activity).replace("[", r"\["))


def _bar(stream: TextIO, activity: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=stream), transient=True) as drawing:
        task = drawing.add_task(printable(activity), total=total)
        yield lambda count: drawing.advance(task, count)


class _Lines:
    """Progress where nobody can watch a bar: one line every ten seconds."""

    PAUSE = 10.0

    def __init__(self, activity: str, total: int) -> None:
        self.activity, self.total, self.done, self.first = activity, total, 0, 0
        self.began = self.told = time.monotonic()

    def advance(self, count: int) -> None:
        """``count`` more are done; the first call counts what was done before and takes no time."""
        now = time.monotonic()
        self.first = count if self.done == 0 and now - self.began < 1e-2 else self.first
        self.done += count
        if now - self.told < self.PAUSE or self.done >= self.total:
            return
        self.told = now
        left = (now - self.began) / max(self.done - self.first, 1) * (self.total - self.done)
        note(f"{self.activity}: {self.done} of {self.total}, about {left:.0f} s left")


def _finite(content: object) -> object:
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
