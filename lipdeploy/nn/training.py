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


def offset_cross_entropy(logits: Tensor, labels: Tensor, *, epsilon: float, temperature: float = 0.25) -> Tensor:
    """Cross-entropy that asks for a certified ℓ2 radius: t·CE((y − √2·ε·onehot)/t) (Prach & Lampert, ECCV 2022).

    Args:
        logits: (batch, classes) of a 1-Lipschitz network.
        labels: (batch,) class numbers.
        epsilon: radius to be certified; √2·ε is the margin that it needs.
        temperature: smaller concentrates the loss on samples that miss the margin.

    Returns:
        The mean loss, a scalar.
    """
    offset = math.sqrt(2) * epsilon * nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return temperature * nn.functional.cross_entropy((logits - offset) / temperature, labels)


def hinge_margin_loss(logits: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Multi-class hinge: mean over the batch of Σ_{j≠i} max(0, √2·ε − (y_i − y_j)), the loss of arXiv 1811.05381.

    Args:
        logits: (batch, classes) of a 1-Lipschitz network.
        labels: (batch,) class numbers.
        epsilon: ℓ2 radius to be certified.

    Returns:
        The mean loss, a scalar; zero exactly when every sample is certified at ``epsilon``.
    """
    margins = logits.gather(1, labels[:, None]) - logits
    missing = (math.sqrt(2) * epsilon - margins).clamp(min=0)
    wrong = torch.ones_like(missing).scatter(1, labels[:, None], 0.0)
    return (missing * wrong).sum(dim=1).mean()
