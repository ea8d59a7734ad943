"""The Gram matrix of a whole sliding-window operator, assembled from products of its taps (Lemma D4).

The operator is never written out: with K_t the matrix of tap t, block (q, q') of MᵀM is Σ K_tᵀK_t' over the outputs
that read pixel q with tap t and pixel q' with tap t', and block (p, p') of MMᵀ is Σ K_tK_t'ᵀ over the pixels that both
p and p' read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipdeploy.verify.operator_norm.sums import TINY, Array, inflate
from lipdeploy.verify.rounding import add_up, gamma_up, mul_up

Indices = np.ndarray[Any, np.dtype[np.int64]]
BLOCK = 256


def readers(
    image: tuple[int, ...],
    outputs: tuple[int, ...],
    taps: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Indices:
    """(taps, outputs): the pixel that each output position reads with each tap, −1 in the padding."""
    axes = []
    for size, count, length, (begin, _), stride, dilation in zip(
        image, outputs, taps, pads, strides, dilations, strict=True
    ):
        pixel = np.arange(count)[None, :] * stride + np.arange(length)[:, None] * dilation - begin
        axes.append(np.where((pixel >= 0) & (pixel < size), pixel, -1))
    table = np.zeros((1, 1), np.int64)
    for size, axis in zip(image, axes, strict=True):
        joined = table[:, None, :, None] * size + axis[None, :, None, :]
        inside = (table[:, None, :, None] >= 0) & (axis[None, :, None, :] >= 0)
        shape = (table.shape[0] * axis.shape[0], table.shape[1] * axis.shape[1])
        table = np.where(inside, joined, -1).reshape(shape)
    return table


def window_gram(kernel: Array, table: Indices, pixels: int, *, of_outputs: bool) -> tuple[Array, float]:
    """(Gram matrix, bound of ‖computed − exact‖) of one group's operator M.

    ``kernel`` is (out, in, *taps), ``table`` from ``readers``. ``of_outputs``: MMᵀ, (outputs·out)², else MᵀM. An entry
    sums at most ``taps`` entries of products of two taps, so it errs by γ·(|M|ᵀ|M|) with ‖|M|ᵀ|M|‖_F ≤ ‖M‖_F², which is
    the trace.
    """
    taps, outputs = table.shape
    matrices = np.moveaxis(kernel.reshape(*kernel.shape[:2], taps), 2, 0)
    rows = matrices if of_outputs else np.swapaxes(matrices, 1, 2)
    sites, channels, inner = outputs if of_outputs else pixels, rows.shape[1], rows.shape[2]
    places = np.broadcast_to(np.arange(outputs), table.shape) if of_outputs else table
    meeting = table if of_outputs else np.broadcast_to(np.arange(outputs), table.shape)
    where = _where(places, meeting, np.asarray(table >= 0), pixels if of_outputs else outputs)
    gram = np.zeros((sites, sites, channels, channels))
    for first in range(taps):
        for second in range(taps):
            both = (where[first] >= 0) & (where[second] >= 0)
            if np.any(both):
                gram[where[first][both], where[second][both]] += _product(rows[first], rows[second])
    size = sites * channels
    whole = np.ascontiguousarray(np.swapaxes(gram, 1, 2)).reshape(size, size)
    terms = min(inner, BLOCK) + -(-inner // BLOCK) + taps + 2
    underflow = mul_up(float(inner * taps), float(size), float(size), TINY)
    frobenius = add_up(inflate(float(np.trace(whole)), terms + size), underflow)
    return whole, add_up(mul_up(gamma_up(terms), frobenius), underflow)


def _where(places: Indices, meeting: Indices, inside: Array, count: int) -> Indices:
    """(taps, meeting points): the site that each tap joins to a meeting point, −1 for none; one at most."""
    where = np.full((len(places), count), -1)
    for tap, valid in enumerate(inside.astype(bool)):
        where[tap, meeting[tap][valid]] = places[tap][valid]
    return where


def _product(left: Array, right: Array) -> Array:
    total = left[:, :BLOCK] @ right[:, :BLOCK].T
    for start in range(BLOCK, left.shape[1], BLOCK):
        total += left[:, start : start + BLOCK] @ right[:, start : start + BLOCK].T
    return np.asarray(total)


def gram_work(channels: tuple[int, int], sites: tuple[int, int], taps: tuple[int, ...]) -> tuple[bool, int, float]:
    """(of_outputs, size, multiply-adds) of the cheaper of MMᵀ and MᵀM; (out, in) channels and sites of one group."""
    sizes = (channels[0] * sites[0], channels[1] * sites[1])
    of_outputs = sizes[0] <= sizes[1]
    size = min(sizes)
    return (
        of_outputs,
        size,
        0.7 * float(size) ** 3 + math.prod(taps) ** 2 * float(size * channels[0 if of_outputs else 1]),
    )


__all__ = ["gram_work", "readers", "window_gram"]
