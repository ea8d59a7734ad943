"""What training needs besides the layers: parameter groups, the spline regulariser, and margin-aware losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.nn.spline import LinearSpline


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Optimiser groups with the learning rates of arXiv 2210.16222: weights lr, splines lr/40, their scales lr/4.

    Args:
        model: any module; each trainable parameter lands in exactly one group.
        lr: learning rate of the weights, > 0.

    Returns:
        Groups for ``torch.optim``, empty ones left out; each carries its ``name``.
    """
    splines = [layer for layer in model.modules() if isinstance(layer, LinearSpline)]
    coefficients = [layer.coefficients for layer in splines]
    scales = [layer.scaling for layer in splines if layer.scaling is not None]
    special = {id(parameter) for parameter in (*coefficients, *scales)}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in special]
    groups = [("weights", weights, lr), ("splines", coefficients, lr / 40), ("scales", scales, lr / 4)]
    trainable = [(name, [p for p in parameters if p.requires_grad], rate) for name, parameters, rate in groups]
    return [{"params": parameters, "lr": rate, "name": name} for name, parameters, rate in trainable if parameters]


def tv2(model: nn.Module) -> Tensor:
    """The sum of ``LinearSpline.tv2()`` over all splines of the model: a scalar, 0 where there are none."""
    terms = [layer.tv2() for layer in model.modules() if isinstance(layer, LinearSpline)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


#: The margin between two logits that a radius of 1 needs, when the network is 1-Lipschitz from this norm to itself.
MARGINS = {"l2": math.sqrt(2), "linf": 2.0, "l1": 1.0}


def _margin(norm: str, epsilon: float) -> float:
    if norm not in MARGINS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(MARGINS)}")
    return MARGINS[norm] * epsilon


def offset_cross_entropy(
    logits: Tensor, labels: Tensor, *, epsilon: float, temperature: float = 0.25, norm: str = "l2"
) -> Tensor:
    """Cross-entropy that asks for a certified radius: t·CE((y − m·ε·onehot)/t), m = √2 in ℓ2 (Prach & Lampert 2022).

    Args:
        logits: (batch, classes) of a 1-Lipschitz network.
        labels: (batch,) class numbers.
        epsilon: radius to be certified; m·ε is the margin that it needs.
        temperature: smaller concentrates the loss on samples that miss the margin.
        norm: of the radius and of the network's constant: ``"l2"`` (m = √2), ``"linf"`` (2) or ``"l1"`` (1).

    Returns:
        The mean loss, a scalar.
    """
    offset = _margin(norm, epsilon) * nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return temperature * nn.functional.cross_entropy((logits - offset) / temperature, labels)


def hinge_margin_loss(logits: Tensor, labels: Tensor, *, epsilon: float, norm: str = "l2") -> Tensor:
    """Multi-class hinge: mean over the batch of Σ_{j≠i} max(0, m·ε − (y_i − y_j)), the loss of arXiv 1811.05381.

    Args:
        logits: (batch, classes) of a 1-Lipschitz network.
        labels: (batch,) class numbers.
        epsilon: radius to be certified.
        norm: of the radius and of the network's constant: ``"l2"`` (m = √2), ``"linf"`` (2) or ``"l1"`` (1).

    Returns:
        The mean loss, a scalar; zero exactly when every sample is certified at ``epsilon``.
    """
    margins = logits.gather(1, labels[:, None]) - logits
    missing = (_margin(norm, epsilon) - margins).clamp(min=0)
    wrong = torch.ones_like(missing).scatter(1, labels[:, None], 0.0)
    return (missing * wrong).sum(dim=1).mean()
