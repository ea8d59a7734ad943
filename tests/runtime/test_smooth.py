"""Tanh and Sigmoid of the float64 program, written out in sums and products, against mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from lipdeploy.runtime.program import float64_function
from lipdeploy.verify import verify

UNIT = 2.0**-53
PROVEN = 4500 * UNIT
RANDOM = np.random.default_rng(17)


def points():
    """Everywhere it matters: the seams (0, 20, 40), every size, both signs."""
    sizes = 10.0 ** RANDOM.uniform(-320, 308, 300)
    usual = RANDOM.uniform(0.0, 45.0, 1200)
    seams = [s + d for s in (0.0, 20.0, 40.0) for d in (-1e-9, -1e-15, 0.0, 1e-15, 1e-9)]
    both = np.concatenate([sizes, usual, np.abs(seams), [5e-324, 2.0**-1022, 1.7e308, 0.5, 1.0]])
    return np.concatenate([both, -both])


def truth(operator, x):
    with mpmath.workprec(200):
        if operator == "Tanh":
            return [mpmath.tanh(mpmath.mpf(v)) for v in x]
        if operator == "Gelu":
            return [mpmath.mpf(v) / 2 * mpmath.erfc(-mpmath.mpf(v) / mpmath.sqrt(2)) for v in x]
        if operator == "Softplus":
            return [mpmath.log1p(mpmath.exp(v)) if v < 1e3 else mpmath.mpf(v) for v in x]
        if operator == "Elu":
            return [mpmath.mpf(v) if v > 0 else mpmath.expm1(max(v, -1e3)) for v in x]
        return [1 / (1 + mpmath.exp(-mpmath.mpf(v))) if abs(v) < 1e5 else mpmath.mpf(int(v > 0)) for v in x]


@pytest.mark.parametrize("operator", ["Tanh", "Sigmoid"])
def test_the_error_stays_below_what_is_proven(parse, operator):
    function = float64_function(parse(f"g (double[N,1] x) => (double[N,1] y) {{ y = {operator}(x) }}"))
    x = points()
    found = function(x[:, None])[:, 0]
    with mpmath.workprec(200):
        errors = [abs(mpmath.mpf(float(f)) - t) for f, t in zip(found, truth(operator, x), strict=True)]
    worst = float(max(errors))
    assert worst <= PROVEN
    assert worst > 0.0, "no float program is exact here"
    if operator == "Tanh":
        assert np.array_equal(function(-x[:, None])[:, 0], -found), "odd"
        assert np.all(np.abs(found) <= 1.0)
    else:
        assert np.all((found >= 0.0) & (found <= 1.0))


TEXT = """g (float[N,5] x) => (float[N,3] y) {
    h = Gemm<transB=1>(x, w1, b1)\n a = OPERATOR(h)\n y = Gemm<transB=1>(a, w2, b2)
}"""


def network(parse, operator):
    return parse(
        TEXT.replace("OPERATOR", operator),
        w1=(RANDOM.standard_normal((16, 5)) * 3).astype(np.float32), b1=RANDOM.standard_normal(16).astype(np.float32),
        w2=RANDOM.standard_normal((3, 16)).astype(np.float32), b2=RANDOM.standard_normal(3).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("operator", ["Tanh", "Sigmoid", "Gelu", "Softplus", "Elu"])
def test_such_networks_answer_in_float64_only(parse, operator, library, monkeypatch):
    if not library:
        monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", "")
    model = network(parse, operator)
    data = model.SerializeToString()
    error = verify(data).numeric_error
    assert error["f64"] is not None and error["f32"] is None and error["tf32"] is None
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(data, certify="f32")
    session = CertifiedSession(data, certify="f64", threads=1)
    x = RANDOM.standard_normal((20, 5)).astype(np.float32) * 10.0 ** RANDOM.uniform(-3, 3, (20, 1)).astype(np.float32)
    found = session.predict(x)
    assert found.guarantee == "deployed" and (found.radius > 0).sum() > 10
    stored = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(tuple(t.dims)) for t in model.graph.initializer}
    with mpmath.workprec(200):
        for row, logits in zip(x, found.logits, strict=True):
            hidden = stored["w1"].astype(object) @ [mpmath.mpf(float(v)) for v in row]
            hidden = truth(operator, [h + mpmath.mpf(float(b)) for h, b in zip(hidden, stored["b1"], strict=True)])
            exact = stored["w2"].astype(object) @ np.array(hidden, dtype=object)
            norm = mpmath.sqrt(sum(mpmath.mpf(float(v)) ** 2 for v in row))
            for value, score, bias in zip(logits, exact, stored["b2"], strict=True):
                assert (
                    abs(mpmath.mpf(float(value)) - score - mpmath.mpf(float(bias)))
                    <= error["f64"].c0 + error["f64"].c1 * norm
                )
    adaptive = CertifiedSession(data, certify="adaptive", threads=1).predict(x)
    assert set(adaptive.program) == {"f64"} and np.array_equal(adaptive.radius, found.radius)


@pytest.mark.parametrize("operator", ["Sin", "Atan", "Asinh"])
def test_others_are_still_unknown(parse, operator):
    data = network(parse, operator).SerializeToString()
    assert verify(data).numeric_error["f64"] is None
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(data)
