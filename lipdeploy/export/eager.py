"""The torch module as a function of NumPy arrays, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Array = np.ndarray[Any, np.dtype[Any]]


def eager(module: nn.Module, threads: int | None = None) -> Callable[[Sequence[Array]], Array]:
    """``module`` in eval mode, without gradients, on ``threads`` threads (a setting of the whole process)."""
    module.eval()
    if threads is not None:
        torch.set_num_threads(threads)

    def run(arrays: Sequence[Array]) -> Array:
        with torch.inference_mode():
            result: Array = module(*map(torch.from_numpy, arrays)).numpy()
        return result

    return run
