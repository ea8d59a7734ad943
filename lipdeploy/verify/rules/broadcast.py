"""How operands of element-wise operators line up, and how often broadcasting copies the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lipdeploy.verify.graph import Call, Constant, Flow


@dataclass(frozen=True)
class Side:
    """One data operand next to its partner: the common shape per sample, and copies made of each data entry."""

    shape: tuple[int, ...]
    copies: int


def partner(call: Call, flow: Flow, constant: Constant) -> Side:
    """Align ``flow`` with a constant; refused when the constant reaches or moves the batch axis."""
    rank, shape = len(flow.shape) + 1, constant.array.shape
    if len(shape) > rank or (len(shape) == rank and shape[0] != 1):
        raise call.refuse("LIP005", f"a constant of shape {list(shape)} reaches the batch axis of a rank {rank} tensor")
    return _side(call, flow, shape[1:] if len(shape) == rank else shape)


def common(call: Call, flows: tuple[Flow, ...]) -> list[Side]:
    """Align several data operands of one rank."""
    if len({len(flow.shape) for flow in flows}) > 1:
        raise call.refuse("LIP005", "operands of different rank: broadcasting would move the batch axis")
    shape = flows[0].shape
    for flow in flows[1:]:
        shape = _broadcast(call, shape, flow.shape)
    return [_side(call, flow, shape) for flow in flows]


def _side(call: Call, flow: Flow, other: tuple[int, ...]) -> Side:
    shape = _broadcast(call, flow.shape, other)
    size = math.prod(shape)
    return Side(shape, size // flow.size if flow.size else 1)


def _broadcast(call: Call, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(first, second))
    except ValueError as error:
        raise call.refuse("LIP013", f"shapes {list(first)} and {list(second)} do not broadcast") from error
