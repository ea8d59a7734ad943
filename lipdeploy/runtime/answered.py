"""From what a program computed to the columns of an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipdeploy.errors import IntegrityError
from lipdeploy.verify.radius import CertifiedRows

Array = np.ndarray[Any, Any]
#: Certified rows, logits, and the name of the program that answered each row.
Answered = tuple[CertifiedRows, Array, Array]


def scores(result: Array, feeds: Mapping[str, Array]) -> Array:
    """Logits as float64; the number of rows must be that of the input."""
    count = len(next(iter(feeds.values())))
    if result.ndim != 2 or len(result) != count:
        raise IntegrityError(f"{count} rows went in, and the output has shape {result.shape}")
    return result.astype(np.float64, copy=False)


def named(program: str, logits: Array) -> Array:
    """The program's name for every row; what is short comes ready made, and then cannot be written to."""
    return _NAMES[program][: len(logits)] if len(logits) <= READY_NAMES else np.full(len(logits), program)


def _ready_names(program: str) -> Array:
    names = np.full(READY_NAMES, program)
    names.flags.writeable = False
    return names


READY_NAMES = 4096
_NAMES = {program: _ready_names(program) for program in ("f32", "f64")}


def columns(rows: CertifiedRows) -> tuple[Array, Array, Array]:
    """Label, margin and radius."""
    return rows.label, rows.margin, rows.radius


def agreeing(exact: CertifiedRows, logits: Array) -> CertifiedRows:
    """Rows of the real network, labelled by the float32 program; no radius where float32 says or ties otherwise."""
    if logits.shape[1] == 1:
        label, strict = (logits[:, 0] > 0.0).astype(np.int64), logits[:, 0] != 0.0
    else:
        label = logits.argmax(axis=1) if len(logits) else np.zeros(0, dtype=np.int64)
        strict = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) == 1
    agrees = (label == exact.label) & strict & np.isfinite(logits).all(axis=1)
    return dataclasses.replace(exact, label=label.astype(np.int64), radius=np.where(agrees, exact.radius, 0.0))
