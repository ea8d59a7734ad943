"""Constants of y_i − y_j: never below what the last layer's rows say, and the right factor for the output norm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import numpy_helper

from tests.verify.models import Array, judge, model, single

DUAL = {
    "l2": lambda v: np.linalg.norm(v, 2),
    "linf": lambda v: np.abs(v).sum(),
    "l1": lambda v: np.abs(v).max(),
    "l2-linf": lambda v: np.linalg.norm(v, 2),
    "l1-linf": lambda v: np.abs(v).max(),
}


def pairs_of(text: str, norm: str = "l2", **weights: Array) -> Array:
    proto = model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    pairs = judge(proto, norm).pairwise
    assert pairs is not None
    return pairs


FORMS = {
    "Gemm": "g (float[N, 4] x) => (float[N, 3] y) { y = Gemm<transB = 1>(x, W, b) }",
    "MatMul": "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, V) }",
    "MatMul and Add": "g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, V) y = Add(b, h) }",
    "behind a layer": "g (float[N, 4] x) => (float[N, 3] y) { a = Relu(x) y = Gemm(a, V, b) }",
}


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_rows_of_the_last_layer(form: str, norm: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        weight = (rng.standard_normal((3, 4)) * 10.0 ** rng.uniform(-3, 3)).astype(np.float32)
        pairs = pairs_of(form, norm, W=weight, V=weight.T, b=rng.standard_normal(3))
        wide = weight.astype(np.float64)
        for i, j in itertools.product(range(3), repeat=2):
            truth = DUAL[norm](wide[i] - wide[j])
            assert pairs[i, j] >= truth * (1 - 1e-13)
            assert pairs[i, j] <= truth * (1 + 1e-9)


@pytest.mark.parametrize(("norm", "factor"), [("l2", 2**0.5), ("linf", 2.0), ("l1", 1.0), ("l2-linf", 2.0)])
def test_without_a_last_layer_the_output_norm_decides(norm: str, factor: float) -> None:
    """f(x) = (x, −x) has y0 − y1 = 2x: in ℓ∞ the factor is 2, and √2 would be false."""
    proto = model("g (float[N, 1] x) => (float[N, 2] y) { n = Neg(x) y = Concat<axis = 1>(x, n) }")
    pairs = judge(proto, norm).pairwise
    assert pairs is not None
    assert pairs[0, 1] >= 2.0
    plain = judge(single("Relu", (3,)), norm).pairwise
    assert plain is not None
    assert plain[0, 1] == pytest.approx(min(factor, 2**0.5 if norm == "l2-linf" else factor), rel=1e-9) or plain[
        0, 1
    ] == pytest.approx(factor, rel=1e-9)


def test_alpha_scales_the_difference() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { y = Gemm<alpha = -4.0>(x, W) }"
    pairs = pairs_of(text, W=np.eye(2))
    assert pairs[0, 1] >= 4 * 2**0.5


def test_a_bias_that_copies_the_scores() -> None:
    """One score broadcast to three: differences are constant, so any bound holds; the shape must be right."""
    pairs = pairs_of(
        "g (float[N, 2] x) => (float[N, 3] y) { h = MatMul(x, W) y = Add(h, b) }", W=np.ones((2, 1)), b=np.ones(3)
    )
    assert pairs.shape == (3, 3)


@pytest.mark.parametrize("shape", ["[N, 1]", "[N, 2, 3]"])
def test_other_outputs_have_no_pairs(shape: str) -> None:
    assert judge(f"g (float{shape} x) => (float{shape} y) {{ y = Relu(x) }}").pairwise is None


def test_the_difference_of_nearly_equal_rows_is_exact() -> None:
    weight = np.array([[1.0, 1.0], [1.0 + 2.0**-23, 1.0]])
    pairs = pairs_of("g (float[N, 2] x) => (float[N, 2] y) { y = Gemm<transB = 1>(x, W) }", W=weight)
    assert 2.0**-23 <= pairs[0, 1] <= 2.0**-23 * (1 + 1e-12)
