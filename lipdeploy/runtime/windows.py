"""Sliding windows in ONNX: where Conv and pooling read, as Pad and strided Slice.

ONNX Runtime's CPU provider has no float64 Conv and no float64 pooling except MaxPool, so the float64 program cuts
each window into its taps: tap (a, b) of all windows at once is one strided slice of the padded input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from lipdeploy.runtime.rewriting import Rewriting, attributes_of, unsupported


@dataclass(frozen=True)
class Windows:
    """Where windows lie: input sizes, kernel, strides, dilations, pads; one entry per spatial axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
        """Resolve a node's window attributes, ``auto_pad`` included, for the given spatial ``sizes``."""
        given, rank = attributes_of(node), len(sizes)
        strides, dilations = per_axis(given, "strides", rank, node), per_axis(given, "dilations", rank, node)
        span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        begin, end = _pads(given, sizes, span, strides, node)
        windows = cls(tuple(sizes), tuple(kernel), strides, dilations, begin, end)
        if min(windows.output) < 1:
            raise unsupported(node, f"a window of {tuple(span)} does not fit into {windows.padded}")
        return windows

    @property
    def padded(self) -> tuple[int, ...]:
        """Spatial sizes after padding."""
        return tuple(n + low + high for n, low, high in zip(self.sizes, self.begin, self.end, strict=True))

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial sizes of the result, rounded down."""
        axes = zip(self.padded, self.kernel, self.strides, self.dilations, strict=True)
        return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes)

    def taps(self, graph: Rewriting, x: str, axis: int, stem: str) -> list[str]:
        """One tensor per tap, row-major, from the padded ``x``; the spatial axes begin at ``axis``."""
        return [self._tap(graph, x, axis, offsets, stem) for offsets in itertools.product(*map(range, self.kernel))]

    def _tap(self, graph: Rewriting, x: str, axis: int, offsets: Sequence[int], stem: str) -> str:
        if self.output == self.padded and not any(offsets):
            return x
        starts = [a * d for a, d in zip(offsets, self.dilations, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, self.output, self.strides, strict=True)]
        axes = range(axis, axis + len(starts))
        numbers = [graph.integers(stem, values) for values in (starts, ends, axes, self.strides)]
        return graph.emit("Slice", [x, *numbers], stem=stem)


def per_axis(given: dict[str, Any], name: str, rank: int, node: onnx.NodeProto) -> tuple[int, ...]:
    """An attribute with one positive number per spatial axis, ones where it is absent."""
    values = tuple(given.get(name) or (1,) * rank)
    if len(values) != rank or min(values) < 1:
        raise unsupported(node, f"{name} = {values} for {rank} spatial axes")
    return values


def _pads(
    given: dict[str, Any], sizes: Sequence[int], span: Sequence[int], strides: Sequence[int], node: onnx.NodeProto
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    auto, rank = given.get("auto_pad", "NOTSET"), len(sizes)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + reach - n, 0) for n, s, reach in zip(sizes, strides, span, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        return (small, large) if auto == "SAME_UPPER" else (large, small)
    if auto not in ("NOTSET", "VALID"):
        raise unsupported(node, f"auto_pad = {auto!r}")
    pads = tuple(given.get("pads") or (0,) * (2 * rank)) if auto == "NOTSET" else (0,) * (2 * rank)
    if len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise unsupported(node, f"pads = {pads} for {rank} spatial axes")
    return pads[:rank], pads[rank:]
