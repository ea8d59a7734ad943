"""JSON of which there are no two readings: UTF-8, every key once, neither NaN nor Infinity."""

from __future__ import annotations

import json
from typing import Any


def parse(content: bytes) -> Any:
    """The document. Raises ``ValueError``, or ``RecursionError`` where it is nested too deeply."""
    text = content.decode()  # json.loads would guess the encoding of bytes
    document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key!r}")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
