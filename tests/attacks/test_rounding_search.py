"""The attacker searches for an input whose float radius is above the truth (Jin, Ohrimenko, Rubinstein 2022).

For a linear network y = w·x the exact distance to the decision boundary is |w·x| / ‖w‖. A certificate computed naively
in float32 rounds in the attacker's favour about half of the time; searching a few thousand inputs finds
certified points with an adversarial point inside the ball. Radii rounded down, with the program's error taken off,
survive the search.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from onnx import numpy_helper

from lipdeploy.verify.radius import certified_rows, float32_down, input_norm_up
from tests.verify.models import judge, model, run

DIMENSION = 40


def network(weight: np.ndarray) -> object:
    proto = model(f"g (float[N, {DIMENSION}] x) => (float[N, 2] y) {{ y = MatMul(x, W) }}")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    return proto


def test_the_search_finds_nothing() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((DIMENSION, 2)).astype(np.float32)
    proto = network(weight)
    verdict = judge(proto)
    error = verdict.numeric_error["f32"]
    assert error is not None and verdict.pairwise is not None
    x = (rng.standard_normal((3000, DIMENSION)) * 10.0 ** rng.uniform(-3, 3, (3000, 1))).astype(np.float32)
    # half of the inputs are pushed to within a few roundings of the boundary, where errors matter most
    direction = (weight[:, 0] - weight[:, 1]).astype(np.float64)
    off = (x.astype(np.float64) @ direction / (direction @ direction))[:, None] * direction
    x[::2] = (x - off * rng.uniform(1 - 1e-6, 1 + 1e-6, (3000, 1))).astype(np.float32)[::2]

    logits = run(proto, x)  # type: ignore[arg-type]
    gap = logits.max(axis=1) - logits.min(axis=1)
    naive = gap / np.linalg.norm(weight[:, 0] - weight[:, 1])
    rows = certified_rows(logits.astype(np.float64), input_norm_up(x, "l2"), verdict.pairwise, error, "deployed")
    served = float32_down(rows.radius)

    exact_weight = [Fraction(float(a)) - Fraction(float(b)) for a, b in weight]
    length_squared = sum(w * w for w in exact_weight)
    fooled = 0
    for k in range(len(x)):
        score = sum(w * Fraction(float(v)) for w, v in zip(exact_weight, x[k], strict=True))
        signed = score if rows.label[k] == 0 else -score
        distance_squared = signed * abs(signed) / length_squared  # negative: the label itself is wrong
        fooled += bool(naive[k] > 0) and Fraction(float(naive[k])) ** 2 > distance_squared
        for radius in (float(rows.radius[k]), float(served[k])):
            assert radius == 0.0 or Fraction(radius) ** 2 < distance_squared, f"false certificate at input {k}"
    assert fooled > 300, "the naive radius must fall, or the search is too weak to mean anything"
    assert (rows.radius > 0).sum() > 1000, "a certificate that is always zero proves nothing either"
