"""Several linear operators in a row are one linear operator, whose norm is at most the product of theirs (Lemma G2).

Where it is small enough it is written out: rows are pulled back through one operator after the other, in float64, and
beside them a matrix of bounds of what rounding did to every entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipdeploy.verify.graph import Call, Constant, Flow, Value
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.norms import Gains, Norm
from lipdeploy.verify.open_sizes import is_open
from lipdeploy.verify.operator_norm import ProofFailed, spectral_norm_up
from lipdeploy.verify.operator_norm.dense import cheap_gains
from lipdeploy.verify.operator_norm.sums import TINY, Array, frobenius, inflate_array
from lipdeploy.verify.rounding import gamma_up, up
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.rules.pooling import averaging_matrices, reduction_axes
from lipdeploy.verify.rules.windows import windows

MOST_ROWS = 1024
MOST_ENTRIES = 1 << 23  # of the collapsed matrix and of every matrix on the way
LONGEST = 64  # operators in a row

Pull = Callable[[Array, bool], Array]


@dataclass(frozen=True)
class Linear:
    """One linear operator A (without its constant part), acting on images of shape ``source``.

    ``pull(rows, absolute)`` multiplies rows (r, *shape of the output) by A, or by |A|, from the right: (r, *source).
    ``terms`` products and sums at most make one entry; ``work`` multiply-adds one row; ``weighs``: not just a renaming.
    """

    source: tuple[int, ...]
    pull: Pull
    terms: int = 0
    work: float = 0.0
    weighs: bool = False


@dataclass(frozen=True)
class Collapsed:
    """The matrix from ``source`` to one tensor: |matrix − exact| ≤ ``error`` entry by entry, both (outputs, inputs)."""

    source: Flow
    first: str
    matrix: Array
    error: Array

    def gains(self, norms: tuple[Norm, ...]) -> Gains:
        """Bounds of the operator norms: ‖M‖₂ ≤ ‖computed‖₂ + ‖error‖_F, the others from |computed| + error."""
        upper = np.nextafter(np.abs(self.matrix) + self.error, np.inf)
        gains = dict(cheap_gains(upper, norms))
        if Norm.L2 in norms:
            gains[Norm.L2, Norm.L2] = spectral_norm_up(self.matrix) + frobenius(self.error)
        return gains


def collapsed(
    call: Call, values: Mapping[str, Value], judged: frozenset[str] | set[str], guide: Guide
) -> Collapsed | None:
    """The operators that end in ``call`` as one matrix; ``None`` where there are fewer than two, or it is dear.

    ``judged`` names the tensors whose operators their own rules have accepted: only those are read here.
    """
    chain: list[tuple[Call, Linear]] = []
    current: Call | None = call
    while current is not None and len(chain) < LONGEST:
        linear = _linear(current, values) if judged.issuperset(filter(None, current.output_names)) else None
        if linear is None:
            break
        chain.append((current, linear))
        current = current.producer(_data_name(current, values))
    while chain and not chain[-1][1].weighs:
        chain.pop()
    if sum(linear.weighs for _, linear in chain) < 2 or not _affordable(call, chain, values, guide):
        return None
    first = chain[-1][0]
    source, output = values[_data_name(first, values)], values[call.output_names[0]]
    if not isinstance(source, Flow) or not isinstance(output, Flow):
        return None
    matrix, error = _written_out(output, [linear for _, linear in chain])
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(error))):
        raise ProofFailed("the collapsed matrix overflowed")
    return Collapsed(source, first.name, matrix, error)


def is_linear(call: Call) -> bool:
    """Whether an operator can be part of a collapsed chain, by its name."""
    return not call.domain and call.op in READERS


def _affordable(call: Call, chain: Sequence[tuple[Call, Linear]], values: Mapping[str, Value], guide: Guide) -> bool:
    output = values[call.output_names[0]]
    rows = output.size if isinstance(output, Flow) else MOST_ROWS + 1
    largest = max(math.prod(linear.source) for _, linear in chain)
    if rows > MOST_ROWS or rows * largest > MOST_ENTRIES:
        return False
    last = float(math.prod(chain[-1][1].source))
    small = min(float(rows), last)
    work = 2.0 * rows * sum(linear.work for _, linear in chain) + rows * last * small + 0.7 * small**3
    return guide.effort.take(work)


def _written_out(output: Flow, chain: Sequence[Linear]) -> tuple[Array, Array]:
    """(computed matrix, entrywise error): each step errs by γ·|R||A| and passes on what came before through |A|."""
    rows = np.eye(output.size).reshape(output.size, *output.shape)
    error = np.zeros_like(rows)
    for linear in chain:
        if linear.terms:
            gamma = gamma_up(linear.terms + 2)
            passed = np.nextafter((error + gamma * np.abs(rows)) * up(1.0 + 4.0 * gamma), np.inf)
            error = inflate_array(linear.pull(np.where(rows == 0.0, error, passed), True), linear.terms + 2)
            error = error + linear.terms * TINY
            rows = linear.pull(rows, False)
        else:
            rows, error = linear.pull(rows, False), linear.pull(error, True)
    return rows.reshape(output.size, -1), error.reshape(output.size, -1)


def _data_name(call: Call, values: Mapping[str, Value]) -> str:
    return next(name for name in call.input_names if isinstance(values.get(name), Flow))


def _linear(call: Call, values: Mapping[str, Value]) -> Linear | None:
    """How to pull rows through a node that its rule has judged already; ``None`` when it is not linear or known."""
    reader = READERS.get(call.op) if not call.domain else None
    bound = [values.get(name) if name else None for name in call.input_names]
    flows = [value for value in bound if isinstance(value, Flow)]
    outputs = [name for name in call.output_names if name]
    if reader is None or len(flows) != 1 or len(outputs) != 1:
        return None
    result = values.get(outputs[0])
    if not isinstance(result, Flow) or is_open(result.shape) or is_open(flows[0].shape):
        return None
    if any(value is not None and not isinstance(value, (Flow, Constant)) for value in bound):
        return None
    return reader(call.with_inputs(bound), flows[0], result)


def _renaming(call: Call, source: Flow, result: Flow) -> Linear | None:
    if source.size != result.size:
        return None
    return Linear(source.shape, lambda rows, absolute: rows.reshape(len(rows), *source.shape))


def _transposition(call: Call, source: Flow, result: Flow) -> Linear:
    perm = call.integers("perm", tuple(reversed(range(len(source.shape) + 1))))
    return Linear(source.shape, lambda rows, absolute: np.ascontiguousarray(np.transpose(rows, np.argsort(perm))))


def _product(matrix: Array, source: Flow, terms: int) -> Linear:
    """y = M·x on the last axis; ``matrix`` is (outputs, inputs)."""

    def pull(rows: Array, absolute: bool) -> Array:
        return np.asarray(rows @ (np.abs(matrix) if absolute else matrix)).reshape(len(rows), *source.shape)

    work = float(matrix.size) * math.prod(source.shape[:-1])
    return Linear(source.shape, pull, matrix.shape[0] + terms, work, weighs=True)


def _gemm(call: Call, source: Flow, result: Flow) -> Linear | None:
    weight = call.required_constant(1).float64()
    if call.real("alpha", 1.0) != 1.0 or call.input_names[0] != source.name:
        return None
    return _product(weight if call.integer("transB", 0) else weight.T, source, 0)


def _matmul(call: Call, source: Flow, result: Flow) -> Linear | None:
    if call.input_names[0] != source.name:
        return None
    weight = call.required_constant(1).float64()
    return _product(weight.T, source, 0) if weight.ndim == 2 else None


def _convolution(call: Call, source: Flow, result: Flow) -> Linear | None:
    kernel, groups = call.required_constant(1).float64(), call.integer("group", 1)
    if call.input_names[0] != source.name:
        return None
    window = windows(call, source.shape[1:], kernel.shape[2:])
    split = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
    padded = tuple(n + sum(pad) for n, pad in zip(source.shape[1:], window.pads, strict=True))
    inside = tuple(slice(pad[0], pad[0] + n) for n, pad in zip(source.shape[1:], window.pads, strict=True))

    def pull(rows: Array, absolute: bool) -> Array:
        weights = np.abs(split) if absolute else split
        grouped = rows.reshape(len(rows), groups, split.shape[1], -1)
        image = np.zeros((len(rows), groups, split.shape[2], *padded))
        for tap in np.ndindex(*kernel.shape[2:]):
            read = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, window.dilations, window.strides, window.outputs, strict=True)
            )
            moved = np.swapaxes(weights[(slice(None),) * 3 + tap], 1, 2) @ grouped
            image[(slice(None),) * 3 + read] += moved.reshape(*moved.shape[:3], *window.outputs)
        return image[(slice(None),) * 3 + inside].reshape(len(rows), *source.shape)

    taps = math.prod(kernel.shape[2:])
    terms = split.shape[1] * taps + taps
    return Linear(source.shape, pull, terms, float(kernel.size) * math.prod(window.outputs), weighs=True)


def _average_pool(call: Call, source: Flow, result: Flow) -> Linear | None:
    """One averaging matrix per axis; its entries 1/count are rounded once each. ceil_mode: runtimes differ."""
    if call.integer("ceil_mode", 0):
        return None
    matrices = averaging_matrices(call)

    def pull(rows: Array, absolute: bool) -> Array:
        for axis, matrix in enumerate(matrices):
            rows = np.moveaxis(np.moveaxis(rows, axis + 2, -1) @ matrix, -1, axis + 2)
        return np.ascontiguousarray(rows)

    terms = sum(matrix.shape[0] + 2 for matrix in matrices)
    return Linear(source.shape, pull, terms, float(source.size) * sum(len(m) for m in matrices), weighs=True)


def _global_average(call: Call, source: Flow, result: Flow) -> Linear:
    return _mean(source, tuple(range(2, len(source.shape) + 1)), float(math.prod(source.shape[1:])))


def _reduction(call: Call, source: Flow, result: Flow) -> Linear:
    axes = tuple(sorted(reduction_axes(call, len(source.shape) + 1)))
    count = math.prod(source.shape[axis - 1] for axis in axes)
    return _mean(source, axes, float(count) if call.op == "ReduceMean" else 1.0)


def _mean(source: Flow, axes: tuple[int, ...], divisor: float) -> Linear:
    kept = tuple(1 if axis + 1 in axes else n for axis, n in enumerate(source.shape))

    def pull(rows: Array, absolute: bool) -> Array:
        spread_out = np.broadcast_to(rows.reshape(len(rows), *kept) / divisor, (len(rows), *source.shape))
        return np.ascontiguousarray(spread_out)

    return Linear(source.shape, pull, 1, float(source.size), weighs=True)


def _diagonal(call: Call, source: Flow, result: Flow) -> Linear | None:
    constants = [value for value in map(call.optional, range(2)) if isinstance(value, Constant)]
    if len(constants) != 1 or source.shape != result.shape or (call.op == "Div" and call.input_names[0] != source.name):
        return None
    factors = spread(constants[0], source.shape)

    def pull(rows: Array, absolute: bool) -> Array:
        scale = np.abs(factors) if absolute else factors
        return np.asarray(rows / scale if call.op == "Div" else rows * scale)

    return Linear(source.shape, pull, 1, float(source.size), weighs=True)


def _shift(call: Call, source: Flow, result: Flow) -> Linear | None:
    """A constant summand plays no part in differences; c − x turns the sign."""
    if source.shape != result.shape or len(call.input_names) != 2:
        return None
    turned = call.op == "Sub" and call.input_names[0] != source.name
    return Linear(source.shape, lambda rows, absolute: -rows if turned and not absolute else rows)


READERS: Mapping[str, Callable[[Call, Flow, Flow], Linear | None]] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"), _renaming),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _reduction),
    **dict.fromkeys(("Mul", "Div"), _diagonal),
    **dict.fromkeys(("Add", "Sub"), _shift),
    "Transpose": _transposition,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _convolution,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
}


__all__ = ["Collapsed", "collapsed", "is_linear"]
