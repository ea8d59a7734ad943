"""Operator norms of zero-padded convolutions (any number of spatial axes).

Lemma D1 (torus embedding). Zero-extend the image to a torus so long that no kept window wraps around onto a pixel;
then conv = R·C·J with C circulant, ‖R‖ = ‖J‖ = 1, so ‖conv‖₂ ≤ max over the torus' frequencies of the norm of the
kernel's symbol. Strides go into channels (polyphase: a permutation), dilation into explicit zeros of the kernel,
groups are diagonal blocks (max, not product). docs/mathematics.md, D1–D3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.norms import Gains, Norm
from lipdeploy.verify.operator_norm.circle import TABLE_ERROR, unit_circle
from lipdeploy.verify.operator_norm.dense import absolute_gains, cheap_gains, spectral_norm_up
from lipdeploy.verify.operator_norm.psd import SQRT2_UP, ProofFailed, largest_eigenvalue_up, mirror_lower
from lipdeploy.verify.operator_norm.sums import TINY, Array, absolute_sums, inflate_array, square_sum
from lipdeploy.verify.rounding import add_up, gamma_up, mul_up, sqrt_up

Indices = np.ndarray[Any, np.dtype[np.int64]]
EXPLICIT_SIZE = 1024
EXPLICIT_ENTRIES = 4_000_000
CHUNK_ENTRIES = 4_000_000
MARGIN = 1e-10
POWER_STEPS = 20
CANDIDATES = 4


@dataclass(frozen=True)
class Convolution:
    """A zero-padded convolution on images of one size.

    ``kernel`` is (out channels, in channels / groups, *taps) in float64, ``image`` the spatial input size,
    ``pads`` is (begin, end) per axis, ``outputs`` the spatial output size.
    """

    kernel: Array
    image: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    outputs: tuple[int, ...]

    @cached_property
    def blocks(self) -> tuple[Array, ...]:
        """Per group, the polyphase kernel: (out channels, in channels × phases, *taps of one phase)."""
        dilated = _dilate(self.kernel, self.dilations)
        return tuple(_polyphase(part, self.strides) for part in np.split(dilated, self.groups, axis=0))

    @property
    def torus(self) -> tuple[int, ...]:
        """Length of the torus in strides: room for the image and its larger padding, and for every output."""
        return tuple(
            max(-(-(size + max(pad)) // stride), out)
            for size, pad, stride, out in zip(self.image, self.pads, self.strides, self.outputs, strict=True)
        )

    def gains(self, norms: tuple[Norm, ...]) -> Gains:
        """Bounds of the operator norms for the norms carried.

        A row of the operator holds (part of) one output channel's kernel, a column (part of) one input channel's.
        """
        rows = self.kernel.reshape(self.kernel.shape[0], -1)
        gains = {pair: bound for pair, bound in cheap_gains(rows, norms).items() if pair[1] is Norm.LINF}
        if Norm.L1 in norms:
            gains[Norm.L1, Norm.L1] = max(_column_sums(block) for block in self.blocks)
        if Norm.L2 in norms:
            gains[Norm.L2, Norm.L2] = self.spectral_norm_up()
        return gains

    def adjoint_gains(self, norms: tuple[Norm, ...]) -> Gains:
        """Gains of the transposed convolution: the same in ℓ2, rows and columns exchanged in ℓ∞ and ℓ1."""
        gains = {(Norm.LINF, Norm.LINF): max(_column_sums(block) for block in self.blocks)}
        if Norm.L1 in norms:
            rows = self.kernel.reshape(self.kernel.shape[0], -1)
            gains[Norm.L1, Norm.L1] = Bound(float(absolute_sums(rows, 1).max(initial=0.0)))
        if Norm.L2 in norms:
            gains[Norm.L2, Norm.L2] = self.spectral_norm_up()
        return gains

    def spectral_norm_up(self) -> Bound:
        """Small operators are written out, which is tight; larger ones are embedded in a torus (Lemma D1)."""
        outputs, inputs = (self.kernel.shape[i] * math.prod(n) for i, n in ((0, self.outputs), (1, self.image)))
        if min(outputs // self.groups, inputs) <= EXPLICIT_SIZE and outputs // self.groups * inputs <= EXPLICIT_ENTRIES:
            return max(spectral_norm_up(self._matrix(part)) for part in np.split(self.kernel, self.groups, axis=0))
        return max(symbol_norm_up(block, self.torus) for block in self.blocks)

    def circulant_norm_up(self) -> Bound:
        """The norm of the circulant on the image itself: for circular padding whose windows it contains (D6)."""
        torus = tuple(n // s for n, s in zip(self.image, self.strides, strict=True))
        return max(symbol_norm_up(block, torus) for block in self.blocks)

    def _matrix(self, kernel: Array) -> Array:
        """The operator of one group: (out channels × outputs, in channels × image)."""
        matrix = np.zeros((kernel.shape[0], *self.outputs, kernel.shape[1], *self.image))
        for output in np.ndindex(*self.outputs):
            for tap in np.ndindex(*kernel.shape[2:]):
                pixel = tuple(
                    o * s + t * d - pad[0]
                    for o, s, t, d, pad in zip(output, self.strides, tap, self.dilations, self.pads, strict=True)
                )
                if all(0 <= p < n for p, n in zip(pixel, self.image, strict=True)):
                    matrix[(slice(None), *output, slice(None), *pixel)] = kernel[(slice(None), slice(None), *tap)]
        return matrix.reshape(kernel.shape[0] * math.prod(self.outputs), -1)

    def absolute_gains(self, gains: Gains) -> Gains:
        """Gains of the convolution with |kernel|: its symbol is largest at frequency 0 (Lemma D3)."""
        if (Norm.L2, Norm.L2) not in gains:
            return gains
        sums = [_tap_sums(block) for block in self.blocks]
        peak = max(absolute_gains(matrix, {(Norm.L2, Norm.L2): Bound(0.0)})[Norm.L2, Norm.L2] for matrix in sums)
        return {**gains, (Norm.L2, Norm.L2): peak}


def _dilate(kernel: Array, dilations: tuple[int, ...]) -> Array:
    taps = tuple((k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True))
    dilated = np.zeros(kernel.shape[:2] + taps)
    dilated[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = kernel
    return dilated


def _polyphase(kernel: Array, strides: tuple[int, ...]) -> Array:
    """y[j] = Σ_a K[a]·x[s·j + a] = Σ_r Σ_b K[s·b + r]·x_r[j + b] with x_r[j] = x[s·j + r]."""
    taps = tuple(-(-k // s) for k, s in zip(kernel.shape[2:], strides, strict=True))
    padded = np.zeros(kernel.shape[:2] + tuple(t * s for t, s in zip(taps, strides, strict=True)))
    padded[tuple(slice(0, n) for n in kernel.shape)] = kernel
    phases = [
        padded[(slice(None), slice(None), *(slice(r, None, s) for r, s in zip(phase, strides, strict=True)))]
        for phase in itertools.product(*(range(s) for s in strides))
    ]
    return np.concatenate(phases, axis=1)


def _column_sums(block: Array) -> Bound:
    columns = np.moveaxis(block, 1, 0).reshape(block.shape[1], -1)
    return Bound(float(absolute_sums(columns, 1).max(initial=0.0)))


def _tap_sums(block: Array) -> Array:
    taps = int(np.prod(block.shape[2:]))
    return inflate_array(np.abs(block).reshape(*block.shape[:2], taps).sum(axis=2), taps)


def symbol_norm_up(kernel: Array, torus: tuple[int, ...]) -> Bound:
    """max over all frequencies of the torus of ‖Σ_b K_b·e^{i b·w}‖₂, rounded up (Lemma D2).

    ``kernel`` is (out, in, *taps). Frequencies w and −w have conjugate symbols, so one of each pair is enough.
    """
    if not np.any(kernel):
        return Bound(0.0)
    if kernel.shape[0] > kernel.shape[1]:
        kernel = np.swapaxes(kernel, 0, 1)
    taps = int(np.prod(kernel.shape[2:]))
    if all(tap == 1 for tap in kernel.shape[2:]):
        return spectral_norm_up(kernel.reshape(kernel.shape[:2]))
    flat = np.ascontiguousarray(kernel.reshape(-1, taps).T)
    proven = 0.0
    tau = 0.0
    for phases in _frequency_chunks(kernel, torus):
        symbol = _symbol(flat, phases, kernel.shape[:2])
        tau, upper = _chunk_bound(symbol, tau)
        proven = max(proven, upper)
    entry_error = add_up(_phase_error(len(torus)), mul_up(gamma_up(taps + 1), 1.0 + 2.0**-40))
    symbol_error = mul_up(SQRT2_UP, entry_error, sqrt_up(square_sum(_tap_sums(kernel))))
    return Bound(add_up(sqrt_up(proven), symbol_error, mul_up(2.0 * flat.size, TINY)))


def _phase_error(axes: int) -> float:
    """|computed − exact| of cos and sin of a sum of ``axes`` angles built by products: 2⁻⁵³, 2⁻⁵⁰, 2⁻⁴⁷ …"""
    return TABLE_ERROR * 8.0 ** (axes - 1)


def _frequency_chunks(kernel: Array, torus: tuple[int, ...]) -> Iterator[tuple[Array, Array]]:
    """(cos, sin) of b·w, each (frequencies, taps), a bounded number of frequencies at a time."""
    axes = [np.arange(n) for n in torus]
    grid = np.stack([index.reshape(-1) for index in np.meshgrid(*axes, indexing="ij")], axis=1)
    mirrored = (-grid) % np.array(torus)
    keep = _lexicographic(grid, torus) <= _lexicographic(mirrored, torus)
    grid = grid[keep]
    taps = np.stack([i.reshape(-1) for i in np.meshgrid(*(np.arange(k) for k in kernel.shape[2:]), indexing="ij")])
    step = max(1, CHUNK_ENTRIES // (kernel.shape[0] * max(kernel.shape[1], kernel.shape[0])))
    for start in range(0, len(grid), step):
        yield _phases(grid[start : start + step], taps, torus)


def _lexicographic(grid: Indices, torus: tuple[int, ...]) -> Indices:
    return np.asarray(np.ravel_multi_index(tuple(grid.T), torus))


def _phases(grid: Indices, taps: Indices, torus: tuple[int, ...]) -> tuple[Array, Array]:
    cos: Array = np.ones((len(grid), taps.shape[1]))
    sin: Array = np.zeros_like(cos)
    for axis, count in enumerate(torus):
        index = np.outer(grid[:, axis], taps[axis]) % count
        table_cos, table_sin = unit_circle(count)
        c, s = table_cos[index], table_sin[index]
        cos, sin = (c, s) if axis == 0 else (cos * c - sin * s, sin * c + cos * s)
    return cos, sin


def _symbol(flat: Array, phases: tuple[Array, Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    cos, sin = phases
    return (cos @ flat).reshape(-1, *shape), (sin @ flat).reshape(-1, *shape)


def _chunk_bound(symbol: tuple[Array, Array], tau: float) -> tuple[float, float]:
    """(τ to go on with, proven bound of λ_max(K̂K̂*) over the chunk)."""
    real, imaginary = symbol
    inner = real.shape[-1]
    gram_re = mirror_lower(real @ np.swapaxes(real, -1, -2) + imaginary @ np.swapaxes(imaginary, -1, -2))
    cross = imaginary @ np.swapaxes(real, -1, -2)
    gram_im = cross - np.swapaxes(cross, -1, -2)
    squares = np.square(real).sum(axis=(-2, -1)) + np.square(imaginary).sum(axis=(-2, -1))
    error = (
        inflate_array(squares, 2 * inner * real.shape[-2]) * mul_up(2.0, gamma_up(inner + 2))
        + 4.0 * real[0].size * TINY
    )
    if not (np.all(np.isfinite(gram_re)) and np.all(np.isfinite(error))):
        raise ProofFailed("the kernel's symbol overflowed")
    tau = max(tau, _guess(gram_re, gram_im) * (1.0 + MARGIN))
    for attempt in range(8):
        upper = largest_eigenvalue_up(tau, gram_re, gram_im, error)
        if upper is not None:
            return tau, float(upper.max())
        exact = float(np.linalg.eigvalsh(gram_re + 1j * gram_im)[:, -1].max())
        tau = max(tau, exact) * (1.0 + MARGIN * 4.0**attempt)
    raise ProofFailed("no shifted symbol could be factorised")


def _guess(gram_re: Array, gram_im: Array) -> float:
    """A guess of the largest eigenvalue over the stack (untrusted): rank by power iteration, then solve the top."""
    stack = (gram_re + 1j * gram_im).astype(np.complex64)
    vector = np.ones((*stack.shape[:2], 1), np.complex64)
    vector += 0.5 * np.cos(np.arange(stack.shape[1], dtype=np.float32))[None, :, None]
    values = np.zeros(len(stack))
    for _ in range(POWER_STEPS):
        image = stack @ vector
        values = np.linalg.norm(image[..., 0], axis=-1)
        vector = image / np.maximum(values, 1e-30)[:, None, None].astype(np.float32)
    top = np.argsort(values)[-CANDIDATES:]
    return float(np.linalg.eigvalsh(gram_re[top] + 1j * gram_im[top])[:, -1].max())
