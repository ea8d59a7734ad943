"""Images whose height and width the file leaves open.

A size that is not known is an ``OpenSize``: no number, so that arithmetic with it fails instead of proving something
about one size. Only the operators of ``open_rules`` take such images; everything else refuses them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast


@dataclass(frozen=True)
class OpenSize:
    """A whole number ≥ 1 that the file leaves open.

    ``source`` names one axis of one input, ``history`` what was done to its length since: two open sizes are equal only
    when they are the same function of the same length.
    """

    source: str
    history: tuple[tuple[str, int, int], ...] = ()

    @property
    def may_be_empty(self) -> bool:
        """Whether no entry is left for some length ≥ 1 of the source; 1 decides, as no change reverses lengths."""
        length = 1
        for kind, first, second in self.history:
            length = LENGTH_AFTER[kind](length, first, second)
        return length < 1

    def stretched(self, factor: int, grows: int) -> OpenSize:
        """The size times ``factor`` plus ``grows``."""
        return self if (factor, grows) == (1, 0) else self.after("stretch", factor, grows)

    def after(self, kind: str, first: int, second: int) -> OpenSize:
        """The size after one more operator."""
        return replace(self, history=(*self.history, (kind, first, second)))


#: The length after each kind of change: of windows with a stride, ConvTranspose or enlarging, and making smaller.
LENGTH_AFTER: Mapping[str, Callable[[int, int, int], int]] = {
    "window": lambda length, grows, stride: (length + grows) // stride + 1,
    "stretch": lambda length, factor, grows: length * factor + grows,
    "shrink": lambda length, divisor, _: length // divisor,
}


def is_open(shape: Sequence[object]) -> bool:
    """Whether a shape has an axis of unknown size."""
    return any(isinstance(size, OpenSize) for size in shape)


def stated(shape: Sequence[object]) -> tuple[int | None, ...]:
    """A shape for reports: ``None`` where the size is open."""
    return tuple(None if isinstance(size, OpenSize) else cast("int", size) for size in shape)


def opened(name: str, dims: Sequence[int | None]) -> tuple[int, ...]:
    """The shape per sample of an input with open sizes: each axis of each input is a size of its own."""
    sizes = [OpenSize(f"{name}[{axis}]") if n is None else n for axis, n in enumerate(dims)]
    return cast("tuple[int, ...]", tuple(sizes[1:]))
