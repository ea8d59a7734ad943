"""What torch computes: the outputs that the file is held against, at batch sizes that a network may tell apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipdeploy.errors import InputError
from lipdeploy.export.capture import first_line
from lipdeploy.export.freeze import Program
from lipdeploy.export.parity import Array

#: Torch's exporter takes sizes of 0 and 1 for special, and a path may differ for odd ones.
SMALL_BATCHES = (1, 3)
NOISE_ROWS = 32


@dataclass(frozen=True)
class Reference:
    """Inputs, and what the module makes of them.

    ``noise`` is the largest difference of each output to the same module in float64, over some of the rows; ``None``
    where it cannot run so.
    """

    feeds: tuple[Tensor, ...]
    outputs: tuple[Array, ...]
    noise: tuple[float, ...] | None = None

    def scaled(self, factor: float) -> Reference:
        """The same of a module whose outputs are multiplied by ``factor``."""
        outputs = tuple(value * value.dtype.type(factor) for value in self.outputs)
        noise = None if self.noise is None else tuple(value * factor for value in self.noise)
        return replace(self, outputs=outputs, noise=noise)


def reference(program: Program, feeds: Sequence[Tensor]) -> Reference:
    """What the module makes of all rows. Raises ``InputError`` where it cannot run on them."""
    return Reference(tuple(feeds), _run(program, feeds), _noise(program, feeds))


def small_batches(program: Program, whole: Reference) -> Iterator[Reference]:
    """The first rows again, as batches of their own. Raises ``InputError`` where the module cannot run on so few."""
    for size in SMALL_BATCHES:
        if size < len(whole.feeds[0]):
            few = tuple(value[:size].contiguous() for value in whole.feeds)
            yield replace(whole, feeds=few, outputs=_run(program, few))


def _run(program: Program, feeds: Sequence[Tensor]) -> tuple[Array, ...]:
    try:
        with torch.no_grad():
            output: Any = program(*(value.clone() for value in feeds))  # it may work in place
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in feeds)
        raise InputError(
            f"the network cannot run on an input of shape {shapes}: {first_line(error)}",
            hint=_how_to_run(error, feeds),
        ) from error
    outputs = output if isinstance(output, tuple | list) else (output,)
    if not outputs or not all(isinstance(value, Tensor) for value in outputs):
        raise InputError(f"the network returns {type(output).__name__}", hint="return a tensor, or a tuple of tensors")
    return tuple(value.detach().cpu().numpy().copy() for value in outputs)


def _how_to_run(error: Exception, feeds: Sequence[Tensor]) -> str:
    if "Guard failed" in str(error):  # what torch.export found in its example and fixed
        return "leave the batch open: torch.export.export(…, dynamic_shapes=({0: torch.export.Dim('batch')},))"
    if all(value.ndim == 1 for value in feeds):
        return "axis 0 of the example is the batch: x[None] is a batch of one"
    return "check the input shape (--input-shape excludes the batch) and the preprocessing"


def _noise(program: Program, feeds: Sequence[Tensor]) -> tuple[float, ...] | None:
    some = [value[:: max(1, len(value) // NOISE_ROWS)].contiguous() for value in feeds]
    try:
        wide = copy.deepcopy(program).double()
        wide.preprocess.dtype = torch.float64
        pairs = list(zip(_run(program, some), _run(wide, some), strict=True))
    except Exception:  # a module that insists on its type
        return None
    if any(ours.dtype != np.float32 or exact.dtype != np.float64 for ours, exact in pairs):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return tuple(float(np.nanmax(np.abs(ours - exact), initial=0.0)) for ours, exact in pairs)
