"""Splines trained elsewhere, from their state dicts; the layers stand in for those of Lipschitz_DSNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipdeploy.nn import LinearSpline, splines_from_state
from tests.export.foreign import papers


def trained(size: int, mode: str = "fc") -> papers.LinearSpline:
    layer = papers.LinearSpline(mode, 4, size, 0.5, "absolute_value", True)
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        layer.coefficients_vect.add_(0.2 * torch.randn(4 * size, generator=generator))
        layer.scaling_coeffs_vect.copy_(torch.tensor([0.3, 1.0, 2.0, -1.5]).view(1, 4, 1, 1))
    return layer


@pytest.mark.parametrize("size", [20, 21, 51])
def test_raw_coefficients_of_a_checkpoint_give_the_same_function(size: int) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), trained(size))
    found = splines_from_state(network.state_dict(), limit=0.5)
    assert list(found) == ["1"]
    x = 2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found["1"](x), network[1](x), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found["1"].eval()(x), network[1](x), atol=2e-5, rtol=1e-4)


def test_the_raw_values_stay_raw() -> None:
    layer = trained(21)
    spline = splines_from_state({"a.b." + key: value for key, value in layer.state_dict().items()}, 0.5)["a.b"]
    np.testing.assert_allclose(spline.coefficients.detach(), layer.coefficients_vect.detach().view(4, 21), rtol=1e-7)


def test_projected_coefficients_load_as_such_and_raw_ones_do_not() -> None:
    layer = trained(21)
    state = {key: value.detach().clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="they are raw"):
        splines_from_state(state, 0.5, projected=True)
    state["coefficients_vect"] = layer.lipschitz_coefficients.detach().reshape(-1)
    (spline,) = splines_from_state(state, 0.5, projected=True).values()
    x = torch.linspace(-1, 1, 101)[:, None].expand(-1, 4)
    with torch.no_grad():
        torch.testing.assert_close(spline(x), layer(x), atol=1e-5, rtol=1e-5)


def test_load_coefficients_tells_them_apart() -> None:
    spline = LinearSpline(1, 3)
    spline.load_coefficients([[0.0, 0.1, 0.2 + 5e-7]], -0.1, 0.1, projected=True)  # float32 rounding of slope 1
    with pytest.raises(ValueError, match=r"slopes up to 1\.01.*projected=False"):
        spline.load_coefficients([[0.0, 0.1, 0.201]], -0.1, 0.1, projected=True)
    spline.load_coefficients([[0.0, 0.1, 0.201]], -0.1, 0.1)


@pytest.mark.parametrize(
    ("change", "limit", "message"),
    [
        (lambda state: {}, 0.5, "no entry"),
        (lambda state: {"coefficients_vect": state["coefficients_vect"]}, 0.5, "how many channels"),
        (lambda state: {**state, "coefficients_vect": torch.zeros(7)}, 0.5, "7 coefficients for 4 channels"),
        (lambda state: state, {"other": 0.5}, "no entry for ''; it has other"),
    ],
)
def test_what_does_not_fit_is_said(change, limit, message: str) -> None:
    state = change(dict(trained(21).state_dict()))
    with pytest.raises(ValueError, match=message):
        splines_from_state(state, limit)
