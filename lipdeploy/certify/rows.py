"""Where the numbers of a data set come from, a block of rows at a time: mapped files, compressed streams, images.

Nothing here holds a whole data set: a mapped file is paged in by the system as its rows are asked for, a compressed
one is read forwards, and an image is decoded when its row comes up.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from lipdeploy.certify.images import open_image
from lipdeploy.errors import InputError

Array = np.ndarray[Any, Any]

#: What NumPy, zipfile, gzip and zlib raise on a damaged, foreign or encrypted file.
DAMAGED = (
    ValueError, EOFError, KeyError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, MemoryError,
    RuntimeError, OverflowError, NotImplementedError,
)  # fmt: skip
NUMBERS = "fiub"
LOCAL_HEADER = 30
SKIP_BYTES = 2**20


class Rows(Protocol):
    """N samples of one shape and element type. ``shape`` includes N; ``where`` names the file and the field."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, …)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        ...

    @property
    def where(self) -> str:
        """File and field."""
        ...

    def blocks(self, chosen: Sequence[range]) -> Iterator[Array]:
        """One array per range of row numbers; the ranges ascend and do not overlap."""
        ...


@dataclass(frozen=True)
class Mapped:
    """An array in memory, or mapped from a file."""

    array: Array
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, …)."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type, in the machine's byte order."""
        native_type: np.dtype[Any] = self.array.dtype.newbyteorder("=")
        return native_type

    def blocks(self, chosen: Sequence[range]) -> Iterator[Array]:
        """Copies of the rows asked for; only their pages are read."""
        for rows in chosen:
            yield native(np.array(self.array[rows.start : rows.stop]))


@dataclass(frozen=True)
class Streamed:
    """An array inside a compressed file; ``open_at_first_row`` gives a stream that stands on row 0."""

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    where: str
    open_at_first_row: Callable[[], IO[bytes]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type, in the machine's byte order."""
        return self.stored.newbyteorder("=")

    def blocks(self, chosen: Sequence[range]) -> Iterator[Array]:
        """The rows asked for, decompressed on the way; what lies between is skipped."""
        if not chosen:
            return
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.stored.itemsize
        at = 0
        with reading(self.where), closing(self.open_at_first_row()) as stream:
            for rows in chosen:
                _skip(stream, (rows.start - at) * row)
                data = stream.read(len(rows) * row)
                if len(data) != len(rows) * row:
                    raise EOFError(f"it ends before row {rows.stop}")
                at = rows.stop
                yield native(np.frombuffer(data, self.stored).reshape((len(rows), *self.shape[1:])))
            if at == self.shape[0] and stream.read(1):  # at the end the checksum is compared
                raise ValueError("it goes on after its last row")


@dataclass(frozen=True)
class Images:
    """Image files, each (channels, height, width) of uint8, all of the first one's shape."""

    paths: tuple[Path, ...]
    shape: tuple[int, ...]
    where: str

    dtype = np.dtype(np.uint8)

    def blocks(self, chosen: Sequence[range]) -> Iterator[Array]:
        """Decoded pixels as they are stored, 0 … 255."""
        for rows in chosen:
            yield np.stack([self._pixels(self.paths[row]) for row in rows])

    def _pixels(self, path: Path) -> Array:
        pixels = open_image(path)
        if pixels.shape != self.shape[1:]:
            found, first = ("×".join(map(str, sizes)) for sizes in (pixels.shape, self.shape[1:]))
            hint = "resize or convert the images to one size and one number of channels"
            raise InputError(f"{path}: the image is {found}, but {self.paths[0]} is {first}", hint=hint)
        return pixels


@contextmanager
def reading(where: str, hint: str = "check that the file was copied whole, or save it again") -> Iterator[None]:
    """Turn what a missing or damaged file raises into one ``InputError`` that names it."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as problem:
        raise InputError(f"{where}: {problem.strerror}", hint="check the path and its permissions") from problem
    except OSError as problem:  # gzip's own has no strerror
        raise InputError(f"{where}: {problem.strerror or first_line(problem)}", hint=hint) from problem
    except DAMAGED as problem:
        raise InputError(f"{where}: not readable ({first_line(problem)})", hint=hint) from problem


def npy_rows(path: Path, *, offset: int = 0, size: int | None = None, where: str = "") -> Mapped:
    """The array of the .npy data that begins at byte ``offset`` of ``path``, mapped; ``size``: how long it must be."""
    where = where or str(path)
    with reading(where, "save it again with numpy.save or numpy.savez"), open(path, "rb") as file:
        file.seek(offset)
        shape, fortran, dtype = _header(file)
        _check_numbers(where, dtype)
        if size is not None and file.tell() - offset + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"its header says {shape}, and its data has another length")
        if 0 in shape:  # an empty file part cannot be mapped
            return Mapped(np.empty(shape, dtype), where)
        order: Any = "F" if fortran else "C"
        mapped: Array = np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)
        return Mapped(mapped, where)


def npz_rows(path: Path) -> dict[str, Mapped | Streamed]:
    """Every array of a .npz file by name: mapped where it is stored as it is, streamed where it is compressed."""
    hint = "save it again with numpy.savez"
    with reading(str(path), hint), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename[:-4]: _member(path, archive, info) for info in members}


def native(array: Array) -> Array:
    """The same numbers in the machine's byte order."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def first_line(problem: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(problem) or type(problem).__name__).splitlines()[0][:200]


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Mapped | Streamed:
    where = f"{path}, field '{info.filename[:-4]}'"
    if info.flag_bits & 1:
        raise InputError(f"{where}: encrypted", hint="save it again with numpy.savez")
    if info.compress_type == zipfile.ZIP_STORED:
        with reading(where, "save it again with numpy.savez"), archive.open(info) as stream:
            _skip(stream, info.file_size)
            stream.read(1)  # at the end zipfile compares the checksum
        return npy_rows(path, offset=_data_offset(path, info), size=info.file_size, where=where)
    with reading(where, "save it again with numpy.savez"), archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
    _check_numbers(where, dtype)
    if fortran and len(shape) > 1:
        hint = "save numpy.ascontiguousarray(x), or use numpy.savez without compression"
        raise InputError(f"{where}: compressed in column order, so its rows cannot be streamed", hint=hint)

    def open_at_first_row() -> IO[bytes]:
        stream = zipfile.ZipFile(path).open(info.filename)  # noqa: SIM115  (the caller closes it)
        _header(stream)
        return stream

    return Streamed(shape, dtype, where, open_at_first_row)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: the local header repeats name and extra field, in lengths of its own."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {info.filename}")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + LOCAL_HEADER + name + extra


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f".npy version {version} holds named fields, not numbers")


def _check_numbers(where: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in NUMBERS:
        raise InputError(f"{where}: holds {dtype}, not numbers", hint="save a float32 or uint8 array")


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        got = len(stream.read(min(count, SKIP_BYTES)))
        if got == 0:
            raise EOFError("it is cut off")
        count -= got
