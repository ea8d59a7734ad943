"""Multiplier certificates in a proof: every part of the graph that claims are made for, from the inputs on.

A part moves its end by at most its certificate's constant times what its start moves (Lemmas M1 to M6); from there the
rules' own claims compose again, up to the start of the next part, whose certificate multiplies what has been proven by
then. Nothing here believes a multiplier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.chain import MOST_PARTS, Chain
from lipdeploy.verify.chain.builder import MOST_WEIGHTS
from lipdeploy.verify.lmi import Certified, certify
from lipdeploy.verify.verdict import NodeReport
from lipdeploy.verify.walk import Proof, Walk

#: One float64 vector per activation of a part …
Layers = Sequence[np.ndarray[Any, np.dtype[np.float64]]]
#: … by the name of the tensor that the part ends in; without a name, of the part nearest to the output.
Hints = Layers | Mapping[str, Layers]
RULE = "diagonal multipliers"


def tightened(walk: Walk, method: str, hints: Hints) -> Proof:
    """The proof with what ``hints`` prove, and the smaller of both bounds for every pair of classes.

    A row for each part tells the bound from the input to its end; the last one ends with the bound of the whole.
    ``method`` ``lmi`` takes the certificate's bound for the output, also where the product's is less.
    """
    with np.errstate(all="ignore"):
        named, chains = _claimed(walk, hints)
        found = walk.tighten(chains, lambda chain: certify(chain, named[chain.output]))
    proof = walk.proof()
    whole = found.get(proof.output.name)
    if whole is not None:
        bound = whole[0].bound if method == "lmi" else proof.bound
        pairwise = None if proof.pairwise is None else np.minimum(proof.pairwise, whole[0].pairwise)
        proof = replace(proof, bound=bound, pairwise=pairwise)
    rows = [_row(proof, name, one, after, named[name]) for name, (one, after) in found.items()]
    if rows:
        rows[-1] = replace(rows[-1], bound_after=proof.bound)
    return replace(proof, nodes=(*proof.nodes, *rows))


def _claimed(walk: Walk, hints: Hints) -> tuple[Mapping[str, Layers], list[Chain]]:
    """The claims by name, and the parts of the graph that they are about."""
    if not isinstance(hints, Mapping):
        last = walk.segments()[-1:]
        return {chain.output: hints for chain in last}, last
    chains, room = list[Chain](), MOST_WEIGHTS
    for end in list(hints)[:MOST_PARTS]:
        chain = walk.segment(end)
        room -= 0 if chain is None else sum(weight.size for weight in chain.weights)
        if room < 0:
            break
        chains += [] if chain is None else [chain]
    return hints, chains


def _row(proof: Proof, name: str, certified: Certified, after: Bound, layers: Layers) -> NodeReport:
    stored = {"multipliers": [[float(value).hex() for value in layer] for layer in layers]}
    return NodeReport(name, "", certified.bound, after, RULE, proof.output.shape, stored)
