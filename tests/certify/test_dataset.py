"""Readers against the arrays that were written, in blocks of every size; damaged files are one clear error."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipdeploy.certify.dataset import DataSet, check_labels, open_data
from lipdeploy.certify.idx import idx_rows
from lipdeploy.certify.images import fitted, open_image
from lipdeploy.errors import InputError
from tests.certify.conftest import idx, write_folder, write_idx_pair, write_npz

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 2, 2), np.uint8)
LABELS = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0], np.uint8)


def whole(data: DataSet, size: int) -> np.ndarray[Any, Any]:
    ranges = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    return np.concatenate(list(data.blocks(ranges)))


def written(kind: str, folder: Path) -> Path:
    if kind in ("npz", "compressed"):
        return write_npz(folder / "d.npz", PIXELS, LABELS, compressed=kind == "compressed")
    if kind == "npy":
        np.save(folder / "x.npy", PIXELS)
        np.save(folder / "y.npy", LABELS)
        return folder / "x.npy"
    if kind == "columns":
        np.savez(folder / "d.npz", x=np.asfortranarray(PIXELS), y=LABELS)
        return folder / "d.npz"
    return write_idx_pair(folder, PIXELS, LABELS, packed=kind == "idx.gz")


@pytest.mark.parametrize("size", [1, 3, 11, 100])
@pytest.mark.parametrize("kind", ["npz", "compressed", "columns", "npy", "idx", "idx.gz"])
def test_what_was_written_is_read_in_blocks(kind: str, size: int, tmp_path: Path) -> None:
    data = open_data(str(written(kind, tmp_path)))
    np.testing.assert_array_equal(whole(data, size), PIXELS)
    np.testing.assert_array_equal(data.labels, LABELS)
    assert data.labels.dtype == np.int64
    taken = data.take([7, 2, 7])
    assert sorted(taken) == [2, 7]
    np.testing.assert_array_equal(taken[7], PIXELS[7])


@pytest.mark.parametrize(("code", "kind"), [(8, "u1"), (9, "i1"), (0xB, "i2"), (0xC, "i4"), (0xD, "f4"), (0xE, "f8")])
def test_idx_numbers_come_in_the_machines_byte_order(code: int, kind: str, tmp_path: Path) -> None:
    array = np.array([[1, 2], [3, 100]], kind)
    for name, data in (("a", idx(array, code)), ("b.gz", gzip.compress(idx(array, code)))):
        (tmp_path / name).write_bytes(data)
        (block,) = idx_rows(tmp_path / name).blocks([range(0, 2)])
        assert block.dtype == np.dtype(kind)
        np.testing.assert_array_equal(block, array)


@pytest.mark.parametrize(
    ("samples", "labels"),
    [("x.npy", "y.npy"), ("test_x.npy", "test_y.npy"), ("x_test.npy", "y_test.npy"), ("X-val.npy", "y-val.npy"),
     ("test-images.npy", "test-labels.npy")],
)  # fmt: skip
def test_labels_are_found_beside_the_samples(samples: str, labels: str, tmp_path: Path) -> None:
    np.save(tmp_path / samples, PIXELS)
    np.save(tmp_path / labels, LABELS)
    np.testing.assert_array_equal(open_data(str(tmp_path / samples)).labels, LABELS)


@pytest.mark.parametrize("names", [("0", "1"), ("10", "2"), ("cat", "dog")])
def test_a_folder_of_images(names: tuple[str, str], tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", PIXELS, LABELS, names)
    (path / names[0] / "notes.txt").write_text("not an image")
    data = open_data(str(path), classes=2, class_names=("dog", "cat") if names[0] == "cat" else ())
    numbers = {"cat": 1, "dog": 0} if names[0] == "cat" else {name: int(name) for name in names}
    order = sorted(range(11), key=lambda row: (names[LABELS[row]], row))
    np.testing.assert_array_equal(whole(data, 4)[:, 0], PIXELS[order])
    np.testing.assert_array_equal(data.labels, [numbers[names[LABELS[row]]] for row in order])
    assert data.left_out == 1


def test_unnamed_classes_need_one_folder_each(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", PIXELS, LABELS, ("cat", "dog"))
    assert sorted(set(open_data(str(path), classes=2).labels.tolist())) == [0, 1]
    with pytest.raises(InputError, match="2 sub-folders, the model has 3 classes without names"):
        open_data(str(path), classes=3)
    with pytest.raises(InputError, match="sub-folder 'dog' is none of the model's classes"):
        open_data(str(path), classes=2, class_names=("cat", "cow"))


@pytest.mark.parametrize(
    ("name", "kind", "phrase"),
    [
        ("1/annex.png", "broken link", "annex.png: a link to nothing"),
        ("1/deep/annex.png", "broken link", "annex.png: a link to nothing"),
        ("2", "broken link", "2: a link to nothing"),
        ("1/pipe.png", "pipe", "pipe.png: not a regular file"),
        ("pipe.png", "pipe", "pipe.png: not a regular file"),
        ("1/more", "link to a folder", "more: a link to a folder, which is not followed"),
        ("stray.png", "image", "stray.png: lies in no sub-folder, so it has no class"),
    ],
)
def test_no_image_is_left_out_uncounted(name: str, kind: str, phrase: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", PIXELS, LABELS, ("0", "1"))
    odd = path / name
    odd.parent.mkdir(exist_ok=True)
    {
        "broken link": lambda: odd.symlink_to("nowhere.png"),
        "pipe": lambda: os.mkfifo(odd),
        "link to a folder": lambda: odd.symlink_to("../0"),
        "image": lambda: odd.symlink_to("0/0000.png"),
    }[kind]()
    with pytest.raises(InputError, match=phrase):
        open_data(str(path), classes=2)


def test_links_to_images_and_to_classes_are_followed_and_other_files_counted(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "elsewhere", PIXELS, LABELS, ("0", "1"))
    linked = tmp_path / "set"
    (linked / "0").mkdir(parents=True)
    (linked / "1").symlink_to(path / "1")
    (linked / "0" / "a.png").symlink_to(path / "0" / "0000.png")
    (linked / "README").write_text("not an image")
    data = open_data(str(linked), classes=2)
    assert (len(data), data.left_out) == (1 + int(LABELS.sum()), 1)


def test_images_of_two_sizes_are_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", PIXELS, LABELS, ("0", "1"))
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((3, 2), np.uint8)).save(path / "1" / "odd.png")
    data = open_data(str(path), classes=2)
    with pytest.raises(InputError, match=r"odd\.png: the image is 1×3×2, but .* is 1×2×2"):
        whole(data, 4)


def test_the_digest_changes_with_a_byte_and_a_name(tmp_path: Path) -> None:
    path = written("npz", tmp_path)
    first = open_data(str(path)).digest()
    assert first == open_data(str(path)).digest()
    changed = PIXELS.copy()
    changed[3, 1, 1] ^= 1
    assert open_data(str(write_npz(path, changed, LABELS))).digest() != first
    folder = write_folder(tmp_path / "set", PIXELS, LABELS, ("0", "1"))
    before = open_data(str(folder), classes=2).digest()
    (folder / "0" / "0000.png").rename(folder / "1" / "0000.png")
    assert open_data(str(folder), classes=2).digest() != before


@pytest.mark.parametrize("compressed", [False, True])
def test_a_large_set_is_never_held_whole(compressed: bool, tmp_path: Path) -> None:
    x = np.zeros((4000, 64, 64), np.uint8)
    data = open_data(str(write_npz(tmp_path / "d.npz", x, np.zeros(4000, np.int64), compressed=compressed)))
    tracemalloc.start()
    for _ in data.blocks([range(start, start + 100) for start in range(0, 4000, 100)]):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 4


BAD = [
    ("no y", "no field 'y' (it holds x)"),
    ("lengths", "holds 11 samples, .*field 'y' 10 labels"),
    ("one-hot", "labels have shape .11, 2., expected .N,."),
    ("floats", "labels are float64, not whole numbers"),
    ("text", "field 'x': holds <U1, not numbers"),
    ("empty", "holds no samples"),
    ("scalar rows", "has no axis of values"),
    ("suffix", "unknown kind of data set"),
    ("missing", "No such file"),
    ("no pair", "no labels beside it .looked for labels-of-mine.npy"),
    ("bare folder", "no sub-folders"),
]


def bad(kind: str, folder: Path) -> Path:
    path, x, y = folder / "bad.npz", PIXELS, LABELS
    if kind == "no y":
        np.savez(path, x=x)
    elif kind == "suffix":
        path = folder / "bad.csv"
        path.write_text("1,2")
    elif kind == "missing":
        return folder / "nowhere.npz"
    elif kind == "no pair":
        path = folder / "images-of-mine.npy"
        np.save(path, x)
    elif kind == "bare folder":
        return folder
    else:
        x, y = {
            "lengths": (x, y[:10]), "one-hot": (x, np.eye(2, dtype=int)[y]), "floats": (x, y * 1.0),
            "text": (np.array(["a"] * 11), y), "empty": (x[:0], y[:0]), "scalar rows": (x[:, 0, 0], y),
        }[kind]  # fmt: skip
        write_npz(path, x, y)
    return path


@pytest.mark.parametrize(("kind", "phrase"), BAD)
def test_bad_data_is_named_with_what_to_try(kind: str, phrase: str, tmp_path: Path) -> None:
    path = bad(kind, tmp_path)
    with pytest.raises(InputError, match=phrase.replace("(it", r"\(it").replace("x)", r"x\)")) as problem:
        open_data(str(path))
    assert str(path.name) in problem.value.message
    assert problem.value.hint


@pytest.mark.parametrize(
    ("labels", "phrase", "hint"),
    [([0, 2, 1], "label 2 at row 1, the model has classes 0 … 1", "number the classes from 0"),
     ([1, 2, 1], "label 2 at row 1", "save y - 1"), ([0, -1, 1], "label -1 at row 1", "number the classes")],
)  # fmt: skip
def test_labels_out_of_range_are_named(labels: list[int], phrase: str, hint: str, tmp_path: Path) -> None:
    data = open_data(str(write_npz(tmp_path / "d.npz", PIXELS[:3], np.array(labels))))
    with pytest.raises(InputError, match=phrase) as problem:
        check_labels(data, 2, 3)
    assert hint in problem.value.hint
    assert "field 'y'" in problem.value.message
    check_labels(data, 2, 1) if labels[0] == 0 else None


@pytest.mark.parametrize("kind", ["npz", "compressed", "idx", "idx.gz"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), kept=st.floats(0.5, 1.0))
def test_a_damaged_file_is_read_or_is_an_input_error(
    tmp_path: Path, kind: str, edits: list[tuple[float, int]], kept: float
) -> None:
    path = written(kind, tmp_path)
    content = bytearray(path.read_bytes())
    data = bytearray(content[: int(len(content) * kept) + 1])
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = open_data(str(path))
            rows = whole(opened, 4)
            assert len(rows) == len(opened)
            assert kind == "idx" or np.array_equal(rows, PIXELS)  # IDX alone has no checksum
        except InputError as problem:
            assert path.name.partition("-")[0] in problem.message


@pytest.mark.parametrize("kind", ["npz", "compressed", "idx.gz"])
def test_one_flipped_bit_of_the_samples_is_noticed(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(PIXELS.tobytes()[:8]) if kind == "npz" else len(content) // 2 if kind == "idx.gz" else 200
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError):
        whole(open_data(str(path)), 4)


def test_a_stored_member_shorter_than_its_header_says(tmp_path: Path) -> None:
    buffer, labels = io.BytesIO(), io.BytesIO()
    np.save(buffer, PIXELS)
    np.save(labels, LABELS)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue()[:-8])
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(InputError, match="its data has another length"):
        open_data(str(tmp_path / "d.npz"))


def test_bytes_after_the_last_row_of_a_packed_idx_file(tmp_path: Path) -> None:
    path = written("idx.gz", tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))
    with pytest.raises(InputError, match="goes on after its last row"):
        whole(open_data(str(path)), 4)


def _png(path: Path, depth: int, colour: int, row: bytes) -> None:
    """One row of pixels, as the PNG standard writes it."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", len(row) * 8 // (depth * samples), 1, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_images_of_16_bits_lose_nothing_silently(colour: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    _png(tmp_path / "a.png", 16, colour, b"\x12\xff\x34\x00" * 12)
    with pytest.raises(InputError, match=r"a\.png: .*(16 bits|pixels)"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["bmp", "png", "jpg", "webp"])
@pytest.mark.parametrize("width", [16, 160])
def test_a_size_of_16_is_no_depth_of_16(kind: str, width: int, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for mode in ("L", "RGB"):
        image.new(mode, (width, 4)).save(tmp_path / f"a.{kind}")
        assert open_image(tmp_path / f"a.{kind}").shape[-1] == width


@pytest.mark.parametrize(("depth", "row"), [(1, 0b10100000), (2, 0b11001100), (8, 255)])
def test_white_is_255_in_every_depth(depth: int, row: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    _png(tmp_path / "a.png", depth, 0, bytes([row]))
    read = open_image(tmp_path / "a.png")[0, 0]
    assert read[0] == 255
    assert set(read.tolist()) <= {0, 255}


def test_a_compressed_stream_that_ends_early_names_its_field(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    (tmp_path / "images.npy").write_bytes(buffer.getvalue()[:-8])
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(InputError, match=r"images\.npy: not readable"):
        open_data(str(tmp_path / "images.npy"))


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [((28, 28), (1, 28, 28), True), ((28, 28), (784,), True), ((1, 28, 28), (784,), True), ((784,), (784,), True),
     ((3, 32, 32), (3, 32, 32), True), ((32, 32, 3), (3, 32, 32), False), ((3, 4, 5), (60,), False),
     ((784,), (1, 28, 28), False), ((28, 14), (14, 28), False)],
)  # fmt: skip
def test_only_layouts_beyond_doubt_are_accepted(found: tuple[int, ...], wanted: tuple[int, ...], fits: bool) -> None:
    assert fitted(found, wanted) is fits
