"""One JSON object a line on standard error, through the standard library's logging."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from typing import Any, TextIO

import orjson

LOGGER = logging.getLogger("lipdeploy.serve")
LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """``{"ts", "level", "event", …}``: the fields of ``event`` calls, and any other library's message as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; text that is not UTF-8 is escaped, not lost."""
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage().encode("utf-8", "backslashreplace").decode(),
            "pid": os.getpid(),
        }
        if record.name != LOGGER.name:
            line["logger"] = record.name
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return orjson.dumps(line, default=str).decode()


def event(name: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Log that something happened. Never what is in a request's tensors."""
    if LOGGER.isEnabledFor(level):
        exception = None if error is None else (type(error), error, error.__traceback__)
        LOGGER.log(level, name, extra={"fields": fields}, exc_info=exception)


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """JSON lines for this process: ours, and uvicorn's from warnings up."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    for name, least in ((LOGGER.name, level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False
