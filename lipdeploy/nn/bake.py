"""From a trainable module to constants: the step between training and export."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipdeploy.nn.householder import Householder
from lipdeploy.nn.spline import LinearSpline


def bake(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in evaluation mode whose parametrisations are constants; see the package's docstring.

    Args:
        module: any torch module. It is not changed.

    Returns:
        The copy; no parameter in it requires a gradient.

    Raises:
        ValueError: the module cannot be copied (old-style ``torch.nn.utils.weight_norm`` hooks), or an
            activation's numbers are unusable (a zero scale, a coefficient or an angle that is not finite).
    """
    baked = _copy(module).eval()
    with torch.no_grad():
        baked = _store_activations(baked)
        _remove_parametrizations(baked)
        for layer in baked.modules():
            _make_plain(layer)
    return baked.requires_grad_(False)


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({error}); replace torch.nn.utils.weight_norm and spectral_norm "
            "by those of torch.nn.utils.parametrizations, and detach tensors kept as attributes"
        ) from error


def _store_activations(root: nn.Module) -> nn.Module:
    stored: dict[int, nn.Module] = {}
    for layer in list(root.modules()):
        for activation in (Householder, LinearSpline):
            if isinstance(layer, activation) and type(layer).forward is activation.forward:
                stored[id(layer)] = layer.stored().eval()
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # a shared child appears under each of its names
            if id(child) in stored:
                parent._modules[name] = stored[id(child)]
    return stored.get(id(root), root)


def _remove_parametrizations(root: nn.Module) -> None:
    """All values are computed first and then replace the raw ones: layers may share a raw weight.

    Torch's ``remove_parametrizations`` writes into the raw weight, which the other owners of it would then read, and
    takes the attribute out of a class that the copy shares with the caller's module.
    """
    layers = [layer for layer in root.modules() if parametrize.is_parametrized(layer)]
    values = [{name: getattr(layer, name).detach() for name in _raw(layer)} for layer in layers]
    for layer, constants in zip(layers, values, strict=True):
        _replace_raw(layer, constants)


def _raw(layer: nn.Module) -> nn.ModuleDict:
    return cast(nn.ModuleDict, layer.parametrizations)


def _replace_raw(layer: nn.Module, constants: Mapping[str, Tensor]) -> None:
    parameters = [name for name, raw in _raw(layer).items() if raw._parameters]
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, value in constants.items():
        if name in parameters:
            layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            layer.register_buffer(name, value)


def _make_plain(layer: nn.Module) -> None:
    """A constrained layer differs from torch's only by its parametrisation; once that is gone, so is the class."""
    plain: type[nn.Module] | None = getattr(type(layer), "plain_class", None)
    if plain is not None and type(layer).forward is plain.forward:
        layer.__class__ = plain
