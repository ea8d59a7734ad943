"""Linear splines trained elsewhere: from a layer of Lipschitz_DSNN or DeepSplines, or from its state dict.

Checkpoints of Lipschitz_DSNN hold *raw* coefficients, and ``forward`` projects them; those of DeepSplines are used as
they are. The grid is no buffer there: the number of knots follows from the file, their range from the configuration.

=================  ======================================================================================
odd K              knots −R, −R + T, …, R with T = 2R/(K − 1); slopes continue outside
even K             the same knots; Lipschitz_DSNN adds T/2 to every value, and so does what is made here
``scaling``        f(x) = s(α·x)/α per channel
explicit linear    DeepSplines may add b₁·x + b₀: a line is a spline, so it is added to the coefficients
=================  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.nn.spline import LinearSpline, StoredLinearSpline

COEFFICIENTS, SCALING = "coefficients_vect", "scaling_coeffs_vect"


@torch.no_grad()
def spline_from_layer(layer: nn.Module) -> StoredLinearSpline:
    """The constants of a ``LinearSpline`` of Lipschitz_DSNN or a ``DeepBSpline`` of DeepSplines, by attributes.

    A layer that projects in its ``forward`` (``lipschitz_constraint``) is projected here too, in float64 and rounded
    inward; others keep their coefficients, whatever their slopes.

    Args:
        layer: has ``coefficients_vect``, ``num_activations``, ``size`` and ``grid`` (the knot spacing).

    Returns:
        The spline as constants, float32 or float64 as the layer's.
    """
    source: Any = layer
    channels, size, spacing = int(source.num_activations), int(source.size), float(source.grid)
    values = source.coefficients_vect.detach().view(channels, size)
    scale = getattr(source, SCALING, None)
    spline = _spline(values, -spacing * (size - 1) / 2, spacing, None if scale is None else scale.detach().flatten())
    projects = bool(getattr(source, "lipschitz_constraint", False))
    stored = spline.stored() if projects else _unprojected(spline)
    return _with_line(stored, source)


def splines_from_state(
    state: Mapping[str, Tensor], limit: float | Mapping[str, float], *, projected: bool = False
) -> dict[str, LinearSpline]:
    """The splines of a Lipschitz_DSNN state dict.

    Args:
        state: entries ``PREFIX.coefficients_vect``, (channels·K,), and ``PREFIX.scaling_coeffs_vect``, one α per
            channel; others are ignored.
        limit: R of the configuration (``range_``): the knots cover [−R, R]. One number, or one per prefix.
        projected: the coefficients were projected before they were saved. The reference code saves raw ones.

    Returns:
        prefix → spline in training mode; its raw coefficients are those of the file.

    Raises:
        ValueError: no spline in the state, no R for one, sizes that do not fit, or ``projected`` coefficients
            with slopes above 1: those are raw.
    """
    prefixes = [key.removesuffix(COEFFICIENTS) for key in state if key.rpartition(".")[2] == COEFFICIENTS]
    if not prefixes:
        raise ValueError(f"no entry of the state dict ends in {COEFFICIENTS}")
    return {prefix.rstrip("."): _from_state(state, prefix, limit, projected) for prefix in prefixes}


def _from_state(
    state: Mapping[str, Tensor], prefix: str, limit: float | Mapping[str, float], projected: bool
) -> LinearSpline:
    name = prefix.rstrip(".")
    if prefix + SCALING not in state:
        raise ValueError(f"{name!r} has no {SCALING}, which says how many channels there are")
    scale, values = state[prefix + SCALING].detach().flatten(), state[prefix + COEFFICIENTS].detach()
    channels = scale.numel()
    if values.numel() % channels or values.numel() // channels < 2:
        raise ValueError(f"{name!r}: {values.numel()} coefficients for {channels} channels")
    if isinstance(limit, Mapping) and name not in limit:
        raise ValueError(f"limit has no entry for {name!r}; it has {', '.join(sorted(limit))}")
    reach = float(limit[name] if isinstance(limit, Mapping) else limit)
    size = values.numel() // channels
    spline = _spline(values.view(channels, size), -reach, 2 * reach / (size - 1), scale, projected=projected)
    return spline


def _spline(
    values: Tensor, lower: float, spacing: float, scale: Tensor | None, *, projected: bool = False
) -> LinearSpline:
    channels, size = values.shape
    spline = LinearSpline(channels, num_knots=size, limit=-lower, learnable_scaling=scale is not None)
    spline = spline.to(values.dtype)
    shift = spacing / 2 if size % 2 == 0 else 0.0  # the quirk of even K: see the table above
    spline.load_coefficients(values.double() + shift, lower, spacing, projected=projected)
    if scale is not None and spline.scaling is not None:
        with torch.no_grad():
            spline.scaling.copy_(scale)
    return spline


def _unprojected(spline: LinearSpline) -> StoredLinearSpline:
    scale = None if spline.scaling is None or bool((spline.scaling == 1).all()) else spline.scaling.detach().clone()
    return StoredLinearSpline(spline.channels, spline.coefficients, spline.lower, spline.knot_spacing, scale)


def _with_line(spline: StoredLinearSpline, source: Any) -> StoredLinearSpline:
    if not hasattr(source, "spline_weight"):
        return spline
    knots = spline.lower + spline.knot_spacing * torch.arange(spline.coefficients.shape[1], dtype=torch.float64)
    line = source.spline_weight.detach().double()[:, None] * knots + source.spline_bias.detach().double()[:, None]
    spline.coefficients.copy_((spline.coefficients.double() + line).to(spline.coefficients))
    return spline
