"""The host's memory as the device of tools/gpu_check.py, for emulated kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class HostMemory:
    """See ``Device``; ``room`` says where tensors lie."""

    suffix: str = "emulated"

    def room(self, nbytes: int, shift: int) -> Array:
        """So many bytes, ``shift`` bytes behind an address that suits 16-byte accesses."""
        whole = np.zeros(nbytes + shift + 64, np.uint8)
        start = -whole.ctypes.data % 16 + shift
        return whole[start : start + nbytes]

    def put(self, data: Array, shift: int = 0) -> Array:
        """A copy there."""
        memory = self.room(data.nbytes, shift)
        memory[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return memory

    def pointer(self, memory: Array) -> int:
        """Where it lies."""
        return memory.ctypes.data

    def get(self, memory: Array, like: Array) -> Array:
        """What lies there, with the type and shape of ``like``."""
        return memory.view(like.dtype).reshape(like.shape)

    def stream(self) -> int:
        """None."""
        return 0
