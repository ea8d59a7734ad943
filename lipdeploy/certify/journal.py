"""A journal of what is certified so far, so that a long run can go on where it was stopped.

One line of JSON, then the arrays of ``Answers`` as little-endian bytes. The line names the run (digests of model,
data and settings) and the digest of the arrays. The file is replaced whole each time, so a reader finds the old one
or the new one, never half of one. Whoever can write it can write the report, so keep it where the report may live.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.certify.results import PROGRAMS, Answers
from lipdeploy.errors import InputError, IntegrityError
from lipdeploy.verify.atomic import write_atomically
from lipdeploy.verify.source import read_file

SCHEMA = "lipdeploy/certify-journal/v1"
SECONDS_BETWEEN_WRITES = 5.0
SHARE_OF_TIME = 0.02  # writing takes at most so much of a run, however large the journal is
LARGEST_FIRST_LINE = 2**16
LARGEST = 2**34
ANOTHER = "name another file with --resume, or delete this one"
FIELDS = (("done", "|b1"), ("label", "<i8"), ("radius", "<f8"), ("program", "|u1"))


class Journal:
    """The journal at ``path`` of the run that ``run`` describes: words and digests, all of which must match."""

    def __init__(self, path: Path, run: Mapping[str, str | int | float | None]) -> None:
        self.path, self.run = path, dict(run)
        self._written = time.monotonic()
        self._pause = SECONDS_BETWEEN_WRITES

    def read(self, answers: Answers) -> None:
        """Fill ``answers`` from the file, where there is one.

        Raises ``InputError`` for the journal of another run, ``IntegrityError`` for a damaged one.
        """
        if not self.path.exists():
            return
        line, _, body = read_file(self.path, LARGEST).partition(b"\n")
        header = self._header(line)
        self._check_run(header.get("run"))
        if hashlib.sha256(body).hexdigest() != header.get("sha256"):
            raise IntegrityError(f"{self.path}: damaged: its contents do not match its digest", hint=ANOTHER)
        whole = len(answers) * sum(np.dtype(kind).itemsize for _, kind in FIELDS)
        if len(body) != whole:
            raise IntegrityError(f"{self.path}: damaged: holds {len(body)} bytes of answers, not {whole}", hint=ANOTHER)
        at = 0
        for name, kind in FIELDS:
            size = len(answers) * np.dtype(kind).itemsize
            getattr(answers, name)[:] = np.frombuffer(body[at : at + size], kind)
            at += size
        self._check_contents(answers)

    def write(self, answers: Answers) -> None:
        """Replace the file by what ``answers`` holds now."""
        start = time.monotonic()
        body = b"".join(np.ascontiguousarray(getattr(answers, name), kind).tobytes() for name, kind in FIELDS)
        header = {"schema": SCHEMA, "run": self.run, "sha256": hashlib.sha256(body).hexdigest()}
        write_atomically(self.path, json.dumps(header).encode() + b"\n" + body)
        self._written = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_WRITES, (self._written - start) / SHARE_OF_TIME)

    def write_now_and_then(self, answers: Answers) -> None:
        """``write`` when the last time is long enough ago."""
        if time.monotonic() - self._written >= self._pause:
            self.write(answers)

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header = json.loads(line) if len(line) < LARGEST_FIRST_LINE else None
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("schema") != SCHEMA:
            raise InputError(f"{self.path}: not a journal of lipdeploy certify", hint=ANOTHER)
        return header

    def _check_run(self, found: object) -> None:
        if not isinstance(found, dict):
            raise InputError(f"{self.path}: not a journal of lipdeploy certify", hint=ANOTHER)
        differing = [name for name in {**self.run, **found} if self.run.get(name) != found.get(name)]
        if differing:
            name = differing[0]
            found_here = f"{name.replace('_', ' ')} was {found.get(name)!r}, now {self.run.get(name)!r}"
            raise InputError(f"{self.path}: the journal of another run: {found_here}", hint=ANOTHER)

    def _check_contents(self, answers: Answers) -> None:
        whole = np.all(answers.radius >= 0.0) and np.all(answers.program < len(PROGRAMS))
        whole = whole and np.all(answers.done.view(np.uint8) <= 1)  # a byte of another value is no truth value
        if not whole or np.any(answers.label[answers.done] < 0):
            raise IntegrityError(f"{self.path}: damaged: holds an answer that no run writes", hint=ANOTHER)
