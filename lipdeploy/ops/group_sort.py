"""GroupSort: sorts the channels of each group.

Anil, Lucas, Grosse 2019, "Sorting out Lipschitz function approximation".

Along ``axis`` the channels form groups of ``group_size`` (0: one group of all channels). ``layout`` 0 (adjacent)
puts channels g·s … g·s+s−1 into group g; ``layout`` 1 (strided) puts g, g+G, g+2G, … there, with G groups. The sorted
values go back to the group's own positions in order, ascending or ``descending``. −0 sorts below +0. A NaN anywhere in
a group makes the whole group the canonical quiet NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from lipdeploy.ops.emit import Emitter, enter, leave
from lipdeploy.ops.networks import comparators
from lipdeploy.ops.spec import AttributeValue, Operator, canonical_nan, integer, normal_axis

# Up to this group size the body is a sorting network of Min and Max; above it TopK, which has fewer but slow nodes.
LARGEST_NETWORK = 8


def evaluate(
    x: np.ndarray[Any, Any], *, group_size: int = 2, axis: int = 1, layout: int = 0, descending: int = 0
) -> np.ndarray[Any, Any]:
    """Sort each group of ``x``, any shape with the given axis; the result has the shape and type of ``x``.

    Raises ValueError when the axis does not exist or ``group_size`` does not divide it.
    """
    axis = normal_axis(axis, x.ndim, "GroupSort")
    channels = x.shape[axis]
    size = group_size or channels
    if size == 0 or channels == 0:
        return x.copy()
    if channels % size:
        raise ValueError(f"GroupSort: group_size {size} does not divide the {channels} channels of axis {axis}")
    groups = channels // size
    split = (groups, size) if layout == 0 else (size, groups)
    grouped = np.ascontiguousarray(x).reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
    return _sort(grouped, axis + 1 if layout == 0 else axis, descending).reshape(x.shape)


def _sort(x: np.ndarray[Any, Any], axis: int, descending: int) -> np.ndarray[Any, Any]:
    """Sort by the order of IEEE 754 totalOrder, which on numbers is ≤ with −0 below +0."""
    keys = _ordered_integers(x)
    keys.sort(axis=axis)
    if descending:
        keys = np.flip(keys, axis)
    poisoned = np.isnan(x).any(axis=axis, keepdims=True)
    return np.where(poisoned, canonical_nan(x.dtype), _from_ordered(keys, x.dtype))


def _ordered_integers(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of each value, mapped to a signed integer that grows with it (an involution)."""
    bits = x.view(np.dtype(f"i{x.dtype.itemsize}"))
    keys: np.ndarray[Any, Any] = bits ^ ((bits >> (8 * x.dtype.itemsize - 1)) & np.iinfo(bits.dtype).max)
    return keys


def _from_ordered(keys: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return _ordered_integers(np.ascontiguousarray(keys)).view(dtype)


def build_body(
    uses: tuple[Mapping[str, AttributeValue], ...], element_types: frozenset[int], opset: int
) -> list[onnx.NodeProto]:
    """Nodes from ``X`` to ``Y``: view as one tensor with the group along one axis, sort there, view back."""
    e = Emitter(opset)
    x = enter(e, "X", element_types)
    if len(uses) == 1:
        y = _specialised(e, x, *(int(uses[0][name]) for name in ("group_size", "axis", "layout", "descending")))
    else:
        sizes, orders = (frozenset(int(use[name]) for use in uses) for name in ("group_size", "descending"))
        y = _generic(e, x, sizes, orders)
    leave(e, y, element_types)
    return e.nodes


def _specialised(e: Emitter, x: str, size: int, axis: int, layout: int, descending: int) -> str:
    """Attributes known, rank unknown: the axis is cut out of the shape by ``Shape``'s own start and end."""
    last = axis == -1
    channels = e.op("Shape", x, start=axis) if last else e.op("Shape", x, start=axis, end=axis + 1)
    if size == 0:
        return _top_k(e, x, axis, channels, descending)
    if size == 1:
        return x
    groups = e.op("Div", channels, e.vector_of(size))
    if layout == 1 and size == 2:
        # Halves of the axis: no reshape. Sizes are written, because Split would cut an odd axis unevenly.
        return _network(e, x, axis, e.op("Concat", groups, groups, axis=0), size, descending)
    before = e.op("Shape", x, start=0, end=axis)
    after = [] if last else [e.op("Shape", x, start=axis + 1)]
    middle = [groups, e.vector_of(size)] if layout == 0 else [e.vector_of(size), groups]
    grouped = e.op("Reshape", x, e.op("Concat", before, *middle, *after, axis=0), allowzero=1)
    along = axis + (layout == 0) - (axis < 0)
    if size <= LARGEST_NETWORK:
        y = _network(e, grouped, along, e.vector_of(*[1] * size), size, descending)
    else:
        y = _top_k(e, grouped, along, e.vector_of(size), descending)
    return e.op("Reshape", y, e.op("Shape", x), allowzero=1)


def _generic(e: Emitter, x: str, sizes: frozenset[int], orders: frozenset[int]) -> str:
    """Attributes read at run time: the tensor is viewed as (blocks, group_size, lanes) and sorted along axis 1."""
    shape = e.op("Shape", x)
    rank = e.op("Shape", shape)
    given = e.vector(e.attribute("axis"))
    axis = e.op("Where", e.op("Less", given, e.vector_of(0)), e.op("Add", given, rank), given)
    after_axis = e.op("Add", axis, e.vector_of(1))
    before = e.product(e.op("Slice", shape, e.vector_of(0), axis))
    channels = e.op("Slice", shape, axis, after_axis)
    after = e.product(e.op("Slice", shape, after_axis, rank))
    asked = e.vector(e.attribute("group_size"))
    size = e.op("Where", e.op("Equal", asked, e.vector_of(0)), channels, asked)
    groups = e.op("Div", channels, size)
    strided = e.op("Equal", e.vector(e.attribute("layout")), e.vector_of(1))
    blocks = e.op("Where", strided, before, e.op("Mul", before, groups))
    lanes = e.op("Where", strided, e.op("Mul", groups, after), after)
    grouped = e.op("Reshape", x, e.op("Concat", blocks, size, lanes, axis=0), allowzero=1)
    common = next(iter(sizes)) if len(sizes) == 1 and len(orders) == 1 else 0
    if 2 <= common <= LARGEST_NETWORK:
        y = _network(e, grouped, 1, e.vector_of(*[1] * common), common, next(iter(orders)))
    else:
        y = _top_k(e, grouped, 1, size, None)
    return e.op("Reshape", y, shape, allowzero=1)


def _network(e: Emitter, x: str, axis: int, parts: str, size: int, descending: int) -> str:
    """Split the axis into ``size`` parts, sort them elementwise by a network, join them again.

    What Min and Max make of a NaN, ONNX leaves open, and watching over every element costs more than the sort. One sum
    over the tensor tells whether there can be any: a NaN makes it NaN. Infinities of both signs do so too, and then
    the careful branch is taken for nothing, but its result is the same.
    """
    doubt = e.op("IsNaN", e.op("ReduceSum", x, keepdims=0))
    branches = {
        "then_branch": _network_branch(e, x, axis, parts, size, descending, careful=True),
        "else_branch": _network_branch(e, x, axis, parts, size, descending, careful=False),
    }
    return e.op("If", doubt, **branches)


def _network_branch(
    outside: Emitter, x: str, axis: int, parts: str, size: int, descending: int, *, careful: bool
) -> onnx.GraphProto:
    name = "with_nan" if careful else "without_nan"
    e = Emitter(outside.opset, prefix=f"{name}_")
    rows = e.several("Split", [x, parts], size, axis=axis)
    given = list(rows)
    for i, j in comparators(size):
        rows[i], rows[j] = e.op("Min", rows[i], rows[j]), e.op("Max", rows[i], rows[j])
    if careful:
        rows = _poisoned(e, given, rows)
    y = e.op("Concat", *(reversed(rows) if descending else rows), axis=axis)
    return helper.make_graph(e.nodes, name, [], [onnx.ValueInfoProto(name=y)])


def _poisoned(e: Emitter, given: list[str], rows: list[str]) -> list[str]:
    """NaN in every row where one of the given rows is NaN."""
    nan = e.op("IsNaN", given[0])
    for row in given[1:]:
        nan = e.op("Or", nan, e.op("IsNaN", row))
    # Where one row is NaN the sum is; being as large as the rows it needs no broadcast, which is slow in runtimes.
    quiet = e.op("Sum", *given)
    return [e.op("Where", nan, quiet, row) for row in rows]


def _top_k(e: Emitter, x: str, axis: int, size: str, descending: int | None) -> str:
    """Sort along one axis by TopK of all its ``size`` elements; ``descending`` None reads the function's attribute."""
    if descending is None:
        values = e.several("TopK", [x, size], 2, axis=axis, sorted=1)[0]
        e.nodes[-1].attribute.append(
            onnx.AttributeProto(name="largest", ref_attr_name="descending", type=onnx.AttributeProto.INT)
        )
    else:
        values = e.several("TopK", [x, size], 2, axis=axis, largest=descending, sorted=1)[0]
    # TopK leaves a NaN somewhere in the middle; one anywhere must take the whole group.
    found = e.reduce_max(e.op("Cast", e.op("IsNaN", x), to=TensorProto.INT32), axis)
    return e.op("Where", e.op("Cast", found, to=TensorProto.BOOL), e.op("CastLike", e.real(float("nan")), x), values)


GROUP_SORT = Operator(
    name="GroupSort",
    attributes=(
        integer("group_size", 2, lambda v: v >= 0, "an integer ≥ 1, or 0 for the whole axis"),
        integer("axis", 1, lambda v: -64 <= v < 64, "an axis of the tensor"),
        integer("layout", 0, lambda v: v in (0, 1), "0 (adjacent) or 1 (strided)"),
        integer("descending", 0, lambda v: v in (0, 1), "0 or 1"),
    ),
    inputs=("X",),
    evaluate=evaluate,
    build_body=build_body,
)
