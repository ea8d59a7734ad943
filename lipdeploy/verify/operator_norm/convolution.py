"""Operator norms of zero-padded convolutions (any number of spatial axes).

Lemma D1 (torus embedding). Zero-extend the image to a torus so long that no kept window wraps around onto a pixel;
then conv = R·C·J with C circulant, ‖R‖ = ‖J‖ = 1, so ‖conv‖₂ ≤ max over the torus' frequencies of the norm of the
kernel's symbol. Strides go into channels (polyphase: a permutation), dilation into explicit zeros of the kernel,
groups are diagonal blocks (max, not product). docs/mathematics.md, D1–D3.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import Gains, Norm
from lipdeploy.verify.operator_norm.dense import absolute_gains, cheap_gains, gram_eigenvalue_up, power_of_two
from lipdeploy.verify.operator_norm.embedding import chosen
from lipdeploy.verify.operator_norm.explicit import gram_work, readers, window_gram
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, inflate_array, largest
from lipdeploy.verify.operator_norm.symbol import Grid, Symbol, symbol_norm_up
from lipdeploy.verify.rounding import mul_up, sqrt_up

EXPLICIT_SIZE = 1024  # rows of a Gram matrix that is always formed
EXPLICIT_MOST = 4096  # … and of one that is formed while the verification's extra work lasts
EXPLICIT_TORUS = 20  # longer tori are tight enough
EXPLICIT_WORK = 1e12  # multiply-adds, all groups together
EXPLICIT_TAPS = 128  # products of two taps are formed one by one


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

    def gains(self, norms: tuple[Norm, ...], guide: Guide | None = None) -> Gains:
        """Bounds of the operator norms for the norms carried.

        A row of the operator holds (part of) one output channel's kernel, a column (part of) one input channel's.
        """
        rows = self.kernel.reshape(self.kernel.shape[0], -1)
        gains = {pair: bound for pair, bound in cheap_gains(rows, norms).items() if pair[1] is Norm.LINF}
        if Norm.L1 in norms:
            gains[Norm.L1, Norm.L1] = max(_column_sums(block) for block in self.blocks)
        if Norm.L2 in norms:
            gains[Norm.L2, Norm.L2] = self.spectral_norm_up(guide)
        return gains

    def adjoint_gains(self, norms: tuple[Norm, ...], guide: Guide | None = None) -> Gains:
        """Gains of the transposed convolution: the same in ℓ2, rows and columns exchanged in ℓ∞ and ℓ1."""
        gains = {(Norm.LINF, Norm.LINF): max(_column_sums(block) for block in self.blocks)}
        if Norm.L1 in norms:
            rows = self.kernel.reshape(self.kernel.shape[0], -1)
            gains[Norm.L1, Norm.L1] = Bound(float(absolute_sums(rows, 1).max(initial=0.0)))
        if Norm.L2 in norms:
            gains[Norm.L2, Norm.L2] = self.spectral_norm_up(guide)
        return gains

    def spectral_norm_up(self, guide: Guide | None = None) -> Bound:
        """Small operators by their own Gram matrix, which is tight; larger ones embedded in a torus (Lemma D1)."""
        guide = guide if guide is not None else Guide()
        of_outputs, size, work = gram_work(self._channels, self._sites, self.kernel.shape[2:])
        if self._is_explicit(size, self.groups * work, guide):
            return self._explicit_norm_up(guide, of_outputs=of_outputs)
        return symbol_norm_up(self.symbol, chosen(self.symbol, self.torus, guide), guide)

    def circulant_norm_up(self, guide: Guide | None = None) -> Bound:
        """The norm of the circulant on the image itself: for circular padding whose windows it contains (D6)."""
        torus = tuple(n // s for n, s in zip(self.image, self.strides, strict=True))
        return symbol_norm_up(self.symbol, Grid(torus, (0,) * len(torus)), guide)

    @cached_property
    def symbol(self) -> Symbol:
        """The groups' kernels after dilation and polyphase."""
        return Symbol(np.stack(self.blocks))

    @property
    def _channels(self) -> tuple[int, int]:
        return self.kernel.shape[0] // self.groups, self.kernel.shape[1]

    @property
    def _sites(self) -> tuple[int, int]:
        return math.prod(self.outputs), math.prod(self.image)

    def _is_explicit(self, size: int, work: float, guide: Guide) -> bool:
        """Whether the Gram matrix is affordable. ``size`` alone decides below EXPLICIT_SIZE, then the work left."""
        taps = math.prod(self.kernel.shape[2:])
        if size > EXPLICIT_MOST or taps > EXPLICIT_TAPS or work > EXPLICIT_WORK:
            return False
        if size <= EXPLICIT_SIZE:
            return True
        return EXPLICIT_SIZE > 0 and max(self.torus) <= EXPLICIT_TORUS and guide.effort.take(work)

    def _explicit_norm_up(self, guide: Guide, *, of_outputs: bool) -> Bound:
        table = readers(self.image, self.outputs, self.kernel.shape[2:], self.pads, self.strides, self.dilations)
        scale = power_of_two(largest(self.kernel))
        peak, tau = 0.0, guide.shift("matrix")
        read = np.any(table >= 0, axis=1).reshape(self.kernel.shape[2:])
        for index, part in enumerate(np.split(self.kernel * read / scale, self.groups, axis=0)):
            if not np.any(part):
                continue
            gram, error = window_gram(part, table, self._sites[1], of_outputs=of_outputs)
            upper, tau = gram_eigenvalue_up(gram, error, tau)
            peak = max(peak, upper)
            guide.watch((index + 1) / self.groups)
        if tau is not None:
            guide.found["matrix"] = tau.hex()
        return Bound(mul_up(scale, sqrt_up(peak)))

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
