"""The hook-style parametrisations that torch had before ``torch.nn.utils.parametrize``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode.

    Old-style hooks leave a computed weight behind as a plain attribute, which ``copy.deepcopy`` refuses; it is
    recomputed in every forward pass, so a detached copy of it stands in.
    """
    memo: dict[int, object] = {}
    for layer in module.modules():
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    duplicate: nn.Module = copy.deepcopy(module, memo)
    return set_evaluation(duplicate)


def set_evaluation(module: nn.Module) -> nn.Module:
    """``module.eval()``; a loaded ``.pt2`` program has no modes and stays as it was exported."""
    try:
        return module.eval()
    except NotImplementedError:
        return module


@torch.no_grad()
def remove_hooks(root: nn.Module) -> None:
    """Replace, in place, hook-style ``weight_norm`` and ``spectral_norm`` by the weight that evaluation uses."""
    for layer in root.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(layer, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(layer, hook.name)
