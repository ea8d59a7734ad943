"""Where the operator library is, and which one it is.

The library is an accelerator, not a requirement: without it ONNX Runtime runs the function bodies in the file.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lipdeploy.errors import IntegrityError
from lipdeploy.ops import VERSION
from lipdeploy.ops.installed import DIGEST_VARIABLE, ENVIRONMENT_VARIABLE, INSTALLED
from lipdeploy.runtime.products import VERSION as PRODUCTS_VERSION

PRODUCTS_SYMBOL = "lipdeploy_f64_version"
SYMBOLS = ("RegisterCustomOps", "lipdeploy_ops_version", "lipdeploy_ops_release", "lipdeploy_ops_has_cuda")

ELF_64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
ELF_HEADER = struct.Struct("<32x Q Q 6x H H H H 2x")  # e_phoff, e_shoff, e_phentsize, e_phnum, e_shentsize, e_shnum
ELF_SEGMENT = struct.Struct("<8x Q 16x Q 16x")  # p_offset, p_filesz
REINSTALL = f"reinstall lipdeploy, or unset {ENVIRONMENT_VARIABLE} to run the operators from their function bodies"


@dataclass(frozen=True)
class OperatorLibrary:
    """A shared library with lipdeploy's kernels: where it lies, its versions, the digest of its bytes.

    ``version`` is that of the operator set, ``release`` that of the package it was built from; ``has_cuda`` says
    whether it contains the CUDA kernels, ``double_products`` whether it has the operators of ``lipdeploy.f64``.
    """

    path: str
    version: int
    release: str
    has_cuda: bool
    sha256: str
    double_products: bool = False

    def check(self, operators: Mapping[str, int]) -> None:
        """Raise ``IntegrityError`` unless this is still the file that was inspected, with a certificate's operators.

        ``operators`` are names with versions, as the certificate lists them under ``ops``.
        """
        for name, wanted in operators.items():
            if wanted != self.version:
                found = f"implements operator version {self.version}"
                raise IntegrityError(f"{self.path} {found}, the certificate is about {name} {wanted}", hint=REINSTALL)
        try:
            digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        except OSError as error:
            raise IntegrityError(f"the operator library {self.path} went away: {error}", hint=REINSTALL) from error
        if digest != self.sha256:
            message = f"the operator library {self.path} changed while it was loaded: {digest}, was {self.sha256}"
            raise IntegrityError(message, hint=REINSTALL)


def find_library() -> OperatorLibrary | None:
    """The library that sessions register, or ``None`` when there is none.

    ``LIPDEPLOY_OPS_LIBRARY`` names another file; empty means "none". A file that is named but missing, or that is
    not our library, raises ``IntegrityError``: what was asked for is not what is here. ``LIPDEPLOY_OPS_SHA256`` pins
    the library's digest: another one, or none, raises as well.
    """
    library, pinned = _found(), os.environ.get(DIGEST_VARIABLE)
    if pinned and (library is None or library.sha256 != pinned.lower()):
        found = "there is no operator library" if library is None else f"{library.path} has the digest {library.sha256}"
        hint = f"install the library that was released, or correct {DIGEST_VARIABLE}"
        raise IntegrityError(f"{found}, and {DIGEST_VARIABLE} wants {pinned}", hint=hint)
    return library


def _found() -> OperatorLibrary | None:
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    if asked == "":
        return None
    path = Path(asked).resolve() if asked is not None else INSTALLED  # dlopen searches for bare names elsewhere
    if not path.is_file():
        if asked is None:
            return None
        raise IntegrityError(f"{ENVIRONMENT_VARIABLE} names {path}, which is not a file", hint=REINSTALL)
    return inspect_library(path)


def inspect_library(path: Path) -> OperatorLibrary:
    """Load the library at ``path`` and read its version; ``IntegrityError`` when it is not lipdeploy's."""
    try:
        data = path.read_bytes()
        _check_whole(path, data)
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise IntegrityError(f"the operator library {path} cannot be loaded: {error}", hint=REINSTALL) from error
    if not all(hasattr(handle, symbol) for symbol in SYMBOLS):
        raise IntegrityError(f"{path} is not lipdeploy's operator library", hint=REINSTALL)
    handle.lipdeploy_ops_version.restype = ctypes.c_int32
    version = int(handle.lipdeploy_ops_version())
    if version != VERSION:
        raise IntegrityError(f"{path} implements operator version {version}, needed is {VERSION}", hint=REINSTALL)
    handle.lipdeploy_ops_release.restype = ctypes.c_char_p
    release = handle.lipdeploy_ops_release().decode()
    sha256 = hashlib.sha256(data).hexdigest()
    products = hasattr(handle, PRODUCTS_SYMBOL) and getattr(handle, PRODUCTS_SYMBOL)() == PRODUCTS_VERSION
    return OperatorLibrary(str(path), version, release, bool(handle.lipdeploy_ops_has_cuda()), sha256, products)


def _check_whole(path: Path, data: bytes) -> None:
    """Raise ``IntegrityError`` for a 64-bit ELF file that is cut off: loading one would kill the process (SIGBUS)."""
    if data[:6] != ELF_64_LITTLE_ENDIAN or len(data) < ELF_HEADER.size:
        return  # not such a file: the loader itself says no
    segments_at, sections_at, segment_size, segments, section_size, sections = ELF_HEADER.unpack_from(data)
    ends = [segments_at + segment_size * segments, sections_at + section_size * sections]
    if max(ends) <= len(data):
        headers = (ELF_SEGMENT.unpack_from(data, segments_at + i * segment_size) for i in range(segments))
        ends += [offset + stored for offset, stored in headers]
    if max(ends) > len(data):
        raise IntegrityError(f"the operator library {path} is cut off after {len(data)} bytes", hint=REINSTALL)
