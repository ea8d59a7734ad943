"""GroupSort and relatives against torch.sort, NumPy and deel-torchlip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deel import torchlip
from torch import Tensor

from lipdeploy.nn import FullSort, GroupSort, MaxMin
from lipdeploy.ops import OPERATORS

SHAPES = [(5, 12), (2, 12, 3, 4), (3, 12, 7)]


def by_hand(x: np.ndarray, size: int, axis: int, layout: str, descending: bool) -> np.ndarray:
    """Sort group by group, reading the definition aloud."""
    moved = np.moveaxis(x, axis, 0).copy()
    channels = moved.shape[0]
    size = size or channels
    groups = channels // size
    for g in range(groups):
        members = [g * size + i for i in range(size)] if layout == "adjacent" else [g + i * groups for i in range(size)]
        ordered = np.sort(moved[members], axis=0)
        moved[members] = ordered[::-1] if descending else ordered
    return np.moveaxis(moved, 0, axis)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 12])
@pytest.mark.parametrize("layout", ["adjacent", "strided"])
@pytest.mark.parametrize("descending", [False, True])
def test_every_layout_sorts_its_groups(shape: tuple[int, ...], size: int, layout: str, descending: bool) -> None:
    x = np.random.default_rng(size).normal(size=shape).astype(np.float32)
    y = GroupSort(size, 1, layout, descending)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(y, by_hand(x, size, 1, layout, descending))


@pytest.mark.parametrize("axis", [0, 2, -1, -4])
def test_any_axis(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6, 8, 4))
    y = GroupSort(2, axis, "strided")(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(y, by_hand(x, 2, axis, "strided", False))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_agrees_with_deel_torchlip(size: int) -> None:
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GroupSort(size)(x), torchlip.GroupSort(size)(x))


def test_full_sort_is_torch_sort() -> None:
    x = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(FullSort()(x), torch.sort(x, dim=1).values)
    assert torch.equal(FullSort(descending=True)(x), torch.sort(x, dim=1, descending=True).values)


def test_max_min_puts_maxima_first() -> None:
    x = torch.tensor([[1.0, 5.0, 4.0, 2.0]])
    assert MaxMin()(x).tolist() == [[4.0, 5.0, 1.0, 2.0]]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("descending", [False, True])
def test_a_nan_spoils_its_group_and_no_other(size: int, descending: bool) -> None:
    x = torch.tensor([[3.0, float("nan"), 1.0, 2.0, 8.0, 7.0, 6.0, -float("inf")]])
    y = GroupSort(size, descending=descending)(x)[0]
    assert torch.isnan(y[:size]).all()
    assert not torch.isnan(y[size:]).any()
    assert sorted(y[size:].tolist()) == sorted(x[0, size:].tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_type_and_empty_batches(dtype: torch.dtype) -> None:
    y = GroupSort(2)(torch.zeros(0, 4, dtype=dtype))
    assert y.dtype == dtype and y.shape == (0, 4)


@pytest.mark.parametrize("size", [2, 3, 0])
@pytest.mark.parametrize("layout", ["adjacent", "strided"])
def test_gradient_is_a_permutation(size: int, layout: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def sort(z: Tensor) -> Tensor:
        return GroupSort(size, layout=layout)(z)

    assert torch.autograd.gradcheck(sort, (x,))
    (grad,) = torch.autograd.grad(sort(x), x, torch.arange(18.0, dtype=torch.float64).view(3, 6))
    assert sorted(grad.flatten().tolist()) == list(range(18))


def test_agrees_with_the_operator_definition() -> None:
    rng = np.random.default_rng(3)
    x = rng.choice([-1.5, 0.25, 2.0, np.inf, -np.inf, np.nan, 7.0], size=(40, 12)).astype(np.float32)
    for size in (0, 1, 2, 3):
        for layout, code in (("adjacent", 0), ("strided", 1)):
            for descending in (False, True):
                ours = GroupSort(size, 1, layout, descending)(torch.from_numpy(x)).numpy()
                spec = OPERATORS["GroupSort"].evaluate(
                    x, group_size=size, axis=1, layout=code, descending=int(descending)
                )
                np.testing.assert_array_equal(ours, spec)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupSort(-1), "group_size is -1"),
        (lambda: GroupSort(2, layout="interleaved"), "layout is 'interleaved'"),
        (lambda: GroupSort(4)(torch.zeros(1, 6)), "group_size 4 does not divide the 6 channels on axis 1"),
        (lambda: GroupSort(2, axis=2)(torch.zeros(1, 6)), "along axis 2 got an input of shape (1, 6)"),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)
