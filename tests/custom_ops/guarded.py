"""A device whose every tensor ends where memory ends, or begins where it begins: what reads beyond is killed.

Run as ``python guarded.py LIBRARY [lie]``: the small cases of tools/gpu_check.py on emulated CUDA kernels, whose
threads take their turns in either order; with
``lie``, one kernel that is told of more elements than there are.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import gpu_check

from tests.custom_ops.host_memory import HostMemory

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE


def guarded(nbytes: int) -> np.ndarray[Any, Any]:
    """Whole pages for so many bytes, between two that nobody may touch."""
    pages = -(-max(nbytes, 1) // PAGE)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
    for first in (0, (pages + 1) * PAGE):
        if LIBC.mprotect(memory.ctypes.data + first, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory[PAGE : (pages + 1) * PAGE]


@dataclasses.dataclass(frozen=True)
class Guarded(HostMemory):
    """Tensors at the end of their pages, or ``shift`` bytes behind the beginning."""

    at_end: bool = True

    def room(self, nbytes: int, shift: int) -> np.ndarray[Any, Any]:
        """See ``HostMemory``."""
        pages = guarded(nbytes + shift)
        start = len(pages) - nbytes if self.at_end else shift
        return pages[start : start + nbytes]


class Liar(gpu_check.Case):
    """One row more than there is."""

    def arguments(self, constants: list[Any]) -> list[Any]:
        """See ``Case``."""
        first, *rest = super().arguments(constants)
        return [ctypes.c_int64(first.value + 1), *rest]


def main(library: str, lie: bool) -> None:
    """Compare every small case, or let one lie."""
    loaded = ctypes.CDLL(library)
    if lie:
        case = gpu_check.sort_case((16, 256), 2)
        gpu_check.Kernels(loaded, Guarded()).run(Liar(case.op, case.shape, case.attributes), gpu_check.TYPES[2])
        return
    cases = [case for case in gpu_check.check_cases() if np.prod(case.shape) <= 5000]
    for at_end in (False, True):
        loaded.lipdeploy_emulate_backwards(int(at_end))  # each end of a page once, and each order of the threads
        for case, kind, what in gpu_check.check(gpu_check.Kernels(loaded, Guarded(at_end=at_end)), cases):
            print(f"{kind.name} {case}: {what}")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main(sys.argv[1], "lie" in sys.argv[2:])
