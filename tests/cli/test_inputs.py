"""Damaged input files: any byte may change and any tail may go; the answer is an array or an ``InputError``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipdeploy.cli import inputs
from lipdeploy.errors import InputError
from lipdeploy.verify.verdict import TensorSpec

SPEC = (TensorSpec("x", np.dtype(np.float32), (None, 1, 2, 2)),)
ARRAY = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)


def saved(write: Callable[..., None], **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    write(buffer, **arrays) if arrays else write(buffer, ARRAY)
    return buffer.getvalue()


def image() -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pillow.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, kept=st.floats(0.5, 1.0))
def test_a_damaged_file_is_an_array_or_an_input_error(
    tmp_path: Path, suffix: str, edits: list[tuple[float, int]], kept: float
) -> None:
    content = {".npy": lambda: saved(np.save), ".npz": lambda: saved(np.savez, x=ARRAY), ".png": image}[suffix]()
    data = bytearray(content[: int(len(content) * kept) + 1])
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert isinstance(inputs.read_samples(str(path), SPEC), np.ndarray)
        except InputError as problem:
            assert str(path) in problem.message


def test_an_encrypted_archive_is_an_input_error(tmp_path: Path) -> None:
    data = bytearray(saved(np.savez, x=ARRAY))
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        inputs.read_array(str(tmp_path / "x.npz"))


def test_a_header_that_never_ends_is_an_input_error(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'shape': (((((".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match="not a readable NumPy file"):
        inputs.read_array(str(tmp_path / "x.npy"))


def test_a_header_that_claims_a_terabyte_is_an_input_error(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (200000000000,), }".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match="not a readable NumPy file"):
        inputs.read_array(str(tmp_path / "x.npy"))
