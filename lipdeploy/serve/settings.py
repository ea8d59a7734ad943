"""Everything that can be said to a server, and which models it serves."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lipdeploy.errors import InputError
from lipdeploy.runtime.prediction import checked_epsilon
from lipdeploy.runtime.session import MODES
from lipdeploy.verify.norms import norm_pair
from lipdeploy.verify.rounding import fraction_down, read_exactly

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}", re.ASCII)
VERSION = re.compile(r"[1-9]\d{0,17}", re.ASCII)
MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class ModelSource:
    """A name and where its versions lie.

    ``path`` is an ONNX file (version 1), or a folder ``NAME`` with files ``VERSION/model.onnx``. ``files`` looks
    again each time, so that a reload finds what has come since.
    """

    name: str
    path: Path

    def files(self) -> dict[str, Path]:
        """The file of each version, oldest first; ``InputError`` when a folder holds none, or nothing is there."""
        if not self.path.is_dir():
            _existing(self.path)  # a folder that has gone was not one file, whose version would be 1
            return {"1": self.path}
        found = {entry.name: entry / MODEL_FILE for entry in self.path.iterdir() if VERSION.fullmatch(entry.name)}
        found = {version: file for version, file in found.items() if file.is_file()}
        if not found:
            raise InputError(f"{self.path}: no version", hint=f"expected {self.path}/1/{MODEL_FILE}")
        return dict(sorted(found.items(), key=lambda entry: int(entry[0])))


@dataclass(frozen=True)
class Settings:
    """How to serve ``models``. Seconds, bytes and rows are what the names say.

    ``norm``, ``max_lipschitz``, ``certify``, ``output_name``, ``providers`` and ``threads`` (of one call) go to
    ``CertifiedSession``; ``epsilon`` is the radius asked for where a request names none. A batch takes what is queued
    when the session is free, up to ``max_batch_rows``; with ``batch_delay_seconds`` a server that was busy just now
    waits that long for more. Batches expected to take less than ``inline_seconds`` run on the event loop itself.
    ``max_client_rows`` bounds what one client (API key, else address) may have waiting. ``drain_seconds`` is the most
    time between the signal and the exit. ``admin``: whether load and unload are offered beside inference.
    """

    models: tuple[ModelSource, ...]
    norm: str = "l2"
    max_lipschitz: float | None = None
    certify: str = "f64"
    output_name: str | None = None
    epsilon: float | None = None
    providers: Sequence[str] | None = None
    threads: int | None = None
    max_batch_rows: int = 64
    max_queue_rows: int = 1024
    max_queue_bytes: int = 256 * 2**20
    max_body_bytes: int = 32 * 2**20
    max_client_rows: int | None = None
    batch_delay_seconds: float = 0.0
    inline_seconds: float = 0.005
    request_seconds: float | None = None
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    admin: bool = True
    access_log: bool = False
    tracing: bool = False
    fail_fast: bool = False

    def __post_init__(self) -> None:
        """Raises ``InputError`` for numbers that make no sense."""
        for name in ("max_batch_rows", "max_queue_rows", "max_queue_bytes", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("batch_delay_seconds", "inline_seconds", "body_seconds", "drain_seconds"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        norm_pair(self.norm)
        if self.epsilon is not None:
            checked_epsilon(self.epsilon)
        if self.max_lipschitz is not None and not 0.0 < self.max_lipschitz < math.inf:
            raise InputError(f"max_lipschitz must be finite and positive, got {self.max_lipschitz!r}")
        if self.certify not in MODES:
            raise InputError(f"certify = {self.certify!r} is not a mode", hint=f"one of {', '.join(MODES)}")
        names = [source.name for source in self.models]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"two models are called {', '.join(twice)}", hint="give one of them as NAME=PATH")


def read_setting(name: str, given: Any) -> Any:
    """A field of ``Settings`` from a number or from the text that a host passes on. Text is read exactly: an epsilon is
    rounded up and a limit down, words with commas are several. Raises ``InputError``.
    """
    kinds = {field.name: str(field.type) for field in fields(Settings)}
    if name not in kinds:
        raise InputError(f"unknown setting '{name}'", hint=f"there are {', '.join(sorted(kinds))}")
    try:
        return _read(name, kinds[name], given)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{name}: {given!r} is not of the kind {kinds[name]}") from error


def _read(name: str, kind: str, given: Any) -> Any:
    if given is None and kind.endswith("None"):
        return None
    if kind == "bool":
        return {"true": True, "false": False}[str(given).lower()]
    if kind.startswith(("tuple", "Sequence")):
        return tuple(given.split(",") if isinstance(given, str) else given)
    if isinstance(given, bool):
        raise TypeError
    if kind.startswith("int"):
        if not isinstance(given, str) and given != int(given):
            raise ValueError
        return int(given)
    if name == "epsilon":
        return checked_epsilon(given)
    if kind.startswith("float"):
        return _limit(given)
    return str(given)


def _limit(given: Any) -> float:
    if not isinstance(given, str):
        return float(given)
    exact = read_exactly(given)
    if exact is None:
        raise ValueError(given)
    return fraction_down(exact)


def model_sources(given: Iterable[str | os.PathLike[str]], name: str | None = None) -> tuple[ModelSource, ...]:
    """The models behind the words of a command line, in order.

    A word is an ONNX file, ``NAME=PATH``, a folder with versions (``net/1/model.onnx``), or a repository of such
    folders. ``name`` renames the only model. Raises ``InputError``.
    """
    sources = [source for word in given for source in _sources(os.fspath(word))]
    if not sources:
        raise InputError("no model to serve", hint="lipdeploy serve MODEL.onnx")
    if name is not None:
        if len(sources) != 1:
            raise InputError(f"--name is for one model, and there are {len(sources)}", hint="use NAME=PATH")
        sources = [ModelSource(_checked_name(name), sources[0].path)]
    return tuple(sources)


def _sources(word: str) -> list[ModelSource]:
    name, equals, rest = word.partition("=")
    if equals and MODEL_NAME.fullmatch(name) and not Path(word).exists():
        return [ModelSource(name, _existing(Path(rest)))]
    path = _existing(Path(word))
    if not path.is_dir():
        return [ModelSource(_checked_name(path.stem), path)]
    if any(VERSION.fullmatch(entry.name) for entry in path.iterdir()):
        return [ModelSource(_checked_name(path.resolve().name), path)]
    inside = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if not inside:
        raise InputError(f"{path}: no models in this folder", hint=f"expected {path}/NAME/1/{MODEL_FILE}")
    return [ModelSource(_checked_name(entry.name), entry) for entry in inside]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file", hint="check the path")
    return path


def _checked_name(name: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        hint = "letters, digits, '_', '-' and '.'; use --name or NAME=PATH"
        raise InputError(f"'{name}' cannot be a model's name in a URL", hint=hint)
    return name


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Keys of an ``--api-key-file``: one a line; empty lines and lines that begin with # do not count.

    Raises ``InputError`` when the file cannot be read, holds none, or holds one too short to be a secret.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", hint="one key a line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"{path}: no keys", hint="one key a line")
    if any(len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        hint = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise InputError(f"{path}: a key has fewer than 16 characters, or blanks in it", hint=hint)
    return keys
