"""Ports that several processes share. A ``Port`` here stands for a process: locks act between them as between two."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from lipdeploy.serve.ports import Port, bind

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="socket filters are Linux's")


def connected(port: Port, seconds: float) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port.wire.getsockname()[1]), timeout=seconds)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Port, Port]:
    first = Port(bind("127.0.0.1", 0).wire, tmp_path / "port.lock")
    second = Port(socket.socket(fileno=os.dup(first.wire.fileno())), tmp_path / "port.lock")
    assert not first.taken()
    first.join()
    assert second.taken()
    second.join()
    return first, second


@linux
def test_the_last_one_turns_new_clients_away_and_keeps_who_had_come() -> None:
    port = bind("127.0.0.1", 0)
    port.join()
    early = connected(port, 5)
    early.sendall(b"who came before")
    assert port.leave()
    with pytest.raises(TimeoutError):
        connected(port, 0.2)
    accepted, _ = port.wire.accept()
    accepted.settimeout(5)
    assert accepted.recv(64) == b"who came before"
    early.sendall(b"and goes on")
    assert accepted.recv(64) == b"and goes on"
    with pytest.raises(BlockingIOError):
        port.wire.accept()


def test_who_leaves_others_behind_changes_nothing(pair: tuple[Port, Port]) -> None:
    first, second = pair
    assert not first.leave()
    first.close()
    connected(second, 5)
    second.wire.settimeout(5)
    second.wire.accept()
    assert second.leave()


@linux
def test_whoever_comes_back_is_heard_again(pair: tuple[Port, Port], tmp_path: Path) -> None:
    """A worker that ended while the other one was being restarted."""
    first, second = pair
    first.close()  # killed
    assert second.leave()
    wire = socket.socket(fileno=os.dup(second.wire.fileno()))
    second.close()
    third = Port(wire, tmp_path / "port.lock")
    third.join()
    connected(third, 5)
    third.wire.settimeout(5)
    third.wire.accept()
