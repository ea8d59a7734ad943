"""Samples as pictures: PNG data URIs, written here, so that a report needs no other file and no other package."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2
LARGEST_SIDE = 512


def drawable(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is a picture: (H, W), (1 or 3, H, W), or a vector of square length."""
    planes = _planes(shape)
    return planes is not None and min(planes[1:]) >= 2 and max(planes[1:]) <= LARGEST_SIDE


def pictures(samples: Mapping[int, Array]) -> dict[int, str]:
    """A ``data:`` URI for each sample by its number; one grey scale for all of them."""
    span = _span(list(samples.values()))
    return {number: _data_uri(_pixels(sample, *span)) for number, sample in samples.items()}


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    kept = tuple(size for size in shape if size != 1)
    if len(kept) == 1 and math.isqrt(kept[0]) ** 2 == kept[0]:
        return 1, math.isqrt(kept[0]), math.isqrt(kept[0])
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[0], shape[1], shape[2]
    return None


def _span(samples: list[Array]) -> tuple[float, float]:
    """Black and white: 0 and 1, or 0 and 255, where the values lie between; else the least and the largest."""
    low = min((float(sample.min()) for sample in samples), default=0.0)
    high = max((float(sample.max()) for sample in samples), default=1.0)
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    if low >= 0.0 and high <= 255.0:
        return 0.0, 255.0
    return low, high if high > low else low + 1.0


def _pixels(sample: Array, low: float, high: float) -> Array:
    planes = _planes(sample.shape)
    assert planes is not None  # the caller asked ``drawable``
    scaled = (sample.reshape(planes).astype(np.float64) - low) / (high - low)
    return np.clip(np.rint(scaled * 255.0), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _data_uri(pixels: Array) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def png(pixels: Array) -> bytes:
    """A PNG file of (height, width, 1 or 3) uint8."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR if channels == 3 else GREY, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
