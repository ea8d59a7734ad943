"""Layers that fall apart into small blocks: a few inputs, a few scalar activations between linear maps, a few outputs.

MaxMin as b + relu(a − b), m ± |d|, Householder reflections, x − tanh(x), convex mixtures of x and relu(x): op by op the
parts add up, although they never move together. Every tensor between the base and the node is a linear form in the
base's entries and in outputs of scalar activations of such forms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipdeploy.verify.bound import ZERO, Bound
from lipdeploy.verify.chain import INTERVALS
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.motifs.activations import rectifier
from lipdeploy.verify.motifs.matching import Found, Values, judged_inputs, output_of
from lipdeploy.verify.motifs.tracing import FOLLOWED, Cut, Indices, cuts, reading_cost
from lipdeploy.verify.norms import per_norm
from lipdeploy.verify.operator_norm import ProofFailed, spectral_norm_up
from lipdeploy.verify.operator_norm.sums import Array, absolute_sums, frobenius
from lipdeploy.verify.rounding import UNIT_ROUNDOFF, mul_up, sqrt_up
from lipdeploy.verify.rules.arithmetic import spread
from lipdeploy.verify.step import Step

UNDERFLOW = 2.0**-1000  # more than one rounding loses there
SMALLEST = 2.0**-900  # numbers above it are far from where roundings are no longer relative
MOST_TERMS = 8  # of one linear form
MOST_ENTRIES = 1 << 22
LARGEST_BLOCK = 16  # inputs or outputs
MOST_ACTIVATIONS = 6  # in one block: every corner of their slopes is looked at
MOST_CORNERS = 4096
CHUNK = 1 << 14  # rows that are compared together, in a cache
READING = 8.0  # times the cost of a trace, which only moves numbers
CORNER_COST = 5000.0  # entries read back in the time that a corner takes
SCALAR = {**{op: INTERVALS[op] for op in ("Relu", "Abs", "Tanh", "Softplus", "Sigmoid")}, "Clip": (0.0, 1.0)}
BENDING = frozenset({"Max", "Min", "Where", "LeakyRelu", *SCALAR})
LINEAR = frozenset({"Add", "Sub", "Mul", "Div", "Neg"}) | BENDING
MOVES = frozenset(op for op in FOLLOWED if op not in ("Max", "Min", "ReduceMax", "ReduceMin", "TopK", "Pad"))


@dataclass(frozen=True)
class Forms:
    """Entry i is Σ_j (coefficients[i, j] ± slack[i, j])·variable columns[i, j]; column −1 stands for no term."""

    columns: Indices
    coefficients: Array
    slack: Array

    def taken(self, entries: Indices) -> Forms:
        """The forms of a tensor whose entry i is this one's ``entries[i]``."""
        return Forms(self.columns[entries], self.coefficients[entries], self.slack[entries])

    def times(self, factor: Array) -> Forms:
        """Entry i times factor[i], rounded once; a power of two rounds nothing."""
        product = self.coefficients * factor[:, None]
        slack = (self.slack * np.abs(factor)[:, None] + np.abs(product) * UNIT_ROUNDOFF + UNDERFLOW) * (1.0 + 2.0**-50)
        shifted = (np.abs(product) >= SMALLEST) | (self.coefficients == 0.0)  # no bit was lost to underflow
        exact = (np.abs(np.frexp(factor)[0]) == 0.5)[:, None] & (self.slack == 0.0) & shifted
        return Forms(self.columns, product, np.where(exact, 0.0, slack))

    def plus(self, other: Forms) -> Forms | None:
        """Entry-wise sum; terms in the same variable are merged."""
        columns = np.concatenate([self.columns, other.columns], axis=1)
        order = np.argsort(columns, axis=1, kind="stable")
        columns = np.take_along_axis(columns, order, axis=1)
        values = np.take_along_axis(np.concatenate([self.coefficients, other.coefficients], axis=1), order, axis=1)
        slack = np.take_along_axis(np.concatenate([self.slack, other.slack], axis=1), order, axis=1)
        for j in range(columns.shape[1] - 1, 0, -1):
            same = (columns[:, j] == columns[:, j - 1]) & (columns[:, j] >= 0)
            first, second = values[:, j], values[:, j - 1]
            total = first + second
            back = total - first  # Knuth's TwoSum: what the sum lost, exactly
            lost = np.abs((first - (total - back)) + (second - back))
            error = (slack[:, j] + slack[:, j - 1] + lost) * (1.0 + 2.0**-50)
            values[:, j - 1] = np.where(same, total, values[:, j - 1])
            slack[:, j - 1] = np.where(same, error, slack[:, j - 1])
            columns[:, j] = np.where(same, -1, columns[:, j])
            values[:, j], slack[:, j] = (np.where(same, 0.0, part[:, j]) for part in (values, slack))
        order = np.argsort(columns < 0, axis=1, kind="stable")
        width = max(1, int((columns >= 0).sum(axis=1).max(initial=1)))
        if width > MOST_TERMS:
            return None
        parts = (np.take_along_axis(part, order, axis=1)[:, :width] for part in (columns, values, slack))
        return Forms(*parts)


@dataclass
class _Reader:
    """Reads forms back from a node to one base; ``units`` collects the activations met on the way."""

    call: Call
    base: str
    values: Values
    size: int
    known: dict[str, Forms | None] = field(default_factory=dict)
    units: list[tuple[Forms, Array, Array]] = field(default_factory=list)
    offsets: dict[tuple[str, ...], int] = field(default_factory=dict)

    def of(self, name: str) -> Forms | None:
        if name not in self.known:
            self.known[name] = self._follow(name)
        return self.known[name]

    def _follow(self, name: str) -> Forms | None:
        flow = self.values(name)
        if not isinstance(flow, Flow) or flow.size > MOST_ENTRIES:
            return None
        if name == self.base:
            return _variables(np.arange(flow.size))
        node = self.call.producer(name)
        if node is not None and node.op == "Where" and not node.domain:
            return self._chosen(node, name)
        bound = judged_inputs(node, node.op, self.values) if node is not None else None
        return None if bound is None else self.made(bound, name, flow)

    def _chosen(self, node: Call, name: str) -> Forms | None:
        """Where(z ≤ 0, 0, z) and its kind are rectifiers; their conditions are no proven tensors."""
        found = rectifier(node, self.values)
        data = self.of(found[0].name) if found is not None and isinstance(found[0], Flow) else None
        return None if data is None else self._unit((name,), data, 0.0, 1.0)

    def made(self, call: Call, name: str, result: Flow) -> Forms | None:
        flows = [flow for flow in call.inputs if isinstance(flow, Flow)]
        parts = [self.of(flow.name) for flow in flows]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        if call.op in MOVES:
            return _moved(call, flows, known, name, result)
        if any(flow.shape != result.shape for flow in flows):
            return None
        if call.op in ("Add", "Sub") and len(flows) == 2 and len(call.inputs) == 2:
            second = known[1] if call.op == "Add" else known[1].times(np.full(result.size, -1.0))
            return known[0].plus(second)
        if call.op in ("Max", "Min") and len(flows) == 2 and len(call.inputs) == 2:
            return self._extremum(call, known)
        return self._with_constant(call, known[0], result) if len(flows) == 1 else None

    def _with_constant(self, call: Call, data: Forms, result: Flow) -> Forms | None:
        first = isinstance(call.inputs[0], Flow)
        if call.op == "Neg" or (call.op == "Sub" and not first):
            return data.times(np.full(result.size, -1.0))
        if call.op in ("Add", "Sub"):
            return data
        if call.op in ("Mul", "Div"):
            constant = next(value for value in call.inputs if isinstance(value, Constant))
            factor = np.array(spread(constant, result.shape)).reshape(-1)
            if call.op == "Mul":
                return data.times(factor)
            return None if not first or np.any(factor == 0.0) else _divided(data, factor)
        if call.op in ("Max", "Min"):
            return self._activated(call, data, 0.0, 1.0)
        if call.op == "LeakyRelu":
            alpha = call.real("alpha", 0.009999999776482582)
            return self._activated(call, data, min(alpha, 1.0), max(alpha, 1.0))
        return self._activated(call, data, *SCALAR[call.op]) if call.op in SCALAR else None

    def _extremum(self, call: Call, parts: list[Forms]) -> Forms | None:
        """max(a, b) = (a + b)/2 + |a − b|/2, min(a, b) = (a + b)/2 − |a − b|/2."""
        ones = np.full(len(parts[0].columns), 1.0)
        middle, difference = parts[0].plus(parts[1]), parts[0].plus(parts[1].times(-ones))
        if middle is None or difference is None:
            return None
        names = ("|a − b|", *sorted(call.input_names))
        distance = self._unit(names, difference, -1.0, 1.0)
        half = 0.5 if call.op == "Max" else -0.5
        return None if distance is None else middle.times(0.5 * ones).plus(distance.times(half * ones))

    def _activated(self, call: Call, data: Forms, low: float, high: float) -> Forms | None:
        return self._unit((call.output_names[0],), data, low, high)

    def _unit(self, key: tuple[str, ...], data: Forms, low: float, high: float) -> Forms | None:
        """New variables, one per entry; an activation of an activation is not followed."""
        if np.any(data.columns >= self.size):
            return None
        if key not in self.offsets:
            self.offsets[key] = self.size + sum(len(unit[0].columns) for unit in self.units)
            count = len(data.columns)
            self.units.append((data, np.full(count, low), np.full(count, high)))
        return _variables(self.offsets[key] + np.arange(len(data.columns)))


def _variables(columns: Indices) -> Forms:
    return Forms(columns.reshape(-1, 1), np.ones((len(columns), 1)), np.zeros((len(columns), 1)))


def _divided(data: Forms, factor: Array) -> Forms:
    quotient = data.coefficients / factor[:, None]
    slack = (data.slack / np.abs(factor)[:, None] + np.abs(quotient) * UNIT_ROUNDOFF + UNDERFLOW) * (1.0 + 2.0**-50)
    return Forms(data.columns, quotient, slack)


def _moved(call: Call, flows: list[Flow], parts: list[Forms], name: str, result: Flow) -> Forms | None:
    numbered, offset = [], 0
    for flow in flows:
        numbered.append(offset + np.arange(flow.size).reshape(flow.shape))
        offset += flow.size
    made = FOLLOWED[call.op](call, numbered, name, result)
    if not isinstance(made, np.ndarray) or made.shape != result.shape:
        return None
    return _together(parts).taken(made.reshape(-1))


def _together(parts: list[Forms]) -> Forms:
    width = max(part.columns.shape[1] for part in parts)

    def wide(array: Any, fill: int) -> Any:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)

    return Forms(
        np.concatenate([wide(part.columns, -1) for part in parts]),
        np.concatenate([wide(part.coefficients, 0) for part in parts]),
        np.concatenate([wide(part.slack, 0) for part in parts]),
    )


def small_blocks(call: Call, values: Values) -> Found | None:
    """y = P·x + Q·σ(R·x) in disjoint blocks: max over blocks and over D with corner slopes of ‖P + Q·D·R‖ (Lemma S7).

    Differences satisfy Δσ = D·Δ with chord slopes D in the activations' intervals, and a norm is convex in D.
    """
    output = output_of(call, values)
    if output is None or output.size > MOST_ENTRIES:
        return None
    bound = call.with_inputs([values(name) if name else None for name in call.input_names])
    bending = (cut for cut in cuts(call, values, LINEAR | MOVES) if _bends(call, cut))
    base = next(bending, None)  # where the nearest one fails, those before it fail too
    source = values(base.name) if base is not None else None
    if base is None or not isinstance(source, Flow):
        return None
    reader = _reader(call, base.name, values, source.size)
    new = Cut(base.name, tuple(name for name in base.between if name not in reader.known))
    if not call.guide.effort.look(READING * reading_cost(new, call, values)):
        return None
    known = all(reader.of(name) is not None for name in base.between)  # in this order nothing recurses
    forms = reader.known[output.name] = reader.made(bound, output.name, output) if known else None
    blocks = _blocks(forms, reader) if forms is not None and reader.units else None
    if blocks is None or not call.guide.effort.look(CORNER_COST * sum(block.corners for block in blocks)):
        return None
    gains = _gains(blocks)
    return None if gains is None else (source, Step(output.shape, (per_norm(*gains),), "small blocks", rounding=None))


def _reader(call: Call, base: str, values: Values, size: int) -> _Reader:
    """The reader of the node before where it has the same base: parts of one layer are judged one after the other."""
    kept = call.guide.effort.kept
    if not isinstance(kept, _Reader) or kept.base != base:
        kept = call.guide.effort.kept = _Reader(call, base, values, size)
    return kept


def _bends(call: Call, cut: Cut) -> bool:
    """Whether there is an activation between a cut and the node; what is linear is for other motifs."""
    nodes = map(call.producer, cut.between)
    return any(node is not None and node.op in BENDING for node in nodes)


@dataclass(frozen=True)
class _Block:
    """(outputs, inputs), (outputs, units), (units, inputs), each with a last axis (value, slack); slopes (units, 2)."""

    direct: Array
    outer: Array
    inner: Array
    slopes: Array

    @property
    def corners(self) -> int:
        """Ends of the slopes' intervals."""
        return int(2 ** len(self.slopes))


def _blocks(forms: Forms, reader: _Reader) -> list[_Block] | None:
    """The different blocks; ``None`` when one is too large or there are too many."""
    units = _together([unit[0] for unit in reader.units])
    slopes = np.stack([np.concatenate([unit[i] for unit in reader.units]) for i in (1, 2)], axis=1)
    hidden = np.where(forms.columns >= reader.size, forms.columns - reader.size, -1)
    reached = np.where(hidden[..., None] >= 0, units.columns[hidden], -1).reshape(len(hidden), -1)
    direct = np.where(forms.columns < reader.size, forms.columns, -1)
    labels = _components(np.concatenate([direct, reached], axis=1), reader.size)
    if labels is None:
        return None
    touched = np.concatenate([direct, reached], axis=1)
    rows = np.where(touched.max(axis=1) >= 0, labels[np.maximum(touched.max(axis=1), 0)], -1)
    inputs_of = np.argsort(labels, kind="stable")
    input_starts = np.searchsorted(labels[inputs_of], np.arange(reader.size + 1))
    found, corners = [], 0
    for group in _different(forms, units, slopes, hidden, rows):
        label = int(rows[group[0]])
        inputs = inputs_of[input_starts[label] : input_starts[label + 1]]
        used = np.unique(hidden[group][hidden[group] >= 0])
        corners += 2 ** len(used)
        if max(len(group), len(inputs)) > LARGEST_BLOCK or len(used) > MOST_ACTIVATIONS or corners > MOST_CORNERS:
            return None
        direct, outer = _matrix(forms, group, inputs), _matrix(forms, group, used + reader.size)
        found.append(_Block(direct, outer, _matrix(units, used, inputs), slopes[used]))
    return found


def _different(forms: Forms, units: Forms, slopes: Array, hidden: Indices, labels: Indices) -> Iterator[Indices]:
    """The rows of one block of every kind: blocks that only differ in where their entries lie are the same."""

    def table(blocks: Indices) -> Array:
        rows = blocks.reshape(-1)
        label, inner = labels[rows][:, None], hidden[rows]
        bent = inner >= 0
        read = np.where(bent[..., None], units.columns[inner], -1).reshape(len(rows), -1)
        places = [np.where(bent, -1, forms.columns[rows]), inner, read]
        numbers = [np.where(place >= 0, place - label, -(1 << 40)).astype(np.float64) for place in places]
        numbers += [forms.coefficients[rows], forms.slack[rows]]
        for part in (units.coefficients, units.slack, slopes):
            numbers.append(np.where(bent[..., None], part[inner], 0.0).reshape(len(rows), -1))
        return np.concatenate(numbers, axis=1).reshape(len(blocks), -1)

    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    for length in np.unique(lengths):
        blocks = order[starts[lengths == length][:, None] + np.arange(length)]
        if length > LARGEST_BLOCK:
            yield blocks[0]
            return
        parts = np.array_split(blocks, -(-blocks.size // CHUNK))
        kept = np.concatenate([part[_first_of_each(table(part))] for part in parts])
        yield from kept[_first_of_each(table(kept))]


def _first_of_each(table: Array) -> Indices:
    """One row of every kind: sorted by a hash, compared entry by entry with the first of the same hash."""
    bits = table.view(np.int64)
    odd = np.random.default_rng(0).integers(-(2**62), 2**62, bits.shape[1]) * 2 + 1
    _, first, kind = np.unique((bits ^ (bits >> 29)) @ odd, return_index=True, return_inverse=True)
    if np.array_equal(bits[first[kind]], bits):
        return np.asarray(first)
    return np.asarray(np.unique(bits, axis=0, return_index=True)[1])


def _components(touched: Indices, size: int) -> Indices | None:
    """For every base entry the least entry that it shares an output with, directly or through others."""
    labels = np.arange(size + 1)
    cells = np.where(touched >= 0, touched, size)
    for _ in range(LARGEST_BLOCK):
        least = labels[cells].min(axis=1, keepdims=True)
        before = labels.copy()
        np.minimum.at(labels, cells, np.broadcast_to(least, cells.shape))
        labels[size] = size
        if np.array_equal(before, labels):
            return labels[:size]
    return None


def _matrix(forms: Forms, rows: Indices, columns: Indices) -> Array:
    """(rows, columns, 2): coefficients and slack."""
    result = np.zeros((len(rows), len(columns), 2))
    hit = forms.columns[rows][:, :, None] == columns[None, None, :]
    result[..., 0] = (hit * forms.coefficients[rows][:, :, None]).sum(axis=1)
    result[..., 1] = (hit * forms.slack[rows][:, :, None]).sum(axis=1)
    return result


def _gains(blocks: list[_Block]) -> tuple[Bound, Bound, Bound] | None:
    """(ℓ1, ℓ2, ℓ∞) over all blocks and corners."""
    most = [ZERO, ZERO, ZERO]
    for block in blocks:
        for corner in itertools.product(*block.slopes.tolist()):
            found = _corner(block, np.array(corner))
            if found is None:
                return None
            most = [max(pair) for pair in zip(most, found, strict=True)]
    return most[0], most[1], most[2]


def _corner(block: _Block, slopes: Array) -> tuple[Bound, Bound, Bound] | None:
    direct, outer, inner = (part[..., 0] for part in (block.direct, block.outer, block.inner))
    loose = [part[..., 1] for part in (block.direct, block.outer, block.inner)]
    jacobian = direct + (outer * slopes) @ inner
    if not np.all(np.isfinite(jacobian)):
        return None
    size = np.abs(slopes)
    exact = not any(part.any() for part in loose) and _integral(direct, outer, inner, slopes)
    products = (np.abs(outer) * size) @ np.abs(inner)
    error = (
        loose[0]
        + (loose[1] * size) @ (np.abs(inner) + loose[2])
        + (np.abs(outer) * size) @ loose[2]
        + (0.0 if exact else (len(slopes) + 3) * UNIT_ROUNDOFF) * (np.abs(direct) + products)
    ) * (1.0 + 2.0**-40)
    moved = ZERO if exact else frobenius(error + UNDERFLOW)
    extra = Bound(mul_up(sqrt_up(float(max(jacobian.shape))), moved.value))
    rows, columns = (Bound(float(absolute_sums(jacobian, axis).max(initial=0.0))) for axis in (1, 0))
    if exact:
        rows, columns = (Bound(float(np.abs(jacobian).sum(axis=axis).max(initial=0.0))) for axis in (1, 0))
    try:
        spectral = min(spectral_norm_up(jacobian), Bound(sqrt_up((rows * columns).value)))
    except ProofFailed:
        return None
    return columns + extra, spectral + moved, rows + extra


def _integral(*parts: Array) -> bool:
    """Whether sums and products of these are computed exactly: small multiples of ¼."""
    return all(bool(np.all(np.abs(part) <= 1024.0) and np.all(part * 4.0 == np.rint(part * 4.0))) for part in parts)
