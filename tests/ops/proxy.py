"""A library that another processor's program runs for us (custom_ops/tests/proxy.cc, `make cross`)."""

from __future__ import annotations

import ctypes
import shlex
import struct
import subprocess
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Proxy:
    """Stands where a ``ctypes.CDLL`` stands; ``call`` takes arrays, whose sizes a pointer does not tell."""

    def __init__(self, command: str) -> None:
        words = shlex.split(command)
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("lipdeploy_"):
            raise AttributeError(name)
        return partial(self._text, name)

    def _text(self, name: str, *arguments: bytes | None) -> int:
        texts = [None if text is None else np.frombuffer(text + b"\0", np.uint8).copy() for text in arguments]
        return self.call(name, texts, [])

    def call(self, name: str, arrays: Sequence[Array | None], numbers: Sequence[Any]) -> int:
        """The function's status; what it wrote is in ``arrays``, which must be contiguous."""
        parts = [_packed_array(array) for array in arrays] + [_packed_number(number) for number in numbers]
        head = struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(parts))
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(head + b"".join(parts))
        stdin.flush()
        (status,) = struct.unpack("<i", _exactly(stdout, 4))
        for array in arrays:
            if array is not None:
                written = np.frombuffer(_exactly(stdout, array.nbytes), np.uint8)
                if array.flags.writeable:
                    array.view(np.uint8).reshape(-1)[:] = written if array.nbytes else 0
        return int(status)


@cache
def proxy(command: str) -> Proxy:
    """One process for a whole test run."""
    return Proxy(command)


def _packed_array(array: Array | None) -> bytes:
    if array is None:
        return struct.pack("<cq", b"0", 0)
    return struct.pack("<cq", b"p", array.nbytes) + array.tobytes()


def _packed_number(number: Any) -> bytes:
    if isinstance(number, ctypes.c_int64):
        return struct.pack("<cq", b"i", number.value)
    return struct.pack("<cd", b"f" if isinstance(number, ctypes.c_float) else b"d", number.value)


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) != size:
        raise ConnectionError("the proxy ended in the middle of an answer")
    return data
