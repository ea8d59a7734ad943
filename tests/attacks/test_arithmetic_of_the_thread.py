"""The thread's arithmetic is changed behind the verifier's back.

``torch.set_flush_denormal(True)``, or any library built with -ffast-math, makes the processor read subnormal numbers as
0. Weights of 1e-40, 1e38 and 100 in a row have the constant 1; with the first one read as 0 it was "proven" to be 0,
and a certificate said so. In another rounding mode, what is rounded up may lie below. Where the arithmetic is not that
of assumption A1, nothing is proven.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import numpy_helper

import lipdeploy as lip
from lipdeploy.errors import IntegrityError
from tests.verify.models import model

MODES = {"down": 0x400, "up": 0x800, "towards 0": 0xC00}  # FE_… of x86


@pytest.fixture
def rows() -> bytes:
    proto = model("g (float[N,2] x) => (float[N,2] y) { a = MatMul(x, A) b = MatMul(a, B) y = MatMul(b, C) }")
    for name, scale in (("A", 1e-40), ("B", 1e38), ("C", 100.0)):
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32) * np.float32(scale), name))
    return proto.SerializeToString()


@pytest.fixture
def flushing() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    yield
    torch.set_flush_denormal(False)


def test_the_constant_is_1(rows: bytes) -> None:
    bound = lip.verify(rows).lipschitz_bound
    assert bound is not None
    assert 0.99 < bound.value < 1.01


def test_flushed_subnormals(rows: bytes, flushing: None) -> None:
    with pytest.raises(IntegrityError, match="not IEEE-754"):
        lip.verify(rows)


def test_flushed_while_the_proof_goes_on(rows: bytes) -> None:
    """Whoever watches the proof is code of others."""
    torch = pytest.importorskip("torch")
    try:
        with pytest.raises(IntegrityError, match="not IEEE-754"):
            lip.verify(rows, watch=lambda node, fraction: torch.set_flush_denormal(True))
    finally:
        torch.set_flush_denormal(False)


def test_flushed_for_part_of_the_proof(rows: bytes) -> None:
    """From the first call on, and no more at the last: at both ends the arithmetic is as it should be."""
    torch = pytest.importorskip("torch")
    told: list[float] = []

    def watch(node: str, fraction: float) -> None:
        told.append(fraction)
        torch.set_flush_denormal(fraction < 1.0)

    try:
        with pytest.raises(IntegrityError, match="not IEEE-754"):
            lip.verify(rows, watch=watch)
    finally:
        torch.set_flush_denormal(False)
    assert told[-1] < 1.0


def test_no_certificate_is_exported(tmp_path, flushing: None) -> None:
    import torch

    with pytest.raises(IntegrityError, match="not IEEE-754"):
        lip.export(torch.nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", MODES)
def test_another_rounding_mode(rows: bytes, mode: str) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    if library.fegetround() != 0 or library.fesetround(MODES[mode]) != 0:
        pytest.skip("the modes' numbers are those of x86")
    try:
        with pytest.raises(IntegrityError, match="not IEEE-754"):
            lip.verify(rows)
    finally:
        library.fesetround(0)
