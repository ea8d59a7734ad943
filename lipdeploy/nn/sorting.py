"""Sorting activations: GroupSort and its two special cases, 1-Lipschitz in every p-norm (Anil et al., 2019).

Glossary, because three libraries use one name for three functions:

- ``lipdeploy`` and LipConvnet ``MaxMin``: pairs (i, i + C/2); all maxima first, then all minima.
- LNets ``MaxMin``: pairs of *neighbouring* channels, same output order; its ``num_units`` counts groups.
- deel-torchlip ``MaxMin``: concat(relu(x), relu(−x)), which doubles the channels (CReLU elsewhere).
- ``group_size`` here is channels per group, as in deel-torchlip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS = {"adjacent": 0, "strided": 1}


class GroupSort(nn.Module):
    """Sort the channels of each group; the sorted values go back to the group's own positions.

    Args:
        group_size: channels per group, ≥ 1, or 0 for the whole axis. Must divide the axis.
        axis: the channel axis; negative counts from the end.
        layout: ``"adjacent"`` (group g = channels g·s … g·s+s−1) or ``"strided"`` (channels g, g+G, g+2G, …).
        descending: largest value first.

    Input and output: any shape, any floating type. A NaN makes its whole group NaN.

    Raises:
        ValueError: an argument is out of range, or the axis is not divisible by ``group_size``.
    """

    def __init__(self, group_size: int = 2, axis: int = 1, layout: str = "adjacent", descending: bool = False) -> None:
        super().__init__()
        if group_size < 0:
            raise ValueError(f"group_size is {group_size}; give channels per group (≥ 1), or 0 for the whole axis")
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}")
        self.group_size = int(group_size)
        self.axis = int(axis)
        self.layout = layout
        self.descending = bool(descending)

    def forward(self, x: Tensor) -> Tensor:
        """Sort; the shape stays."""
        axis = self._checked_axis(x)
        if torch.onnx.is_in_onnx_export():
            return self._emit(x)
        return _group_sort(x, self.group_size or x.shape[axis], axis, self.layout, self.descending)

    def _checked_axis(self, x: Tensor) -> int:
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        if not 0 <= axis < x.ndim:
            raise ValueError(f"GroupSort along axis {self.axis} got an input of shape {tuple(x.shape)}")
        if self.group_size and x.shape[axis] % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide the {x.shape[axis]} channels on axis {self.axis} "
                f"of an input of shape {tuple(x.shape)}"
            )
        return axis

    def _emit(self, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {
            "group_size": self.group_size,
            "axis": self.axis,
            "layout": LAYOUTS[self.layout],
            "descending": int(self.descending),
        }
        return torch.onnx.ops.symbolic(
            "lipdeploy::GroupSort", (x,), attributes, dtype=x.dtype, shape=x.shape, version=1
        )

    def extra_repr(self) -> str:
        """The attributes, for ``print(module)``."""
        return f"group_size={self.group_size}, axis={self.axis}, layout={self.layout!r}, descending={self.descending}"


class MaxMin(GroupSort):
    """Maxima of the pairs (i, i + C/2), then their minima: GroupSort(2, strided, descending), as in LipConvnet."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__(group_size=2, axis=axis, layout="strided", descending=True)


class FullSort(GroupSort):
    """Sort the whole axis: GroupSort with ``group_size=0``."""

    def __init__(self, axis: int = 1, descending: bool = False) -> None:
        super().__init__(group_size=0, axis=axis, descending=descending)


def _group_sort(x: Tensor, size: int, axis: int, layout: str, descending: bool) -> Tensor:
    if size <= 1 or x.numel() == 0:
        return x.clone()
    groups = x.shape[axis] // size
    adjacent = layout == "adjacent"
    split = (groups, size) if adjacent else (size, groups)
    grouped = x.reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
    within = axis + 1 if adjacent else axis
    ordered = _sort_pairs(grouped, within, descending) if size == 2 else _sort(grouped, within, descending)
    return ordered.flatten(axis, axis + 1)


def _sort_pairs(grouped: Tensor, axis: int, descending: bool) -> Tensor:
    first, second = grouped.unbind(axis)
    ends = (torch.minimum(first, second), torch.maximum(first, second))  # both propagate NaN
    return torch.stack(ends[::-1] if descending else ends, dim=axis)


def _sort(grouped: Tensor, axis: int, descending: bool) -> Tensor:
    ordered = torch.sort(grouped, dim=axis, descending=descending).values
    # torch sorts NaN above everything, so one look at the largest end finds any in the group.
    largest = ordered.narrow(axis, 0 if descending else ordered.shape[axis] - 1, 1)
    return torch.where(torch.isnan(largest), largest, ordered)
