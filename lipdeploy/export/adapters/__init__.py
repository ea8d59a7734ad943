"""Layers that need a hand before torch's exporter sees them, looked up by class name.

A key is ``(library, class name)``. No library is imported here: a class is recognised by the module it was defined in,
so only models that already use a library meet its adapters. A subclass with its own ``forward`` is left alone. Three
sources answer, in this order:

1. the tables of this package, for torch, deel-torchlip and orthogonium;
2. installed distributions, through the entry-point group ``lipdeploy.adapters`` (``plugins``);
3. layers that live in the repositories of papers and are copied from there, by class name, attributes and behaviour
   (``copied``).

An adapter is not trusted: parity compares the exported file with the module that was given, and the verifier judges
what was exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from lipdeploy.errors import InputError, Refused
from lipdeploy.export.adapters import copied, orthogonium, torch_layers, torchlip
from lipdeploy.export.adapters.plugins import plugin
from lipdeploy.nn import bake

Adapter = Callable[[nn.Module], nn.Module]

ADAPTERS: Mapping[tuple[str, str], Adapter] = {
    **torch_layers.ADAPTERS,
    **torchlip.ADAPTERS,
    **orthogonium.ADAPTERS,
}


def find_adapter(layer: nn.Module) -> Adapter | None:
    """The adapter for this layer's class, or for the base class whose ``forward`` it inherits."""
    for base in type(layer).__mro__:
        key = (_library(base), base.__name__)
        adapter = ADAPTERS.get(key) or plugin(*key) or copied.find(key, layer)
        if adapter is not None:
            return adapter
        if "forward" in vars(base):
            return None
    return None


def replace_layers(root: nn.Module, inside: frozenset[str] = frozenset()) -> nn.Module:
    """Replace, in place, every layer that has an adapter; a layer used twice is replaced by one object.

    What an adapter returns is baked and searched too, but not for the classes that it stands for (``inside``).

    Raises ``InputError`` naming the layer whose adapter fails, ``Refused`` naming one that nothing can prove.
    """
    replaced: dict[int, nn.Module] = {}
    for path, layer in list(root.named_modules()):
        adapter = find_adapter(layer)
        if adapter is not None and _full_name(layer) not in inside:
            replaced[id(layer)] = _adapted(adapter, path, layer, inside)
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return replaced.get(id(root), root)


def _adapted(adapter: Adapter, path: str, layer: nn.Module, inside: frozenset[str]) -> nn.Module:
    where = f"layer '{path}' ({type(layer).__name__})"
    try:
        stand_in = adapter(layer)
    except InputError as error:
        raise InputError(f"{where}: {error}", hint=error.hint) from error
    except Refused as error:
        raise Refused([replace(refusal, node=path) for refusal in error.refusals]) from error
    if not isinstance(stand_in, nn.Module):
        raise InputError(
            f"{where}: its adapter returned {type(stand_in).__name__}",
            hint="an adapter takes the layer and returns a torch.nn.Module",
        )
    try:
        baked = bake(stand_in)
    except ValueError as error:
        raise InputError(f"{where}: what its adapter returned cannot be made constant: {error}") from error
    return replace_layers(baked, inside | {_full_name(layer)})


def _full_name(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _library(cls: type) -> str:
    module = cls.__module__
    return "deel.torchlip" if module.startswith("deel.torchlip.") else module.partition(".")[0]
