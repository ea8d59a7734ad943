"""A client sends one input with fewer rows than the other; another client's rows would close the gap.

Triton's Python backend hands over several requests at once, and they run as one batch. Two malformed requests, 2 + 3
and 3 + 2 rows, add up to an even batch in which a row of one client meets a row of the other: certified answers about
inputs that nobody sent. Each uneven request must fail alone, and the even one beside it must get its own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.serve.triton import TritonPythonModel

Array = np.ndarray[Any, Any]


class _Model:
    """Two inputs, answered by their sum; refuses what ``EmbeddedModel`` refuses."""

    outputs: Mapping[str, Any] = {"label": None}

    def answer(self, arrays: Mapping[str, Array], parameters: Any, names: Sequence[str] | None) -> dict[str, Array]:
        if len({len(array) for array in arrays.values()}) > 1:
            raise InputError("batch sizes differ")
        return {"label": arrays["a"][:, 0] + arrays["b"][:, 0]}


def _request(a: Sequence[float], b: Sequence[float]) -> tuple[dict[str, Array], dict[str, Any], list[str]]:
    arrays = {"a": np.array(a, np.float32)[:, None], "b": np.array(b, np.float32)[:, None]}
    return arrays, {}, ["label"]


def _answers(*requests: tuple[dict[str, Array], dict[str, Any], list[str]]) -> list[Any]:
    backend = TritonPythonModel()
    backend._model = _Model()  # type: ignore[assignment]
    return backend._together(requests)


def test_uneven_requests_fail_alone() -> None:
    first, second, fine = _answers(_request([1, 2], [10, 20, 30]), _request([3, 4, 5], [40, 50]), _request([6], [60]))
    assert isinstance(first, InputError) and isinstance(second, InputError)
    assert fine["label"].tolist() == [66.0]


def test_even_requests_still_run_together() -> None:
    answers = _answers(_request([1, 2], [10, 20]), _request([3], [30]))
    assert [answer["label"].tolist() for answer in answers] == [[11.0, 22.0], [33.0]]
