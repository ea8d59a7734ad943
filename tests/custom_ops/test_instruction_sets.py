"""The vector kernels of every instruction set that this machine runs: bit for bit the NumPy meaning."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.ops.runners import Entries, Fenced

NAMES = ("baseline", "avx2", "avx512")
Array = np.ndarray[Any, Any]


types = pytest.mark.parametrize("type_name", TYPES)


def check_sorts(entries: Entries, type_name: str, cases: list[SortCase], shift: int = 0) -> None:
    for case in cases:
        x = shifted(sort_input(case, TYPES[type_name][0], special=True), shift)
        got = entries.group_sort(type_name, x, **case.attributes)
        np.testing.assert_array_equal(bits(got), bits(OPERATORS["GroupSort"].evaluate(x, **case.attributes)), str(case))


def check_splines(entries: Entries, type_name: str, cases: list[SplineCase], shift: int = 0) -> None:
    for case in cases:
        dtype = TYPES[type_name][0]
        x = shifted(spline_input(case, dtype, special=True), shift)
        table = shifted(spline_coefficients(case, dtype), shift)
        got = entries.linear_spline(type_name, x, table, **case.attributes)
        want = OPERATORS["LinearSpline"].evaluate(x, table, **case.attributes)
        np.testing.assert_array_equal(bits(got), bits(want), str(case))


def check_reflections(entries: Entries, type_name: str, cases: list[ReflectCase], shift: int = 0) -> None:
    for case in cases:
        dtype = TYPES[type_name][0]
        x = shifted(reflect_input(case, dtype, special=True), shift)
        sine, cosine = (shifted(angle, shift) for angle in reflect_angles(case, dtype))
        got = entries.householder(type_name, x, sine, cosine, **case.attributes)
        want = OPERATORS["Householder"].evaluate(x, sine, cosine, **case.attributes)
        np.testing.assert_array_equal(bits(got), bits(want), str(case))


def shifted(x: Array, elements: int) -> Array:
    """The same values at an address that is only aligned as one element is."""
    room = np.empty(x.size + elements, x.dtype)[elements:].reshape(x.shape)
    room[...] = x
    return room


@types
def test_the_table_of_cases(entries: Entries, type_name: str) -> None:
    check_sorts(entries, type_name, SORT_CASES)
    check_splines(entries, type_name, SPLINE_CASES)
    check_reflections(entries, type_name, REFLECT_CASES)


@types
@pytest.mark.parametrize("layout", [0, 1])
def test_every_group_size(entries: Entries, type_name: str, layout: int) -> None:
    for size in (*range(1, 34), 64, 100, 256, 1024):
        for descending in (0, 1):
            shapes = [(5, size * 3), (19, size), (2, size * 2, 17), (1, size, 70)]
            check_sorts(entries, type_name, [SortCase(shape, size, 1, layout, descending) for shape in shapes])


@types
def test_every_remainder_of_a_vector_in_sorts(entries: Entries, type_name: str) -> None:
    for n in range(1, 70):
        shapes = [((n, 2), 2), ((1, 2, n), 2), ((n, 8), 8), ((2, 8, n), 4), ((n, 64), 32), ((1, 3, n), 3)]
        check_sorts(entries, type_name, [SortCase(shape, size, descending=n % 2) for shape, size in shapes])


@types
def test_every_axis(entries: Entries, type_name: str) -> None:
    for axis in range(-4, 4):
        for size in (2, 4, 6, 0):
            for layout in (0, 1):
                check_sorts(entries, type_name, [SortCase((12, 24, 12, 36), size, axis, layout)])
        check_splines(entries, type_name, [SplineCase((6, 7, 20, 3), 9, axis=axis)])
        check_reflections(entries, type_name, [ReflectCase((6, 8, 20, 4), layout, axis) for layout in (0, 1)])


@types
def test_every_table_size(entries: Entries, type_name: str) -> None:
    """Around the sizes at which a table takes another register, and larger; long, short and no stretches."""
    for knots in (2, 3, 5, 6, 9, 10, 16, 17, 18, 32, 33, 34, 51, 64, 65, 66, 200, 1025):
        cases = [
            SplineCase((37, 3), knots),
            SplineCase((2500,), knots, shared=True, axis=0),
            SplineCase((2, 3, 67), knots),
            SplineCase((2, 3, 5), knots),
            SplineCase((70, 3, 3, 2), knots, knot_spacing=0.3),
            SplineCase((1, 7, 40), knots, lower=0.5, knot_spacing=0.25),
        ]
        check_splines(entries, type_name, cases)


@types
def test_every_remainder_of_a_vector_in_splines(entries: Entries, type_name: str) -> None:
    for n in range(1, 70):
        check_splines(
            entries, type_name, [SplineCase((n, 3), 4), SplineCase((3, 2, n), 20), SplineCase((2, 2, n), 300)]
        )


@types
def test_every_number_of_vectors_in_splines(entries: Entries, type_name: str) -> None:
    """From 8 vectors on, fours of them go in stages and the rest one by one; runs of 128 elements go by themselves."""
    for vectors in range(7, 22):
        cases = [SplineCase((16 * vectors + 5,), 20, shared=True, axis=0), SplineCase((2, 2, 8 * vectors + 3), 20)]
        check_splines(entries, type_name, [*cases, SplineCase((vectors, 19), 300)])
    for inner in (127, 128):
        check_splines(entries, type_name, [SplineCase((3, 5, inner), knots) for knots in (20, 300)])
    few_for_the_table, long_sample = [SplineCase((4, 64), 51), SplineCase((12, 64), 51)], SplineCase((1, 2200, 120), 5)
    check_splines(entries, type_name, [*few_for_the_table, long_sample])


@types
def test_intervals_next_to_every_knot(entries: Entries, type_name: str) -> None:
    """Inputs on the knots and up to three numbers beside them, where a quotient by products could miss the interval.

    Spacings beyond 2^±60 are divided by. Enough elements, so that the kernels prepare.
    """
    dtype = TYPES[type_name][0]
    rng = np.random.default_rng(0)
    work = np.float64 if type_name == "f64" else np.float32
    spacings = [float(np.float32(10.0 ** rng.uniform(-3, 1))) for _ in range(40)]
    extreme = (
        []
        if type_name in ("f16", "bf16")
        else [2.0**-62, 1.5 * 2.0**61, float(np.float32(1e-17)), float(np.float32(3e17))]
    )
    for spacing in (*spacings, 0.25, *extreme):
        for knots in (3, 51, 200):
            lower = float(np.float32(rng.choice([0.0, -spacing * (knots // 2), rng.uniform(-2, 2)])))
            knot = (work(lower) + np.arange(-1, knots + 1, dtype=work) * work(spacing)).astype(dtype)
            beside = [knot]
            for _ in range(3):
                beside.insert(0, np.nextafter(beside[0], dtype.type(-np.inf)))
                beside.append(np.nextafter(beside[-1], dtype.type(np.inf)))
            x = np.resize(np.concatenate(beside), 64 * knots + 7)
            table = rng.standard_normal((3, knots)).astype(dtype)
            table[0, :2] = table[2, -2:] = 1
            attributes = {"lower": lower, "knot_spacing": spacing, "axis": 1}
            for stacked in (np.stack([x, x, x])[None], np.stack([x, x, x], axis=1)):
                got = entries.linear_spline(type_name, stacked, table, **attributes)
                want = OPERATORS["LinearSpline"].evaluate(stacked, table, **attributes)
                np.testing.assert_array_equal(
                    bits(got), bits(want), f"spacing {spacing!r}, {knots} knots, lower {lower!r}"
                )


@types
def test_flat_and_sloping_ends_reach_to_infinity(entries: Entries, type_name: str) -> None:
    """With the ends of all rows sloping, and with one row's end flat: infinities, in every layout, many and few."""
    dtype = TYPES[type_name][0]
    ends = np.array([-np.inf, np.inf, np.nan, -0.0, 0.0, 3e4, -3e4], dtype)
    for flat in (False, True):
        table = np.array([[0, 1, 2, 4], [3, 1, 5, 2]], dtype)
        if flat:
            table[1, 3] = table[1, 2]
        for count in (7, 640):
            x = np.resize(ends, count)
            for stacked in (np.stack([x, x])[None], np.stack([x, x], axis=1)):
                attributes = {"lower": -1.0, "knot_spacing": 0.7, "axis": 1}
                got = entries.linear_spline(type_name, stacked, table, **attributes)
                want = OPERATORS["LinearSpline"].evaluate(stacked, table, **attributes)
                np.testing.assert_array_equal(bits(got), bits(want), f"flat {flat}, {count}")


@types
def test_every_remainder_of_a_vector_in_reflections(entries: Entries, type_name: str) -> None:
    for n in range(1, 70):
        shapes = [(n, 2), (3, 2 * n), (2, 4, n)]
        check_reflections(entries, type_name, [ReflectCase(shape, layout) for shape in shapes for layout in (0, 1)])


@types
@pytest.mark.parametrize("shift", [1, 2, 3, 7, 8])
def test_addresses_that_no_vector_likes(
    entries: Entries, type_name: str, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fenced, "SHIFT", shift * TYPES[type_name][0].itemsize)
    sorts = [SortCase((33, 64), size, layout=layout) for size in (1, 2, 4, 8, 16, 32, 0) for layout in (0, 1)]
    check_sorts(entries, type_name, [*sorts, SortCase((2, 16, 5, 13), 8), SortCase((3, 40, 80), 40)], shift)
    check_splines(entries, type_name, [SplineCase((9, 33), 21), SplineCase((3, 4, 77), 51)], shift)
    reflections = [ReflectCase(shape, layout) for shape in ((9, 66), (3, 4, 77)) for layout in (0, 1)]
    check_reflections(entries, type_name, reflections, shift)


@pytest.mark.parametrize("shift", [0, 1])
def test_outputs_larger_than_the_caches(entries: Entries, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 16 MiB on, results are stored around the caches. Copies of a small tensor make a large one."""
    monkeypatch.setattr(Fenced, "SHIFT", 4 * shift)
    small = (3, 16, 64, 32)
    copies = (16 << 20) // (4 * 3 * 16 * 64 * 32) + 1
    for group_size, shape in ((2, small), (2, (3 * 2048, 16)), (8, small), (8, (3 * 2048, 16)), (1, small)):
        case = SortCase(shape, group_size)
        x = sort_input(case, np.dtype(np.float32), special=True)
        want = OPERATORS["GroupSort"].evaluate(x, **case.attributes)
        got = entries.group_sort("f32", np.concatenate([x] * copies), **case.attributes)
        assert (bits(got).reshape(copies, -1) == bits(want).reshape(-1)).all(), str(case)
    for shape, knots in ((small, 51), (small, 200), ((3 * 2048, 16), 51)):
        spline = SplineCase(shape, knots)
        x, table = spline_input(spline, np.dtype("f4"), special=True), spline_coefficients(spline, np.dtype("f4"))
        want = OPERATORS["LinearSpline"].evaluate(x, table, **spline.attributes)
        got = entries.linear_spline("f32", np.concatenate([x] * copies), table, **spline.attributes)
        assert (bits(got).reshape(copies, -1) == bits(want).reshape(-1)).all(), str(spline)
    for shape, layout in ((small, 0), (small, 1), ((3 * 2048, 16), 0), ((3 * 2048, 32), 1)):
        reflect = ReflectCase(shape, layout)
        x, angles = reflect_input(reflect, np.dtype("f4"), special=True), reflect_angles(reflect, np.dtype("f4"))
        want = OPERATORS["Householder"].evaluate(x, *angles, **reflect.attributes)
        got = entries.householder("f32", np.concatenate([x] * copies), *angles, **reflect.attributes)
        assert (bits(got).reshape(copies, -1) == bits(want).reshape(-1)).all(), str(reflect)


def test_nan_payloads_of_either_sign_at_every_place(entries: Entries) -> None:
    for size in (1, 2, 3, 4, 5, 8, 16, 17, 40, 300):
        x = np.zeros((size, size), np.float32)
        np.fill_diagonal(x.view(np.int32), np.where(np.arange(size) % 2, -0x5, 0x7F800001).astype(np.int32))
        x = np.concatenate([x, np.ones((3, size), np.float32)])
        got = entries.group_sort("f32", x, group_size=0, axis=1, layout=0, descending=0)
        assert (bits(got[:size]) == 0x7FC00000).all()
        assert (got[size:] == 1).all()


def test_names(ops_library: Path) -> None:
    library = ctypes.CDLL(str(ops_library))
    library.lipdeploy_ops_instruction_set.restype = ctypes.c_char_p
    before = library.lipdeploy_ops_instruction_set()
    assert before.decode() in NAMES
    assert library.lipdeploy_ops_use_instruction_set(b"mmx") == -1
    assert library.lipdeploy_ops_instruction_set() == before
    assert library.lipdeploy_ops_use_instruction_set(b"baseline") == 0
    assert library.lipdeploy_ops_instruction_set() == b"baseline"
    assert library.lipdeploy_ops_use_instruction_set(None) == 0
    assert library.lipdeploy_ops_instruction_set() == before


@pytest.mark.parametrize(("asked", "used"), [("baseline", "baseline"), ("nonsense", None)])
def test_the_environment_chooses(asked: str, used: str | None, ops_library: Path) -> None:
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); f = library.lipdeploy_ops_instruction_set; "
        "f.restype = ctypes.c_char_p; print(f().decode())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(ops_library)],
        env={**os.environ, "LIPDEPLOY_CPU": asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() in ((used,) if used else NAMES)
