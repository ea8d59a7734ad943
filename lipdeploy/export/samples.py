"""The tensors that an export runs on: the example, and the rows for the parity check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipdeploy.errors import InputError
from lipdeploy.export.freeze import TORCH_DTYPES
from lipdeploy.export.options import ExportOptions

FEW_ROWS = 16  # the reference evaluator convolves in NumPy
MANY_ROWS = 256
SEED = 0


def example_tensors(example: Any, options: ExportOptions) -> tuple[Tensor, ...]:
    """The example in the graph's input dtype.

    A batch of one is doubled where the batch is dynamic: torch takes a size of 1 for a constant.
    """
    given = example if isinstance(example, tuple | list) else (example,)
    tensors = tuple(_tensor(value, options, "example_input") for value in given)
    if not tensors:
        raise InputError("example_input is empty", hint="pass one batch, such as torch.zeros(1, 3, 32, 32)")
    for value in tensors:
        if value.ndim == 0 or value.shape[0] == 0:
            raise InputError(
                f"example_input has shape {tuple(value.shape)}", hint="axis 0 is the batch and must not be empty"
            )
    if options.dynamic_batch and tensors[0].shape[0] == 1:
        tensors = tuple(torch.cat([value, value]) for value in tensors)
    return tensors


def parity_samples(inputs: Sequence[Tensor], samples: Any, options: ExportOptions, *, few: bool) -> tuple[Tensor, ...]:
    """Rows for the parity check: the given samples, else the example and seeded rows of the same spread.

    With a static batch, exactly as many rows as the batch has.
    """
    limit = FEW_ROWS if few else MANY_ROWS
    limit = limit if options.dynamic_batch else inputs[0].shape[0]
    if samples is None:
        generator = np.random.default_rng(SEED)  # one for all: equal inputs would hide what their difference does
        return tuple(_with_variations(value, limit, generator) for value in inputs)
    given = samples if isinstance(samples, tuple | list) else (samples,)
    tensors = tuple(_tensor(value, options, "samples") for value in given)
    if [value.shape[1:] for value in tensors] != [value.shape[1:] for value in inputs]:
        shapes = ", ".join(str(tuple(value.shape)) for value in tensors)
        raise InputError(f"samples of shape {shapes} do not fit the example", hint="axis 0 counts samples")
    if len(tensors[0]) == 0 or (not options.dynamic_batch and len(tensors[0]) < limit):
        raise InputError(f"{len(tensors[0])} samples are too few", hint="with a static batch, give at least one batch")
    return tuple(value[:limit].contiguous() for value in tensors)


def _with_variations(example: Tensor, limit: int, generator: np.random.Generator) -> Tensor:
    rows = example[:limit]
    missing = limit - len(rows)
    if missing == 0:
        return rows.contiguous()
    shape = (missing, *rows.shape[1:])
    if example.dtype == torch.uint8:
        return torch.cat([rows, torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))])
    centre, spread = float(rows.mean()), float(rows.std(correction=0)) or 1.0
    noise = torch.from_numpy(generator.normal(centre, spread, shape))
    return torch.cat([rows, noise.to(rows.dtype)])


def _tensor(value: Any, options: ExportOptions, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is not a tensor or an array: {error}") from error
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError(f"{what} holds NaN or infinity")
    wanted = TORCH_DTYPES[options.input_dtype]
    converted = tensor.to(wanted)
    if wanted == torch.uint8 and not bool((converted.to(tensor.dtype) == tensor).all()):
        raise InputError(f"{what} holds values that uint8 cannot", hint="give whole numbers from 0 to 255")
    return converted
