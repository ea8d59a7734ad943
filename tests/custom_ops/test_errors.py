"""Bad attributes, shapes and types end in a clear message from ONNX Runtime, never in a crash."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.ops.runners import Entries, in_onnxruntime, model

X = np.zeros((2, 6, 3), np.float32)
TABLE = np.zeros((6, 5), np.float32)
SPLINE = {"lower": 0.0, "knot_spacing": 1.0}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group_size": 4}, r"GroupSort: group_size 4 does not divide the 6 channels of shape \(2, 6, 3\)"),
        ({"group_size": -1}, "GroupSort: group_size must be an integer >= 1, or 0 for the whole axis"),
        ({"layout": 2}, r"GroupSort: layout must be 0 \(adjacent\) or 1 \(strided\)"),
        ({"descending": 7}, "GroupSort: descending must be 0 or 1"),
        ({"axis": 3}, r"GroupSort: axis 3 does not exist in shape \(2, 6, 3\)"),
        ({"axis": -4}, "GroupSort: axis -4 does not exist"),
        ({"group_size": 2.0}, "attribute 'group_size'"),
        ({"group_size": "2"}, "attribute 'group_size'"),
    ],
)
def test_group_sort(attributes: dict[str, Any], message: str, ops_library: Path) -> None:
    file = model("GroupSort", X.shape, TensorProto.FLOAT, attributes, functions=False)
    with pytest.raises(Exception, match=message):
        in_onnxruntime(file, X, ops_library)


@pytest.mark.parametrize(
    ("attributes", "table", "message"),
    [
        (SPLINE, TABLE[:4], r"must have shape \(6, K\) or \(1, K\) with 2 to 2\^24 knots K, found \(4, 5\)"),
        (SPLINE, TABLE[:, :1], r"found \(6, 1\)"),
        (SPLINE, TABLE[0], r"found \(5\)"),
        (SPLINE, TABLE[None], r"found \(1, 6, 5\)"),
        ({"lower": 0.0}, TABLE, "attribute 'knot_spacing'"),
        ({"knot_spacing": 1.0}, TABLE, "attribute 'lower'"),
        ({"lower": 0.0, "knot_spacing": 0.0}, TABLE, "knot_spacing finite and > 0"),
        ({"lower": 0.0, "knot_spacing": -1.0}, TABLE, "knot_spacing finite and > 0"),
        ({"lower": 0.0, "knot_spacing": float("nan")}, TABLE, "knot_spacing finite and > 0"),
        ({"lower": float("inf"), "knot_spacing": 1.0}, TABLE, "lower must be finite"),
        ({**SPLINE, "axis": 5}, TABLE, "LinearSpline: axis 5 does not exist"),
        (SPLINE, TABLE.astype(np.float64), "LinearSpline"),
    ],
)
def test_linear_spline(attributes: dict[str, Any], table: np.ndarray, message: str, ops_library: Path) -> None:
    file = model("LinearSpline", X.shape, TensorProto.FLOAT, attributes, table, functions=False)
    with pytest.raises(Exception, match=message):
        in_onnxruntime(file, X, ops_library)


HALF = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("attributes", "angles", "message"),
    [
        ({}, (HALF, HALF[:2]), r"sine and cosine must have shape \(3\), found \(2\)"),
        ({}, (HALF[:, None], HALF), r"found \(3, 1\)"),
        ({"axis": 2}, (HALF, HALF), r"the 3 channels of shape \(2, 6, 3\) do not form pairs"),
        ({"axis": 3}, (HALF, HALF), "Householder: axis 3 does not exist"),
        ({"layout": 2}, (HALF, HALF), r"Householder: layout must be 0 \(adjacent\) or 1 \(strided\)"),
        ({}, (HALF, HALF.astype(np.float64)), "Householder"),
    ],
)
def test_householder(
    attributes: dict[str, Any], angles: tuple[np.ndarray, ...], message: str, ops_library: Path
) -> None:
    file = model("Householder", X.shape, TensorProto.FLOAT, attributes, angles, functions=False)
    with pytest.raises(Exception, match=message):
        in_onnxruntime(file, X, ops_library)


def test_a_type_that_no_kernel_has_is_refused(ops_library: Path) -> None:
    file = model("GroupSort", (2, 4), TensorProto.INT32, {}, functions=False)
    with pytest.raises(Exception, match=r"(?i)type"):
        in_onnxruntime(file, np.zeros((2, 4), np.int32), ops_library)


@pytest.mark.parametrize("suffix", ["cpu", "emulated"])
def test_entry_points_return_a_code(suffix: str, ops_library: Path, emulated_library: Path) -> None:
    entries = Entries(ops_library if suffix == "cpu" else emulated_library, suffix)
    with pytest.raises(ValueError, match="returned -1"):
        entries.group_sort("f32", X, group_size=4, axis=1, layout=0, descending=0)
    with pytest.raises(ValueError, match="returned -1"):
        entries.linear_spline("f32", X, TABLE[:4], axis=1, **SPLINE)
    with pytest.raises(ValueError, match="returned -1"):
        entries.linear_spline("f32", X, TABLE[:, :1], axis=1, **SPLINE)
    with pytest.raises(ValueError, match="returned -1"):
        entries.householder("f32", X, HALF, HALF, axis=2, layout=1)


def test_a_runtime_without_our_api_version_is_survived(ops_library: Path) -> None:
    """GetApi answers null when it does not know the version; registering must not follow that pointer."""
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), None)
    register = ctypes.CDLL(str(ops_library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) is None
