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
from lipdeploy.verify.check import prove
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
) -> tuple[Array, ...] | None:
    """Hints for ``verify(model, method="best", hints=...)``: one vector per activation of a chain network, in order.

    ``None`` when no part of the graph is a chain (``verify.chain``), or so badly scaled that nothing is feasible in
    binary64. ``seconds`` bounds the search; reading and proving the model, and one check, come on top.
    Raises what reading and verifying the model raise.
    """
    source = model if isinstance(model, Source) else read_source(model)
    chain = prove(source.proto, "l2", output_name, with_chain=True).chain
    try:
        return None if chain is None else find_multipliers(chain, seconds).multipliers
    except (ArithmeticError, np.linalg.LinAlgError):
        return None


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
