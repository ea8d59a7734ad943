"""Layers that are copied from the repositories of papers, recognised by class name, attributes and behaviour.

LNets, Lipschitz_DSNN, DeepSplines, LipConvnet and their like are no libraries: people copy their files, so the module
that a class lives in says nothing. A layer is replaced when its class has the name, it has the attributes, *and* the
stand-in computes what the layer computes on random numbers; otherwise it is left as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.errors import InputError
from lipdeploy.export.adapters.orthogonium import Reflections, no_second_order
from lipdeploy.nn import GroupSort, MaxMin
from lipdeploy.nn.importing import spline_from_layer

KNOWN_LIBRARIES = frozenset({"torch", "lipdeploy", "deel.torchlip", "orthogonium"})
AGREEMENT = 1e-4  # of the largest number: a different layout or factor is far beyond, rounding far below
MAGNITUDES = (0.01, 2.0, 100.0)  # a layer that clips, or cuts small numbers away, shows it at one of them


@dataclass(frozen=True)
class Kind:
    """One layer of a paper: the attributes it must have, candidates for a stand-in, and shapes to try them on."""

    attributes: tuple[str, ...]
    candidates: Callable[[Any], Iterator[nn.Module]]
    shapes: Callable[[Any], tuple[tuple[int, ...], ...]]


def find(key: tuple[str, str], layer: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
    """An adapter for ``layer`` when it is one of these, None when it only shares the name."""
    library, name = key
    if library in KNOWN_LIBRARIES:
        return None
    if name in REFUSED:
        return REFUSED[name]
    for kind in KINDS.get(name, ()):
        if all(hasattr(layer, attribute) for attribute in kind.attributes):
            for candidate in kind.candidates(layer):
                if _same(layer, candidate.eval(), kind.shapes(layer)):
                    return lambda _, found=candidate: found  # type: ignore[misc]
    return None


@torch.no_grad()
def _same(layer: nn.Module, candidate: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether both agree on random inputs of every magnitude, in at least one of the shapes that the layer accepts."""
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
    accepted = False
    for shape, magnitude in itertools.product(shapes, MAGNITUDES):
        x = magnitude * torch.randn(shape, generator=generator, dtype=dtype)
        try:
            expected = layer(x.clone())  # it may work in place
        except Exception:  # this rank is not for this layer
            continue
        actual = candidate(x)
        scale = max(magnitude, float(expected.abs().max()))
        if actual.shape != expected.shape or not float((actual - expected).abs().max()) <= AGREEMENT * scale:
            return False  # NaN differs too
        accepted = True
    return accepted


class PairedMaxMin(nn.Module):
    """LNets MaxMin where it pairs axis 1: neighbours, all maxima, then all minima."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.sort = GroupSort(2, descending=True)

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays; on another axis than the one that it concatenates, the original runs."""
        channels = x.shape[1]
        if self.original.axis % x.ndim != 1 or channels != 2 * self.original.num_units:  # type: ignore[operator]
            value: Tensor = self.original(x)
            return value
        return self.sort(x)[:, [*range(0, channels, 2), *range(1, channels, 2)]]  # type: ignore[no-any-return]


class NumberOfGroups(nn.Module):
    """LNets and Lipschitz_DSNN GroupSort: ``num_units`` counts groups of neighbours, ascending."""

    def __init__(self, groups: int, axis: int) -> None:
        super().__init__()
        self.groups, self.axis = groups, axis

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        y: Tensor = GroupSort(x.shape[self.axis] // self.groups, axis=self.axis)(x)
        return y


def _group_sorts(layer: Any) -> Iterator[nn.Module]:
    yield NumberOfGroups(int(layer.num_units), int(layer.axis))


def _maxmins(layer: Any) -> Iterator[nn.Module]:
    if hasattr(layer, "num_units"):
        yield PairedMaxMin(layer)
    else:
        yield MaxMin(int(getattr(layer, "axis", 1)))


def _reflections(layer: Any) -> Iterator[nn.Module]:
    axis = int(getattr(layer, "axis", 1))
    for factor in (1.0, 1 / math.sqrt(2)):
        yield Reflections(layer.theta, axis, factor)


def _splines(layer: Any) -> Iterator[nn.Module]:
    yield spline_from_layer(layer)


def _shapes(channels: int) -> tuple[tuple[int, ...], ...]:
    return ((3, channels), (2, channels, channels, channels) if channels <= 16 else (2, channels, 3, 2))


def _pair_shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    groups = getattr(layer, "num_units", 4)
    return _shapes(2 * int(groups))


def _sort_shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    groups = int(layer.num_units)
    return ((3, 3 * groups), (2, 3 * groups, 2, 3 * groups))


def _reflection_shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    channels = 2 * layer.theta.numel()
    return ((2, channels, 3, 2),) if layer.theta.ndim == 4 else ((3, channels),)


def _spline_shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    channels = int(layer.num_activations)
    return ((64, channels), (8, channels, 3, 3))


def _no_head(layer: nn.Module) -> nn.Module:
    raise InputError(
        "its extra logit decides robustness from constants estimated during training, which prove nothing",
        hint="export the network inside it, the one that returns plain logits, and certify the exported file",
    )


def _no_fourier(layer: nn.Module) -> nn.Module:
    raise InputError(
        "it convolves in the Fourier domain, which no ONNX operator with a proven bound can do",
        hint="use AOLConv2d or orthogonium's AdaptiveOrthoConv2d, whose weights become an ordinary Conv",
    )


_SPLINE = Kind(("coefficients_vect", "num_activations", "size", "grid"), _splines, _spline_shapes)

KINDS: Mapping[str, tuple[Kind, ...]] = {
    "GroupSort": (Kind(("num_units", "axis"), _group_sorts, _sort_shapes),),
    "MaxMin": (Kind((), _maxmins, _pair_shapes),),
    "HouseHolder": (Kind(("theta",), _reflections, _reflection_shapes),),
    "LinearSpline": (_SPLINE,),
    "DeepBSpline": (_SPLINE,),
    "DeepBSplineExplicitLinear": (_SPLINE,),
}

REFUSED: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "HouseHolder_Order_2": no_second_order,
    "GloroNet": _no_head,
    "GloroHead": _no_head,
    **{name: _no_fourier for name in ("SandwichConv", "SandwichConvLin", "OrthogonConv", "OrthogonConvLin")},
}
