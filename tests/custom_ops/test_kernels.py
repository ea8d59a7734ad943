"""CPU kernels, CUDA kernels under the emulator, and ONNX Runtime with the library: bit for bit the NumPy meaning."""

from __future__ import annotations

import ctypes
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lipdeploy.ops import OPERATORS
from tests.ops.cases import (
    REFLECT_CASES,
    SORT_CASES,
    SPLINE_CASES,
    TYPES,
    ReflectCase,
    SortCase,
    SplineCase,
    bits,
    reflect_angles,
    reflect_input,
    sort_input,
    spline_coefficients,
    spline_input,
)
from tests.ops.runners import Entries, in_onnxruntime, model


@pytest.fixture(scope="module", params=["cpu", "emulated"])
def entries(request: pytest.FixtureRequest, ops_library: Path, emulated_library: Path) -> Entries:
    return Entries(ops_library if request.param == "cpu" else emulated_library, request.param)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SORT_CASES, ids=str)
def test_group_sort_entry_points(case: SortCase, type_name: str, entries: Entries) -> None:
    x = sort_input(case, TYPES[type_name][0], special=True)
    want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
    np.testing.assert_array_equal(bits(entries.group_sort(type_name, x, **case.attributes)), bits(want))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SPLINE_CASES, ids=str)
def test_linear_spline_entry_points(case: SplineCase, type_name: str, entries: Entries) -> None:
    dtype = TYPES[type_name][0]
    x, table = spline_input(case, dtype, special=True), spline_coefficients(case, dtype)
    want = OPERATORS["LinearSpline"].evaluate(x, table, **case.attributes)
    got = entries.linear_spline(type_name, x, table, **case.attributes)
    np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", REFLECT_CASES, ids=str)
def test_householder_entry_points(case: ReflectCase, type_name: str, entries: Entries) -> None:
    dtype = TYPES[type_name][0]
    x, angles = reflect_input(case, dtype, special=True), reflect_angles(case, dtype)
    want = OPERATORS["Householder"].evaluate(x, *angles, **case.attributes)
    np.testing.assert_array_equal(bits(entries.householder(type_name, x, *angles, **case.attributes)), bits(want))


@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
@pytest.mark.parametrize("case", REFLECT_CASES, ids=str)
def test_householder_in_onnxruntime(case: ReflectCase, type_name: str, ops_library: Path) -> None:
    dtype, element_type = TYPES[type_name]
    x, angles = reflect_input(case, dtype, special=True), reflect_angles(case, dtype)
    want = OPERATORS["Householder"].evaluate(x, *angles, **case.attributes)
    for functions in (True, False):
        file = model("Householder", case.shape, element_type, case.attributes, angles, functions=functions)
        np.testing.assert_array_equal(bits(in_onnxruntime(file, x, ops_library)), bits(want))


@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
@pytest.mark.parametrize("case", SORT_CASES, ids=str)
def test_group_sort_in_onnxruntime(case: SortCase, type_name: str, ops_library: Path) -> None:
    dtype, element_type = TYPES[type_name]
    x = sort_input(case, dtype, special=True)
    want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
    # Once with the function body in the file, once without: the kernel must be found in both.
    for functions in (True, False):
        file = model("GroupSort", case.shape, element_type, case.attributes, functions=functions)
        np.testing.assert_array_equal(bits(in_onnxruntime(file, x, ops_library)), bits(want))


@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
@pytest.mark.parametrize("case", SPLINE_CASES, ids=str)
def test_linear_spline_in_onnxruntime(case: SplineCase, type_name: str, ops_library: Path) -> None:
    dtype, element_type = TYPES[type_name]
    x, table = spline_input(case, dtype, special=True), spline_coefficients(case, dtype)
    want = OPERATORS["LinearSpline"].evaluate(x, table, **case.attributes)
    for functions in (True, False):
        file = model("LinearSpline", case.shape, element_type, case.attributes, table, functions=functions)
        np.testing.assert_array_equal(bits(in_onnxruntime(file, x, ops_library)), bits(want))


def test_bfloat16_in_onnxruntime(ops_library: Path) -> None:
    """ONNX Runtime's Cast hands over bfloat16 exactly; NaN payloads are its own."""
    dtype, element_type = TYPES["bf16"]
    for case in SORT_CASES:
        x = sort_input(case, dtype, special=True)
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes).astype(np.float32)
        file = model("GroupSort", case.shape, element_type, case.attributes, casts=True, functions=False)
        got = in_onnxruntime(file, x.astype(np.float32), ops_library)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got)[got == 0], np.signbit(want)[want == 0])
    for spline in SPLINE_CASES:
        x, table = spline_input(spline, dtype, special=True), spline_coefficients(spline, dtype)
        want = OPERATORS["LinearSpline"].evaluate(x, table, **spline.attributes).astype(np.float32)
        file = model("LinearSpline", spline.shape, element_type, spline.attributes, table, casts=True, functions=False)
        np.testing.assert_array_equal(in_onnxruntime(file, x.astype(np.float32), ops_library), want)
    for reflect in REFLECT_CASES:
        x, angles = reflect_input(reflect, dtype, special=True), reflect_angles(reflect, dtype)
        want = OPERATORS["Householder"].evaluate(x, *angles, **reflect.attributes).astype(np.float32)
        file = model(
            "Householder", reflect.shape, element_type, reflect.attributes, angles, casts=True, functions=False
        )
        np.testing.assert_array_equal(in_onnxruntime(file, x.astype(np.float32), ops_library), want)


@pytest.mark.parametrize("threads", [1, 4])
def test_many_pieces_on_many_threads(ops_library: Path, threads: int) -> None:
    """Tensors large enough for ParallelFor, with a ragged last piece."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ops_library))
    for case in (SortCase((301, 514), 2), SortCase((3, 16, 97, 61), 8, layout=1), SortCase((97, 1026), 0)):
        x = sort_input(case, np.dtype(np.float32), special=True)
        file = model("GroupSort", case.shape, TYPES["f32"][1], case.attributes)
        session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
        np.testing.assert_array_equal(bits(session.run(None, {"x": x})[0]), bits(want))
    for reflect in (ReflectCase((301, 514)), ReflectCase((301, 514), 0), ReflectCase((3, 16, 97, 61))):
        x, angles = reflect_input(reflect, np.dtype("f4"), special=True), reflect_angles(reflect, np.dtype("f4"))
        file = model("Householder", reflect.shape, TYPES["f32"][1], reflect.attributes, angles)
        session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        want = OPERATORS["Householder"].evaluate(x, *angles, **reflect.attributes)
        np.testing.assert_array_equal(bits(session.run(None, {"x": x})[0]), bits(want))
    spline = SplineCase((5, 7, 41, 43), 33)
    x, table = spline_input(spline, np.dtype(np.float32), special=True), spline_coefficients(spline, np.dtype("f4"))
    file = model("LinearSpline", spline.shape, TYPES["f32"][1], spline.attributes, table)
    session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    want = OPERATORS["LinearSpline"].evaluate(x, table, **spline.attributes)
    np.testing.assert_array_equal(bits(session.run(None, {"x": x})[0]), bits(want))


def test_every_half_survives_the_conversions(ops_library: Path) -> None:
    """A spline with the identity's values on a fine power-of-two grid returns every 16-bit number unchanged."""
    entries = Entries(ops_library, "cpu")
    for type_name in ("f16", "bf16"):
        dtype = TYPES[type_name][0]
        x = np.arange(2**16, dtype=np.uint16).view(dtype)[None, :]
        table = np.array([[0.0, 1.0]], dtype)
        got = entries.linear_spline(type_name, x, table, lower=0.0, knot_spacing=1.0, axis=1)
        same = bits(got) == bits(x)
        nan, minus_zero = np.isnan(x.astype(np.float32)), bits(x) == 0x8000
        assert same[~nan & ~minus_zero].all()
        assert (bits(got)[nan] == bits(np.full(1, np.nan, dtype))[0]).all()


def test_the_registered_kernel_runs_instead_of_the_function(ops_library: Path, tmp_path: Path) -> None:
    file = model("GroupSort", (2, 4), TYPES["f32"][1], {"group_size": 2})
    kinds = {}
    for name, library in (("with", ops_library), ("without", None)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        if library:
            options.register_custom_ops_library(str(library))
        ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds[name] = [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
    assert kinds["with"] == ["GroupSort"]
    assert "GroupSort" not in kinds["without"]


def test_the_output_shape_is_inferred(ops_library: Path) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ops_library))
    file = model("GroupSort", (2, 4, 6), TYPES["f32"][1], {"group_size": 2}, functions=False)
    file.graph.output[0].type.tensor_type.ClearField("shape")
    session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [2, 4, 6]


def test_version_and_release(ops_library: Path) -> None:
    library = ctypes.CDLL(str(ops_library))
    library.lipdeploy_ops_release.restype = ctypes.c_char_p
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert library.lipdeploy_ops_version() == 1
    assert library.lipdeploy_ops_release().decode() == project["version"]
    assert library.lipdeploy_ops_has_cuda() in (0, 1)
