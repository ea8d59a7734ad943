"""IDX files, the format of MNIST: two zero bytes, a type, a rank, big-endian sizes, big-endian numbers."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from lipdeploy.certify.rows import Mapped, Streamed, reading
from lipdeploy.errors import InputError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


def is_idx(path: Path) -> bool:
    """Whether the file begins as an IDX file does (unpacked first, where it is gzipped)."""
    try:
        with _opened(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in TYPES and head[3] > 0


def idx_rows(path: Path) -> Mapped | Streamed:
    """The array of an IDX file: mapped, or streamed where it is gzipped."""
    with reading(str(path)), _opened(path) as file:
        shape, dtype = _header(path, file)
        start = 4 + 4 * len(shape)
        if _is_gzip(path):
            return Streamed(shape, dtype, str(path), lambda: _at(path, start))
        expected = start + int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if path.stat().st_size != expected:
            hint = "check that the file was copied whole"
            raise InputError(f"{path}: {path.stat().st_size} bytes, its header promises {expected}", hint=hint)
        if 0 in shape:
            return Mapped(np.empty(shape, dtype), str(path))
        mapped: np.ndarray[Any, Any] = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)
        return Mapped(mapped, str(path))


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    head = file.read(4)
    if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
        hint = "an IDX file begins with two zero bytes and a type (MNIST's *-ubyte files)"
        raise InputError(f"{path}: not an IDX file", hint=hint)
    sizes = file.read(4 * head[3])
    if len(sizes) != 4 * head[3]:
        raise EOFError("its header is cut off")
    return struct.unpack(f">{head[3]}I", sizes), np.dtype(TYPES[head[2]])


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == GZIP_MAGIC


def _opened(path: Path) -> IO[bytes]:
    file: Any = gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")  # noqa: SIM115
    return cast(IO[bytes], file)


def _at(path: Path, start: int) -> IO[bytes]:
    file = _opened(path)
    file.read(start)
    return file
