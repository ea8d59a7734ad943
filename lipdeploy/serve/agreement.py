"""What all processes of a server serve: which bytes stand behind each name and version, and what was unloaded.

A load opens a round for its model; whoever is first to finish a proof decides for everybody, and who has read other
bytes does not serve them. Until the next load the decision stands, whatever becomes of the files or of a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from lipdeploy.errors import IntegrityError

Digests = Mapping[str, Mapping[str, str]]  # model → version → digest
OPEN = ""  # instead of a digest: nobody has decided yet


class Reopened(Exception):
    """Another load, or an unload, was ordered since this round began: it is void."""


def check_same(stated: Digests, found: Digests) -> None:
    """Raises ``IntegrityError`` where the bytes ``found`` here are not those ``stated`` elsewhere; a version that only
    one side has counts, since another one would be the newest.
    """
    for name, versions in stated.items():
        here = found.get(name, {})
        for version in sorted(versions.keys() | here.keys()):
            one, other = here.get(version, "missing"), versions.get(version, "missing")
            if one != other:
                raise IntegrityError(f"{name} version {version}: this node's file is {one}, not {other}")


class Agreement:
    """Of one process, with itself; ``SharedAgreement`` is that of several.

    Per model ``served`` is version → digest (``None``: nobody could prove it) since the round began, and ``before``
    what was decided until then: a load that fails leaves it. ``round`` counts what was ordered.
    """

    def __init__(self) -> None:
        self._content: dict[str, Any] = {"unloaded": [], "models": {}}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content, to be read and changed by nobody else meanwhile."""
        yield self._content

    def reopen(self, name: str) -> None:
        """Let the next proof of every version decide anew, and forget that ``name`` was unloaded."""
        with self._changing() as content:
            content["unloaded"] = [other for other in content["unloaded"] if other != name]
            model = content["models"].setdefault(name, {"before": {}})
            model["round"] = model.get("round", 0) + 1
            served, before = model.pop("served", None), model["before"]
            if served is not None:
                model["before"] = {
                    version: before.get(version) if decided == OPEN else decided for version, decided in served.items()
                }

    def unload(self, name: str) -> None:
        """Nobody serves ``name`` until the next load; which versions there were is kept."""
        with self._changing() as content:
            content["unloaded"] = sorted({*content["unloaded"], name})
            model = content["models"].get(name, {"before": {}})
            versions = dict.fromkeys(model.get("served", model["before"]))
            content["models"][name] = {"before": versions, "round": model.get("round", 0) + 1}

    def unloaded(self, name: str) -> bool:
        """Whether ``name`` was unloaded on request."""
        with self._changing() as content:
            return name in content["unloaded"]

    def round(self, name: str) -> int:
        """The number of this round; who looks at files asks before, so that what came later belongs to a later one."""
        with self._changing() as content:
            return int(content["models"].get(name, {}).get("round", 0))

    def versions(self, name: str, found: Iterable[str], number: int) -> list[str]:
        """The versions that round ``number`` is about, oldest first: those that the first to ask has ``found``; where
        that is none, those from before. Raises ``Reopened``.
        """
        with self._changing() as content:
            model = content["models"].setdefault(name, {"before": {}})
            if model.get("round", 0) != number:
                raise Reopened
            if "served" not in model:
                model["served"] = dict.fromkeys(list(found) or list(model["before"]) or ["1"], OPEN)
            return sorted(model["served"], key=int)

    def decide(self, name: str, version: str, digest: str | None, number: int) -> str | None:
        """Which digest everybody serves: ``digest``, unless that was decided before in round ``number``. ``None`` has
        proven nothing, and decides for what was served before. Raises ``Reopened``, also where others are already in
        the next round: bytes that were read before it was ordered must not decide it.
        """
        with self._changing() as content:
            model = content["models"].get(name, {})
            served: dict[str, str | None] = model.get("served", {})
            if model.get("round", 0) != number or version not in served:
                raise Reopened
            if served[version] == OPEN:
                served[version] = model["before"].get(version) if digest is None else digest
            return served[version]


class SharedAgreement(Agreement):
    """In a file of a private folder, so that it outlives every worker; a lock on another file guards it. POSIX.

    Where it cannot be read or written every method raises ``IntegrityError``: nobody decides anew what was decided.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path, self._lock = folder / "agreement.json", folder / "agreement.lock"

    @classmethod
    def begin(cls, folder: Path) -> SharedAgreement:
        """The first of several: nothing is agreed."""
        agreement = cls(folder)
        agreement._path.write_bytes(orjson.dumps(agreement._content))
        agreement._lock.touch()
        return agreement

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        import fcntl

        try:
            with self._lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # held for microseconds; the kernel opens it when its holder dies
                old = self._path.read_bytes()
                content = orjson.loads(old)
                yield content
                new = orjson.dumps(content)
                if new != old:
                    written = self._path.with_suffix(".new")
                    written.write_bytes(new)
                    os.replace(written, self._path)  # whole or not at all
        except OSError as error:
            message = f"what the workers agreed on cannot be read or written: {error}"
            raise IntegrityError(message, hint="restart the server") from error
