"""What a rule says about one node: how far it moves its output, and how its floating-point program rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lipdeploy.verify.bound import ONE, ZERO, Bound, total
from lipdeploy.verify.norms import Gains, Norm, PerNorm, apply, diagonal, relax, stack

#: How several inputs meet in one output. ``sum``: ‖Δy‖ ≤ Σ gᵢ‖Δxᵢ‖. ``stack``: every output entry moves at most as
#: far as the farthest of its counterparts, so the pieces' norms stack like those of a concatenation. ``root``: as far
#: as the root of the sum of their squares, which is above the farthest in ℓ∞.
Join = Literal["sum", "stack", "root"]


@dataclass(frozen=True)
class Rounding:
    """|fl(op(x)) − op(x)| ≤ γ_terms·(|op|(|x|) + offset) + underflow·(smallest normal number), entry by entry.

    ``gains`` are those of |op| (``None``: the same as op's own), one per input; ``offset[q]`` bounds the norm of the
    constant part. ``peak`` = (g, o): no intermediate result exceeds g·‖x̂‖∞ + o in absolute value.
    ``only`` names the programs that round so, where not all do; how the others round is then unknown.
    ``stored``: how many results, one made from the other, a program may write to memory on the way to the last (a dot
    product is summed before it is stored).
    """

    terms: int = 0
    gains: tuple[Gains, ...] | None = None
    offset: PerNorm = field(default_factory=dict)
    underflow: float = 0.0
    peak: tuple[Bound, Bound] = (ONE, ZERO)
    only: tuple[str, ...] = ()
    stored: int = 1


#: The operator only selects, compares, negates or moves numbers: nothing is rounded.
EXACT = Rounding()


@dataclass(frozen=True)
class Step:
    """A rule's claim about one output of a node.

    ``gains`` has one entry per input that depends on the graph's input, in order. ``at_zero[q]`` bounds the norm of
    the output for all-zero inputs (absent: zero). ``rounding`` is ``None`` where the program's rounding is unknown.
    """

    shape: tuple[int, ...]
    gains: tuple[Gains, ...]
    rule: str
    join: Join = "sum"
    at_zero: PerNorm = field(default_factory=dict)
    rounding: Rounding | None = field(kw_only=True)
    dtype: np.dtype[Any] | None = None


def one_lipschitz(shape: tuple[int, ...], rule: str, rounding: Rounding | None) -> Step:
    """A step that never increases any of the distances."""
    return Step(shape, (diagonal(ONE),), rule, rounding=rounding)


def joined(step_gains: Sequence[Gains], join: Join, inputs: Sequence[PerNorm], norms: Sequence[Norm]) -> PerNorm:
    """Bounds after the step from bounds before it: the composition law."""
    pieces = [apply(gains, bounds, norms) for gains, bounds in zip(step_gains, inputs, strict=True)]
    return relax({q: merge(join, q, [piece[q] for piece in pieces]) for q in norms if all(q in p for p in pieces)})


def merge(join: Join, norm: Norm, bounds: Sequence[Bound]) -> Bound:
    """One norm of what several inputs do together."""
    if join == "sum":
        return total(bounds)
    return stack(Norm.L2 if join == "root" and norm is Norm.LINF else norm, bounds)


def plus(first: PerNorm, second: Mapping[Norm, Bound]) -> dict[Norm, Bound]:
    """Entry-wise sum; what ``second`` lacks counts as zero."""
    return {norm: bound + second.get(norm, ZERO) for norm, bound in first.items()}
