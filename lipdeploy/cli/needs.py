"""Optional packages: looked up without importing them, and named in one clear line when they are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from lipdeploy.errors import InputError


def installed(module: str) -> bool:
    """Whether ``module`` could be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def need(module: str, *, purpose: str, install: str) -> None:
    """``InputError`` unless ``module`` is installed: ``purpose`` needs it, and pip installs it from ``install``."""
    if not installed(module):
        raise InputError(f"{purpose} needs {module}, which is not installed", hint=f"pip install '{install}'")


def distribution_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
