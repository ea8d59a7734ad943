"""A host's own decoder turns 1.9 into an INT8 1, and 300 into a UINT8 44: a radius around a point that nobody sent."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

from lipdeploy.serve import RequestProblem, oip

SERVE = Path(inspect.getfile(oip)).parent


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 1.9), ("INT8", "1"), ("UINT8", 300), ("INT32", True), ("BOOL", 2)]
)
def test_the_numbers_are_refused(datatype: str, value: object) -> None:
    with pytest.raises(RequestProblem):
        oip.arrays_of([("x", datatype, [1, 1], [value])])


def test_integers_out_of_range_do_not_wrap_even_where_numpy_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 1.26 wraps them with a warning only."""
    array = np.array

    def as_in_numpy_1(values, dtype=None, **more):
        return array(values, np.int64, **more).astype(dtype) if dtype is not None else array(values, **more)

    monkeypatch.setattr(oip.np, "array", as_in_numpy_1)
    with pytest.raises(RequestProblem, match="does not fit into UINT8"):
        oip.arrays_of([("x", "UINT8", [1, 1], [300])])


def test_the_mlserver_package_decodes_with_nothing_else() -> None:
    """MLServer is installed beside its own server only, so its part is read, not run (tests/conformance runs it)."""
    source = (SERVE / "mlserver.py").read_text()
    assert "arrays_of(" in source
    assert "decode_input" not in source
    assert "NumpyCodec" not in source
    assert importlib.util.find_spec("lipdeploy.serve.mlserver") is not None
