"""Listening sockets: several processes may share one, and whoever has just connected is not reset by its end.

A connection that the kernel has completed and nobody has accepted is reset when the last process closes the socket. So
the last one first makes the socket deaf to new clients and takes what is there. One that ends by itself leaves
everything to the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

from lipdeploy.errors import InputError

if sys.platform != "win32":
    import fcntl

BACKLOG = 2048
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# A socket filter sees a packet from its TCP header on: code, how far to jump if true and if false, operand.
ONLY_FROM_OLD_CLIENTS = (
    (0x30, 0, 0, 13),  # the byte with the flags
    (0x45, 0, 1, 0x02),  # SYN, with which a client begins?
    (0x06, 0, 0, 0),  # then drop it; the client tries again in a second
    (0x06, 0, 0, 0xFFFFFFFF),
)


ENDING = "ending"  # a file beside the locks: all end, not one by itself


class Port:
    """A listening socket as one process has it. ``lock`` is a file that those who share it have in common: POSIX."""

    def __init__(self, wire: socket.socket, lock: Path | None = None) -> None:
        self.wire = wire
        self._ending = None if lock is None else lock.with_name(ENDING)
        self._lock = None if lock is None else os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        host, port = self.wire.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def stays(self) -> bool:
        """Whether others go on listening when this process ends."""
        return self._ending is not None and not self._ending.exists()

    def taken(self) -> bool:
        """Before ``join``: whether others listen."""
        if self._lock is None:
            return False
        alone = _alone(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return not alone

    def join(self) -> None:
        """Listen, also where everybody had left."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits at most for the last one's last connections
        self._hear(None)

    def leave(self) -> bool:
        """Before the socket is closed: whether nobody else listens. Then it is deaf from now on to new clients."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            if not _alone(self._lock):
                return False
        self._hear(ONLY_FROM_OLD_CLIENTS)
        return True

    def close(self) -> None:
        """Let go of it."""
        self.wire.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hear(self, what: tuple[tuple[int, int, int, int], ...] | None) -> None:
        """Linux: let through only what this filter does; ``None`` lets everything through."""
        if not sys.platform.startswith("linux"):
            return
        with contextlib.suppress(OSError):  # no filter to take away
            if what is None:
                self.wire.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
                return
            steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in what))
            program = struct.pack("HL", len(what), ctypes.addressof(steps))
            self.wire.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _alone(lock: int) -> bool:
    """Whether nobody else holds it, and nobody can until it is given back."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def bind(host: str, port: int) -> Port:
    """A listening socket; ``InputError`` where there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        wire = socket.socket(family, socket.SOCK_STREAM)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.bind((host, port))
        wire.listen(BACKLOG)
        wire.setblocking(False)
    except OSError as error:
        message = f"cannot listen on {host} port {port}: {error.strerror or error}"
        raise InputError(message, hint="choose another --host or --port") from error
    return Port(wire)
