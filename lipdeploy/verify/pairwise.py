"""Proven Lipschitz constants of the differences y_i − y_j of two class scores.

When the graph ends in a linear layer, |Δ(y_i − y_j)| ≤ ‖w_i − w_j‖_{q*}·‖Δh‖_q for its input h, in any norm q with
dual q*. Without one: √2·L for an ℓ2 output bound, 2·L for ℓ∞, 1·L for ℓ1. The best of all is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipdeploy.verify.bound import Bound
from lipdeploy.verify.collapse import Collapsed
from lipdeploy.verify.graph import Call, Constant, Flow, Value
from lipdeploy.verify.norms import Norm
from lipdeploy.verify.open_sizes import is_open
from lipdeploy.verify.operator_norm.sums import Array, inflate_array, square_sums
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, sqrt_up

PAIR_FACTOR = {Norm.L1: Bound(1.0), Norm.L2: Bound(sqrt_up(2.0)), Norm.LINF: Bound(2.0)}
WORK_LIMIT = 4e9
MOST_CLASSES = 4096  # above it the output is taken for a vector, not for class scores


def pair_bounds(
    output: Flow, name: str, calls: Sequence[Call], values: Mapping[str, Value], collapsed: Collapsed | None = None
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """(classes, classes) upper bounds with a zero diagonal; ``None`` unless the output is a row of 2 … 4096 scores."""
    if is_open(output.shape) or len(output.shape) != 1 or not 2 <= output.shape[0] <= MOST_CLASSES:
        return None
    classes = output.shape[0]
    best = min(bound * PAIR_FACTOR[norm] for norm, bound in output.lipschitz.items())
    pairs = np.full((classes, classes), best.value)
    np.fill_diagonal(pairs, 0.0)
    last = _last_linear(name, {out: call for call in calls for out in call.output_names}, values)
    if last is not None and len(last[0]) == classes and classes * last[0].size <= WORK_LIMIT:
        _tighten(pairs, last[0], None, last[1])
    if collapsed is not None and classes * collapsed.matrix.size <= WORK_LIMIT:
        _tighten(pairs, collapsed.matrix, collapsed.error, collapsed.source)
    pairs = np.asarray(np.maximum(pairs, pairs.T), dtype=np.float64)
    np.fill_diagonal(pairs, 0.0)
    return pairs


def _tighten(pairs: Array, weight: Array, error: Array | None, body: Flow) -> None:
    """Lower the rows of ``pairs`` to what ‖w_i − w_j‖ proves; ``error`` bounds the entries of weight − exact."""
    for row in range(len(pairs)):
        differences = weight - weight[row]
        for norm, bound in body.lipschitz.items():
            lengths = _dual_norms(differences, norm)
            if error is not None:
                lengths = np.nextafter(lengths + _dual_norms(error + error[row], norm), np.inf)
            upper = np.where(lengths > 0.0, np.nextafter(lengths * bound.value, np.inf), 0.0)
            pairs[row] = np.minimum(pairs[row], upper)


def _last_linear(name: str, producers: Mapping[str, Call], values: Mapping[str, Value]) -> tuple[Array, Flow] | None:
    """(weight as (classes, features), input) of the linear layer that the graph ends in."""
    call = producers.get(name)
    if call is not None and call.op == "Add" and not call.domain:
        data = [n for n in call.input_names if isinstance(values.get(n), Flow)]
        call = producers.get(data[0]) if len(data) == 1 else None
    if call is None or call.domain or call.op not in ("Gemm", "MatMul"):
        return None
    body, stored = values.get(call.input_names[0]), values.get(call.input_names[1])
    if not isinstance(body, Flow) or not isinstance(stored, Constant) or len(body.shape) != 1:
        return None
    weight = stored.float64()
    if weight.ndim != 2:
        return None
    if call.op == "MatMul":
        return weight.T, body
    if call.real("alpha", 1.0) != 1.0:
        return None
    return (weight if call.integer("transB", 0) else weight.T), body


def _dual_norms(rows: Array, norm: Norm) -> Array:
    """Upper bounds of each row's norm, dual to ``norm``; each entry carries one rounding of its subtraction."""
    slack = 1.0 + 4 * UNIT_ROUNDOFF
    if norm is Norm.LINF:
        lengths = inflate_array(np.abs(rows).sum(axis=1), rows.shape[1])
    elif norm is Norm.L2:
        lengths = np.nextafter(np.sqrt(square_sums(rows, 1)), np.inf)
    else:
        lengths = np.abs(rows).max(axis=1, initial=0.0)
    result: Array = np.nextafter(lengths * slack, np.inf)
    return np.where(np.any(rows != 0.0, axis=1), result, 0.0)
