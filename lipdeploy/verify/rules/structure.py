"""Operators that move, copy, select or convert entries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from lipdeploy.verify.bound import ONE, Bound
from lipdeploy.verify.constants import clamped_slice
from lipdeploy.verify.graph import BATCH, FLOATS, Call, Constant, Numbers
from lipdeploy.verify.limits import LONGEST_LISTED, check_listed
from lipdeploy.verify.norms import Norm, constant_norm, diagonal, per_norm, replication
from lipdeploy.verify.operator_norm.sums import largest
from lipdeploy.verify.rounding import sqrt_up
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import EXACT, Rounding, Step, one_lipschitz

#: Integer types whose every value a float type holds exactly.
NARROW = {np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16, np.bool_)}
EXACT_INTEGERS = {
    np.dtype(np.float16): {np.dtype(t) for t in (np.uint8, np.int8, np.bool_)},
    np.dtype(np.float32): NARROW,
    np.dtype(np.float64): NARROW | {np.dtype(np.uint32), np.dtype(np.int32)},
}


def reshaped(call: Call, target: Sequence[object]) -> tuple[int, ...]:
    """Shape per sample after a reshape to ``target`` (batch axis first); refused when samples would be mixed."""
    size = call.flow().size
    dims: list[object] = list(target)
    batch_kept = bool(dims) and (call.is_batch(dims[0]) or dims[0] == -1)
    rest = [int(dim) for dim in dims[1:] if isinstance(dim, (int, np.integer))]
    if not batch_kept or len(rest) != len(dims) - 1:
        raise call.refuse("LIP005", f"the target shape {target} does not keep the batch axis in place")
    if rest.count(-1) == 1 and call.is_batch(dims[0]):
        known = -math.prod(rest)
        rest[rest.index(-1)] = size // known if known and size % known == 0 else -1
    if min(rest, default=1) < 0 or math.prod(rest) != size:
        raise call.refuse("LIP005", f"{size} entries per sample do not fill {list(target)[1:]}: samples would be mixed")
    return tuple(rest)


@rule("Reshape", attributes=("allowzero",), inputs=2)
def reshape(call: Call) -> Step:
    """A renaming of entries within each sample."""
    flow, target = call.flow(0), list(call.required_constant(1).array.reshape(-1).tolist())
    if not call.integer("allowzero", 0):
        whole: list[object] = [BATCH, *flow.shape]
        for index, dim in enumerate(target):
            if dim == 0 and index >= len(whole):
                raise call.refuse("LIP013", f"the target shape {target} copies an axis that is not there")
            target[index] = whole[index] if dim == 0 else dim
    return one_lipschitz(reshaped(call, target), "permutation", EXACT)


@rule("Flatten", attributes=("axis",))
def flatten(call: Call) -> Step:
    """A renaming of entries; axis must be 1."""
    flow = call.flow()
    axis, rank = call.integer("axis", 1), len(flow.shape) + 1
    if (axis if axis >= 0 else axis + rank) != 1:
        raise call.refuse("LIP005", "only axis=1 keeps the samples apart")
    return one_lipschitz((flow.size,), "permutation", EXACT)


@rule("Transpose", attributes=("perm",))
def transpose(call: Call) -> Step:
    """A permutation of entries; the batch axis stays first."""
    flow = call.flow()
    perm = call.integers("perm", tuple(reversed(range(len(flow.shape) + 1))))
    if sorted(perm) != list(range(len(flow.shape) + 1)):
        raise call.refuse("LIP013", f"perm {list(perm)} is not a permutation of the axes")
    if perm[0] != 0:
        raise call.refuse("LIP005", f"perm {list(perm)} moves the batch axis")
    return one_lipschitz(tuple(flow.shape[axis - 1] for axis in perm[1:]), "permutation", EXACT)


def _listed_axes(call: Call, rank: int) -> list[int]:
    constant = call.constant(1)
    if constant is None:
        raise call.refuse("LIP002", "axes must be given")
    axes = [call.resolve_axis(int(axis), rank) for axis in constant.array.reshape(-1)]
    if len(set(axes)) < len(axes):
        raise call.refuse("LIP013", f"axes {axes} are not distinct")
    if 0 in axes:
        raise call.refuse("LIP005", "touches the batch axis")
    return axes


@rule("Squeeze", inputs=2)
def squeeze(call: Call) -> Step:
    """A renaming of entries."""
    shape = call.flow().shape
    axes = _listed_axes(call, len(shape) + 1)
    if any(shape[axis - 1] != 1 for axis in axes):
        raise call.refuse("LIP013", f"axes {axes} of {list(shape)} are not all of size 1")
    return one_lipschitz(tuple(n for i, n in enumerate(shape) if i + 1 not in axes), "permutation", EXACT)


@rule("Unsqueeze", inputs=2)
def unsqueeze(call: Call) -> Step:
    """A renaming of entries."""
    shape = list(call.flow().shape)
    constant = call.required_constant(1)
    for axis in sorted(_listed_axes(call, len(shape) + 1 + constant.array.size)):
        shape.insert(axis - 1, 1)
    return one_lipschitz(tuple(shape), "permutation", EXACT)


@rule("DepthToSpace", "SpaceToDepth", attributes=("blocksize", "mode"))
def depth_space(call: Call) -> Step:
    """A permutation between channels and positions."""
    shape, block = call.flow().shape, call.integer("blocksize")
    if len(shape) != 3 or block < 1:
        raise call.refuse("LIP013", "needs (channels, height, width) and a positive blocksize")
    channels, height, width = shape
    if call.op == "DepthToSpace":
        if channels % block**2:
            raise call.refuse("LIP013", f"{channels} channels are not a multiple of {block**2}")
        return one_lipschitz((channels // block**2, height * block, width * block), "permutation", EXACT)
    if height % block or width % block:
        raise call.refuse("LIP013", f"an image of {height}×{width} does not split into blocks of {block}")
    return one_lipschitz((channels * block**2, height // block, width // block), "permutation", EXACT)


@rule("Cast", attributes=("to", "saturate"))
def cast(call: Call) -> Step:
    """The identity on the values; to a narrower float it rounds once. Integers must fit the float type exactly."""
    flow, kind = call.flow(), call.integer("to")
    target = FLOATS.get(kind)
    if target is None:
        name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
        raise call.refuse("LIP015", f"converts an activation from {flow.dtype} to {name}")
    if flow.dtype.kind != "f" and flow.dtype not in EXACT_INTEGERS[target]:
        raise call.refuse("LIP015", f"not every {flow.dtype} is a {target}")
    narrower = flow.dtype.kind == "f" and target.itemsize < flow.dtype.itemsize
    rounding = Rounding(terms=1, underflow=1.0) if narrower else EXACT
    return Step(flow.shape, (diagonal(ONE),), "identity", rounding=rounding, dtype=target)


@rule("Concat", attributes=("axis",), inputs=1024)
def concat(call: Call) -> Step:
    """Pieces side by side: √Σ², max, Σ. A constant piece moves nothing."""
    flows = call.flows()
    rank = len(flows[0].shape) + 1
    axis = call.axis("axis", None, rank)
    if axis == 0:
        raise call.refuse("LIP005", "concatenates along the batch axis")
    shapes = [list(flow.shape) for flow in flows]
    constants = [value for value in map(call.optional, range(len(call.inputs))) if isinstance(value, Constant)]
    if constants:
        raise call.refuse("LIP002", "concatenates constants with activations")
    others = {(len(shape), *(n for i, n in enumerate(shape) if i + 1 != axis)) for shape in shapes}
    if len(others) > 1:
        raise call.refuse("LIP013", f"shapes {shapes} do not fit along axis {axis}")
    shape = list(shapes[0])
    shape[axis - 1] = sum(piece[axis - 1] for piece in shapes)
    return Step(tuple(shape), tuple(diagonal(ONE) for _ in flows), "concatenation", join="stack", rounding=EXACT)


@rule("Split", attributes=("axis", "num_outputs"), inputs=2, outputs=1024)
def split(call: Call) -> list[Step]:
    """A part of a vector moves no further than the vector."""
    flow = call.flow(0)
    axis = call.axis("axis", 0, len(flow.shape) + 1)
    if axis == 0:
        raise call.refuse("LIP005", "splits the batch axis")
    shapes = [(*flow.shape[: axis - 1], n, *flow.shape[axis:]) for n in split_sizes(call, flow.shape[axis - 1])]
    return [one_lipschitz(shape, "selection", EXACT) for shape in shapes]


def split_sizes(call: Call, size: int) -> list[int]:
    """How a Split cuts an axis of ``size`` entries, one number per output."""
    pieces = len(call.output_names)
    if call.integer("num_outputs", pieces) != pieces:
        raise call.refuse("LIP013", f"num_outputs differs from its {pieces} outputs")
    stated = call.constant(1)
    if stated is not None:
        sizes = [int(n) for n in stated.array.reshape(-1)]
    else:
        chunk = -(-size // pieces)
        sizes = [chunk] * (pieces - 1) + [size - chunk * (pieces - 1)]
    if len(sizes) != pieces or sum(sizes) != size or min(sizes) < 0:
        raise call.refuse("LIP013", f"sizes {sizes} do not split {size} entries into {pieces}")
    return sizes


@rule("Slice", inputs=5)
def slice_(call: Call) -> Step:
    """A part of a vector moves no further than the vector."""
    flow = call.flow(0)
    shape = (len(range(size)[part]) for size, part in zip(flow.shape, slices(call, flow.shape), strict=True))
    return one_lipschitz(tuple(shape), "selection", EXACT)


def slices(call: Call, shape: tuple[int, ...]) -> list[slice]:
    """What a Slice takes from every axis but the batch axis."""
    starts, ends = (_integers(call, index) for index in (1, 2))
    axes = _integers(call, 3) if call.constant(3) is not None else list(range(len(starts)))
    steps = _integers(call, 4) if call.constant(4) is not None else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise call.refuse("LIP013", "starts, ends, axes and steps do not match")
    axes = [call.resolve_axis(axis, len(shape) + 1) for axis in axes]
    if 0 in axes:
        raise call.refuse("LIP005", "slices the batch axis")
    if len(set(axes)) < len(axes):
        raise call.refuse("LIP013", "slices one axis twice")
    parts = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[axis - 1] = clamped_slice(start, end, step, shape[axis - 1])
    return parts


def _integers(call: Call, index: int) -> list[int]:
    array = call.required_constant(index).array.reshape(-1)
    computed = array.dtype == object and all(isinstance(number, int) for number in array.tolist())
    if array.dtype.kind not in "iu" and not computed:
        raise call.refuse("LIP006", f"input {index} is not a list of known integers")
    return [int(number) for number in array]


@rule("Gather", attributes=("axis",), inputs=2)
def gather(call: Call) -> Step:
    """Selection by stored indices; an entry taken r times counts r times: √r, 1, r."""
    flow = call.flow(0)
    axis = call.axis("axis", 0, len(flow.shape) + 1)
    if axis == 0:
        raise call.refuse("LIP005", "gathers along the batch axis")
    indices, size = call.required_constant(1).array, flow.shape[axis - 1]
    if indices.dtype.kind not in "iu" or (indices.size and not (-size <= indices.min() and indices.max() < size)):
        raise call.refuse("LIP013", f"indices are outside an axis of size {size}")
    _, counts = np.unique(np.mod(indices.reshape(-1), size), return_counts=True)
    shape = (*flow.shape[: axis - 1], *indices.shape, *flow.shape[axis:])
    return Step(shape, (replication(max(1, int(counts.max(initial=1)))),), "selection", rounding=EXACT)


@rule("Expand", inputs=2)
def expand(call: Call) -> Step:
    """Every entry is copied m times: √m, 1, m."""
    flow = call.flow(0)
    target = call.required_constant(1).array.reshape(-1).tolist()
    whole = [BATCH, *flow.shape]
    if len(target) > len(whole) or (len(target) == len(whole) and target[0] != 1 and not call.is_batch(target[0])):
        raise call.refuse("LIP005", f"expands to {target}, which reaches the batch axis")
    sample = target[1:] if len(target) == len(whole) else target
    try:
        shape = tuple(np.broadcast_shapes(flow.shape, tuple(int(n) for n in sample)))
    except (ValueError, TypeError) as error:
        raise call.refuse("LIP013", f"{list(flow.shape)} does not expand to {target}") from error
    copies = math.prod(shape) // flow.size if flow.size else 1
    return Step(shape, (replication(max(1, copies)),), "replication", rounding=EXACT)


@rule("Tile", inputs=2)
def tile(call: Call) -> Step:
    """Every entry is copied m times: √m, 1, m."""
    flow, repeats = call.flow(0), _integers(call, 1)
    if len(repeats) != len(flow.shape) + 1 or min(repeats) < 1:
        raise call.refuse("LIP013", f"repeats {repeats} do not fit a tensor of rank {len(flow.shape) + 1}")
    if repeats[0] != 1:
        raise call.refuse("LIP005", "repeats the batch axis")
    shape = tuple(n * r for n, r in zip(flow.shape, repeats[1:], strict=True))
    return Step(shape, (replication(math.prod(repeats)),), "replication", rounding=EXACT)


@rule("Pad", attributes=("mode",), inputs=4)
def pad(call: Call) -> Step:
    """Constant padding: 1. Edge, reflect and wrap copy entries: √, 1, × of the largest number of copies."""
    flow, mode = call.flow(0), call.string("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise call.refuse("LIP002", f"mode='{mode}'")
    pads = pads_per_axis(call, len(flow.shape) + 1)
    copies, shape = 1, []
    for size, (begin, end) in zip(flow.shape, pads, strict=True):
        positions = padded_positions(call, size, begin, end, mode)
        shape.append(len(positions))
        copies *= max(np.bincount(positions[positions >= 0], minlength=1).max(initial=1), 1)
    fill = Bound(pad_fill(call) if mode == "constant" else 0.0)
    size = math.prod(shape)
    at_zero = {norm: constant_norm(norm, fill, size) for norm in Norm}
    gains = per_norm(Bound(float(copies)), Bound(sqrt_up(float(copies))), ONE)
    return Step(tuple(shape), (gains,), f"{mode} padding", at_zero=at_zero, rounding=EXACT)


def pad_fill(call: Call) -> float:
    """The largest absolute value that a Pad writes around its data."""
    value = call.constant(2)
    if value is not None and value.array.size != 1:
        raise call.refuse("LIP013", f"the value to pad with is {value.array.size} numbers")
    return 0.0 if value is None else largest(value.float64())


def pads_per_axis(call: Call, rank: int) -> list[tuple[int, int]]:
    """(begin, end) of a Pad for every axis but the batch axis."""
    listed = _integers(call, 1)
    axes = [call.resolve_axis(axis, rank) for axis in _integers(call, 3)] if call.constant(3) else list(range(rank))
    if len(listed) != 2 * len(axes) or len(set(axes)) < len(axes):
        raise call.refuse("LIP013", f"pads {listed} do not fit axes {axes}")
    pads = {axis: (listed[i], listed[i + len(axes)]) for i, axis in enumerate(axes)}
    if pads.get(0, (0, 0)) != (0, 0):
        raise call.refuse("LIP005", "pads the batch axis")
    return [pads.get(axis, (0, 0)) for axis in range(1, rank)]


def padded_positions(call: Call, size: int, begin: int, end: int, mode: str) -> Numbers:
    """For every output position of one axis the input position it shows, −1 for the constant."""
    if max(-begin, 0) + max(-end, 0) >= size or max(begin, end) > (size - 1 if mode == "reflect" else 10 * size + 64):
        raise call.refuse("LIP002", f"pads ({begin}, {end}) do not fit an axis of size {size} in mode {mode}")
    if mode != "constant" and min(begin, end) < 0:
        raise call.refuse("LIP002", f"negative pads in mode {mode}")
    check_listed(call, (size + max(begin, 0) + max(end, 0),), LONGEST_LISTED)
    kept = np.arange(max(-begin, 0), size - max(-end, 0))
    widths = (max(begin, 0), max(end, 0))
    if mode == "constant":
        return np.pad(kept, widths, constant_values=-1)
    mirrored: Numbers = np.pad(kept, widths, mode=mode)  # type: ignore[call-overload]
    return mirrored


@rule("TopK", attributes=("axis", "largest", "sorted"), inputs=2, outputs=2)
def top_k(call: Call) -> Step:
    """Sorting moves no two vectors apart (rearrangement), and a part of the sorted vector even less: 1."""
    flow = call.flow(0)
    axis = call.axis("axis", -1, len(flow.shape) + 1)
    if axis == 0:
        raise call.refuse("LIP005", "sorts along the batch axis")
    if not call.integer("sorted", 1):
        raise call.refuse("LIP002", "sorted=0 leaves the order of the values open")
    count = _integers(call, 1)
    if len(count) != 1 or not 1 <= count[0] <= flow.shape[axis - 1]:
        raise call.refuse("LIP013", f"k={count} for an axis of size {flow.shape[axis - 1]}")
    return one_lipschitz((*flow.shape[: axis - 1], count[0], *flow.shape[axis:]), "sorting", EXACT)
