"""A data set on disk: samples, their labels, and a digest that says which one it was."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.certify.idx import idx_rows, is_idx
from lipdeploy.certify.images import FORMATS, open_image
from lipdeploy.certify.rows import Images, Mapped, Rows, Streamed, npy_rows, npz_rows, reading
from lipdeploy.errors import InputError

Array = np.ndarray[Any, Any]

SAMPLES, LABELS = "x", "y"
HASH_BYTES = 2**20
#: What the name of a file of samples turns into for its labels: MNIST's names, and the usual pairs.
PAIRS = (
    (r"images-idx\d-ubyte", "labels-idx1-ubyte"), (r"images", "labels"), (r"samples", "labels"),
    (r"^x(?=$|[._-])", "y"), (r"(?<=[._-])x(?=$|\.)", "y"), (r"^X(?=$|[._-])", "y"), (r"(?<=[._-])X(?=$|\.)", "y"),
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """N samples with their labels. ``files`` are read again for the digest; ``kind`` is npz, npy, idx or images.

    ``labels`` is int64 (N,); ``label_where`` names its file and field in messages.
    """

    kind: str
    path: str
    rows: Rows
    labels: Array
    label_where: str
    files: tuple[Path, ...]
    left_out: int = 0

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 over names (inside the data set) and bytes of its files."""
        whole = hashlib.sha256()
        folder = Path(self.path) if self.kind == "images" else None
        for path in self.files:
            name = path.relative_to(folder).as_posix() if folder else path.name
            whole.update(f"{name}\0{_file_digest(path)}\n".encode("utf-8", "surrogateescape"))
        return whole.hexdigest()

    def take(self, numbers: Sequence[int]) -> dict[int, Array]:
        """Single samples by their row number."""
        ordered = sorted(set(numbers))
        blocks = self.rows.blocks([range(number, number + 1) for number in ordered])
        return {number: block[0] for number, block in zip(ordered, blocks, strict=True)}

    def blocks(self, chosen: Sequence[range]) -> Iterator[Array]:
        """The samples of each range, ranges ascending."""
        return self.rows.blocks(chosen)


def open_data(
    path: str, *, labels: str | None = None, class_names: Sequence[str] = (), classes: int | None = None
) -> DataSet:
    """Open ``path``: .npz with ``x`` and ``y``, .npy or IDX samples with their labels beside them, or a folder.

    ``labels`` names the file with the labels where it has another name. ``class_names`` and the number of
    ``classes`` are the model's: they give the sub-folders of an image folder their numbers.
    Raises ``InputError`` naming the file, the field and what to try.
    """
    data = _opened(Path(path), labels, class_names, classes)
    if len(data.rows.shape) < 2 and data.kind != "images":
        hint = "one row per sample: shape (N, …)"
        raise InputError(f"{data.rows.where}: shape {data.rows.shape} has no axis of values", hint=hint)
    count = data.rows.shape[0]
    if count != len(data.labels):
        message = f"{data.rows.where} holds {count} samples, {data.label_where} {len(data.labels)} labels"
        raise InputError(message, hint="give each sample one label, in the same order")
    if not count:
        raise InputError(f"{path}: holds no samples", hint="give at least one")
    return data


def check_labels(data: DataSet, classes: int, limit: int) -> None:
    """``InputError`` unless each of the first ``limit`` labels is one of the model's 0 … ``classes`` − 1."""
    labels = data.labels[:limit]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = int(wrong[0])
        hint = "number the classes from 0, in the order of the model's outputs"
        if labels.min() >= 1 and labels.max() == classes:
            hint = "the classes seem to be numbered from 1: save y - 1"
        found = f"label {int(labels[first])} at row {first}, the model has classes 0 … {classes - 1}"
        raise InputError(f"{data.label_where}: {found}", hint=hint)


def _opened(path: Path, labels: str | None, class_names: Sequence[str], classes: int | None) -> DataSet:
    if path.is_dir():
        if labels is not None:
            raise InputError(f"{path}: a folder's labels are its sub-folders", hint="leave --labels out")
        return _folder(path, class_names, classes)
    with reading(str(path)), open(path, "rb"):
        pass  # says what is wrong with a path before its name is looked at
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz(path, labels)
    if suffix == ".npy":
        return _pair("npy", path, npy_rows(path), labels)
    if is_idx(path):
        return _pair("idx", path, idx_rows(path), labels)
    hint = "one of .npz (x and y), .npy, IDX (also .gz), or a folder with one sub-folder of images per class"
    raise InputError(f"{path}: unknown kind of data set", hint=hint)


def _npz(path: Path, labels: str | None) -> DataSet:
    fields = npz_rows(path)
    for name in (SAMPLES,) if labels else (SAMPLES, LABELS):
        if name not in fields:
            held = ", ".join(sorted(fields)) or "nothing"
            hint = "numpy.savez(F, x=samples, y=labels)"
            raise InputError(f"{path}: no field '{name}' (it holds {held})", hint=hint)
    if labels is None:
        found, files = fields[LABELS], [path]
    else:
        found, files = _label_rows(Path(labels)), [path, Path(labels)]
    return DataSet("npz", str(path), fields[SAMPLES], _as_labels(found), found.where, tuple(files))


def _pair(kind: str, path: Path, rows: Mapped | Streamed, labels: str | None) -> DataSet:
    other = Path(labels) if labels is not None else _beside(path)
    found = _label_rows(other)
    return DataSet(kind, str(path), rows, _as_labels(found), found.where, (path, other))


def _beside(path: Path) -> Path:
    """The file of labels that belongs to a file of samples by its name."""
    tried = []
    for pattern, replacement in PAIRS:
        name = re.sub(pattern, replacement, path.name, count=1)
        if name == path.name:
            continue
        plain = name.removesuffix(".gz")
        for candidate in dict.fromkeys((name, plain, f"{plain}.gz")):
            if (path.parent / candidate).is_file():
                return path.parent / candidate
            tried.append(candidate)
    looked = f" (looked for {', '.join(dict.fromkeys(tried))})" if tried else ""
    raise InputError(f"{path}: no labels beside it{looked}", hint="name their file with --labels")


def _label_rows(path: Path) -> Mapped | Streamed:
    with reading(str(path)), open(path, "rb"):
        pass
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return npy_rows(path)
    if suffix == ".npz":
        fields = npz_rows(path)
        if LABELS not in fields and len(fields) != 1:
            raise InputError(f"{path}: no field '{LABELS}'", hint="numpy.savez(F, y=labels)")
        return fields.get(LABELS) or next(iter(fields.values()))
    return idx_rows(path)


def _as_labels(found: Mapped | Streamed) -> Array:
    where, shape = found.where, found.shape
    if len(shape) != 1:
        hint = "save y.argmax(axis=1)" if len(shape) == 2 and shape[1] > 1 else "save one whole number per sample"
        raise InputError(f"{where}: labels have shape {shape}, expected (N,)", hint=hint)
    if found.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {found.dtype}, not whole numbers", hint="save y.astype('int64')")
    (values,) = found.blocks([range(shape[0])]) if shape[0] else (np.zeros(0, np.int64),)
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise InputError(f"{where}: label {values.max()} is no class number", hint="number the classes from 0")
    return values.astype(np.int64)


def _folder(path: Path, class_names: Sequence[str], classes: int | None) -> DataSet:
    with reading(str(path)):
        entries = sorted(path.iterdir())
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise InputError(f"{path}: no sub-folders", hint="one sub-folder of images per class")
    numbers = _class_numbers(path, [folder.name for folder in folders], class_names, classes)
    left_out = sum(_is_of_no_class(entry) for entry in entries if not entry.is_dir())
    images, labels = [], []
    for folder in folders:
        for file in _files_below(folder):
            if _is_image(file):
                images.append(file)
                labels.append(numbers[folder.name])
            else:
                left_out += 1
    if not images:
        known = ", ".join(FORMATS)
        raise InputError(f"{path}: no images in its sub-folders", hint=f"files that end in {known}")
    shape = (len(images), *open_image(images[0]).shape)
    rows = Images(tuple(images), shape, str(path))
    return DataSet(
        "images", str(path), rows, np.array(labels, np.int64), f"{path}: sub-folders", tuple(images), left_out
    )


def _is_of_no_class(entry: Path) -> bool:
    """True for a file beside the sub-folders, which is left out; an image there is a sample that nobody would count."""
    if _is_image(_present(entry)):
        raise InputError(
            f"{entry}: lies in no sub-folder, so it has no class", hint="move it into the sub-folder of its class"
        )
    return True


def _files_below(folder: Path) -> list[Path]:
    """Every file of a class, in order. What cannot be read is an error: left out, it would be a sample not counted."""
    found = []
    with reading(str(folder)):
        for parent, folders, files in os.walk(folder, onerror=_raise):
            for inner in (Path(parent, name) for name in folders):
                if inner.is_symlink():
                    raise InputError(
                        f"{inner}: a link to a folder, which is not followed", hint="copy its images there"
                    )
            found += [_present(Path(parent, name)) for name in files]
    return sorted(found)


def _raise(problem: OSError) -> None:
    raise problem


def _present(file: Path) -> Path:
    """``file``, unless it is a broken link (git-annex and DVC leave these for what was not fetched), or a pipe."""
    if not file.is_file():
        problem = "a link to nothing" if file.is_symlink() and not file.exists() else "not a regular file"
        raise InputError(f"{file}: {problem}", hint="fetch or copy the file, or delete the entry")
    return file


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in FORMATS and not file.name.startswith(".")


def _class_numbers(path: Path, names: Sequence[str], class_names: Sequence[str], classes: int | None) -> dict[str, int]:
    """By the names of the model's classes; else by number; else, one for each class, in order (as in torchvision)."""
    if class_names and set(names) <= set(class_names) and len(set(class_names)) == len(class_names):
        return {name: list(class_names).index(name) for name in names}
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return {name: int(name) for name in names}
    if class_names:
        strange = sorted(set(names) - set(class_names))[0]
        known = ", ".join(class_names[:12]) + (", …" if len(class_names) > 12 else "")
        hint = f"name the sub-folders after the model's classes: {known}"
        raise InputError(f"{path}: sub-folder '{strange}' is none of the model's classes", hint=hint)
    if classes is not None and len(names) != classes:
        hint = "name the sub-folders by the numbers of their classes"
        raise InputError(f"{path}: {len(names)} sub-folders, the model has {classes} classes without names", hint=hint)
    return {name: number for number, name in enumerate(names)}


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with reading(str(path)), open(path, "rb") as file:
        while data := file.read(HASH_BYTES):
            digest.update(data)
    return digest.hexdigest()
