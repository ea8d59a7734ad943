"""What a project asks of its models: ``[tool.lipdeploy]`` in pyproject.toml, or a file ``.lipdeploy.toml``.

Every ``[[tool.lipdeploy.models]]`` is a requirement of its own: a file that two of them name is judged under each.
Nothing is ignored silently: unknown keys, values of the wrong type and what cannot be honoured are errors.
"""

from __future__ import annotations

import difflib
import glob
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from lipdeploy.cli.judging import Target
from lipdeploy.cli.options import NORMS
from lipdeploy.errors import REASONS, InputError

OWN_FILE, PROJECT_FILE = ".lipdeploy.toml", "pyproject.toml"
KEYS = ("norm", "max_lipschitz", "method", "graph_output", "baseline", "require_signature", "ignore")
TOP_KEYS, MODEL_KEYS = (*KEYS, "models"), ("path", *KEYS)
#: The ways to prove that this version knows.
METHODS = ("product", "lmi", "best")


@dataclass(frozen=True)
class Choices:
    """What was said about a model; ``None`` where nothing was said."""

    norm: str | None = None
    max_lipschitz: float | None = None
    graph_output: str | None = None
    baseline: str | None = None
    method: str | None = None
    require_signature: str | None = None

    def over(self, other: Choices) -> Choices:
        """These choices, and those of ``other`` where nothing was said here."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return replace(other, **said)

    def target(self, path: str, problem: InputError | None = None) -> Target:
        """The model at ``path`` under these choices; what nobody chose is the default."""
        norm = self.norm if self.norm is not None else NORMS[0]
        return Target(
            path,
            norm,
            self.max_lipschitz,
            self.graph_output,
            self.baseline,
            self.method,
            self.require_signature,
            problem,
        )


@dataclass(frozen=True)
class Entry:
    """One ``[[tool.lipdeploy.models]]``: a path or a pattern, relative to the configuration's folder."""

    pattern: str
    choices: Choices


@dataclass(frozen=True)
class Config:
    """A configuration: what holds for every model, and the models."""

    path: str = ""
    folder: str = ""
    defaults: Choices = Choices()
    entries: tuple[Entry, ...] = ()


def targets(config: Config, models: Sequence[str], options: Choices) -> list[Target]:
    """What to judge: the models named on the command line, else those of the configuration; each requirement once.

    Command-line ``options`` win over a model's own table, which wins over what holds for every model. Raises
    ``InputError`` when there is nothing to judge.
    """
    if models:
        real = [(entry, set(map(os.path.realpath, _files(config, entry)))) for entry in config.entries]
        found = [target for model in models for target in _named(config, model, options, real)]
    else:
        found = [target for entry in config.entries for target in _configured(config, entry, options)]
    if not found:
        where = f"{config.path} names no models" if config.path else "no configuration names any"
        hint = f"lipdeploy verify MODEL, or [[tool.lipdeploy.models]] in {PROJECT_FILE}"
        raise InputError(f"lipdeploy verify: Missing argument 'MODEL...', and {where}", hint=hint)
    return list(dict.fromkeys(found))


def _named(config: Config, model: str, options: Choices, files: Iterable[tuple[Entry, set[str]]]) -> Iterator[Target]:
    """A model of the command line, under every requirement that names it."""
    real = os.path.realpath(model)
    matching = [entry for entry, paths in files if real in paths]
    for choices in [entry.choices for entry in matching] or [Choices()]:
        yield options.over(choices).over(config.defaults).target(model)


def _configured(config: Config, entry: Entry, options: Choices) -> Iterator[Target]:
    choices = options.over(entry.choices).over(config.defaults)
    files = _files(config, entry)
    for file in files:
        yield choices.target(_near(file))
    if not files:
        message = f"{config.path}: '{entry.pattern}' matches no file"
        problem = InputError(message, hint="correct the path, which is relative to the configuration's folder")
        yield choices.target(_near(os.path.join(config.folder, entry.pattern)), problem)


def _files(config: Config, entry: Entry) -> list[str]:
    """What the entry matches, files or not: a broken link or a pipe is a model that cannot be read, not one fewer.

    A folder is passed over where the last part of the pattern matches every name, ``*`` or ``**``.
    """
    literal = os.path.join(config.folder, entry.pattern)
    if os.path.lexists(literal):
        return [literal]
    pattern = os.path.join(glob.escape(config.folder), entry.pattern)
    found = glob.glob(pattern, recursive=True)
    if not os.path.basename(pattern).strip("*"):
        found = [path for path in found if not os.path.isdir(path)]
    return sorted({*found, *_closed_folders(os.path.dirname(pattern))})


def _closed_folders(pattern: str) -> Iterator[str]:
    """What may hide models on the pattern's way: a broken link in a folder's place, and a folder nobody may list."""
    while glob.has_magic(pattern):
        for path in glob.glob(pattern, recursive=True):
            if not os.path.exists(path) or (os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK)):
                yield path
        pattern = os.path.dirname(pattern)


def _near(path: str) -> str:
    """``path`` relative to the working folder where it lies inside it."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def find(explicit: str | None) -> Config:
    """The configuration in ``explicit``, else the nearest one upwards (not beyond a repository); empty without one."""
    if explicit is not None:
        table = _table(Path(explicit))
        if table is None:
            raise InputError(f"{explicit}: no [tool.lipdeploy]", hint=f"add it, or use a file {OWN_FILE}")
        return _config(Path(explicit), table)
    here = Path.cwd()
    for folder in (here, *here.parents):
        found = [(path, table) for path in _candidates(folder) if (table := _table(path)) is not None]
        if len(found) > 1:
            raise InputError(
                f"{folder}: both {OWN_FILE} and {PROJECT_FILE} configure lipdeploy", hint="keep one of them"
            )
        if found:
            return _config(*found[0])
        if (folder / ".git").exists():
            break
    return Config()


def _candidates(folder: Path) -> Iterator[Path]:
    """The configurations that lie there; one that cannot be read (a broken link) is not one that is absent."""
    for path in (folder / OWN_FILE, folder / PROJECT_FILE):
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a regular file", hint="a configuration is a TOML file")
        if os.path.lexists(path):
            yield path


def _table(path: Path) -> Mapping[str, Any] | None:
    """The table about lipdeploy in a TOML file; ``None`` for a pyproject.toml that has none."""
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8"), parse_float=Decimal)
    except OSError as problem:
        raise InputError(f"{path}: {problem.strerror or problem}", hint="check the path and its permissions") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as problem:
        raise InputError(f"{path}: not a TOML file: {problem}", hint="correct it") from None
    if path.name != PROJECT_FILE and "tool" not in content:
        return content
    tool = content.get("tool")
    table = tool.get("lipdeploy") if isinstance(tool, dict) else None
    if path.name != PROJECT_FILE:
        _check_own(path, content, tool, table)
    if table is not None and not isinstance(table, dict):
        raise InputError(f"{path}: tool.lipdeploy is not a table", hint="[tool.lipdeploy]")
    return table


def _check_own(path: Path, content: Mapping[str, Any], tool: object, table: object) -> None:
    """A file of our own that has [tool] is about lipdeploy: another table in it is a misspelt one."""
    _check_keys(f"{path}", content, ("tool",))
    if table is None and isinstance(tool, dict):
        _check_keys(f"{path}: [tool]", tool, ("lipdeploy",))
    if table is None:
        raise InputError(f"{path}: no [tool.lipdeploy]", hint=f"add it, or leave [tool] out of {OWN_FILE}")


def _config(path: Path, table: Mapping[str, Any]) -> Config:
    where, folder = f"{path}: [tool.lipdeploy]", str(path.resolve().parent)
    _check_keys(where, table, TOP_KEYS)
    models = table.get("models", [])
    if not isinstance(models, list) or not all(isinstance(entry, dict) for entry in models):
        raise _wrong(where, "models", models, "a list of tables", "[[tool.lipdeploy.models]]")
    entries = tuple(
        _entry(f"{path}: [[tool.lipdeploy.models]] number {number}", folder, entry)
        for number, entry in enumerate(models, start=1)
    )
    return Config(str(path), folder, _choices(where, folder, table), entries)


def _entry(where: str, folder: str, table: Mapping[str, Any]) -> Entry:
    _check_keys(where, table, MODEL_KEYS)
    pattern = table.get("path")
    if not isinstance(pattern, str) or not pattern:
        raise _wrong(where, "path", pattern, "a path or a pattern", 'path = "models/*.onnx"')
    return Entry(pattern, _choices(where, folder, table))


def _choices(where: str, folder: str, table: Mapping[str, Any]) -> Choices:
    _check_ignored(where, table.get("ignore", []))
    baseline = _string(where, "baseline", table.get("baseline"))
    key = _string(where, "require_signature", table.get("require_signature"))
    return Choices(
        norm=_one_of(where, "norm", table.get("norm"), NORMS),
        max_lipschitz=_limit(where, table.get("max_lipschitz")),
        graph_output=_string(where, "graph_output", table.get("graph_output")),
        baseline=None if baseline is None else _near(os.path.join(folder, baseline)),
        require_signature=None if key is None else _near(os.path.join(folder, key)),
        method=_one_of(where, "method", table.get("method"), METHODS),
    )


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.5)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"{where}: unknown key '{key}'{meant}", hint=f"one of {', '.join(known)}")


def _check_ignored(where: str, codes: object) -> None:
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise _wrong(where, "ignore", codes, "a list of codes", "remove the key")
    for code in codes:
        if code.strip().upper() in REASONS:
            raise InputError(
                f"{where}: ignore: {code} is a soundness code, and those cannot be suppressed",
                hint=f"repair what it names: lipdeploy explain {code.strip().upper()}",
            )
        near = difflib.get_close_matches(code.upper(), REASONS, n=1, cutoff=0.5)
        meant = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"{where}: ignore: unknown code '{code}'{meant}", hint="lipdeploy explain lists all codes")


def _one_of(where: str, key: str, value: object, known: Sequence[str]) -> str | None:
    if value is None or (isinstance(value, str) and value in known):
        return value
    raise _wrong(where, key, value, "known", f"one of {', '.join(known)}")


def _string(where: str, key: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise _wrong(where, key, value, "a name", f'{key} = "…"')


def _limit(where: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        from lipdeploy.verify.rounding import fraction_down, read_exactly

        exact = read_exactly(str(value))  # rounded down: what is within the limit is within what was written
        limit = 0.0 if exact is None else fraction_down(exact)
        if 0.0 < limit < math.inf:
            return limit
    raise _wrong(where, "max_lipschitz", value, "a finite number above 0", "max_lipschitz = 1.0")


def _wrong(where: str, key: str, value: object, wanted: str, hint: str) -> InputError:
    found = str(value).lower().replace("infinity", "inf") if isinstance(value, Decimal) else repr(value)
    return InputError(f"{where}: {key}: {found} is not {wanted}", hint=hint)
