"""Chains h → W₁ → σ₁ → W₂ → … → W_L, read off the verifier's own view of a graph.

Only what a multiplier certificate is proven for is eligible: linear layers with stored matrices, activations whose
chord slopes lie in a known interval neuron by neuron, and sorting; residuals, branches and standard operators that
amount to these are read as such, exactly. Anything else is not an error: the product of norms stands.
"""

from lipdeploy.verify.chain.model import Activation, Chain, Slopes, Sorting, Stacked, parts_of
from lipdeploy.verify.chain.reading import MOST_PARTS, all_segments, segment
from lipdeploy.verify.chain.slopes import GELU_INTERVALS, INTERVALS, SILU_INTERVAL

__all__ = [
    "GELU_INTERVALS",
    "INTERVALS",
    "MOST_PARTS",
    "SILU_INTERVAL",
    "Activation",
    "Chain",
    "Slopes",
    "Sorting",
    "Stacked",
    "all_segments",
    "parts_of",
    "segment",
]
