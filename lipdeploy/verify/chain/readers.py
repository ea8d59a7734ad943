"""What each operator means for a chain: a matrix, an activation, a selection of entries, or nothing at all.

A reader sees a node that the rules have proven already, with its inputs, and asks the builder for the signal of each
output. Where it cannot say exactly what the node does, it raises ``Ineligible``; the product of norms stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from lipdeploy.ops import DOMAIN
from lipdeploy.verify.chain import matrices, moves, slopes, sorting
from lipdeploy.verify.chain.node import Reader

READERS: Mapping[tuple[str, str], Reader] = {
    **{("", op): moves.same for op in ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout")},
    **{("", op): matrices.addition for op in ("Add", "Sum", "Sub")},
    **{("", op): slopes.smooth for op in slopes.INTERVALS},
    ("", "Relu"): slopes.relu,
    **{("", op): sorting.extreme for op in ("Max", "Min", "ReduceMax", "ReduceMin")},
    **{("", op): matrices.mean for op in ("ReduceMean", "GlobalAveragePool")},
    ("", "MaxPool"): sorting.max_pool,
    ("", "AveragePool"): matrices.average_pool,
    ("", "Gemm"): matrices.gemm,
    ("", "MatMul"): matrices.matmul,
    ("", "Conv"): matrices.convolution,
    ("", "Gather"): moves.gather,
    ("", "Transpose"): moves.transpose,
    ("", "Slice"): moves.slice_,
    ("", "Split"): moves.split,
    ("", "Concat"): moves.concat,
    ("", "TopK"): sorting.top_k,
    ("", "Gelu"): slopes.gelu,
    ("", "Elu"): slopes.elu,
    ("", "LeakyRelu"): slopes.leaky,
    ("", "PRelu"): slopes.prelu,
    ("", "Mul"): slopes.product,
    ("", "Div"): slopes.division,
    (DOMAIN, "GroupSort"): sorting.group_sort,
    (DOMAIN, "Householder"): sorting.householder,
    (DOMAIN, "LinearSpline"): slopes.linear_spline,
}
