"""The liar's two classes have equal scores, or scores that are equal only after rounding to float32.

argmax returns the first class, and a radius computed from a gap of zero with ε = 0 could count as "certified".
A tie has radius 0; a gap smaller than the program's own error has radius 0; and the gap is taken before any cast to
float32.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy.verify import ErrorBound
from lipdeploy.verify.radius import certified_rows, float32_down

PAIRS = np.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("guarantee", ["deployed", "network"])
@pytest.mark.parametrize("error", [ErrorBound(0.0, 0.0, np.inf), ErrorBound(1e-9, 1e-9, 1e30)])
def test_a_tie_has_no_radius(guarantee: str, error: ErrorBound) -> None:
    rows = certified_rows(np.array([[1.5, 1.5], [0.0, -0.0]]), np.ones(2), PAIRS, error, guarantee)
    assert rows.radius.tolist() == [0.0, 0.0]
    assert rows.margin.tolist() == [0.0, 0.0]


def test_a_gap_below_the_error_has_no_radius() -> None:
    error = ErrorBound(1e-6, 0.0, np.inf)
    rows = certified_rows(np.array([[1.0, 1.0 - 3.9e-6], [1.0, 1.0 - 4.1e-6]]), np.ones(2), PAIRS, error, "deployed")
    assert rows.radius[0] == 0.0
    assert rows.radius[1] > 0.0


def test_scores_that_tie_only_in_float32() -> None:
    logits = np.array([[1.0, 1.0 + 1e-12]])
    assert logits.astype(np.float32).argmax() == 0
    rows = certified_rows(logits, np.ones(1), PAIRS, ErrorBound(0.0, 0.0, np.inf), "network")
    assert rows.label.tolist() == [1]
    assert 0.0 < float32_down(rows.radius)[0] <= logits[0, 1] - 1.0
