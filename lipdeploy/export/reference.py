"""What torch computes: the outputs that the file is held against, at batch sizes that a network may tell apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipdeploy.errors import InputError
from lipdeploy.export.capture import first_line
from lipdeploy.export.freeze import Program
from lipdeploy.export.parity import Array, largest_in_rows

#: Torch's exporter takes sizes of 0 and 1 for special, and a path may differ for odd ones.
SMALL_BATCHES = (1, 3)
NOISE_ROWS = 32
REPEATED = 2e-5  # of the largest output, by which a second run may differ


@dataclass(frozen=True)
class Reference:
    """Inputs, and what the module makes of them.

    ``noise`` is the difference to the same module in float64, of every row of each output, from some rows that were
    measured; ``None`` where it cannot run so.
    """

    feeds: tuple[Tensor, ...]
    outputs: tuple[Array, ...]
    noise: tuple[Array, ...] | None = None

    def scaled(self, factor: float) -> Reference:
        """The same of a module whose outputs are multiplied by ``factor``."""
        outputs = tuple(value * value.dtype.type(factor) for value in self.outputs)
        noise = None if self.noise is None else tuple(value * factor for value in self.noise)
        return replace(self, outputs=outputs, noise=noise)

    def rows(self, chosen: Array) -> Reference:
        """The same of these rows alone, for a module that keeps its rows apart."""
        noise = None if self.noise is None else tuple(value[chosen] for value in self.noise)
        feeds = tuple(value[torch.from_numpy(chosen)] for value in self.feeds)
        return Reference(feeds, tuple(value[chosen] for value in self.outputs), noise)


def reference(program: Program, feeds: Sequence[Tensor]) -> Reference:
    """What the module makes of all rows. Raises ``InputError`` where it cannot run on them, or not twice alike."""
    outputs = _run(program, feeds)
    return Reference(tuple(feeds), outputs, _noise(program, feeds, outputs))


def small_batches(fresh: Callable[[], Program], whole: Reference) -> Iterator[Reference]:
    """The first rows again, as batches of their own. Raises ``InputError`` where the module cannot run on so few.

    Each is run by a copy that has not run before: a module may set its numbers by the first batch that it meets.
    """
    for size in SMALL_BATCHES:
        if size < len(whole.feeds[0]):
            few = tuple(value[:size].contiguous() for value in whole.feeds)
            noise = None if whole.noise is None else tuple(value[:size] for value in whole.noise)
            yield Reference(few, _run(fresh(), few), noise)


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
        raise InputError(f"the network returns {_kind(output)}", hint=_how_to_return(output))
    return tuple(_array(value) for value in outputs)


def _kind(output: Any) -> str:
    """What came in place of tensors, down to the element that is none."""
    if isinstance(output, tuple | list):
        strange = [f"{type(value).__name__} at {i}" for i, value in enumerate(output) if not isinstance(value, Tensor)]
        return (
            f"a {type(output).__name__} with {', '.join(strange)}" if strange else f"an empty {type(output).__name__}"
        )
    return type(output).__name__


def _how_to_return(output: Any) -> str:
    if isinstance(output, Mapping) and output:
        return f"wrap it in a module that returns a tensor, as output[{next(iter(output))!r}] is"
    return "wrap it in a module that returns a tensor, or a tuple of tensors"


def _array(value: Tensor) -> Array:
    try:
        return value.detach().cpu().numpy().copy()
    except TypeError as error:
        kind = str(value.dtype).removeprefix("torch.")
        raise InputError(f"the network returns a tensor of {kind}", hint="return float32, by .float()") from error


def _how_to_run(error: Exception, feeds: Sequence[Tensor]) -> str:
    if "Guard failed" in str(error):  # what torch.export found in its example and fixed
        return "leave the batch open: torch.export.export(…, dynamic_shapes=({0: torch.export.Dim('batch')},))"
    if all(value.ndim == 1 for value in feeds):
        return "axis 0 of the example is the batch: x[None] is a batch of one"
    return "check the input shape (--input-shape excludes the batch) and the preprocessing"


def _noise(program: Program, feeds: Sequence[Tensor], outputs: Sequence[Array]) -> tuple[Array, ...] | None:
    """What float32 costs each row, from some rows that run again, in float32 and in float64.

    Raises ``InputError`` where the module gives other numbers for the same rows: that is no rounding.
    """
    some, measured, ours = _some_rows(program, feeds)
    repeats = _repeats(ours, _run(program, some))
    exact = _run_wide(program, some)
    rows = len(feeds[0])
    if exact is None or not repeats or any(value.ndim == 0 or len(value) != rows for value in outputs):
        return None
    if any(a.dtype != np.float32 or b.dtype != np.float64 for a, b in zip(ours, exact, strict=True)):
        return None
    inputs = np.max([largest_in_rows(value.numpy()) for value in feeds], axis=0)
    return tuple(
        _by_size(_row_noise(a, b), measured, inputs, largest_in_rows(whole))
        for a, b, whole in zip(ours, exact, outputs, strict=True)
    )


def _some_rows(program: Program, feeds: Sequence[Tensor]) -> tuple[list[Tensor], Array, tuple[Array, ...]]:
    """Some rows, which these are, and their outputs; all of them for a network of one size of the batch."""
    measured = np.arange(0, len(feeds[0]), max(1, len(feeds[0]) // NOISE_ROWS))
    try:
        some = [value[torch.from_numpy(measured)] for value in feeds]
        return some, measured, _run(program, some)
    except (InputError, IndexError):
        return list(feeds), np.arange(len(feeds[0])), _run(program, feeds)


def _repeats(first: Sequence[Array], again: Sequence[Array]) -> bool:
    """Whether two runs gave the same bits. Raises ``InputError`` where they differ by more than threads explain."""
    for a, b in zip(first, again, strict=True):
        largest = float(largest_in_rows(a).max(initial=0.0))
        if a.shape != b.shape or not np.allclose(a, b, rtol=0.0, atol=REPEATED * largest, equal_nan=True):
            raise InputError(
                "the network computes other numbers when it runs again on the same input",
                hint="in evaluation mode it must draw no random numbers and keep its state as it is",
            )
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))


def _run_wide(program: Program, feeds: Sequence[Tensor]) -> tuple[Array, ...] | None:
    try:
        wide = copy.deepcopy(program).double()
        wide.preprocess.dtype = torch.float64
        return _run(wide, feeds)
    except Exception:  # a module that insists on its type
        return None


def _row_noise(ours: Array, exact: Array) -> Array:
    """The largest difference in each row; where one of the two overflows, rounding says nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        return largest_in_rows(ours - exact)


def _by_size(noise: Array, measured: Array, inputs: Array, outputs: Array) -> Array:
    """Every row's noise: the most that a measured row has, or that share of it which the row's numbers are of its.

    Beside a row of large numbers, whose rounding is large, one of small numbers would not be compared at all.
    """
    shares = np.maximum(_share(inputs, measured), _share(outputs, measured))
    most: Array = (noise * np.minimum(1.0, shares)).max(axis=1)
    return most


def _share(sizes: Array, measured: Array) -> Array:
    """(rows, measured rows); what is as small as zero counts as equal."""
    whole = np.broadcast_to(sizes[measured], (len(sizes), len(measured)))
    with np.errstate(over="ignore"):
        shares: Array = np.divide(sizes[:, None], whole, out=np.ones_like(whole), where=whole > 0)
    return shares
