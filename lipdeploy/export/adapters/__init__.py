"""Layers that need a hand before torch's exporter sees them, looked up by class name.

A key is ``(library, class name)``. No library is imported here: a class is recognised by the module it was defined in,
so only models that already use a library meet its adapters. A subclass with its own ``forward`` is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from lipdeploy.export.adapters import torch_layers, torchlip

Adapter = Callable[[nn.Module], nn.Module]

ADAPTERS: Mapping[tuple[str, str], Adapter] = {**torch_layers.ADAPTERS, **torchlip.ADAPTERS}


def find_adapter(layer: nn.Module) -> Adapter | None:
    """The adapter for this layer's class, or for the base class whose ``forward`` it inherits."""
    for base in type(layer).__mro__:
        adapter = ADAPTERS.get((_library(base), base.__name__))
        if adapter is not None:
            return adapter
        if "forward" in vars(base):
            return None
    return None


def replace_layers(root: nn.Module) -> nn.Module:
    """Replace, in place, every layer that has an adapter; a layer used twice is replaced by one object."""
    replaced: dict[int, nn.Module] = {}
    for layer in list(root.modules()):
        adapter = find_adapter(layer)
        if adapter is not None:
            replaced[id(layer)] = adapter(layer).eval()
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return replaced.get(id(root), root)


def _library(cls: type) -> str:
    module = cls.__module__
    return "deel.torchlip" if module.startswith("deel.torchlip.") else module.partition(".")[0]
