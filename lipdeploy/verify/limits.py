"""How large a model may be for its proof to end: a file of a few bytes can describe tensors that fill any machine.

The numbers lie far above what networks with a useful certificate need. Above them a node is refused (LIP024). So is one
whose proof would cost more work than ``guide`` has left for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lipdeploy.verify.graph import Call
from lipdeploy.verify.guide import MOST_WORK

MOST_RANK = 32
MOST_ENTRIES = 1 << 28  # of a tensor, per sample
LONGEST_LISTED = 1 << 24  # an axis along which every position is looked at
MOST_LISTED = 1 << 22  # (window, tap) pairs along one axis
MOST_AVERAGED = 1 << 23  # entries of one axis' averaging matrix
MOST_COMPUTED = 1 << 22  # entries of all constants that a graph computes, beside four times those that it stores
MOST_JOINED = 1 << 25  # entries of one of them
MOST_COUNTED = 1 << 16  # entries of one constant that is computed entry by entry
MOST_NODES = 1 << 20  # after inlining
MOST_CALLS_DEEP = 64  # functions that call functions
LONGEST_TORUS = 1 << 16
MOST_FREQUENCIES = 1 << 23
MOST_LAGS = 1 << 18
MOST_KERNEL = 1 << 27  # entries of a kernel with its dilation written out as zeros
MOST_GROUPS = 1 << 13
MOST_PHASES = 1 << 14  # product of the strides


def check_shape(call: Call, shape: Sequence[int]) -> None:
    """Refuse a tensor with too many entries per sample, as far as its sizes are known."""
    if len(shape) > MOST_RANK or math.prod(n for n in shape if isinstance(n, int)) > MOST_ENTRIES:
        raise too_large(call, f"a tensor of {list(shape)[:8]} entries per sample", MOST_ENTRIES)


def check_listed(call: Call, lengths: Iterable[int], most: int) -> None:
    """Refuse what would be listed one by one, where any of ``lengths`` is above ``most``."""
    longest = max(lengths, default=0)
    if longest > most:
        raise too_large(call, f"{longest} entries that have to be looked at one by one", most)


def check_work(call: Call, work: float) -> None:
    """Take ``work`` multiply-adds from what one proof may cost; refuse when they are used up."""
    if not call.guide.effort.pay(work):
        raise too_large(call, f"{work:.0e} more multiply-adds", MOST_WORK)


def check_convolution(
    call: Call,
    kernel: Sequence[int],
    groups: int,
    torus: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> None:
    """Refuse a convolution whose symbol is too large; ``kernel`` is (out, in / groups, *taps)."""
    taps = [-(-((k - 1) * d + 1) // s) for k, d, s in zip(kernel[2:], dilations, strides, strict=True)]
    phases = math.prod(strides)
    size = min(kernel[0] // groups, kernel[1] * phases)
    for what, number, most in (
        ("groups", groups, MOST_GROUPS),
        ("phases", phases, MOST_PHASES),
        ("pixels in a row", max(torus), LONGEST_TORUS),
        ("frequencies", math.prod(torus), MOST_FREQUENCIES),
        ("pairs of taps", math.prod(2 * t - 1 for t in taps), MOST_LAGS),
        ("entries of the kernel with its dilation", kernel[0] * kernel[1] * phases * math.prod(taps), MOST_KERNEL),
    ):
        if number > most:
            raise too_large(call, f"{number} {what}", most)
    check_work(call, 0.5 * math.prod(torus) * groups * float(size) ** 3)


def too_large(call: Call, what: str, most: float) -> Exception:
    """The refusal."""
    return call.refuse("LIP024", f"needs {what}, at most {most:g} are accepted")
