"""Execution providers: which may carry a certificate, how they are pinned, and reading back what was obtained."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from lipdeploy.errors import InputError, IntegrityError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

Provider = tuple[str, dict[str, str]]
Asked = Sequence[str | tuple[str, Mapping[str, Any]]]

# The error rule covers dot products in any order in the stated precision. TF32 rounds the inputs first, and a searched
# convolution algorithm may be Winograd or FFT, whose error is not componentwise.
PINNED: dict[str, dict[str, str]] = {CPU: {}, CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}}


def choose(asked: Asked | None) -> tuple[Provider, ...]:
    """The providers of a session with their pinned options; the CPU when nothing was asked for.

    Raises ``InputError`` for a provider whose rounding nothing is known about or an option that undoes the pinning,
    ``IntegrityError`` for one that this ONNX Runtime does not have.
    """
    entries = [entry if isinstance(entry, tuple) else (entry, {}) for entry in (asked or (CPU,))]
    if isinstance(asked, str):
        raise InputError(f"providers must be a list, got {asked!r}", hint=f"providers=[{asked!r}]")
    return tuple(_pinned(name, options) for name, options in entries)


def _pinned(name: str, options: Mapping[str, Any]) -> Provider:
    if name not in PINNED:
        known = ", ".join(PINNED)
        raise InputError(f"execution provider '{name}' cannot carry a certificate", hint=f"one of {known}")
    given = {key: str(value) for key, value in options.items()}
    for key, value in PINNED[name].items():
        if given.get(key, value) != value:
            raise InputError(
                f"{name}: option {key} = {given[key]} is not covered by the error rule", hint=f"leave it at {value}"
            )
    if name not in onnxruntime.get_available_providers():
        raise IntegrityError(
            f"{name} was asked for, and this onnxruntime {onnxruntime.__version__} does not have it",
            hint="install onnxruntime-gpu for CUDA, or leave providers at the default",
        )
    return name, {**given, **PINNED[name]}


def missing_library() -> str | None:
    """Which shared library keeps the CUDA provider from loading, if that is the reason; asked in another process.

    (Loading the provider here, before ONNX Runtime has introduced itself to it, would leave it without a host.)
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    paths = [str(folder / f"libonnxruntime_providers_{name}.so") for name in ("shared", "cuda")]
    load = "import ctypes, sys; [ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in sys.argv[1:]]"
    try:
        tried = subprocess.run([sys.executable, "-c", load, *paths], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"OSError: (\S+): cannot open shared object file", tried.stderr.decode(errors="replace"))
    return found[1] if found else None


def check_obtained(session: onnxruntime.InferenceSession, wanted: Sequence[Provider]) -> None:
    """Raise ``IntegrityError`` unless the session runs on the providers, with the options, that were asked for."""
    names = [name for name, _ in wanted]
    obtained = session.get_providers()
    if obtained not in (names, [*names, CPU]):
        library = missing_library() if CUDA in names and CUDA not in obtained else None
        why = f": {library} is not found" if library else ""
        raise IntegrityError(
            f"asked for {', '.join(names)}, obtained {', '.join(obtained)}{why}",
            hint="check the driver, CUDA and cuDNN (the versions that this onnxruntime was built for), "
            "or leave providers at the default",
        )
    options = session.get_provider_options()
    for name, pinned in wanted:
        for key in PINNED[name]:
            found = options.get(name, {}).get(key)
            if found != pinned[key]:
                raise IntegrityError(f"{name}: asked for {key} = {pinned[key]}, obtained {found}")
