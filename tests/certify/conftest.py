"""A classifier whose radii are known by hand, and data sets for it in every format."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import DENSE, cli, write_model

__all__ = ["cli"]

Array = np.ndarray[Any, Any]

#: y = (0.75 x0 + 0.25, −0.5 x1): the difference of the logits has the constant √(0.75² + 0.5²).
PAIR = np.sqrt(0.75**2 + 0.5**2)

#: Four grey pixels in a square, and two classes: the upper row against the lower one; one more unit is half a pixel.
SQUARE = """
<ir_version: 9, opset_import: ["": 20]>
square (float[N, 1, 2, 2] x) => (float[N, 2] y)
<float[4, 2] w = {1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0}> {
  [flat] f = Flatten (x)
  [head] y = MatMul (f, w)
}
"""


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return write_model(tmp_path / "dense.onnx", DENSE)


@pytest.fixture
def square(tmp_path: Path) -> Path:
    return write_model(tmp_path / "square.onnx", SQUARE)


def truth(x: Array) -> tuple[Array, Array]:
    """Labels and real radii of the dense model, in float64."""
    gap = (0.75 * x[:, 0].astype(np.float64) + 0.25) - (-0.5 * x[:, 1].astype(np.float64))
    return np.where(gap > 0, 0, 1), np.abs(gap) / PAIR


def samples(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Rows for the dense model, and labels of which about three quarters are what it says."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 2)).astype(np.float32)
    said = truth(x)[0]
    return x, np.where(random.random(count) < 0.75, said, 1 - said).astype(np.int64)


def write_npz(path: Path, x: Array, y: Array, *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, x=x, y=y)
    return path


def idx(array: Array, kind: int = 0x08) -> bytes:
    """The bytes of an IDX file, written from its description."""
    header = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx_pair(folder: Path, x: Array, y: Array, *, packed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in (("t10k-images-idx3-ubyte", x), ("t10k-labels-idx1-ubyte", y)):
        data = idx(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return folder / ("t10k-images-idx3-ubyte" + ".gz" * packed)


def write_folder(folder: Path, x: Array, y: Array, names: tuple[str, ...]) -> Path:
    image = pytest.importorskip("PIL.Image")
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        place = folder / names[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(place / f"{number:04d}.png")
    return folder
