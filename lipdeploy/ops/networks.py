"""Sorting networks: the comparators that sort a fixed number of values without a branch."""

from __future__ import annotations


def comparators(size: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort for ``size`` values: pairs (i, j), i < j; the smaller value goes to i.

    Knuth, The Art of Computer Programming, volume 3, section 5.2.2, algorithm M; any size.
    """
    pairs = []
    step = 1
    while step < size:
        inner = step
        while inner >= 1:
            for start in range(inner % step, size - inner, 2 * inner):
                for i in range(start, min(start + inner, size - inner)):
                    if i // (2 * step) == (i + inner) // (2 * step):
                        pairs.append((i, i + inner))
            inner //= 2
        step *= 2
    return pairs
