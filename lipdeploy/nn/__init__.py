"""Torch layers with a Lipschitz constant, and what turns them into constants for export.

**Scheme.** A constrained layer is an ordinary torch layer whose ``weight`` carries a parametrisation of
``torch.nn.utils.parametrize``; ``layer.weight`` is therefore always the *effective* weight, and the raw one is
``layer.parametrizations.weight.original``. A spline keeps its raw values in ``.coefficients`` and projects them
inside ``forward``. In training mode the constraint is computed in the parameter's type and differentiably; in
evaluation mode it is computed in float64 and rounded *inward*, so that the stored numbers themselves keep the
constant that the layer promises (the verifier still proves it, and believes nothing from here).

**For the exporter**: ``bake(module) -> module`` returns a deep copy in evaluation mode, on the same device, without
gradients, in which

- every parametrisation (``lipdeploy.nn``, ``torch.nn.utils.parametrizations``, any other library's that uses
  ``torch.nn.utils.parametrize``) is replaced by the constant that evaluation mode uses;
- ``BjorckLinear``, ``SpectralLinear`` and ``LInfLinear`` are plain ``torch.nn.Linear``; ``SpectralConv2d`` and
  ``AOLConv2d`` plain ``torch.nn.Conv2d``; a subclass that overrides ``forward`` keeps its class, and its weight
  is a constant all the same;
- ``LinearSpline`` is a ``StoredLinearSpline``: buffers ``coefficients`` (projected) and, only when some scale
  differs from 1, ``scale`` and ``inverse_scale``, each of shape (channels,) or (1,);
- ``Householder`` is a ``StoredHouseholder``: buffers ``sine`` and ``cosine``, each of shape (channels/2,);
- ``GroupSort``, ``MaxMin``, ``FullSort`` and ``Scale`` stay: their ``forward`` writes ONNX operators by itself.

The caller's module is never changed, and calling ``bake`` draws no random numbers. Under
``torch.onnx.is_in_onnx_export()`` the sorting layers, ``StoredHouseholder`` and ``StoredLinearSpline`` emit
``lipdeploy::GroupSort``, ``lipdeploy::Householder`` and ``lipdeploy::LinearSpline`` (version 1) with every attribute
written. A spline with scales emits exactly ``Mul(x, scale) → LinearSpline → Mul(·, inverse_scale)`` with constants of
shape (channels,) for (N, C) input and (channels, 1, …) for (N, C, …) input.
**Do not fold these two Mul nodes into neighbouring layers**: the verifier
judges the three nodes together, as max over c of |scale_c| · slope_c · |inverse_scale_c|.
"""

from lipdeploy.nn.bake import bake
from lipdeploy.nn.conv import AOLConv2d, SpectralConv2d
from lipdeploy.nn.householder import Householder, StoredHouseholder
from lipdeploy.nn.importing import spline_from_layer, splines_from_state
from lipdeploy.nn.linear import BjorckLinear, LInfLinear, SpectralLinear
from lipdeploy.nn.scale import Scale
from lipdeploy.nn.sorting import FullSort, GroupSort, MaxMin
from lipdeploy.nn.spline import LinearSpline, StoredLinearSpline
from lipdeploy.nn.training import hinge_margin_loss, offset_cross_entropy, parameter_groups, tv2

__all__ = [
    "AOLConv2d",
    "BjorckLinear",
    "FullSort",
    "GroupSort",
    "Householder",
    "LInfLinear",
    "LinearSpline",
    "MaxMin",
    "Scale",
    "SpectralConv2d",
    "SpectralLinear",
    "StoredHouseholder",
    "StoredLinearSpline",
    "bake",
    "hinge_margin_loss",
    "offset_cross_entropy",
    "parameter_groups",
    "spline_from_layer",
    "splines_from_state",
    "tv2",
]
