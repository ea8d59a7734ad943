"""Sub-graphs whose meaning as a whole is better than the product of their parts.

A motif looks back from a node and, when the structure matches exactly, returns the tensor that the sub-graph starts
from and a step for the whole. It only adds a second, tighter proof: the node-by-node bound stays valid.
"""

from lipdeploy.verify.graph import Call
from lipdeploy.verify.motifs.activations import gelu, log_sigmoid, mish, rectifier, scaled_spline, silu, softsign
from lipdeploy.verify.motifs.blocks import small_blocks
from lipdeploy.verify.motifs.bodies import operator_body
from lipdeploy.verify.motifs.convolutional_sandwich import sandwich_convolution
from lipdeploy.verify.motifs.linear import centering, circular_convolution, linear_residual
from lipdeploy.verify.motifs.matching import Found, Motif, Values
from lipdeploy.verify.motifs.piecewise import piecewise_linear
from lipdeploy.verify.motifs.residual import residual_layer
from lipdeploy.verify.motifs.roots import root_of_squares
from lipdeploy.verify.motifs.sandwich import sandwich
from lipdeploy.verify.motifs.sorting import crelu, order_statistics

#: By the operator that a motif ends in.
MOTIFS: dict[tuple[str, str], tuple[Motif, ...]] = {
    ("", "Mul"): (scaled_spline, silu, mish, gelu),
    ("", "Concat"): (crelu, order_statistics, small_blocks, operator_body),
    ("", "Sub"): (piecewise_linear, centering, linear_residual, residual_layer, small_blocks),
    ("", "Add"): (piecewise_linear, linear_residual, residual_layer, small_blocks),
    **{("", op): (operator_body,) for op in ("Identity", "Reshape", "If")},
    **{("", op): (piecewise_linear,) for op in ("Sum", "Max", "Min")},
    ("", "Where"): (rectifier, operator_body),
    ("", "Div"): (softsign,),
    ("", "Log"): (log_sigmoid,),
    ("", "Sqrt"): (root_of_squares,),
    ("", "Pow"): (root_of_squares,),
    ("", "Gemm"): (sandwich,),
    ("", "MatMul"): (sandwich,),
    ("", "Conv"): (sandwich_convolution, circular_convolution),
    ("", "ConvTranspose"): (sandwich_convolution,),
}


def recognise(call: Call, values: Values) -> Found | None:
    """The first motif that ends in this node."""
    for motif in MOTIFS.get((call.domain, call.op), ()):
        found = motif(call, values)
        if found is not None:
            return found
    return None
