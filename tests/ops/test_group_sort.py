"""GroupSort's NumPy meaning against np.sort, torch.sort and deel-torchlip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deel.torchlip import FullSort as DeelFullSort
from deel.torchlip import GroupSort as DeelGroupSort
from deel.torchlip import GroupSort2 as DeelGroupSort2
from deel.torchlip import MaxMin as DeelMaxMin
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lipdeploy.ops import OPERATORS
from tests.ops.cases import SORT_CASES, TYPES, SortCase, bits, sort_input, values

group_sort = OPERATORS["GroupSort"].evaluate


def groups_of(case: SortCase) -> list[list[int]]:
    """The channels of each group, written out from design section 2."""
    channels = case.shape[case.axis]
    size = case.group_size or channels
    count = channels // size
    if case.layout == 0:
        return [list(range(g * size, (g + 1) * size)) for g in range(count)]
    return [list(range(g, channels, count)) for g in range(count)]


def by_hand(case: SortCase, x: np.ndarray) -> np.ndarray:
    """Sort the channels of each group with np.sort, one group after another."""
    channels_last = np.moveaxis(x, case.axis, -1)
    y = channels_last.copy()
    for group in groups_of(case):
        ranked = np.sort(channels_last[..., group], axis=-1)
        y[..., group] = ranked[..., ::-1] if case.descending else ranked
    return np.moveaxis(y, -1, case.axis)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SORT_CASES, ids=str)
def test_sorts_each_group_as_np_sort_does(case: SortCase, type_name: str) -> None:
    x = sort_input(case, TYPES[type_name][0], special=False)
    y = group_sort(x, **case.attributes)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(values(y), by_hand(case, values(x)))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("case", SORT_CASES, ids=str)
def test_nan_takes_its_whole_group_and_zeros_keep_their_order(case: SortCase, type_name: str) -> None:
    dtype = TYPES[type_name][0]
    x = sort_input(case, dtype, special=True)
    y = np.moveaxis(group_sort(x, **case.attributes), case.axis, -1)
    x = np.moveaxis(x, case.axis, -1)
    quiet_nan = bits(np.full(1, np.nan, dtype))[0]
    for group in groups_of(case):
        before, after = x[..., group], y[..., group]
        poisoned = np.isnan(values(before)).any(axis=-1)
        assert (bits(after)[poisoned] == quiet_nan).all()
        before, after = before[~poisoned], after[~poisoned]
        # Nothing is made up: the same bits come out. And they ascend, counting −0 as smaller than +0.
        np.testing.assert_array_equal(np.sort(bits(before), axis=-1), np.sort(bits(after), axis=-1))
        ascending = after[..., ::-1] if case.descending else after
        left, right = values(ascending)[..., :-1], values(ascending)[..., 1:]
        assert (left <= right).all()
        assert (np.signbit(left) | ~np.signbit(right) | (left != right)).all()


def test_agrees_with_torch_sort() -> None:
    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    want = torch.sort(torch.from_numpy(x), dim=1, descending=True).values.numpy()
    np.testing.assert_array_equal(group_sort(x, group_size=0, descending=1), want)


@pytest.mark.parametrize(
    ("theirs", "attributes"),
    [
        (DeelGroupSort2(), {"group_size": 2}),
        (DeelGroupSort(4), {"group_size": 4}),
        (DeelFullSort(), {"group_size": 0}),
    ],
    ids=["GroupSort2", "GroupSort", "FullSort"],
)
def test_agrees_with_deel_torchlip(theirs: torch.nn.Module, attributes: dict[str, int]) -> None:
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    np.testing.assert_array_equal(group_sort(x, **attributes), theirs(torch.from_numpy(x)).numpy())


def test_deel_maxmin_is_another_function() -> None:
    """Their MaxMin doubles the channels (it is CReLU): the name alone says nothing."""
    x = np.ones((2, 4), dtype=np.float32)
    assert DeelMaxMin()(torch.from_numpy(x)).shape[1] == 8
    assert group_sort(x, group_size=2).shape[1] == 4


def test_maxmin_of_lipconvnet_is_strided_and_descending() -> None:
    x = np.array([[1.0, 2.0, 3.0, 4.0, 0.0, 5.0]], dtype=np.float32)
    first, second = x[:, :3], x[:, 3:]
    want = np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=1)
    np.testing.assert_array_equal(group_sort(x, group_size=2, layout=1, descending=1), want)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group_size": 3}, "group_size 3 does not divide the 8 channels of axis 1"),
        ({"group_size": 2, "axis": 2}, "axis 2 does not exist in a tensor of rank 2"),
        ({"group_size": 2, "axis": -3}, "axis -3 does not exist in a tensor of rank 2"),
    ],
)
def test_says_what_is_wrong(attributes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_sort(np.zeros((2, 8), np.float32), **attributes)


@pytest.mark.parametrize(
    ("given_attributes", "message"),
    [
        ({"group_size": -1}, "attribute 'group_size' must be an integer ≥ 1, or 0 for the whole axis, found -1"),
        ({"layout": 2}, r"attribute 'layout' must be 0 \(adjacent\) or 1 \(strided\), found 2"),
        ({"descending": True}, "attribute 'descending' must be 0 or 1, found True"),
        ({"group_size": 2.0}, "found 2.0"),
        ({"size": 2}, "unknown attribute 'size'"),
    ],
)
def test_complete_refuses_bad_attributes(given_attributes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPERATORS["GroupSort"].complete(given_attributes)


def test_complete_fills_in_the_defaults() -> None:
    assert OPERATORS["GroupSort"].complete({}) == {"group_size": 2, "axis": 1, "layout": 0, "descending": 0}


@given(
    hnp.arrays(np.float64, (2, 12), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, (2, 12), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([1, 2, 3, 4, 6, 0]),
    st.sampled_from([0, 1]),
)
def test_is_one_lipschitz_in_every_norm(x: np.ndarray, z: np.ndarray, size: int, layout: int) -> None:
    moved = group_sort(x, group_size=size, layout=layout) - group_sort(z, group_size=size, layout=layout)
    for order in (1, 2, np.inf):
        before, after = np.linalg.norm(x - z, order, axis=1), np.linalg.norm(moved, order, axis=1)
        assert (after <= before * (1 + 1e-12)).all()


@pytest.mark.parametrize("case", [case for case in SORT_CASES if np.prod(case.shape)], ids=str)
def test_the_cases_have_groups_to_sort(case: SortCase) -> None:
    """One NaN makes a whole group NaN: a case of nothing else would compare NaNs with NaNs."""
    channels_last = np.moveaxis(sort_input(case, np.dtype(np.float32), special=True), case.axis, -1)
    with_nan = np.stack([np.isnan(channels_last[..., group]).any(-1) for group in groups_of(case)])
    assert not with_nan.all()
    assert with_nan.any() or with_nan.size < 20
