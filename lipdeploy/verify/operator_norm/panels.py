"""The largest eigenvalue of Hermitian matrices that are kept as panels of their lower triangle (Lemma C6).

A panel holds some columns from the diagonal down; what lies above the diagonal mirrors it. One pass makes an untrusted
Cholesky factor and bounds its residual on the way: in binary64, or, for matrices whose eigenvalues are well below the
bound wanted, in binary32 with the same proof and its larger unit roundoff. A pass that is ``watched`` compares every
product with the one in binary64: processors may be told to shorten binary32 (assumption A2).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.verify.operator_norm.psd import SQRT2_UP, ProofFailed
from lipdeploy.verify.operator_norm.sums import Array
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, down, gamma_up, mul_up, sqrt_up, up

Numbers = np.ndarray[Any, Any]  # float64 or float32
WIDTH = 32  # columns of a panel …
SHORT_WIDTH = 16  # … of a matrix of at most
SHORT = 192  # rows
HUGE = 2.0**900  # more than any inverse squared
ALMOST_ONE = 1.0 + 2.0**-40  # above 1 by more than the roundings of a small matrix's sums
SLOPPY = 2.0**15  # units of roundoff, times the shift, that a panel's residual may seem to be before it is formed


@dataclass(frozen=True)
class Precision:
    """What a pass computes in: ``block`` columns at a time, unit roundoff, smallest normal number."""

    dtype: type
    unit: float
    tiny: float
    block: int


DOUBLE = Precision(np.float64, UNIT_ROUNDOFF, 2.0**-1022, 256)
SINGLE = Precision(np.float32, 2.0**-24, 2.0**-126, 128)


class ShortenedProduct(ArithmeticError):
    """A matrix product in binary32 is not as exact as sums in binary32 are."""


@dataclass(frozen=True)
class Layout:
    """Where the panels of an n × n matrix lie in one row of ``entries`` numbers, each panel row by row."""

    size: int

    @property
    def width(self) -> int:
        """Columns of every panel but, perhaps, the last."""
        return SHORT_WIDTH if self.size <= SHORT else WIDTH

    @functools.cached_property
    def panels(self) -> tuple[tuple[int, int, slice], ...]:
        """(first column, end, place) of each panel; its rows are ``first`` … n − 1."""
        found, offset = [], 0
        for start in range(0, self.size, self.width):
            stop = min(start + self.width, self.size)
            entries = (self.size - start) * (stop - start)
            found.append((start, stop, slice(offset, offset + entries)))
            offset += entries
        return tuple(found)

    @property
    def entries(self) -> int:
        """Numbers in a row."""
        return int(self.panels[-1][2].stop)

    def pack(self, matrix: Array) -> Array:
        """(…, n, n) to (…, entries)."""
        lead = matrix.shape[:-2]
        parts = [matrix[..., start:, start:stop].reshape(*lead, -1) for start, stop, _ in self.panels]
        return np.concatenate(parts, axis=-1)

    def panel(self, packed: Numbers, index: int) -> Numbers:
        """(…, rows, columns) of one panel: a view."""
        start, stop, place = self.panels[index]
        return packed[..., place].reshape(*packed.shape[:-1], self.size - start, stop - start)

    def whole(self, real: Numbers, imaginary: Numbers, dtype: type = np.complex128) -> Numbers:
        """The Hermitian matrices (…, n, n) whose lower triangles are packed."""
        matrix = np.empty((*real.shape[:-1], self.size, self.size), dtype)
        for index, (start, stop, _) in enumerate(self.panels):
            below = matrix[..., start:, start:stop]
            below.real, below.imag = self.panel(real, index), self.panel(imaginary, index)
            matrix[..., start:stop, stop:] = np.swapaxes(below[..., stop - start :, :].conj(), -1, -2)
        return matrix


def hermitian_eigenvalue_up(
    tau: float,
    real: Numbers,
    imaginary: Numbers,
    error: float,
    layout: Layout,
    precision: Precision = DOUBLE,
    *,
    watched: bool = False,
) -> Array | None:
    """Upper bounds of λ_max(G) for a stack of Hermitian G within ``error`` of Ĝ, packed in (stack, entries).

    λ_max ≤ τ + η + ε (Lemma C6). ``None`` where τI − Ĝ could not be factorised: τ is too small, or the precision.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            eta = _Pass(tau, real, imaginary, layout, precision, watched=watched).residual_up()
    except np.linalg.LinAlgError:
        return None
    upper: Array = np.nextafter(tau + (eta + error), np.inf) * up(1.0 + 4 * UNIT_ROUNDOFF)
    if np.all(np.isfinite(upper)):
        return upper
    if precision is DOUBLE:
        raise ProofFailed("the residual of a factorisation is not finite")
    return None


class _Pass:
    """One left-looking factorisation of A = τI − Ĝ ≈ LL*; L's real and imaginary parts lie side by side in panels."""

    def __init__(
        self, tau: float, real: Numbers, imaginary: Numbers, layout: Layout, precision: Precision, *, watched: bool
    ) -> None:
        self.tau, self.real, self.imaginary = tau, real, imaginary
        self.layout, self.precision, self.watched = layout, precision, watched
        self.factor: Numbers = np.empty((len(real), layout.size, 2 * layout.size), precision.dtype)
        self.squares, self.trace = np.zeros(len(real)), np.zeros(len(real))

    def residual_up(self) -> Array:
        """η ≥ ‖A − LL*‖_F."""
        for index in range(len(self.layout.panels)):
            self._advance(index)
        size, unit, block = self.layout.size, self.precision.unit, self.precision.block
        gamma = _gamma(min(2 * size, block) + -(-2 * size // block) + 6, unit)
        rounding = mul_up(SQRT2_UP, gamma)
        left = down(1.0 - mul_up(rounding, _root(size), ALMOST_ONE))
        if left < 0.5:
            raise np.linalg.LinAlgError("too many terms for this precision")
        slack = up(1.0 + 4.0 * _gamma(4 * size * size + 8))
        found = np.sqrt(2.0 * self.squares) * (up(1.0 + gamma) * slack)
        found = found + 64.0 * float(size) ** 3 * self.precision.tiny * (1.0 + self.trace + found)
        length = (self.trace + _root(size) * found) * slack / left  # ‖L‖_F² = tr LL*
        return np.asarray((found + rounding * length) * up(slack * slack))

    def _advance(self, index: int) -> None:
        start, stop, _ = self.layout.panels[index]
        width, block, below = stop - start, self.precision.block, self.factor[:, start:]
        left = self._shifted(index)
        across = _adjoint(below[:, :width, : 2 * start], self.layout.width) if start else left
        for first in range(0, 2 * start, block):
            columns = slice(first, min(first + block, 2 * start))
            left -= self._product(below[..., columns], across[:, columns])
        corner = left[:, :width].astype(np.float64, copy=False)
        own = below[..., 2 * start : 2 * stop]
        if stop == self.layout.size:
            root = self._rounded(_turned(np.linalg.cholesky(_complex(corner))))
        else:
            root, inverse = (self._rounded(form) for form in _roots(corner))
            own[:, width:] = self._product(left[:, width:], _flipped(inverse.astype(self.precision.dtype, copy=False)))
            self.squares += self._below(left[:, width:], own[:, width:], root, inverse)
        own[:, :width] = root[:, :width]
        self.squares += _squares(corner - root[:, :width] @ _flipped(root)) + 4.0 * width * width * DOUBLE.tiny

    def _shifted(self, index: int) -> Numbers:
        """A panel of τI − Ĝ: the real parts, then the imaginary ones."""
        real, imaginary = self.layout.panel(self.real, index), self.layout.panel(self.imaginary, index)
        count, rows, width = real.shape
        left = np.empty((count, rows, 2 * width), self.precision.dtype)
        np.negative(real, out=left[..., :width], casting="same_kind")
        np.negative(imaginary, out=left[..., width:], casting="same_kind")
        diagonal = np.arange(width)
        values = self.tau - real[:, diagonal, diagonal].astype(np.float64)
        left[:, diagonal, diagonal] = values
        self.trace += np.abs(values).sum(axis=-1)
        return left

    def _rounded(self, form: Array) -> Array:
        """The same numbers in the pass's precision, still stored in binary64."""
        return form if self.precision is DOUBLE else form.astype(self.precision.dtype).astype(np.float64)

    def _product(self, left: Numbers, right: Numbers) -> Numbers:
        result = product(left, right)
        if self.watched:
            compare(result, left, right, self.precision)
        return result

    def _below(self, left: Numbers, panel: Numbers, root: Array, inverse: Array) -> Array:
        """Upper bounds of ‖S − L·C*‖_F² below a corner, L = fl(S·W*): ‖S‖_F·(‖I − CW‖_F + γ‖|W|‖‖|C|‖), or as it is."""
        unit, tiny, width = self.precision.unit, self.precision.tiny, root.shape[-1] // 2
        entries = left.shape[-1] * left.shape[-2]
        grown = up(1.0 + 2.0 * _gamma(entries + 4, unit))
        length = np.sqrt(_squares(left) * grown + entries * tiny)
        caps = _cap(root) * _cap(inverse) * ALMOST_ONE
        missing = root[:, :width] @ inverse
        diagonal = np.arange(width)
        missing[:, diagonal, diagonal] -= 1.0
        wrong = np.sqrt(_squares(missing)) * ALMOST_ONE + _gamma(2 * width + 2) * _root(2 * width) * caps
        bound = length * (wrong + _gamma(2 * width + 2, unit) * caps) * ALMOST_ONE
        if np.all(bound <= SLOPPY * unit * self.tau):
            return np.asarray(bound * bound)
        residual = left - self._product(panel, _flipped(root.astype(self.precision.dtype, copy=False)))
        return np.asarray(_squares(residual) * grown + entries * tiny)


def product(left: Numbers, right: Numbers) -> Numbers:
    """The matrix product, in the precision of both."""
    return np.asarray(left @ right)


def compare(result: Numbers, left: Numbers, right: Numbers, precision: Precision) -> None:
    """Raise ``ShortenedProduct`` where a matrix product errs by more than sums in its precision can."""
    first, second = left.astype(np.float64), right.astype(np.float64)
    terms = first.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        allowed = gamma_up(terms + 2, precision.unit) * (np.abs(first) @ np.abs(second)) + 2.0 * terms * precision.tiny
        agrees = np.abs(result - first @ second) <= allowed
    if not np.all(agrees):
        raise ShortenedProduct("a matrix product is less exact than its precision")


@functools.cache
def _gamma(terms: int, unit: float = UNIT_ROUNDOFF) -> float:
    return gamma_up(terms, unit)


@functools.cache
def _root(terms: int) -> float:
    return sqrt_up(float(terms))


def _squares(stack: Numbers) -> Array:
    return np.asarray(np.einsum("...ij,...ij->...", stack, stack), np.float64)


def _flipped(matrix: Numbers) -> Numbers:
    return matrix.swapaxes(-1, -2)


def _complex(corner: Array) -> Numbers:
    width = corner.shape[-1] // 2
    matrix = np.empty((*corner.shape[:-1], width), np.complex128)
    matrix.real, matrix.imag = corner[..., :width], corner[..., width:]
    return matrix


def _roots(corner: Array) -> tuple[Array, Array]:
    """Real forms of a lower triangular factor C of a corner and of its inverse, about; both from one factorisation."""
    count, width, _ = corner.shape
    matrix = np.zeros((count, 2 * width, 2 * width), np.complex128)
    matrix[:, :width, :width] = _complex(corner)
    diagonal = np.arange(width)
    matrix[:, width + diagonal, diagonal] = 1.0
    matrix[:, width + diagonal, width + diagonal] = HUGE
    factor = np.linalg.cholesky(matrix)  # [[C, 0], [C⁻*, …]]
    return _turned(factor[:, :width, :width]), _flipped(_turned(factor[:, width:, :width]))


def _turned(matrix: Numbers) -> Array:
    """The real form [[Re, Im], [−Im, Re]] of M: [Re x, Im x] times it is [Re xM, Im xM]; transposed, that of M*."""
    size = matrix.shape[-1]
    form = np.empty((*matrix.shape[:-2], 2 * size, 2 * size))
    form[..., :size, :size] = form[..., size:, size:] = matrix.real
    form[..., :size, size:] = matrix.imag
    np.negative(matrix.imag, out=form[..., size:, :size])
    return form


def _adjoint(rows: Numbers, width: int) -> Numbers:
    """(columns, 2·rows): what rows of L meet to make a panel of LL*, real parts, then imaginary ones."""
    count, height, columns = rows.shape
    both = np.empty((count, 2, height, columns // (2 * width), 2, width), rows.dtype)
    pairs = rows.reshape(count, height, -1, 2, width)
    both[:, 0] = pairs
    np.negative(pairs[..., 1, :], out=both[:, 1, ..., 0, :])
    both[:, 1, ..., 1, :] = pairs[..., 0, :]
    return _flipped(both.reshape(count, 2 * height, columns))


def _cap(form: Array) -> Array:
    """Upper bounds of ‖|M|‖ from the real form of M: √(largest row sum × largest column sum)."""
    width = form.shape[-1] // 2
    absolute = np.abs(form[:, :width])
    columns = absolute.sum(axis=-2)
    largest = absolute.sum(axis=-1).max(axis=-1) * (columns[:, :width] + columns[:, width:]).max(axis=-1)
    return np.asarray(np.sqrt(largest) * ALMOST_ONE)
