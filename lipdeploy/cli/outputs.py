"""What a command writes must not be what it reads: no output replaces a model, data, a key, or another output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from lipdeploy.errors import InputError

Path = str | os.PathLike[str]
CERTIFICATE, SIGNATURE, EXTERNAL = (f"the {what} of a model" for what in ("certificate", "signature", "external data"))


def files_of(model: Path) -> Iterator[tuple[Path, str]]:
    """The files that belong to a model by their names, with what each is."""
    from lipdeploy.signing import signature_path
    from lipdeploy.verify.certificate import certificate_path

    yield certificate_path(model), CERTIFICATE
    yield signature_path(model), SIGNATURE
    yield f"{os.fspath(model)}.data", EXTERNAL
    yield model, "one of the models"


def external_data(model: Path, locations: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """The external data that a model names, relative to the folder where it lies."""
    folder = os.path.dirname(os.path.realpath(model))
    return ((os.path.join(folder, name), EXTERNAL) for name in locations)


def places(files: Iterable[tuple[Path | None, str]]) -> dict[str, str]:
    """Where ``files`` lie once links are followed, with what each is; of two that are one, the later says."""
    return {os.path.realpath(path): what for path, what in files if path is not None}


def check(written: Iterable[tuple[str, Path | None]], taken: Mapping[str, str]) -> None:
    """``InputError`` when what is ``written``, (option, file), lies in one of the ``places``, or where another does.

    Devices and pipes may take several outputs.
    """
    found = dict(taken)
    for option, file in written:
        if file is None:
            continue
        real = os.path.realpath(file)
        if real in found:
            raise InputError(f"{option}: {os.fspath(file)} is {found[real]}", hint="write to another file")
        if os.path.isfile(file) or not os.path.exists(file):
            found[real] = "already another output"
