"""LinearSpline's constant against exact fractions of the stored numbers, with every spread of exponents."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.verify.models import bound, codes, judge, model


def spline(table: np.ndarray, lower: float, spacing: float, channels: int | None = None) -> onnx.ModelProto:
    kind = "double" if table.dtype == np.float64 else "float"
    proto = model(
        f"g ({kind}[N, {channels or max(table.shape[0], 1)}] x) => ({kind}[N, K] y) "
        "{ y = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 1.0>(x, c) }",
        imports={"lipdeploy": 1},
    )
    for attribute in proto.graph.node[0].attribute:
        attribute.f = lower if attribute.name == "lower" else spacing
    proto.graph.initializer.append(numpy_helper.from_array(table, "c"))
    return proto


def exact_slope(table: np.ndarray, spacing: float) -> Fraction:
    steps = (abs(Fraction(float(b)) - Fraction(float(a))) for row in table for a, b in itertools.pairwise(row))
    return max(steps) / Fraction(float(np.float32(spacing)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_steepest_segment_exactly(dtype: type) -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        rows, knots = int(rng.integers(1, 4)), int(rng.integers(2, 9))
        spread = 10.0 ** rng.uniform(-15, 15, (rows, knots))
        table = (rng.standard_normal((rows, knots)) * spread).astype(dtype)
        spacing = float(10.0 ** rng.uniform(-6, 6))
        truth = exact_slope(table, spacing)
        for norm in ("l2", "linf", "l1"):
            proven = Fraction(bound(spline(table, -1.0, spacing), norm))
            assert truth <= proven <= truth * (1 + Fraction(1, 10**12)), seed


def test_many_equally_steep_segments() -> None:
    table = np.cumsum(np.full((4, 200), 0.1), axis=1)
    truth = exact_slope(table, 0.3)
    assert truth <= Fraction(bound(spline(table, 0.0, 0.3))) <= truth * (1 + Fraction(1, 10**12))


def test_cancellation_between_large_coefficients() -> None:
    table = np.array([[1e16, 1e16 + 2, 1e16 + 6]])
    assert bound(spline(table, 0.0, 1.0)) == 4.0


def test_a_flat_spline_moves_nothing() -> None:
    assert bound(spline(np.full((1, 5), 7.0, np.float32), 0.0, 1.0)) == 0.0


def test_end_slopes_continue_outside() -> None:
    """The last interval is the steepest and only reached beyond the knots: it counts."""
    assert bound(spline(np.array([[0, 0, 5]], np.float32), 0.0, 1.0)) == 5.0


def test_overflowing_slopes_are_refused() -> None:
    table = np.array([[-1.7e308, 1.7e308]])
    assert set(codes(spline(table, 0.0, 1e-30))) <= {"LIP014", "LIP003"}


@pytest.mark.parametrize("shape", [(3, 4), (2, 1), (0, 4), (2, 0)])
def test_tables_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    assert judge(spline(np.ones(shape, np.float32), 0.0, 1.0, channels=2)).status == "refused"


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_spacings_are_refused(spacing: float) -> None:
    assert judge(spline(np.ones((2, 3), np.float32), 0.0, spacing)).status == "refused"


def test_a_table_that_depends_on_the_input_is_refused() -> None:
    text = (
        """g (float[N, 2] x) => (float[N, 2] y) { y = lipdeploy.LinearSpline<lower = 0.0, knot_spacing = 1.0>(x, x) }"""
    )
    assert codes(model(text, imports={"lipdeploy": 1})) == ["LIP004"]


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("group_size = 3", "LIP002"),
        ("group_size = -1", "LIP002"),
        ("layout = 2", "LIP002"),
        ("axis = 5", "LIP013"),
        ("axis = 0", "LIP005"),
        ("axis = -2", "LIP005"),
        ("unknown = 1", "LIP002"),
        ("group_size = 2.0", "LIP013"),
    ],
)
def test_group_sort_attributes(attributes: str, code: str) -> None:
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ y = lipdeploy.GroupSort<{attributes}>(x) }}"
    assert codes(model(text, imports={"lipdeploy": 1})) == [code]


def test_element_types_other_than_float_are_refused() -> None:
    proto = model("g (uint8[N, 4] x) => (uint8[N, 4] y) { y = lipdeploy.GroupSort(x) }", imports={"lipdeploy": 1})
    assert proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert judge(proto).status == "refused"
