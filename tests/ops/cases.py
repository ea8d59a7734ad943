"""The one table of cases that drives every form of an operator: NumPy, function body, CPU kernel, CUDA kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

# Name in the C entry points, NumPy type, ONNX element type.
TYPES: dict[str, tuple[np.dtype[Any], int]] = {
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
    "f32": (np.dtype(np.float32), TensorProto.FLOAT),
    "f64": (np.dtype(np.float64), TensorProto.DOUBLE),
}


@dataclass(frozen=True)
class SortCase:
    """A shape and the attributes of one GroupSort."""

    shape: tuple[int, ...]
    group_size: int
    axis: int = 1
    layout: int = 0
    descending: int = 0

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "group_size": self.group_size,
            "axis": self.axis,
            "layout": self.layout,
            "descending": self.descending,
        }

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}-s{self.group_size}-a{self.axis}-{'strided' if self.layout else 'adjacent'}-{self.descending}"


SORT_CASES = [
    # every group size, both layouts, both orders, dense layers
    *(
        SortCase((3, 192), size, layout=layout, descending=descending)
        for size in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 0)
        for layout in (0, 1)
        for descending in (0, 1)
    ),
    SortCase((2, 20), 5),
    # groups that are no multiple of the threads of a block, nor an even number of them
    *(SortCase((37, 7 * size), size, descending=size // 8 % 2) for size in (3, 4, 8, 16, 32)),
    SortCase((2, 20), 5, layout=1, descending=1),
    # images, with lanes that fill vectors and lanes that do not
    *(SortCase((2, 16, 5, 7), size, layout=layout) for size in (1, 2, 4, 8, 16, 0) for layout in (0, 1)),
    SortCase((2, 4, 32, 16), 2, descending=1),
    SortCase((1, 8, 3, 100), 4, layout=1),
    *(SortCase((2, 2 * size, 3, 4), size, layout=layout) for size in (6, 32) for layout in (0, 1)),
    # any rank, any axis
    SortCase((12,), 3, axis=0),
    SortCase((12,), 2, axis=-1, layout=1),
    SortCase((6, 4), 2, axis=0),
    SortCase((4, 6, 5), 3, axis=-2),
    SortCase((4, 5, 6), 2, axis=-1, layout=1),
    SortCase((4, 5, 6), 0, axis=2, descending=1),
    SortCase((2, 3, 4, 2, 3), 4, axis=2),
    # larger than the networks and the shared memory of a block
    SortCase((2, 300), 100),
    SortCase((2, 300, 3), 150, layout=1, descending=1),
    SortCase((1, 1000), 0),
    SortCase((1, 20000), 0, descending=1),
    # empty batches and empty maps
    SortCase((0, 8), 2),
    SortCase((0, 8, 3, 3), 4, layout=1),
    SortCase((2, 8, 0, 3), 0),
]


@dataclass(frozen=True)
class SplineCase:
    """A shape and the attributes of one LinearSpline."""

    shape: tuple[int, ...]
    knots: int
    shared: bool = False
    lower: float = -1.0
    knot_spacing: float = 0.1
    axis: int = 1

    @property
    def attributes(self) -> dict[str, float]:
        # as an ONNX file stores them
        return {
            "lower": float(np.float32(self.lower)),
            "knot_spacing": float(np.float32(self.knot_spacing)),
            "axis": self.axis,
        }

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}-K{self.knots}-{'shared' if self.shared else 'own'}-h{self.knot_spacing}-a{self.axis}"


SPLINE_CASES = [
    SplineCase((5, 33), 21),
    SplineCase((5, 33), 21, shared=True),
    SplineCase((3, 4, 5, 7), 51, lower=-0.1, knot_spacing=0.004),
    SplineCase((2, 3, 70), 11, shared=True),
    SplineCase((3, 4, 40), 2),
    SplineCase((3, 4, 40), 3, lower=0.25, knot_spacing=7.0),
    SplineCase((2, 6), 1025, lower=-3.0, knot_spacing=0.005859375),
    SplineCase((9,), 5, axis=0),
    SplineCase((4, 3, 5), 7, axis=-1),
    SplineCase((4, 3, 5), 7, axis=-3, knot_spacing=1e-3),
    SplineCase((0, 4), 5),
    SplineCase((2, 4, 0), 5, shared=True),
]


@dataclass(frozen=True)
class ReflectCase:
    """A shape and the attributes of one Householder."""

    shape: tuple[int, ...]
    layout: int = 1
    axis: int = 1

    @property
    def attributes(self) -> dict[str, int]:
        return {"axis": self.axis, "layout": self.layout}

    @property
    def pairs(self) -> int:
        return self.shape[self.axis] // 2

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-a{self.axis}-{'strided' if self.layout else 'adjacent'}"


REFLECT_CASES = [
    *(
        ReflectCase(shape, layout)
        for layout in (0, 1)
        for shape in ((5, 34), (3, 192), (700, 6), (2, 6, 5, 7), (2, 4, 40), (1, 8, 3, 100), (3, 4, 3), (2, 64, 4))
    ),
    # any rank, any axis
    ReflectCase((12,), 1, axis=0),
    ReflectCase((12,), 0, axis=-1),
    ReflectCase((4, 6, 5), 0, axis=-2),
    ReflectCase((4, 5, 6), 1, axis=-1),
    ReflectCase((4, 5, 6), 0, axis=2),
    ReflectCase((2, 3, 4, 2, 3), 1, axis=2),
    ReflectCase((2, 3, 4, 2, 3), 0, axis=-5),
    # empty batches, maps and channels
    ReflectCase((0, 8)),
    ReflectCase((2, 8, 0, 3), 0),
    ReflectCase((3, 0), 1),
    ReflectCase((3, 0, 2), 0),
]


def reflect_input(case: ReflectCase, dtype: np.dtype[Any], *, special: bool, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random values; ``special`` adds ±0, ±Inf, subnormals and NaNs, pairs on the line of reflection among them."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal(case.shape) * 8, 1).astype(dtype)
    return sprinkle(x, rng, nan_share=0.03) if special else x


def reflect_angles(
    case: ReflectCase, dtype: np.dtype[Any], *, seed: int = 1
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """sin(θ/2) and cos(θ/2) of random angles; 0, π/2, π and one that was scaled come first."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(-4, 4, case.pairs)
    half[:3] = np.array([0.0, np.pi / 4, np.pi / 2])[: case.pairs]
    scale = np.where(np.arange(case.pairs) == 3, 1.5, 1.0)
    return (scale * np.sin(half)).astype(dtype), (scale * np.cos(half)).astype(dtype)


def sort_input(case: SortCase, dtype: np.dtype[Any], *, special: bool, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random values with ties; ``special`` adds ±0, ±Inf, subnormals and a few NaNs of either sign.

    One NaN makes a whole group NaN, and a tensor of nothing else would test no sort: half of the groups have none.
    """
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal(case.shape) * 8, 1).astype(dtype)
    size = case.group_size or case.shape[case.axis]
    nan_share = min(0.03, 0.7 / size) if x.size > size else 0.0
    return sprinkle(x, rng, nan_share=nan_share) if special else x


def spline_input(case: SplineCase, dtype: np.dtype[Any], *, special: bool, seed: int = 0) -> np.ndarray[Any, Any]:
    """Values inside and outside the knots, some exactly on a knot or one step beside it."""
    rng = np.random.default_rng(seed)
    width = (case.knots - 1) * case.knot_spacing
    x = case.lower + width * rng.uniform(-0.5, 1.5, case.shape)
    on_knot = rng.random(case.shape) < 0.3
    knots = np.float32(case.lower) + rng.integers(0, case.knots, case.shape) * np.float32(case.knot_spacing)
    x = np.where(on_knot, knots, x).astype(dtype)
    return sprinkle(x, rng, nan_share=0.05) if special else x


def spline_coefficients(case: SplineCase, dtype: np.dtype[Any], *, seed: int = 1) -> np.ndarray[Any, Any]:
    """Random values; in the first channel both end intervals are flat."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((1 if case.shared else case.channels, case.knots)).astype(dtype)
    table[0, 0], table[0, -1] = table[0, 1], table[0, -2]
    return table


def sprinkle(x: np.ndarray[Any, Any], rng: np.random.Generator, nan_share: float) -> np.ndarray[Any, Any]:
    """Replace some values by ±0, ±Inf, the smallest subnormal, and NaNs with sign and payload."""
    tiny = np.ones((), np.dtype(f"i{x.dtype.itemsize}")).view(x.dtype)[()]
    specials = np.array([0.0, -0.0, np.inf, -np.inf, tiny, -tiny], dtype=x.dtype)
    x = np.where(rng.random(x.shape) < 0.3, specials[rng.integers(0, len(specials), x.shape)], x)
    nans = (np.array([np.nan, -np.nan], dtype=x.dtype).view(f"i{x.dtype.itemsize}") + 1).view(x.dtype)
    return np.where(rng.random(x.shape) < nan_share, nans[rng.integers(0, 2, x.shape)], x).astype(x.dtype)


def bits(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of every value, for comparisons that see signs of zeros and NaN payloads."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def values(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values as float64, for comparisons that see neither."""
    return x.astype(np.float64)
