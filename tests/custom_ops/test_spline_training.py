"""The loops for training splines, each instruction set: NumPy's meaning forward, gradients against float64 sums."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.ops import OPERATORS
from tests.ops.runners import Entries, around_axis

Array = np.ndarray[Any, Any]
TYPES = {"f32": np.float32, "f64": np.float64}
types = pytest.mark.parametrize("type_name", TYPES)
GRID = {"lower": float(np.float32(-0.7)), "axis": 1}


def case(shape: tuple[int, ...], knots: int, rows: int, dtype: Any, seed: int = 0) -> tuple[Array, ...]:
    """x, its gradient, coefficients, scale and inverse; inputs reach beyond the knots on both sides."""
    rng = np.random.default_rng((seed, knots, *shape))
    scale = (rng.uniform(0.4, 2.5, rows) * rng.choice([-1, 1], rows)).astype(dtype)
    x, grad, table = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(rows, knots))
    return x.astype(dtype), grad.astype(dtype), table.astype(dtype), scale, (1 / scale).astype(dtype)


def spacing(knots: int) -> float:
    return float(np.float32(1.4 / (knots - 1)))


def along_channels(row: Array, x: Array) -> Array:
    return row.reshape(-1, *[1] * (x.ndim - 2))


def expected_gradients(
    x: Array, grad: Array, table: Array, scale: Array, inverse: Array, h: float
) -> list[tuple[Array, Array]]:
    """Each gradient in float64, with what its rounding is relative to: the parts of each summand in absolute value."""
    lower = x.dtype.type(GRID["lower"])
    outer, channels, inner = around_axis(x.shape, 1)
    x, grad = x.reshape(outer, channels, inner), grad.reshape(outer, channels, inner).astype(np.float64)
    row = np.broadcast_to(np.arange(channels)[:, None] % len(table), x.shape)
    z = x * scale[row]
    k = np.clip(np.floor((z - lower) / x.dtype.type(h)), 0, table.shape[1] - 2).astype(np.int64)
    u = (z - (lower + k.astype(x.dtype) * x.dtype.type(h))).astype(np.float64) / h
    left, rise = table[row, k].astype(np.float64), (table[row, k + 1] - table[row, k]).astype(np.float64)
    back = grad * inverse[row]
    share, slope = np.abs(back) * (1 + np.abs(u)), back * rise / h
    terms = [
        [((row, k), back * (1 - u), share), ((row, k + 1), back * u, share)],
        [((row,), slope * x, np.abs(slope) * (np.abs(x) + 1 / np.abs(scale[row])))],
        [((row,), grad * (left + rise * u), np.abs(grad) * (np.abs(left) + np.abs(rise * u)))],
    ]
    results = [(slope * scale[row], np.abs(slope * scale[row]))]
    for like, parts in zip((table, scale, inverse), terms, strict=True):
        total, size = np.zeros(like.shape), np.zeros(like.shape)
        for index, values, sizes in parts:
            np.add.at(total, index, values)
            np.add.at(size, index, sizes)
        results.append((total, size))
    return results


def check(entries: Entries, type_name: str, shape: tuple[int, ...], knots: int, shared: bool = False) -> None:
    x, grad, table, scale, inverse = case(shape, knots, 1 if shared else shape[1], TYPES[type_name])
    grid = {**GRID, "knot_spacing": spacing(knots)}
    y = entries.linear_spline_scaled(type_name, x, table, scale, inverse, **grid)
    inner = OPERATORS["LinearSpline"].evaluate(x * along_channels(scale, x), table, **grid)
    np.testing.assert_array_equal(y, inner * along_channels(inverse, x))
    tolerance = 32 * knots * np.finfo(x.dtype).eps  # positions are rounded as a number of the size of the range
    found = entries.linear_spline_gradient(type_name, x, grad, table, scale, inverse, **grid)
    for result, (want, size) in zip(
        found, expected_gradients(x, grad, table, scale, inverse, spacing(knots)), strict=True
    ):
        assert result is not None
        assert (np.abs(result.reshape(want.shape) - want) <= tolerance * (size + 1e-30)).all()


@types
def test_the_table_of_cases(entries: Entries, type_name: str) -> None:
    shapes = [
        (1, 1),
        (37, 3),
        (2, 3, 67),
        (5, 300),
        (3, 7, 7, 7),
        (2, 5, 31, 33),
        (70, 2, 1),
        (3, 40, 49),
        (2, 2, 1024),
    ]
    for shape in shapes:
        for knots in (2, 3, 51, 200, 1025):
            for shared in (False, True):
                check(entries, type_name, shape, knots, shared)


@types
def test_every_remainder_of_a_vector(entries: Entries, type_name: str) -> None:
    for n in range(1, 70):
        for shape in ((n, 3), (3, n), (3, 2, n)):
            check(entries, type_name, shape, 20)


@types
@pytest.mark.parametrize("shared", [False, True])
def test_no_result_depends_on_threads_or_on_what_else_is_wanted(entries: Entries, type_name: str, shared: bool) -> None:
    for shape in ((3, 4, 400, 300), (1300, 300)):
        x, grad, table, scale, inverse = case(shape, 51, 1 if shared else shape[1], TYPES[type_name])
        grid = {**GRID, "knot_spacing": spacing(51)}
        y = entries.linear_spline_scaled(type_name, x, table, scale, inverse, **grid)
        many = entries.linear_spline_scaled(type_name, x, table, scale, inverse, **grid, threads=3)
        assert y.tobytes() == many.tobytes()
        every = entries.linear_spline_gradient(type_name, x, grad, table, scale, inverse, **grid)
        for wanted in ("xcsi", "x", "csi", "s", "xi", ""):
            some = entries.linear_spline_gradient(
                type_name, x, grad, table, scale, inverse, **grid, threads=3, wanted=wanted
            )
            for name, one, other in zip("xcsi", every, some, strict=True):
                assert (other is not None) == (name in wanted)
                assert one is not None and (other is None or one.tobytes() == other.tobytes())


@types
def test_no_result_depends_on_the_instruction_set(entries: Entries, type_name: str) -> None:
    """Against the baseline's: sums are added in one order, and nothing is fused."""
    for shape in ((300, 40), (3, 5, 31, 33), (3, 20, 49)):
        x, grad, table, scale, inverse = case(shape, 51, shape[1], TYPES[type_name])
        grid = {**GRID, "knot_spacing": spacing(51)}
        chosen = entries.library.lipdeploy_ops_instruction_set
        chosen.restype = ctypes.c_char_p
        name, ours = chosen(), entries.linear_spline_gradient(type_name, x, grad, table, scale, inverse, **grid)
        assert entries.library.lipdeploy_ops_use_instruction_set(b"baseline") == 0
        plain = entries.linear_spline_gradient(type_name, x, grad, table, scale, inverse, **grid)
        assert entries.library.lipdeploy_ops_use_instruction_set(name) == 0
        assert [None if a is None else a.tobytes() for a in ours] == [None if a is None else a.tobytes() for a in plain]


@types
def test_without_a_scale(entries: Entries, type_name: str) -> None:
    x, grad, table, _, _ = case((5, 6, 9), 20, 6, TYPES[type_name])
    grid, ones = {**GRID, "knot_spacing": spacing(20)}, np.ones(6, x.dtype)
    y = entries.linear_spline_scaled(type_name, x, table, None, None, **grid)
    np.testing.assert_array_equal(y, OPERATORS["LinearSpline"].evaluate(x, table, **grid))
    plain = entries.linear_spline_gradient(type_name, x, grad, table, None, None, **grid)
    scaled = entries.linear_spline_gradient(type_name, x, grad, table, ones, ones, **grid)
    assert plain[0].tobytes() == scaled[0].tobytes() and plain[1].tobytes() == scaled[1].tobytes()  # type: ignore[union-attr]


def test_sums_of_float32_are_rounded_once(entries: Entries) -> None:
    """A million equal gradients in the middle of one interval: the exact sum is a float32 number."""
    x = np.full((1 << 20, 1), 0.5, np.float32)
    table, grad = np.array([[0.0, 1.0]], np.float32), np.full_like(x, 0.1)
    grid = {"lower": 0.0, "knot_spacing": 1.0, "axis": 1}
    _, found, _, _ = entries.linear_spline_gradient("f32", x, grad, table, None, None, **grid)
    exact = float(grad[0, 0]) * 2**19
    assert found is not None and found.tolist() == [[exact, exact]]


@types
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3, 0)])
def test_nothing_gives_no_gradient(entries: Entries, type_name: str, shape: tuple[int, ...]) -> None:
    x, grad, table, scale, inverse = case(shape, 5, shape[1], TYPES[type_name])
    found = entries.linear_spline_gradient(type_name, x, grad, table, scale, inverse, **GRID, knot_spacing=0.1)
    assert all(result is not None and not result.any() for result in found)
    y = entries.linear_spline_scaled(type_name, x, table, scale, inverse, **GRID, knot_spacing=0.1)
    assert y.shape == shape


BAD = {"rows": 2, "knots": 1, "lower": float("inf"), "knot_spacing": 0.0, "outer": -1, "inner": -1, "channels": -3}


@types
@pytest.mark.parametrize("wrong", [*BAD, "x", "y", "grad", "coefficients", "scale", "inverse", "knots too many"])
def test_bad_arguments_are_refused_and_nothing_is_written(ops_library: Path, type_name: str, wrong: str) -> None:
    library = ctypes.CDLL(str(ops_library))
    numbers = {"outer": 2, "channels": 3, "inner": 4, "rows": 3, "knots": 5, "lower": 0.0, "knot_spacing": 0.1}
    numbers |= {wrong: BAD[wrong]} if wrong in BAD else {"knots": 2**24 + 1} if wrong == "knots too many" else {}
    sizes = [(ctypes.c_float if isinstance(value, float) else ctypes.c_int64)(value) for value in numbers.values()]
    given = {name: np.ones(24, TYPES[type_name]) for name in ("x", "grad", "coefficients", "scale", "inverse")}
    results = {name: np.full(24, 7, TYPES[type_name]) for name in ("y", "grad_x", "grad_c", "grad_s", "grad_i")}

    def address(name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if name == wrong else {**given, **results}[name].ctypes.data)

    one, limit = ctypes.c_int64(1), ctypes.c_double(0.0)
    forward = [address(name) for name in ("x", "coefficients", "scale", "inverse", "y")]
    inputs = [address("x"), address("grad"), None, *(address(name) for name in ("coefficients", "scale", "inverse"))]
    outputs = [address(name) for name in ("grad_x", "grad_c", "grad_s", "grad_i")]
    scaled, gradient = (
        getattr(library, f"lipdeploy_linear_spline_{name}_{type_name}_cpu") for name in ("scaled", "gradient")
    )
    if wrong != "grad":
        assert scaled(*forward, *sizes, one) == -1
    if wrong != "y":
        assert gradient(*inputs, *outputs, *sizes, limit, ctypes.c_int64(0), one) == -1
    assert all((result == 7).all() for result in results.values())
