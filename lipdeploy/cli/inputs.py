"""Reads the arrays that people hand to commands: .npy, .npz and .png, each failure one clear line."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.cli.needs import need
from lipdeploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lipdeploy.verify.verdict import TensorSpec

    Array = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = (".npy", ".npz", ".png")
SAMPLES = "x"
#: What NumPy, zipfile and zlib raise on a damaged, foreign or encrypted file.
DAMAGED = (
    ValueError, EOFError, KeyError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, MemoryError,
    RuntimeError,
)  # fmt: skip


def read_array(path: str) -> Array:
    """The array in a .npy file, or the array ``x`` (or the only one) of a .npz file; ``InputError`` otherwise."""
    arrays = _load(path)
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if SAMPLES not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"{path}: no array named '{SAMPLES}' (it holds {held})", hint=f"numpy.savez(F, {SAMPLES}=…)")
    return arrays[SAMPLES]


def read_samples(path: str, specs: Sequence[TensorSpec]) -> Array | dict[str, Array]:
    """The batch in ``path``, laid out for the model's input: a lone sample gets its batch axis.

    For a model with several inputs, the .npz file's arrays by name.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of input file '{suffix}'", hint=f"one of {', '.join(SUFFIXES)}")
    if len(specs) > 1:
        return _load(path)
    array = _read_image(path, specs[0]) if suffix == ".png" else read_array(path)
    return array[None] if array.ndim == len(specs[0].shape) - 1 else array


def read_lines(path: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file (class names); none may be blank."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 text", hint="write one class name per line, in UTF-8") from problem
    for position, text in enumerate(lines, start=1):
        if not text.strip():
            raise InputError(f"{path}, line {position}: blank", hint="write one class name per line")
    if not lines:
        raise InputError(f"{path}: empty", hint="write one class name per line")
    return tuple(text.strip() for text in lines)


def _load(path: str) -> dict[str, Array]:
    """Every array in the file, by name; a .npy file's only one is called ``x``."""
    import numpy as np

    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = (
                {SAMPLES: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
            )
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    except DAMAGED as problem:
        hint = "save it again with numpy.save or numpy.savez"
        raise InputError(f"{path}: not a readable NumPy file ({_first_line(problem)})", hint=hint) from problem
    return {name: _numbers(path, array) for name, array in arrays.items()}


def _numbers(path: str, array: Array | bytes) -> Array:
    if isinstance(array, bytes):  # what numpy makes of a member that is no .npy file
        raise InputError(f"{path}: not a readable NumPy file (it holds other files)", hint="numpy.savez(F, x=…)")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {array.dtype}, not numbers", hint="save a float32 array")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _unreadable(path: str, problem: OSError) -> InputError:
    return InputError(f"{path}: {problem.strerror or problem}", hint="check the path and its permissions")


def _read_image(path: str, spec: TensorSpec) -> Array:
    """Pixels as they are stored, 0 … 255: preprocessing belongs in the graph (``export --input-scale …``)."""
    need("PIL", purpose=f"{path}: reading a PNG", install="pillow")
    from lipdeploy.certify.images import open_image

    return _as_sample(path, open_image(path), spec)


def _as_sample(path: str, planes: Array, spec: TensorSpec) -> Array:
    wanted = tuple(size or 0 for size in spec.shape[1:])
    if planes.shape == wanted:
        sample = planes
    elif len(planes) == 1 and wanted in (planes.shape[1:], (planes.size,)):
        sample = planes.reshape(wanted)  # one channel: its order as a vector is not in doubt
    else:
        found, needed = ("×".join(map(str, sizes)) for sizes in (planes.shape, wanted))
        raise InputError(f"{path}: the image is {found}, the model takes {needed}", hint="resize or convert the image")
    return sample.astype(spec.dtype) if spec.dtype.kind == "f" else sample


def _first_line(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0][:200]
