"""From a trainable module to constants: the step between training and export."""

from __future__ import annotations

import copy

import torch
from torch import nn
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
        for layer in list(baked.modules()):
            _remove_parametrizations(layer)
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


def _remove_parametrizations(layer: nn.Module) -> None:
    if not parametrize.is_parametrized(layer):
        return
    # Torch keeps the parametrised attribute in a class made for the original module. The copy shares that class, and
    # removing the attribute there would break the caller's module: so the copy gets a class of its own.
    shared = type(layer)
    namespace = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, namespace)
    for name in list(layer.parametrizations):  # type: ignore[arg-type]
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def _make_plain(layer: nn.Module) -> None:
    """A constrained layer differs from torch's only by its parametrisation; once that is gone, so is the class."""
    plain: type[nn.Module] | None = getattr(type(layer), "plain_class", None)
    if plain is not None and type(layer).forward is plain.forward:
        layer.__class__ = plain
