"""What every package is made from, and how its folder is written: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lipdeploy.errors import InputError
from lipdeploy.ops import DOMAIN
from lipdeploy.serve.settings import MODEL_FILE, MODEL_NAME
from lipdeploy.verify import Verdict, certificate, read_certified, verify_source, version
from lipdeploy.verify.rounding import shortest_down, shortest_up
from lipdeploy.verify.source import Source

CERTIFICATE_FILE = certificate.certificate_path(MODEL_FILE).name
Files = dict[str, bytes]
#: What external data may end in: a model chooses these names, and beside the host's files some are code.
INERT = frozenset(("", ".bias", ".bin", ".data", ".onnx_data", ".raw", ".tensor", ".weight", ".weights"))


@dataclass(frozen=True)
class Contents:
    """What a package is made from: the verified model, and what was asked about its predictions.

    ``settings`` are those of ``EmbeddedModel`` that were given: norm, max_lipschitz, certify, output_name, epsilon.
    """

    name: str
    source: Source
    verdict: Verdict
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings_as_text(self) -> dict[str, str]:
        """In digits that are read back as the same numbers: limits are rounded down there, radii up."""
        written = {"max_lipschitz": shortest_up, "epsilon": shortest_down}
        return {key: written.get(key, str)(value) for key, value in self.settings.items()}

    @property
    def classes(self) -> bool:
        """Whether the model answers with labels and radii."""
        return self.verdict.class_bounds is not None

    @property
    def has_own_operators(self) -> bool:
        """Whether the host needs the operator library (or the slower function bodies)."""
        return any(node.domain == DOMAIN for node in self.source.proto.graph.node)

    def model_files(self, folder: str = "") -> Files:
        """Model, external data and certificate, unchanged, under ``folder``."""
        text = certificate.dumps(certificate.document(self.verdict, version()))
        external = {str(PurePosixPath(name)): content for name, content in self.source.external.items()}
        for name in external:
            if PurePosixPath(name).suffix.lower() not in INERT or name.endswith("."):  # which Windows would drop
                raise InputError(
                    f"external data '{name}': the host of the package could take it for code or configuration",
                    hint=f"keep weights in {MODEL_FILE}.data, as lipdeploy export does",
                )
        files = together({MODEL_FILE: self.source.model_bytes, CERTIFICATE_FILE: text.encode()}, external)
        return {str(PurePosixPath(folder) / name): content for name, content in files.items()}


def together(*parts: Files) -> Files:
    """All files of a package. Raises ``InputError`` where two have one name: a model names its external data itself."""
    files: Files = {}
    for part in parts:
        twice = sorted(files.keys() & part.keys())
        if twice:
            raise InputError(f"external data '{twice[0]}' has a name that the package needs", hint="export it again")
        files.update(part)
    return files


def contents(model: str | os.PathLike[str], name: str | None = None, **settings: Any) -> Contents:
    """Read and verify ``model`` once. Raises as ``CertifiedSession`` does, and ``InputError`` for an unusable name."""
    chosen = Path(model).stem if name is None else name
    if not MODEL_NAME.fullmatch(chosen):
        raise InputError(f"'{chosen}' cannot be a model's name in a URL", hint="--name with letters, digits, _ - .")
    source = read_certified(model)
    verdict = verify_source(
        source,
        norm=settings.get("norm", "l2"),
        max_lipschitz=settings.get("max_lipschitz"),
        output_name=settings.get("output_name"),
        check_certificate=True,
        method="best",
    )
    verdict.raise_for_status()
    return Contents(chosen, source, verdict, {key: value for key, value in settings.items() if value is not None})


def write(files: Files, folder: str | os.PathLike[str]) -> None:
    """Write ``files`` into a new ``folder``. Raises ``InputError`` where that is impossible, or it is not empty."""
    target = Path(folder)
    temporary = None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: exists, and is not an empty folder", hint="choose a new one with -o")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.chmod(0o755)  # mkdtemp's folder is its owner's only, and the server is somebody else
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
