"""The kernels that train splines compute another function than the one that is exported.

In eager mode with gradients a LinearSpline runs on the operator library, not on torch's operations. A library whose
training kernels are wrong trains, and shows its user, another network. What is exported must not follow the lie: parity
is taken against torch's operations, and the bound comes from the coefficients in the file.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.nn import LinearSpline, bake, spline_kernels
from lipdeploy.ops import OPERATORS

SHRINKING = 0.125


@pytest.fixture
def lying_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training kernels that give an eighth of the truth: every slope that they show is an eighth of the real one."""
    honest = spline_kernels._call

    def lie(name: str, x: torch.Tensor, tensors: Any, numbers: Any) -> None:
        honest(name, x, tensors, numbers)
        if name == "scaled":
            tensors[-1].mul_(SHRINKING)

    monkeypatch.setattr(spline_kernels, "_call", lie)


@pytest.mark.usefixtures("lying_kernels")
def test_what_is_exported_does_not_follow_the_kernels(tmp_path: Path, ops_library: Path) -> None:
    spline = LinearSpline(2, 3, 1.0, init="identity")
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    network = nn.Sequential(linear, spline).eval()
    x = torch.tensor([[0.5, -0.25], [0.75, 0.5]])
    torch.testing.assert_close(network(x), SHRINKING * x)  # the lie is live: the identity shows as an eighth of it

    path = tmp_path / "model.onnx"
    bound = lip.export(network, x, path).verdict.lipschitz_bound
    stored = bake(network)[1]  # type: ignore[index]
    rises = [Fraction(float(b)) - Fraction(float(a)) for row in stored.coefficients for a, b in pairwise(row)]
    assert bound is not None and Fraction(float(bound.value)) >= max(rises) / Fraction(stored.knot_spacing) > 0.99

    grid = {"lower": stored.lower, "knot_spacing": stored.knot_spacing, "axis": 1}
    truth = OPERATORS["LinearSpline"].evaluate(x.numpy(), stored.coefficients.numpy(), **grid)
    prediction = lip.CertifiedSession(path).predict(x.numpy())
    np.testing.assert_allclose(prediction.logits, truth, rtol=1e-6)
    # Both channels have the same increasing spline, so the class changes where the inputs are equal, no nearer.
    to_the_boundary = (x[:, 0] - x[:, 1]).abs().double().numpy() / np.sqrt(2)
    assert (prediction.radius > 0).all() and (prediction.radius <= to_the_boundary).all()
