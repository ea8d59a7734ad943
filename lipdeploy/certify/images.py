"""Image files as arrays of their stored pixels: preprocessing belongs in the graph (``export --input-scale …``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.errors import InputError

Array = np.ndarray[Any, Any]
#: File endings, and the decoders that may open such a file. The lossless ones and JPEG, nothing exotic.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}


def open_image(path: str | os.PathLike[str]) -> Array:
    """Pixels 0 … 255 of a file with 8 bits per channel: uint8 (channels, height, width).

    Raises ``InputError`` for what cannot be read, and for deeper images.
    """
    from PIL import Image, UnidentifiedImageError

    kind = FORMATS.get(Path(path).suffix.lower(), "PNG")
    try:
        with Image.open(path, formats=[kind]) as image:
            if any("16" in _raw_mode(tile) for tile in image.tile):  # Pillow would drop the low bytes of colours
                raise InputError(f"{path}: 16 bits per channel", hint="use an image with 8 bits per channel, or .npy")
            plain = {"P": "RGB", "1": "L"}.get(image.mode)  # a white bit is 255, as in every other depth
            pixels = np.asarray(image if plain is None else image.convert(plain))
    except FileNotFoundError as problem:
        raise InputError(f"{path}: {problem.strerror}", hint="check the path and its permissions") from problem
    except UnidentifiedImageError as problem:
        hint = f"convert it to {kind}, or save its pixels as .npy"
        raise InputError(f"{path}: not a {kind} image", hint=hint) from problem
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        message = (str(problem) or type(problem).__name__).splitlines()[0][:200]
        raise InputError(f"{path}: {message}", hint="check that the file was copied whole") from problem
    if pixels.dtype.name not in ("uint8", "bool"):
        raise InputError(f"{path}: {pixels.dtype} pixels", hint="use an image with 8 bits per channel, or .npy")
    pixels = pixels.astype(np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _raw_mode(tile: Any) -> str:
    """How a decoder finds the pixels in the file; some decoders note it first among sizes."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def fitted(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a sample of shape ``found`` can be laid out as ``wanted`` without doubt about the order of its values.

    The same sizes up to axes of length 1, or one channel whose values are wanted as a vector.
    """
    if found == wanted:
        return True
    kept = [size for size in found if size != 1]
    return kept == [size for size in wanted if size != 1] or (
        len(kept) <= 2 and wanted == (int(np.prod(found, dtype=np.int64)),)
    )
