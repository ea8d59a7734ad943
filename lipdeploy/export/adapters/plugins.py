"""Adapters of installed distributions: the entry-point group ``lipdeploy.adapters``.

The name of an entry point says which class it is for, ``LIBRARY.CLASS`` with the library's top-level package, and its
object is a function from the layer to a ``torch.nn.Module`` that computes the same::

    [project.entry-points."lipdeploy.adapters"]
    "acme_nets.AcmeSort" = "acme_lipdeploy:adapt_sort"

Nothing is imported before a network holds a layer of that class.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from lipdeploy.errors import InputError

GROUP = "lipdeploy.adapters"


def plugin(library: str, class_name: str) -> Callable[[nn.Module], nn.Module] | None:
    """The adapter that a distribution registered for this class, loaded; None where there is none.

    Raises ``InputError`` when two distributions register different ones, or when it cannot be loaded or called.
    """
    name = f"{library}.{class_name}"
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        return None
    if len(found) > 1:
        origins = ", ".join(sorted(_origin(entry) for entry in found.values()))
        raise InputError(f"several adapters are registered for {name}: {origins}", hint="uninstall all but one")
    (entry,) = found.values()
    return _loaded(entry, name)


def _loaded(entry: EntryPoint, name: str) -> Callable[[nn.Module], nn.Module]:
    try:
        adapter: Any = entry.load()
    except Exception as error:
        raise InputError(
            f"the adapter for {name} cannot be loaded ({_origin(entry)}): {error}", hint="reinstall that distribution"
        ) from error
    if not callable(adapter):
        raise InputError(f"the adapter for {name} is not a function ({_origin(entry)})")

    def guarded(layer: nn.Module) -> nn.Module:
        try:
            made: nn.Module = adapter(layer)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"its adapter ({_origin(entry)}) failed: {type(error).__name__}: {error}") from error
        return made

    return guarded


def _origin(entry: EntryPoint) -> str:
    distribution = getattr(entry, "dist", None)
    return f"{entry.value} of {distribution.name if distribution is not None else 'an unknown distribution'}"
