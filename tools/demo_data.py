"""Data: scikit-learn's digits, Fashion-MNIST from Debian's package, and MNIST."""

from __future__ import annotations

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MNIST_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"  # beside the checkout
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
HELD_OUT_DIGITS = 500


class DatasetMissing(Exception):
    """The data set is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Dataset:
    """Images (N, 1, H, W) as float32 grey levels from 0 to ``full_scale``, with labels (N,) int64."""

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    full_scale: int
    classes: tuple[str, ...]

    @property
    def units(self) -> str:
        """What a radius is measured in."""
        return f"grey levels (a pixel runs from 0 to {self.full_scale})"


def digits() -> Dataset:
    """scikit-learn's 1,797 images of 8 × 8, grey levels 0 … 16; a fixed, stratified split holds 500 out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = source.images.astype(np.float32)[:, None]
    labels = source.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=HELD_OUT_DIGITS, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = split
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", train_images, train_labels, test_images, test_labels, 16, classes)


def fashion() -> Dataset:
    """60,000 + 10,000 images of 28 × 28, grey levels 0 … 255, from ``LIPDEPLOY_DATA`` or Debian's folder.

    Raises ``DatasetMissing`` when a file is not there.
    """
    images = {part: _read_idx(f"{part}-images-idx3-ubyte") for part in ("train", "t10k")}
    labels = {part: _read_idx(f"{part}-labels-idx1-ubyte").astype(np.int64) for part in ("train", "t10k")}
    as_float = {part: pixels.astype(np.float32)[:, None] for part, pixels in images.items()}
    return Dataset(
        "fashion", as_float["train"], labels["train"], as_float["t10k"], labels["t10k"], 255, FASHION_CLASSES
    )


def mnist() -> Dataset:
    """60,000 + 10,000 images of 28 × 28, grey levels 0 … 255, from ``LIPDEPLOY_DATA`` or beside the checkout.

    The files are train.npz and test.npz with ``x`` and ``y``. Raises ``DatasetMissing`` when one is not there.
    """
    chosen = os.environ.get("LIPDEPLOY_DATA")
    folders = [Path(chosen), Path(chosen) / "mnist"] if chosen else [MNIST_FOLDER]
    parts = []
    for name in ("train.npz", "test.npz"):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            raise DatasetMissing(
                f"MNIST is not installed: no {name} in {' or '.join(map(str, folders))}. Set LIPDEPLOY_DATA to one "
                "with train.npz and test.npz (x: (N, 28, 28) uint8, y: (N,))"
            )
        with np.load(path) as file:
            parts += [file["x"].astype(np.float32)[:, None], file["y"].astype(np.int64)]
    return Dataset("mnist", *parts, 255, tuple(str(digit) for digit in range(10)))


def _read_idx(stem: str) -> Array:
    data = _find(stem)
    zeros, kind, rank = struct.unpack_from(">HBB", data)
    if zeros != 0 or kind != 8:
        raise DatasetMissing(f"{stem} is not an IDX file of bytes; reinstall dataset-fashion-mnist")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def _find(stem: str) -> bytes:
    chosen = os.environ.get("LIPDEPLOY_DATA")
    folders = [Path(chosen), Path(chosen) / "fashion-mnist"] if chosen else [FASHION_FOLDER]
    for folder in folders:
        if (folder / stem).is_file():
            return (folder / stem).read_bytes()
        if (folder / f"{stem}.gz").is_file():
            return gzip.decompress((folder / f"{stem}.gz").read_bytes())
    raise DatasetMissing(
        f"Fashion-MNIST is not installed: no {stem} (or {stem}.gz) in {' or '.join(map(str, folders))}. Run "
        "'apt-get update && apt-get install -y dataset-fashion-mnist' (31 MB), or set LIPDEPLOY_DATA to a folder with "
        "the four IDX files"
    )
