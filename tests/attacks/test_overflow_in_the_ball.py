"""The liar's network overflows inside the certified ball (sharp edge 10).

h = 2x twice, y0 = h1/2 − h2/2 = 0, y1 = h1/2. In float32 x = 1.6e38 is class 1 by a margin of 1.6e38, and the real
network has L = 1 and a radius to match; but at x' = 2e38, inside the ball, h overflows and the program answers NaN. The
error constants therefore carry a domain x_max, and no radius reaches beyond it.
"""

from __future__ import annotations

import numpy as np

from lipdeploy.verify.radius import certified_rows, input_norm_up
from tests.verify.models import judge, model, run

TEXT = """g (float[N, 1] x) => (float[N, 2] y) <float[1, 2] U = {2, 2}, float[2, 2] V = {0.5, 0.5, -0.5, 0}>
  { h = MatMul(x, U) y = MatMul(h, V) }"""


def test_the_radius_ends_where_the_program_overflows() -> None:
    proto = model(TEXT)
    x = np.array([[1.6e38], [1e37], [1.0]], np.float32)
    with np.errstate(all="ignore"):
        there = run(proto, np.array([[2e38]], np.float32))
        logits = run(proto, x).astype(np.float64)
    assert logits[0, 1] > 1e38 and not np.isfinite(there).all()
    verdict = judge(proto)
    error = verdict.numeric_error["f32"]
    assert error is not None and verdict.pairwise is not None
    norms = input_norm_up(x, "l2")
    rows = certified_rows(logits, norms, verdict.pairwise, error, "deployed")
    assert rows.radius[0] == 0.0
    assert np.all(norms + rows.radius <= max(error.x_max, norms[0]))
    assert np.all((norms + rows.radius)[1:] < 1.7e38), "the program overflows at 1.7e38"
    assert rows.radius[2] > 0.0
