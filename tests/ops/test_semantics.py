"""What each operator makes of NaN, ±0, ±Inf, subnormals and ties: one table, every form of the operator.

A row is an input and the answer, written down by hand from docs/operators. NumPy, the CPU kernels of every instruction
set, the CUDA kernels under the emulator and ONNX Runtime with the library must give these very bits; torch, the
function body in ONNX Runtime and in onnx's reference evaluator must agree up to signs of zeros and NaN payloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipdeploy.nn.householder import StoredHouseholder
from lipdeploy.nn.sorting import GroupSort
from lipdeploy.nn.spline import StoredLinearSpline
from lipdeploy.ops import OPERATORS
from tests.ops.cases import TYPES, bits, values
from tests.ops.runners import Entries, in_onnxruntime, in_reference, model

Array = np.ndarray[Any, Any]
NAN, INF, TINY, HUGE = "nan", float("inf"), "tiny", "huge"  # names that mean another number in each type


@dataclass(frozen=True)
class Row:
    """One sample in, one sample out, and the constants and attributes in between."""

    op: str
    given: Sequence[float | str]
    want: Sequence[float | str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[Sequence[Any]] = ()

    def __str__(self) -> str:
        return f"{self.op}-{','.join(map(str, self.given))}-{'-'.join(f'{k}{v}' for k, v in self.attributes.items())}"


def sort(given: Sequence[float | str], want: Sequence[float | str], **attributes: int) -> Row:
    written = {"group_size": 0, "axis": 1, "layout": 0, "descending": 0} | attributes
    return Row("GroupSort", given, want, written)


def spline(given: Sequence[float | str], want: Sequence[float | str], table: Sequence[float]) -> Row:
    return Row("LinearSpline", given, want, {"lower": -1.0, "knot_spacing": 0.5, "axis": 1}, [[list(table)]])


def reflect(given: Sequence[float | str], want: Sequence[float | str], s: float, c: float) -> Row:
    pairs = len(given) // 2
    return Row("Householder", given, want, {"axis": 1, "layout": 1}, [[s] * pairs, [c] * pairs])


ROWS = [
    # GroupSort: −0 below +0, subnormals and infinities are ordinary values, ties stay
    sort([0.0, -0.0], [-0.0, 0.0]),
    sort([-0.0, 0.0], [-0.0, 0.0]),
    sort([-0.0, 0.0], [0.0, -0.0], descending=1),
    sort([0.0, -0.0, -0.0, 0.0, 1.0], [-0.0, -0.0, 0.0, 0.0, 1.0]),
    sort([INF, -INF, 0.0, 1.0], [-INF, 0.0, 1.0, INF]),
    sort([INF, INF, -INF, -INF], [INF, INF, -INF, -INF], descending=1),
    sort([TINY, 0.0, "-tiny", -0.0], ["-tiny", -0.0, 0.0, TINY]),
    sort([HUGE, INF, "-huge", -INF], [-INF, "-huge", HUGE, INF]),
    sort([2.0, 1.0, 2.0, 1.0, 2.0], [1.0, 1.0, 2.0, 2.0, 2.0]),
    # ... a NaN of either sign and any payload takes its whole group, and no other
    sort([1.0, NAN], [NAN, NAN]),
    sort(["-nan", 1.0], [NAN, NAN], descending=1),
    sort(["payload", 1.0, 2.0, 1.0], [NAN, NAN, 1.0, 2.0], group_size=2),
    sort([4.0, NAN, 2.0, 1.0], [2.0, NAN, 4.0, NAN], group_size=2, layout=1),
    sort([INF, NAN, -INF], [NAN, NAN, NAN]),
    sort([NAN] + [1.0] * 40, [NAN] * 41),
    sort([1.0] * 99 + ["-nan"], [NAN] * 100),
    sort([NAN, -1.0], [NAN, -1.0], group_size=1),
    # LinearSpline: NaN to NaN; beyond the knots the end slopes; a flat end ends in its coefficient
    spline([NAN, "-nan", "payload"], [NAN, NAN, NAN], [0.0, 1.0, 0.0, -1.0, 2.0]),
    spline([INF, -INF], [INF, -INF], [0.0, 1.0, 0.0, -1.0, 2.0]),
    spline([INF, -INF], [-INF, INF], [1.0, 0.0, 0.0, 2.0, -1.0]),
    spline([INF, -INF], [2.0, 1.0], [1.0, 1.0, 0.0, 2.0, 2.0]),
    spline([HUGE, "-huge"], [2.0, 1.0], [1.0, 1.0, 0.0, 2.0, 2.0]),
    spline([-1.0, -0.5, 0.0, 0.5, 1.0], [0.0, 1.0, 0.5, -1.0, 2.0], [0.0, 1.0, 0.5, -1.0, 2.0]),
    spline([-1.25, -0.75, 0.25, 1.5], [-0.5, 0.5, -0.25, 5.0], [0.0, 1.0, 0.5, -1.0, 2.0]),
    spline([0.0, -0.0, TINY, "-tiny"], [3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0, 3.0]),
    # Householder, s = 1, c = 0: (a, b) → (−|a|…): a > 0 is mirrored to −a, b stays
    reflect([2.0, 5.0], [-2.0, 5.0], 1.0, 0.0),
    reflect([-2.0, 5.0], [-2.0, 5.0], 1.0, 0.0),
    reflect([-0.0, -0.0], [-0.0, 0.0], 1.0, 0.0),
    reflect([0.0, 7.0], [0.0, 7.0], 1.0, 0.0),
    reflect([TINY, 1.0], ["-tiny", 1.0], 1.0, 0.0),
    # ... s = c = ½ doubles nothing: m = (a − b)/2 moves half of the way to the swapped pair
    reflect([3.0, 1.0], [2.0, 2.0], 0.5, 0.5),
    reflect([1.0, 3.0], [1.0, 3.0], 0.5, 0.5),
    reflect([2.0, 2.0], [2.0, 2.0], 0.5, 0.5),
    # ... NaN takes both, its neighbours nothing; infinities go through the formula
    reflect([NAN, 1.0], [NAN, NAN], 0.5, 0.5),
    reflect([1.0, "-nan"], [NAN, NAN], 0.5, 0.5),
    reflect([1.0, "payload", 3.0, 2.0], [1.0, NAN, 3.0, NAN], 0.5, 0.5),
    reflect([-INF, 1.0], [-INF, 1.0], 0.5, 0.5),
    reflect([1.0, INF], [1.0, INF], 0.5, 0.5),
    reflect([INF, 1.0], [NAN, INF], 0.5, 0.5),
    reflect([INF, INF], [NAN, NAN], 0.5, 0.5),
    reflect([1.0, INF], [NAN, NAN], 1.0, 0.0),
]


def array(row: Sequence[float | str], dtype: np.dtype[Any]) -> Array:
    """(1, channels), the names replaced by this type's numbers."""
    one = np.ones((), np.dtype(f"i{dtype.itemsize}"))
    quiet = np.full((), np.nan, dtype)
    largest = np.asarray(np.inf, dtype).view(one.dtype) - one
    named: dict[str, Any] = {
        "nan": quiet,
        "-nan": np.copysign(quiet, -1).astype(dtype),
        "payload": (quiet.view(one.dtype) + one).view(dtype),
        "tiny": one.view(dtype),
        "-tiny": -one.view(dtype),
        "huge": largest.view(dtype),
        "-huge": -largest.view(dtype),
    }
    return np.array([[named[v] if isinstance(v, str) else dtype.type(v) for v in row]], dtype)


def constants(row: Row, dtype: np.dtype[Any]) -> list[Array]:
    return [np.array(constant).astype(dtype) for constant in row.constants]


every_row = pytest.mark.parametrize("row", ROWS, ids=str)
every_type = pytest.mark.parametrize("type_name", TYPES)


def same_bits(got: Array, row: Row, dtype: np.dtype[Any]) -> None:
    assert got.dtype == dtype
    np.testing.assert_array_equal(bits(got), bits(array(row.want, dtype)))


def same_values(got: Array, row: Row, dtype: np.dtype[Any]) -> None:
    np.testing.assert_array_equal(values(got), values(array(row.want, dtype)))


@every_row
@every_type
def test_numpy(row: Row, type_name: str) -> None:
    dtype = TYPES[type_name][0]
    with np.errstate(all="raise"):  # and it keeps its own arithmetic's warnings to itself
        got = OPERATORS[row.op].evaluate(array(row.given, dtype), *constants(row, dtype), **row.attributes)
    same_bits(got, row, dtype)


@every_row
@every_type
def test_cuda_under_the_emulator(row: Row, type_name: str, emulated_library: Path) -> None:
    same_bits(entry_point(Entries(emulated_library, "emulated"), row, type_name), row, TYPES[type_name][0])


@every_row
@every_type
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_cpu(row: Row, type_name: str, instructions: str, ops_library: Path) -> None:
    entries = Entries(ops_library, "cpu")
    if entries.library.lipdeploy_ops_use_instruction_set(instructions.encode()) != 0:
        pytest.skip(f"needs a processor with {instructions}")
    try:
        same_bits(entry_point(entries, row, type_name), row, TYPES[type_name][0])
    finally:
        entries.library.lipdeploy_ops_use_instruction_set(None)


def entry_point(entries: Entries, row: Row, type_name: str) -> Array:
    """The sample alone would only see the kernels' last, ragged piece: forty of it in a batch."""
    dtype = TYPES[type_name][0]
    x = np.repeat(array(row.given, dtype), 40, axis=0)
    call = {"GroupSort": "group_sort", "LinearSpline": "linear_spline", "Householder": "householder"}[row.op]
    got: Array = getattr(entries, call)(type_name, x, *constants(row, dtype), **row.attributes)
    assert (bits(got) == bits(got[:1])).all()
    return got[:1]


@every_row
@pytest.mark.parametrize("type_name", ["f16", "f32", "f64"])
def test_onnxruntime(row: Row, type_name: str, ops_library: Path) -> None:
    dtype, element_type = TYPES[type_name]
    x, stored = array(row.given, dtype), constants(row, dtype)
    file = model(row.op, x.shape, element_type, row.attributes, stored)
    same_bits(in_onnxruntime(file, x, ops_library), row, dtype)
    same_values(in_onnxruntime(file, x), row, dtype)


@every_row
@every_type
def test_function_body(row: Row, type_name: str) -> None:
    dtype, element_type = TYPES[type_name]
    x = array(row.given, dtype)
    same_values(
        in_reference(model(row.op, x.shape, element_type, row.attributes, constants(row, dtype)), x), row, dtype
    )


@every_row
@every_type
def test_torch(row: Row, type_name: str) -> None:
    dtype = TYPES[type_name][0]
    kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}[type_name]
    x, *stored = (torch.from_numpy(values(a)).to(kind) for a in (array(row.given, dtype), *constants(row, dtype)))
    same_values(torch_module(row, stored)(x).double().numpy(), row, dtype)


def torch_module(row: Row, stored: list[torch.Tensor]) -> torch.nn.Module:
    a = row.attributes
    if row.op == "GroupSort":
        return GroupSort(a["group_size"], a["axis"], ("adjacent", "strided")[a["layout"]], bool(a["descending"]))
    if row.op == "LinearSpline":
        return StoredLinearSpline(len(row.given), stored[0], a["lower"], a["knot_spacing"])
    return StoredHouseholder(*stored, a["axis"], ("adjacent", "strided")[a["layout"]])


def entries_of(request: pytest.FixtureRequest, suffix: str) -> Entries:
    """The library with this suffix, and only that one: a wheel has no emulated kernels."""
    return Entries(request.getfixturevalue("ops_library" if suffix == "cpu" else "emulated_library"), suffix)


@pytest.mark.parametrize("suffix", ["cpu", "emulated"])
@every_type
def test_full_sort_of_the_largest_axis(type_name: str, suffix: str, request: pytest.FixtureRequest) -> None:
    """65,536 channels, NaN in one of the samples."""
    dtype = TYPES[type_name][0]
    x = np.random.default_rng(0).standard_normal((2, 65536)).astype(dtype)
    x[1, 40000] = np.nan
    entries = entries_of(request, suffix)
    got = entries.group_sort(type_name, x, group_size=0, axis=1, layout=0, descending=1)
    np.testing.assert_array_equal(values(got[0]), np.sort(values(x[0]))[::-1])
    assert np.isnan(values(got[1])).all()


@pytest.mark.parametrize("suffix", ["cpu", "emulated"])
@every_type
@pytest.mark.parametrize("knots", [2, 3, 5, 129, 1025])
def test_splines_of_every_size_interpolate(
    knots: int, type_name: str, suffix: str, request: pytest.FixtureRequest
) -> None:
    """Values at the knots are small integers and the grid is exact, so every type must return them exactly."""
    dtype = TYPES[type_name][0]
    table = (np.arange(knots) * 7 % 16).astype(dtype)[None]
    shown = np.unique(np.linspace(0, knots - 1, min(knots, 100)).astype(int))
    x = (shown.astype(np.float64) - 1).astype(dtype)[None]  # not every integer up to 1,024 is a bfloat16
    kept = values(x)[0] == shown - 1
    entries = entries_of(request, suffix)
    got = entries.linear_spline(type_name, x, table, lower=-1.0, knot_spacing=1.0, axis=1)
    np.testing.assert_array_equal(values(got)[0][kept], values(table)[0][shown][kept])
