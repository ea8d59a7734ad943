"""The largest norm of a kernel's symbol K̂(w) = Σ_b K_b·e^{i b·w} over a grid of frequencies, proven (Lemma D2).

K̂(w)K̂(w)* = Σ_d R_d·e^{i d·w} with the kernel's autocorrelation R_d = Σ_{b − b' = d} K_b·K_b'ᵀ, formed once; each
frequency then costs one weighted sum and one factorisation, in binary32 where its norm is well below the largest.
Frequencies are streamed: memory does not grow with the image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.operator_norm.circle import TABLE_ERROR, unit_circle
from lipdeploy.verify.operator_norm.dense import lanczos, power_of_two
from lipdeploy.verify.operator_norm.panels import (
    DOUBLE,
    SINGLE,
    Layout,
    Numbers,
    Precision,
    ShortenedProduct,
    compare,
    hermitian_eigenvalue_up,
    product,
)
from lipdeploy.verify.operator_norm.psd import SQRT2_UP, ProofFailed
from lipdeploy.verify.operator_norm.sums import TINY, Array, inflate_array, largest, square_sum
from lipdeploy.verify.rounding import add_up, div_up, down, gamma_up, mul_up, sqrt_up

Indices = np.ndarray[Any, np.dtype[np.int64]]
BLOCK = 256
CHUNK_ENTRIES = 1 << 21  # entries of the Gram matrices of the frequencies that are in memory together
STACK_ENTRIES = 1 << 18  # of those that are factorised in one call
TABLE_ENTRIES = 1 << 27  # of the autocorrelation
SCREENED_FROM = 320  # rows: smaller matrices are hardly faster in binary32
SCREENED_TOGETHER = 4  # matrices, before they share the fate of the worst
PATIENCE = 8  # screens that may fail, beyond those that succeed, before none is tried
KEPT_BYTES = 31 << 20  # below the 32 MiB at which glibc always maps fresh pages
MARGIN = 1e-10
EVERY_FREQUENCY_WORK = 5e10
ATTEMPTS = 10
SOLVED = 192  # up to this size a guess comes from LAPACK's eigenvalues, above it from Lanczos' method


@dataclass(frozen=True)
class Grid:
    """The frequencies π(2j + twist)/torus on each axis, j = 0 … torus − 1; ``twist`` is 0 or 1 per axis."""

    torus: tuple[int, ...]
    twist: tuple[int, ...]

    @property
    def size(self) -> int:
        """Frequencies that have to be looked at, about: one of each conjugate pair."""
        return math.prod(self.torus) // 2 + 1

    def points(self) -> Indices:
        """(frequencies, axes) numerators 2j + twist modulo 2·torus, one of each pair w, −w (a grid closed under −)."""
        axes = [np.arange(t, 2 * n, 2) for n, t in zip(self.torus, self.twist, strict=True)]
        grid = np.stack([index.reshape(-1) for index in np.meshgrid(*axes, indexing="ij")], axis=1)
        whole = tuple(2 * n for n in self.torus)
        ranks = [np.ravel_multi_index(tuple(points.T), whole) for points in (grid, (-grid) % np.array(whole))]
        return np.asarray(grid[ranks[0] <= ranks[1]])


@dataclass(frozen=True)
class Symbol:
    """Several kernels of one shape side by side (the groups of a convolution): (groups, out, in, *taps), float64."""

    kernels: Array

    @cached_property
    def scale(self) -> float:
        """A power of two near the largest entry."""
        return power_of_two(largest(self.kernels))

    @cached_property
    def _scaled(self) -> Array:
        """The kernels over ``scale``, with no more rows than columns (the adjoint has the same norms)."""
        kernels = self.kernels / self.scale
        return np.swapaxes(kernels, 1, 2) if kernels.shape[1] > kernels.shape[2] else kernels

    @property
    def size(self) -> int:
        """Rows of the Gram matrices."""
        return min(int(n) for n in self.kernels.shape[1:3])

    @property
    def groups(self) -> int:
        """Kernels side by side."""
        return len(self.kernels)

    @cached_property
    def lags(self) -> tuple[tuple[int, ...], ...]:
        """The differences d of two taps, one of each pair d, −d, zero first; those without any product left out."""
        taps = self.kernels.shape[3:]
        every = itertools.product(*(range(1 - k, k) for k in taps))
        used = np.any(self.kernels != 0.0, axis=(0, 1, 2))
        zero = (0,) * len(taps)
        return (
            zero,
            *(d for d in every if d > zero and any(np.any(used[a] & used[b]) for a, b in [_overlap(d, taps)])),
        )

    @cached_property
    def layout(self) -> Layout:
        """How Gram matrices are packed."""
        return Layout(self.size)

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """(R_d + R_dᵀ, R_d − R_dᵀ) for every lag (lag 0: R_0 and 0), packed: each (lags, groups·entries)."""
        entries = len(self.lags) * self.groups * self.size**2
        if entries > TABLE_ENTRIES:
            raise ProofFailed(f"the kernel's autocorrelation has {entries} entries, at most {TABLE_ENTRIES} are formed")
        even, odd = (np.zeros((len(self.lags), self.groups, self.layout.entries)) for _ in range(2))
        for index, lag in enumerate(self.lags):
            lagged = _correlation(self._scaled, lag)
            transposed = np.swapaxes(lagged, -1, -2)
            even[index] = self.layout.pack(lagged + transposed if index else lagged)
            if index:
                odd[index] = self.layout.pack(lagged - transposed)
        return even.reshape(len(self.lags), -1), odd.reshape(len(self.lags), -1)

    @cached_property
    def _single_tables(self) -> tuple[Numbers, Numbers]:
        even, odd = self.tables
        with np.errstate(over="ignore"):
            return even.astype(np.float32), odd.astype(np.float32)

    @cached_property
    def error(self) -> float:
        """Bound of ‖K̂K̂* − computed‖ at every frequency, for the scaled kernels; the lower triangle counts.

        An entry of R_d sums ``products`` products block by block, the weighted sum adds one term per lag, each with a
        phase that errs by e: at most (γ + e)·(S·Sᵀ) with S = Σ_b |K_b| in the real and in the imaginary part, and
        ‖S·Sᵀ‖ ≤ ‖S‖_F².
        """
        kernels, axes = self._scaled, self.kernels.ndim - 3
        products = math.prod(kernels.shape[2:])
        terms = min(products, BLOCK) + -(-products // BLOCK) + len(self.lags) + 4
        relative = add_up(gamma_up(terms), mul_up(_phase_error(axes), 1.0 + 2.0**-20))
        underflow = mul_up(8.0, float(products), float(len(self.lags)), float(self.size) ** 2, TINY)
        return add_up(mul_up(SQRT2_UP, relative, self._peak), underflow)

    @cached_property
    def single_error(self) -> float:
        """``error`` where tables and phases are rounded to binary32 and the weighted sum is formed there."""
        relative = mul_up(gamma_up(len(self.lags) + 4, SINGLE.unit), 1.0 + 2.0**-20)
        products = float(math.prod(self._scaled.shape[2:]))
        underflow = mul_up(8.0, products, float(len(self.lags)), float(self.size) ** 2, SINGLE.tiny)
        return add_up(self.error, mul_up(SQRT2_UP, relative, self._peak), underflow)

    @cached_property
    def _peak(self) -> float:
        """‖S‖_F², the largest over the groups."""
        kernels = self._scaled
        taps = math.prod(kernels.shape[3:])
        sums = inflate_array(np.abs(kernels).reshape(*kernels.shape[:3], taps).sum(axis=3), taps)
        return max(square_sum(part) for part in sums)

    def grams(
        self, points: Indices, torus: tuple[int, ...], precision: Precision = DOUBLE, *, watched: bool = False
    ) -> tuple[Numbers, Numbers]:
        """Real and imaginary parts of K̂K̂* at some frequencies, packed: (frequencies·groups, entries)."""
        phases: tuple[Numbers, Numbers] = _phases(points, np.array(self.lags), torus)
        tables: tuple[Numbers, Numbers] = self.tables
        if precision is SINGLE:
            phases, tables = (phases[0].astype(np.float32), phases[1].astype(np.float32)), self._single_tables
        found = []
        for phase, table in zip(phases, tables, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                found.append(product(phase, table))
            if watched:
                compare(found[-1], phase, table, precision)
        shape = (-1, self.layout.entries)
        return found[0].reshape(shape), found[1].reshape(shape)

    def matrices(self, points: Indices, torus: tuple[int, ...], precision: Precision = DOUBLE) -> Numbers:
        """K̂K̂* at some frequencies, written out: (frequencies·groups, size, size), complex."""
        dtype = np.complex64 if precision is SINGLE else np.complex128
        return self.layout.whole(*self.grams(points, torus, precision), dtype)


def _overlap(lag: tuple[int, ...], taps: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where b and b − lag are both taps: the slices of b and of b − lag."""
    high = tuple(slice(max(d, 0), k + min(d, 0)) for d, k in zip(lag, taps, strict=True))
    low = tuple(slice(max(-d, 0), k + min(-d, 0)) for d, k in zip(lag, taps, strict=True))
    return high, low


def _correlation(kernels: Array, lag: tuple[int, ...]) -> Array:
    """R_d = Σ_b K_b·K_{b−d}ᵀ per group, (groups, size, size): sums of at most BLOCK products, added up."""
    high, low = _overlap(lag, kernels.shape[3:])
    left, right = (kernels[(slice(None),) * 3 + part].reshape(*kernels.shape[:2], -1) for part in (high, low))
    total = left[..., :BLOCK] @ np.swapaxes(right[..., :BLOCK], -1, -2)
    for start in range(BLOCK, left.shape[-1], BLOCK):
        total += left[..., start : start + BLOCK] @ np.swapaxes(right[..., start : start + BLOCK], -1, -2)
    return np.asarray(total)


def _phase_error(axes: int) -> float:
    """|computed − exact| of cos and sin of a sum of ``axes`` angles built by products: 2⁻⁵³, 2⁻⁵⁰, 2⁻⁴⁷ …"""
    return TABLE_ERROR * 8.0 ** (axes - 1)


def _phases(points: Indices, lags: Indices, torus: tuple[int, ...]) -> tuple[Array, Array]:
    """(cos, sin) of d·w, each (frequencies, lags)."""
    cos: Array = np.ones((len(points), len(lags)))
    sin: Array = np.zeros_like(cos)
    for axis, count in enumerate(torus):
        index = np.outer(points[:, axis], lags[:, axis]) % (2 * count)
        table_cos, table_sin = unit_circle(2 * count)
        c, s = table_cos[index], table_sin[index]
        cos, sin = (c, s) if axis == 0 else (cos * c - sin * s, sin * c + cos * s)
    return cos, sin


def symbol_norm_up(symbol: Symbol, grid: Grid, guide: Guide | None = None) -> Bound:
    """max ‖K̂(w)‖₂ over all frequencies of the grid and all groups, rounded up; slack about 1e-10 relative.

    The guide's hint ``tau`` is the shift to try first; the shift that was enough is left there.
    """
    guide = guide if guide is not None else Guide()
    if not np.any(symbol.kernels):
        return Bound(0.0)
    np.empty(KEPT_BYTES, np.uint8)  # freed at once: glibc then keeps blocks up to this size in place of fresh pages
    points = _spread(grid.points())
    largest = _Largest(symbol, grid.torus, guide.shift("tau") or 0.0)
    step = max(1, CHUNK_ENTRIES // (symbol.groups * symbol.size**2))
    for start in range(0, len(points), step):
        largest.cover(points[start : start + step])
        guide.watch(min(start + step, len(points)) / len(points))
    guide.found["tau"] = largest.tau.hex()
    return Bound(mul_up(symbol.scale, sqrt_up(largest.proven)))


class _Largest:
    """The bound of λ_max(K̂K̂*) over the frequencies covered so far, and the shift τ to go on with."""

    def __init__(self, symbol: Symbol, torus: tuple[int, ...], tau: float) -> None:
        self.symbol, self.torus, self.tau, self.proven = symbol, torus, tau, 0.0
        self.patience = PATIENCE if symbol.size >= SCREENED_FROM else 0
        self.watched, self.share = True, 0.0

    def cover(self, points: Indices) -> None:
        """Screen the frequencies in binary32; those that may be near the largest are factorised in binary64."""
        together = max(1, STACK_ENTRIES // (self.symbol.groups * self.symbol.size**2))
        if max(self.proven, self.tau) > 0.0 and self.patience > 0:
            points = self._screened(points)
        for start in range(0, len(points), together):
            some = points[start : start + together]
            packed = self.symbol.grams(some, self.torus)
            for part in range(0, len(packed[0]), together):
                self._prove(*(rows[part : part + together] for rows in packed))

    def _screened(self, points: Indices) -> Indices:
        """The frequencies that are left over."""
        try:
            real, imaginary = self.symbol.grams(points, self.torus, SINGLE, watched=self.watched)
            rows = np.arange(len(real)).reshape(len(points), -1)
            step = max(1, SCREENED_TOGETHER // self.symbol.groups)
            failed = [
                rest
                for start in range(0, len(points), step)
                for rest in self._failed(real, imaginary, rows, slice(start, start + step))
            ]
        except ShortenedProduct:
            self.patience = 0
            return points
        return points[failed]

    def _failed(self, real: Numbers, imaginary: Numbers, rows: Indices, some: slice) -> list[int]:
        """Which frequencies of a slice are not proven to be at most the largest bound so far."""
        chosen = np.arange(len(rows))[some]
        if self.patience <= 0:
            return list(chosen)
        bar = max(self.proven, self.tau)
        if self._is_below(bar, real[rows[some].reshape(-1)], imaginary[rows[some].reshape(-1)]):
            self.proven = bar
            self.patience = min(PATIENCE, self.patience + len(chosen))
            return []
        if len(chosen) == 1:
            self.patience -= 1
            return list(chosen)
        middle = (int(chosen[0]) + int(chosen[-1]) + 1) // 2
        halves = slice(int(chosen[0]), middle), slice(middle, int(chosen[-1]) + 1)
        return [index for half in halves for index in self._failed(real, imaginary, rows, half)]

    def _is_below(self, bar: float, real: Numbers, imaginary: Numbers) -> bool:
        layout, error = self.symbol.layout, self.symbol.single_error
        share = self.share or 2.0 * gamma_up(SINGLE.block, SINGLE.unit) * layout.size
        shift = (bar - error) / (1.0 + 1.1 * share)
        if not 0.0 < shift < math.inf:
            return False
        upper = hermitian_eigenvalue_up(shift, real, imaginary, error, layout, SINGLE, watched=self.watched)
        if upper is None:
            return False
        self.watched, self.share = False, (float(upper.max()) - error - shift) / shift
        return float(upper.max()) <= bar

    def _prove(self, real: Array, imaginary: Array) -> None:
        """Raise τ until a stack can be factorised."""
        error, layout = self.symbol.error, self.symbol.layout
        if not (np.all(np.isfinite(real)) and np.all(np.isfinite(imaginary)) and np.isfinite(error)):
            raise ProofFailed("the kernel's symbol overflowed")
        for attempt in range(ATTEMPTS):
            upper = hermitian_eigenvalue_up(self.tau, real, imaginary, error, layout) if self.tau else None
            if upper is not None:
                self.proven = max(self.proven, float(upper.max()))
                return
            margin = 1.0 + MARGIN * 4.0**attempt
            estimate = guess(layout.whole(real, imaginary), exact=attempt > 1)
            self.tau = max(self.tau * (margin if attempt else 1.0), estimate * margin, TINY)
        raise ProofFailed("no shifted symbol could be factorised")


def every_frequency_up(symbol: Symbol, guide: Guide | None = None) -> Bound:
    """sup_w ‖K̂(w)‖₂ over all real frequencies, rounded up: the norm of the convolution on images of any size.

    u*K̂(w)v is, up to a phase, a trigonometric polynomial of degree D = ⌈(k − 1)/2⌉ on each axis; its largest value is
    at most 1/cos(πD/M) times the largest on M > 2D equidistant points (Ehlich and Zeller 1964), axis by axis.
    """
    degrees = tuple(-(-(taps - 1) // 2) for taps in symbol.kernels.shape[3:])
    fineness = _fineness(symbol, degrees)
    torus = tuple(max(1, fineness * degree) for degree in degrees)
    gain = symbol_norm_up(symbol, Grid(torus, (0,) * len(torus)), guide)
    for degree, count in zip(degrees, torus, strict=True):
        if degree:
            cosine = float(unit_circle(2 * count)[0][degree]) - TABLE_ERROR
            gain = Bound(mul_up(gain.value, div_up(1.0, down(cosine))))
    return gain


def _fineness(symbol: Symbol, degrees: tuple[int, ...]) -> int:
    """Points per degree: as many as the work allows, 64 at most (0.1 % per axis), 8 at least (8 %)."""
    moving = [degree for degree in degrees if degree]
    for fineness in (64, 48, 32, 24, 16, 12):
        points = math.prod(fineness * degree for degree in moving)
        if 1.5 * points * symbol.groups * symbol.size**3 <= EVERY_FREQUENCY_WORK:
            return fineness
    return 8


def _spread(points: Indices) -> Indices:
    """Far-apart frequencies first: a symbol changes slowly, so the shift is near its last value after a few of them."""
    stride = next((s for s in range(int(0.618 * len(points)), 0, -1) if math.gcd(s, len(points)) == 1), 1)
    return points[np.arange(len(points)) * stride % len(points)]


def guess(stack: Numbers, *, exact: bool = False) -> float:
    """The largest eigenvalue over a stack of Hermitian matrices; untrusted."""
    if exact or stack.shape[-1] <= SOLVED:
        return float(np.linalg.eigvalsh(stack)[:, -1].max())
    return max(lanczos(matrix) for matrix in stack)
