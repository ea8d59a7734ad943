"""Hermitian eigenvalue bounds by panels, in binary64 and in binary32: never below the truth.

Truth: the residual of the factor that was made, written out in binary64; ball arithmetic (Arb) at 200 bits; eigenvalues
in binary64 for shifts that lie below them by more than its errors.
"""

from __future__ import annotations

import itertools
from typing import Any

import flint
import numpy as np
import pytest

from lipdeploy.verify.guide import Guide
from lipdeploy.verify.operator_norm import panels, symbol
from lipdeploy.verify.operator_norm.panels import (
    DOUBLE,
    SINGLE,
    Layout,
    Precision,
    ShortenedProduct,
    compare,
    hermitian_eigenvalue_up,
)
from lipdeploy.verify.operator_norm.psd import ProofFailed
from lipdeploy.verify.operator_norm.symbol import Grid, Symbol, symbol_norm_up
from lipdeploy.verify.rounding import gamma_up

Array = np.ndarray[Any, Any]
SIZES = [1, 2, 15, 16, 17, 33, 64, 100, 193, 200, 225]


def gaussian(rng: np.random.Generator, size: int, stack: int = 2) -> Array:
    root = rng.standard_normal((stack, size, size)) + 1j * rng.standard_normal((stack, size, size))
    return np.asarray(root @ np.swapaxes(root.conj(), -1, -2) / (2 * size))


def kinds(size: int) -> dict[str, Array]:
    """Stacks of Hermitian matrices whose spectra are hard in different ways."""
    rng = np.random.default_rng(size)
    unitary = np.linalg.qr(gaussian(rng, size))[0]
    turned = np.swapaxes(unitary.conj(), -1, -2)
    graded = np.logspace(0, -14, size)
    first = np.ones(size)
    first[1:] = 1e-9
    return {
        "gauss": gaussian(rng, size),
        "nearly orthogonal": np.asarray(unitary @ (np.linspace(1 - 1e-7, 1, size)[:, None] * turned)),
        "graded": np.asarray(unitary @ (graded[:, None] * turned)),
        "rank one": np.asarray(unitary[..., :1] @ turned[..., :1, :]),
        "first channel": gaussian(rng, size) * 1e-9 + np.diag(first),
        "real": gaussian(rng, size).real + 0j,
        "diagonal": np.asarray(np.broadcast_to(np.diag(graded), (2, size, size)) + 0j),
    }


def packed(matrix: Array, precision: Precision) -> tuple[Layout, Array, Array]:
    layout = Layout(matrix.shape[-1])
    real: Array = layout.pack(matrix.real).astype(precision.dtype)
    imaginary: Array = layout.pack(matrix.imag).astype(precision.dtype)
    return layout, real, imaginary


@pytest.mark.parametrize("size", SIZES)
def test_packing_keeps_the_lower_triangle(size: int) -> None:
    """What lies to the right of the panels is never read: it mirrors what lies below."""
    lower = np.tril(gaussian(np.random.default_rng(size), size))
    mirrored = lower + np.swapaxes(np.tril(lower, -1).conj(), -1, -2)
    layout = Layout(size)
    unread = np.array([[column >= stop_of(layout, row) for column in range(size)] for row in range(size)])
    _, real, imaginary = packed(np.where(unread, np.nan, mirrored), DOUBLE)
    assert real.shape == imaginary.shape == (2, layout.entries)
    assert np.array_equal(layout.whole(real, imaginary), mirrored)


def stop_of(layout: Layout, row: int) -> int:
    """The end of the panel whose corner a row crosses."""
    return next(stop for start, stop, _ in layout.panels if start <= row < stop)


@pytest.mark.parametrize("precision", [DOUBLE, SINGLE], ids=["binary64", "binary32"])
@pytest.mark.parametrize("size", SIZES)
def test_against_eigenvalues(size: int, precision: Precision) -> None:
    """Every kind of matrix: above the truth, and near the shift."""
    for name, matrix in kinds(size).items():
        layout, real, imaginary = packed(matrix, precision)
        truth = np.linalg.eigvalsh(layout.whole(real, imaginary))[:, -1]
        for margin in (1e-10, 1e-5, 1e-2, 1.0):
            shift = float(truth.max()) * (1 + margin)
            upper = hermitian_eigenvalue_up(shift, real, imaginary, 0.0, layout, precision)
            if precision is DOUBLE or margin == 1.0:
                assert upper is not None, (name, margin)
            if upper is not None:
                assert np.all(upper >= truth * (1 - 1e-14)), (name, margin)
                assert np.all(upper <= shift * (1 + precision.unit * 256 * size + 1e-11)), (name, margin)


def test_shifts_below_the_truth_that_binary32_does_not_notice() -> None:
    """A factorisation that rounding lets pass proves no less than the truth: it happens, and the residual tells."""
    passed = 0
    for seed, size, gap in itertools.product(range(12), (3, 20, 70), (1e-10, 1e-9, 1e-8, 3e-8, 1e-6)):
        matrix = gaussian(np.random.default_rng(seed), size, 1)
        layout, real, imaginary = packed(matrix, SINGLE)
        truth = float(np.linalg.eigvalsh(layout.whole(real, imaginary))[0, -1])
        upper = hermitian_eigenvalue_up(truth * (1 - gap), real, imaginary, 0.0, layout, SINGLE)
        if upper is not None:
            passed += 1
            assert float(upper[0]) >= truth
    assert passed >= 10


@pytest.mark.parametrize("precision", [DOUBLE, SINGLE], ids=["binary64", "binary32"])
def test_against_ball_arithmetic(precision: Precision) -> None:
    """Eigenvalues of the stored numbers in 200-bit balls, shifts on both sides of them."""
    previous, flint.ctx.prec = flint.ctx.prec, 200
    try:
        for seed, size in itertools.product(range(6), (2, 5, 18)):
            layout, real, imaginary = packed(gaussian(np.random.default_rng(seed), size, 1), precision)
            whole = layout.whole(real, imaginary)[0]
            balls = flint.acb_mat([[flint.acb(float(z.real), float(z.imag)) for z in row] for row in whole])
            truth = max((v.real for v in balls.eig(algorithm="rump", tol=1e-40)), key=lambda ball: float(ball.mid()))
            for factor in (1 - 1e-7, 1 - 1e-15, 1.0, 1 + 1e-15, 1 + 1e-7, 1 + 1e-3):
                upper = hermitian_eigenvalue_up(float(truth.mid()) * factor, real, imaginary, 0.0, layout, precision)
                assert upper is None or flint.arb(float(upper[0])) >= truth, (seed, size, factor)
    finally:
        flint.ctx.prec = previous


@pytest.mark.parametrize("precision", [DOUBLE, SINGLE], ids=["binary64", "binary32"])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("spoils", [(1.0, 1.0), (0.0, 1.0)], ids=["both", "inverse"])
@pytest.mark.parametrize("size", [16, 40, 133, 225])
def test_whatever_lapack_answers_the_residual_is_covered(
    size: int, spoils: tuple[float, float], noise: float, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spoiled factors and inverses: η lies above ‖A − LL*‖ of the factor that came out of them, and near it."""
    rng, honest = np.random.default_rng(0), panels._roots

    def spoiled(corner: Array) -> tuple[Array, Array]:
        root, inverse = (
            form + share * noise * panels._turned(wobble(form))
            for share, form in zip(spoils, honest(corner), strict=True)
        )
        return root, inverse

    def wobble(form: Array) -> Array:
        shape = (*form.shape[:-2], form.shape[-1] // 2, form.shape[-1] // 2)
        return np.tril(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    monkeypatch.setattr(panels, "_roots", spoiled)
    monkeypatch.setattr(np.linalg, "cholesky", lambda matrix, like=np.linalg.cholesky: like(definite(matrix)))
    matrix = gaussian(rng, size)
    eta, truth = residuals(9.0, matrix, precision)
    assert np.all(eta >= truth * (1 - 1e-9) - 1e-13)
    assert np.all(eta <= 4.0 * truth + precision.unit * 9000 * size)


def residuals(shift: float, matrix: Array, precision: Precision) -> tuple[Array, Array]:
    """(η, ‖A − LL*‖_F of the factor that the pass made, written out in binary64)."""
    layout, real, imaginary = packed(matrix, precision)
    made = panels._Pass(shift, real, imaginary, layout, precision, watched=False)
    eta, size = made.residual_up(), layout.size
    factor = np.zeros(matrix.shape, np.complex128)
    for start, stop, _ in layout.panels:
        both = made.factor[:, start:, 2 * start : 2 * stop].astype(np.float64)
        factor[:, start:, start:stop] = both[..., : stop - start] + 1j * both[..., stop - start :]
    missing = shift * np.eye(size) - layout.whole(real, imaginary) - factor @ np.swapaxes(factor.conj(), -1, -2)
    return eta, np.linalg.norm(missing, axis=(-2, -1))


def worst(sign: float) -> Any:
    """A product in binary32 that errs by nearly all that an order of summation can, in one direction."""

    def product(left: Array, right: Array) -> Array:
        first, second = left.astype(np.float64), right.astype(np.float64)
        bias = 0.98 * gamma_up(first.shape[-1], SINGLE.unit) * (np.abs(first) @ np.abs(second))
        return np.asarray((first @ second + sign * bias).astype(np.float32))

    return product


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [40, 150, 300])
def test_the_worst_sums_that_binary32_allows_are_covered(
    size: int, sign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library whose products all err as far as they may, and together."""
    monkeypatch.setattr(panels, "product", worst(sign))
    for spread in (0.3, 1.0, 3.0):  # how much of the factor lies off the diagonal
        factor = np.tril(np.full((1, size, size), spread / np.sqrt(size)), -1) + np.eye(size) + 0j
        square = factor @ np.swapaxes(factor.conj(), -1, -2)
        shift = float(np.linalg.eigvalsh(square).max())
        eta, truth = residuals(shift, shift * np.eye(size) - square, SINGLE)
        assert np.all(eta >= truth)
        assert np.all(eta <= 200.0 * truth)


def definite(matrix: Array) -> Array:
    """A matrix that surely has a Cholesky factor: spoiled panels leave corners that have none."""
    width = matrix.shape[-1] // 2 if matrix[0, -1, -1] == panels.HUGE else matrix.shape[-1]
    corner = np.tril(matrix[:, :width, :width])
    if np.linalg.eigvalsh(corner + np.swapaxes(np.tril(corner, -1).conj(), -1, -2)).min() > 1e-6:
        return matrix
    changed = matrix.copy()
    changed[:, :width, :width] = np.eye(width)
    return changed


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e18, 1e30, 1e38, 1e200])
def test_binary32_overflows_and_underflows_prove_nothing_false(scale: float) -> None:
    matrix = gaussian(np.random.default_rng(3), 40, 1)
    layout, real, imaginary = packed(matrix, DOUBLE)
    with np.errstate(over="ignore", under="ignore"):
        real32, imaginary32 = ((part * scale).astype(np.float32) for part in (real, imaginary))
    if not np.all(np.isfinite(real32)):
        assert hermitian_eigenvalue_up(8.0 * scale, real32, imaginary32, 0.0, layout, SINGLE) is None
        return
    truth = float(np.linalg.eigvalsh(layout.whole(real32, imaginary32))[0, -1])
    for shift in (truth * 0.999999, truth * 1.1, 8.0 * scale):
        upper = hermitian_eigenvalue_up(shift, real32, imaginary32, 0.0, layout, SINGLE)
        assert upper is None or float(upper[0]) >= truth


def test_what_is_not_finite_is_no_proof() -> None:
    layout, real, imaginary = packed(gaussian(np.random.default_rng(0), 40, 1), DOUBLE)
    real[0, -1] = -np.inf
    with pytest.raises(ProofFailed):
        hermitian_eigenvalue_up(9.0, real, imaginary, 0.0, layout)
    real, imaginary = real.astype(np.float32), imaginary.astype(np.float32)
    assert hermitian_eigenvalue_up(9.0, real, imaginary, 0.0, layout, SINGLE) is None


def shortened(bits: int) -> Any:
    """Products whose factors keep ``bits`` significant bits, as processors that are told to hurry make them."""

    def product(left: Array, right: Array) -> Array:
        if left.dtype != np.float32:
            return np.asarray(left @ right)
        mask = np.uint32(0xFFFFFFFF << (24 - bits) & 0xFFFFFFFF)
        first, second = (np.ascontiguousarray(factor).view(np.uint32) & mask for factor in (left, right))
        return np.asarray(first.view(np.float32) @ second.view(np.float32))

    return product


@pytest.mark.parametrize("bits", [8, 11, 14])
def test_a_shortened_product_is_noticed(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for rows, terms, columns in ((5, 1, 7), (64, 64, 64), (200, 128, 64)):
        left, right = rng.standard_normal((rows, terms)), rng.standard_normal((terms, columns))
        left, right = left.astype(np.float32), right.astype(np.float32)
        with pytest.raises(ShortenedProduct):
            compare(shortened(bits)(left, right), left, right, SINGLE)
        compare(left @ right, left, right, SINGLE)
        backwards = np.zeros((rows, columns), np.float32)
        for k in reversed(range(terms)):
            backwards += left[:, k : k + 1] * right[k : k + 1]
        compare(backwards, left, right, SINGLE)


def screened_kernels() -> dict[str, Array]:
    rng = np.random.default_rng(8)
    base = rng.standard_normal((1, 6, 6, 3, 3))
    difference = np.zeros((1, 4, 4, 3, 3))
    difference[0, :, :, 1, 0], difference[0, :, :, 1, 2] = np.eye(4), -np.eye(4)
    small = base.copy()
    small[..., 0, :] *= 1e-18
    cancelling = np.concatenate([base, -base * (1 + 1e-7)], axis=-1)
    return {
        "gauss": base,
        "groups": rng.standard_normal((3, 5, 7, 3, 3)),
        "vanishes at 0": difference,
        "cancelling taps": cancelling,
        "wide range": small,
        "one tap": np.eye(6)[None, :, :, None, None],
        "orthogonal": np.linalg.qr(rng.standard_normal((6, 6)))[0][None, :, :, None, None],
        "smooth": np.outer([1, 2, 1], [1, 2, 1])[None, None, None] * base[..., :1, :1],
        "a channel of none": np.where(np.arange(6)[:, None, None, None] == 2, 0.0, base),
        "flat": np.ones((1, 3, 3, 3, 3)),
        "two panels": rng.standard_normal((1, 20, 21, 3, 3)),
    }


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Screening for matrices of every size; how many passes each precision made."""
    made = {"float64": 0, "float32": 0, "below": 0}
    honest = hermitian_eigenvalue_up

    def counted(tau: float, *args: Any, **kwargs: Any) -> Any:
        precision = args[4] if len(args) > 4 else DOUBLE
        result = honest(tau, *args, **kwargs)
        made[np.dtype(precision.dtype).name] += len(args[0])
        made["below"] += len(args[0]) * (precision is SINGLE and result is not None)
        return result

    monkeypatch.setattr(symbol, "hermitian_eigenvalue_up", counted)
    monkeypatch.setattr(symbol, "SCREENED_FROM", 1)
    monkeypatch.setattr(symbol, "CHUNK_ENTRIES", 1 << 9)
    monkeypatch.setattr(symbol, "STACK_ENTRIES", 1 << 7)
    return made


@pytest.mark.parametrize("name", sorted(screened_kernels()))
def test_symbols_in_binary32_err_no_more_than_stated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every product errs by all it may: the spectral norm of the difference, at every frequency."""
    kernels, grid = Symbol(screened_kernels()[name]), Grid((7, 6), (1, 0))
    exact = kernels.matrices(grid.points(), grid.torus)
    plain = np.linalg.norm(kernels.matrices(grid.points(), grid.torus, SINGLE) - exact, 2, axis=(-2, -1)).max()

    monkeypatch.setattr(symbol, "product", worst(1.0))
    biased = np.linalg.norm(kernels.matrices(grid.points(), grid.torus, SINGLE) - exact, 2, axis=(-2, -1)).max()
    assert plain <= biased <= kernels.single_error
    if len(kernels.lags) > 1:  # a product alone errs by half a unit in the last place, whatever the bias
        assert kernels.error < biased  # the allowance for binary64 would not do


def direct(kernel: Array, grid: Grid) -> float:
    """max ‖K̂(w)‖ by a direct sum and SVDs in binary64."""
    truth = 0.0
    for index in np.ndindex(*grid.torus):
        w = [np.pi * (2 * i + t) / n for i, t, n in zip(index, grid.twist, grid.torus, strict=True)]
        total = sum(
            kernel[(..., *tap)] * np.exp(1j * sum(a * b for a, b in zip(tap, w, strict=True)))
            for tap in np.ndindex(*kernel.shape[3:])
        )
        truth = max(truth, float(np.linalg.norm(np.asarray(total), 2, axis=(-2, -1)).max()))
    return truth


@pytest.mark.parametrize("scale", [1e-310, 1e-150, 1e-30, 1.0, 1e30, 1e150, 1e300])
@pytest.mark.parametrize("name", sorted(screened_kernels()))
def test_screened_symbols(name: str, scale: float, screens: dict[str, int]) -> None:
    """Any kernel at any scale: above the truth, tight, with hints as well."""
    kernel, grid = screened_kernels()[name], Grid((7, 6), (1, 0))
    truth = direct(kernel, grid)
    guide = Guide()
    with np.errstate(all="ignore"):
        scaled = kernel * scale
    proven = symbol_norm_up(Symbol(scaled), grid, guide).value
    assert np.isfinite(proven)
    if scale == 1e-310:  # the stored numbers have few bits left
        truth = direct(scaled * 2.0**1000, grid) * 2.0**-1000 / scale
    assert truth * (1 - 1e-13) <= proven / scale <= truth * (1 + 1e-8)
    for tau in (guide.found["tau"], (float.fromhex(guide.found["tau"]) * 0.9).hex(), "0x1p-1060"):
        again = symbol_norm_up(Symbol(scaled), grid, Guide({"tau": tau})).value
        assert truth * (1 - 1e-13) <= again / scale <= truth * (1 + 1e-8), tau
    assert screens["float32"] > 0 or not 1e-200 < scale < 1e200  # beyond, powers of two cannot bring it near 1


def test_screens_spare_most_frequencies_their_pass_in_binary64(
    screens: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.random.default_rng(0).standard_normal((1, 24, 24, 3, 3))
    grid = Grid((12, 12), (0, 0))
    proven = symbol_norm_up(Symbol(kernel), grid).value
    assert screens["below"] >= 0.7 * grid.size > screens["float64"]
    monkeypatch.setattr(symbol, "SCREENED_FROM", 10**6)
    assert proven == pytest.approx(symbol_norm_up(Symbol(kernel), grid).value, rel=1e-11)


def test_layers_whose_frequencies_are_alike_are_not_screened_for_long(screens: dict[str, int]) -> None:
    """An orthogonal 1×1 layer in a 3×3 kernel: no frequency lies below the bound by more than binary32 can tell."""
    kernel = np.zeros((1, 40, 40, 3, 3))
    kernel[0, :, :, 1, 1] = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    grid = Grid((16, 16), (0, 0))
    assert symbol_norm_up(Symbol(kernel), grid).value == pytest.approx(1.0, abs=1e-9)
    assert screens["float32"] <= 4 * symbol.PATIENCE and screens["below"] == 0


@pytest.mark.parametrize("bits", [8, 11, 14])
def test_no_screening_where_products_are_shortened(
    bits: int, screens: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.random.default_rng(0).standard_normal((1, 24, 24, 3, 3))
    grid = Grid((12, 12), (0, 0))
    for module in (panels, symbol):
        monkeypatch.setattr(module, "product", shortened(bits))
    proven = symbol_norm_up(Symbol(kernel), grid).value
    assert screens["below"] == 0
    assert direct(kernel, grid) * (1 - 1e-13) <= proven <= direct(kernel, grid) * (1 + 1e-9)
