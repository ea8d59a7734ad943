"""The liar adds a branch: x + relu(x) doubles every positive move, and 2·relu(x) does so without a branch.

"All layers are 1-Lipschitz" says 1; the truth is 2. A sum of branches adds their constants, a shared sub-graph
counts on every path, and a Concat of branches stacks them.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, model, run

CASES = {
    "x + relu(x)": ("{ r = Relu(x) y = Add(x, r) }", 2.0),
    "2 relu(x)": ("<float two = {2}> { r = Relu(x) y = Mul(r, two) }", 2.0),
    "relu(x) − (−relu(x))": ("{ r = Relu(x) n = Neg(r) y = Sub(r, n) }", 2.0),
    "shared, three times": ("{ r = Relu(x) y = Sum(r, r, r) }", 3.0),
    "shared, then doubled twice": ("{ a = Add(x, x) y = Add(a, a) }", 4.0),
    "concatenated": ("{ r = Relu(x) y = Concat<axis = 1>(x, r) }", 2**0.5),
    "twice negative": ("<float c = {-2}> { n = Mul(x, c) y = Relu(n) }", 2.0),
}


@pytest.mark.parametrize(("graph", "truth"), CASES.values(), ids=CASES.keys())
def test_branches_add_up(graph: str, truth: float) -> None:
    proto = model(f"g (float[N, 2] x) => (float[N, K] y) {graph}")
    sign = -1.0 if "-2" in graph else 1.0
    points = (sign * np.array([[1.0, 1.0], [2.0, 2.0]])).astype(np.float32)
    y = run(proto, points).astype(np.float64)
    assert np.linalg.norm(y[0] - y[1]) / 2**0.5 == pytest.approx(truth)
    assert truth * (1 - 1e-12) <= bound(proto) <= truth * (1 + 1e-9)
