"""An activation that cancels in real numbers: (x + 3) − x is 3 for every x, so its Lipschitz constant is 0.

Judged as one function (Lemma S9) it lets nothing through, and margin / 0 would certify every input there is. But the
program that runs adds and subtracts: from 2²⁵ on, binary32 has no odd numbers, x + 3 is rounded, and the class changes.
So the smaller bound may shrink the network's constant only, never what rounding is allowed to cost.

Beside it, functions that only look like one of a single tensor, and would be bounded too low as one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import lipdeploy as lip
from lipdeploy.verify import verify
from tests.verify.models import best_ratio, double_runner

CANCELS = """<ir_version: 10, opset_import: ["": 20]>
g (float[N,1] x) => (float[N,2] y) <float three = {3}, float[1,2] w = {1, 0}, float[2] b = {0, 1.5}>
{ a = Add(x, three) t = Sub(a, x) m = MatMul(t, w) y = Add(m, b) }"""

START = np.array([[1.0], [1e3], [-7e4], [3e6]], np.float32)


@pytest.fixture
def cancelling(tmp_path: Path) -> Path:
    path = tmp_path / "cancels.onnx"
    onnx.save(parser.parse_model(CANCELS), path)
    return path


def neighbours(start: float, radius: float) -> np.ndarray:
    """Float32 numbers within ``radius`` of ``start``, at every scale."""
    rng = np.random.default_rng(0)
    reach = radius * 10.0 ** -rng.uniform(0, 12, 4000) * rng.choice([-1, 1], 4000)
    found = (start + np.clip(reach, -1e30, 1e30)).astype(np.float32)
    return found[np.abs(found.astype(np.float64) - start) <= radius][:, None]


def test_the_network_is_constant_and_its_program_is_not(cancelling: Path) -> None:
    """What a radius of margin / constant would be worth."""
    assert float(verify(cancelling).lipschitz_bound) == 0.0
    labels = lip.CertifiedSession(cancelling, certify="f32").predict(np.array([[1], [2**28]], np.float32)).label
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["f32", "f64", "adaptive"])
def test_no_number_within_the_radius_changes_the_class(cancelling: Path, mode: str) -> None:
    session = lip.CertifiedSession(cancelling, certify=mode)
    answer = session.predict(START)
    assert answer.radius[0] > 1e3, "the attack is vacuous where nothing is certified"
    for row in range(len(START)):
        others = neighbours(float(START[row, 0]), float(answer.radius[row]))
        assert (session.predict(others).label == answer.label[row]).all()


FUNCTION = '<domain: "other", opset_import: ["": 20]> Relu (x) => (y) { n = Neg(x) d = Add(n, n) y = Sub(d, x) }'
LOOKALIKES = {
    "another number in the last channel": ("float[3] c = {1, 1, -1}", "m = Mul(x, c) r = Relu(m) y = Sub(r, x)"),
    "the entries in another order": (
        "int64[3] c = {2, 0, 1}",
        "p = Gather<axis = 1>(x, c) n = Neg(p) r = Max(n, x) y = Sub(r, x)",
    ),
    "a function of the file with the operator's name": ("float c = {1}", "r = other.Relu(x) y = Sub(r, x)"),
}


@pytest.mark.parametrize(("constants", "body"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_what_only_looks_like_one_function(constants: str, body: str) -> None:
    proto = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20, "other": 1]>
        g (float[N,3] x) => (float[N,3] y) <{constants}> {{ {body} }}
        {FUNCTION}"""
    )
    verdict = verify(proto.SerializeToString(), norm="linf")
    seen = best_ratio(double_runner(proto), (3,), "linf", samples=256, rounds=6)
    assert seen > 1.5
    assert verdict.status == "refused" or verdict.lipschitz_bound.value >= seen * (1 - 1e-9)
