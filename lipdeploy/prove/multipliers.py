"""Searching for the multipliers of a Lipschitz certificate (untrusted: ``verify.lmi`` decides what they prove).

The search starts from closed forms, layer by layer in the manner of ECLipsE-Fast (``recursion``), and improves all
layers together by a quasi-Newton method with exact gradients (``descent``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipdeploy.prove.descent import STAGES, Search
from lipdeploy.prove.recursion import Array, Problem
from lipdeploy.verify.chain import Chain
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import certify
from lipdeploy.verify.source import Source, read_source

LIFTS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


@dataclass(frozen=True)
class Found:
    """Multipliers (one float64 vector τ per activation), the squared constant they should prove, and how they came."""

    multipliers: tuple[Array, ...]
    rho: float
    iterations: int
    seconds: float


def find(
    model: str | os.PathLike[str] | bytes | Source, output_name: str | None = None, seconds: float = 20.0
) -> dict[str, tuple[Array, ...]] | None:
    """Hints for ``verify(model, method="best", hints=...)``: for each part of the graph that is a chain, by the name of
    the tensor that it ends in, one vector per activation, in order.

    ``None`` when no part is a chain (``verify.chain``), or so badly scaled that nothing is feasible in binary64.
    ``seconds`` bounds the search in all parts together; reading and proving the model, and one check of each part,
    come on top. Raises what reading and verifying the model raise.
    """
    source = model if isinstance(model, Source) else read_source(model)
    with np.errstate(all="ignore"):
        chains = walked(source.proto, "l2", output_name).segments()
    deadline = time.perf_counter() + seconds
    found: dict[str, tuple[Array, ...]] = {}
    # The small ones first: what they leave of their share is for the large ones.
    for left, chain in zip(range(len(chains), 0, -1), sorted(chains, key=_cost), strict=True):
        share = max(0.0, deadline - time.perf_counter()) / left
        try:
            found[chain.output] = find_multipliers(chain, share).multipliers
        except (ArithmeticError, np.linalg.LinAlgError):
            continue
    return {chain.output: found[chain.output] for chain in chains if chain.output in found} or None


def _cost(chain: Chain) -> float:
    """Roughly the work of one evaluation."""
    return float(sum(max(weight.shape) * weight.size for weight in chain.weights))


def find_multipliers(chain: Chain, seconds: float = 20.0) -> Found:
    """The best multipliers found within a time budget; one closed form, and one check, are always finished.

    Raises ``ArithmeticError`` or ``LinAlgError`` when the weights are too badly scaled for binary64.
    """
    started = time.perf_counter()
    deadline = started + seconds
    problem = Problem(chain)
    with np.errstate(all="ignore"):
        best = problem.closed_forms(started + seconds / 4)
        search = Search(problem, best)
        stages = [best]
        for sharpness, barrier, stalled in STAGES:
            search.run(sharpness, barrier / max(problem.size, 1), stalled, deadline)
            stages.append(search.best)
    multipliers = _provable(chain, problem, stages, search.rho, deadline)
    return Found(multipliers, search.rho, search.evaluations, time.perf_counter() - started)


def _provable(
    chain: Chain, problem: Problem, stages: Sequence[Array], rho: float, deadline: float
) -> tuple[Array, ...]:
    """The multipliers of which the checker proves most.

    At the very edge, or where a multiplier is tiny because its neuron never bends, rounding hides that K is positive:
    then multipliers a little larger, relative to those of the product of norms, lose little.
    """
    safe = [np.log(problem.product_form(margin)) for margin in (0.001, 0.3)]
    lifted = [np.maximum(stages[-1], safe[0] + np.log(lift)) + lift for lift in LIFTS]
    best, least = problem.split(np.exp(stages[-1])), np.inf
    for option in (stages[-1], *lifted, *stages[-2::-1], *safe):
        candidate = problem.split(np.exp(option))
        certified = certify(chain, candidate)
        if certified is not None and certified.bound.value < least:
            best, least = candidate, certified.bound.value
        done = least <= rho**0.5 * chain.front.value * (1.0 + 1e-8)
        if done or (np.isfinite(least) and time.perf_counter() > deadline):
            break
    return best
