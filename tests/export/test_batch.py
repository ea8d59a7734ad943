"""A file leaves its batch open only where the network does: what depends on the batch size is refused, not baked in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipdeploy as lip
from lipdeploy.errors import InputError
from tests.export.running import export_and_compare


class OfTheBatch(nn.Module):
    def __init__(self, change: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(6, 3), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.linear(x), x.shape[0])


CHANGES = {
    "one": lambda y, n: y / 2 if n > 1 else y,
    "twenty": lambda y, n: y / 2 if n > 20 else y,
    "a thousand": lambda y, n: y / 2 if n > 1000 else y,
    "at least sixteen": lambda y, n: y if n >= 16 else 2 * y,
    "even": lambda y, n: y if n % 2 == 0 else 2 * y,
}


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_path_that_depends_on_the_batch_is_refused(change, rows, tmp_path):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"fixes its batch size|depends on its batch size") as caught:
        lip.export(OfTheBatch(change), torch.randn(rows, 6), tmp_path / "model.onnx")
    assert "--static-batch" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_it_may_be_exported_for_one_size(tmp_path):
    torch.manual_seed(0)
    lip.export(OfTheBatch(CHANGES["even"]), torch.randn(4, 6), tmp_path / "model.onnx", dynamic_batch=False)


def test_sizes_that_only_shape_the_result_are_no_path(tmp_path):
    torch.manual_seed(0)
    export_and_compare(OfTheBatch(lambda y, n: y.view(n, -1)), (6,), tmp_path)


def two_rows_at_least(y: Tensor, n: int) -> Tensor:
    if n == 1:
        raise ValueError("two rows at least")
    return y


def test_a_network_that_cannot_take_one_row_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot run on an input of shape \(1, 6\): two rows at least"):
        lip.export(OfTheBatch(two_rows_at_least), torch.randn(2, 6), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
