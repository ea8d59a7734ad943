"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lipdeploy.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file in the same folder, then rename it onto ``path``.

    Raises ``InputError`` when the folder cannot be written; an existing file is then untouched.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one, unless it leads to itself
    if os.path.exists(path) and not path.is_file():
        raise InputError(f"{path}: not a regular file, it would be replaced", hint="choose another path")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written: {reason}", hint="choose a folder that exists and is writable"
        ) from error


def make_folder(path: Path) -> None:
    """Create the folder ``path``, with those above it, unless it is there. Raises ``InputError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be created: {reason}", hint="choose a folder that can be written") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
