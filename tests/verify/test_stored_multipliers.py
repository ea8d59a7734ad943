"""Multipliers that travel in the certificate: re-checked without a search, never believed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from tests.prove.test_multipliers import normalised, saved
from tests.verify.models import best_ratio, double_runner, model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.onnx"
    target.write_bytes(saved("GroupSort", normalised((12, 16, 16, 4), 5)))
    verify(target, method="best", hints=find(target, seconds=2.0)).write_certificate(target.with_suffix(".cert.json"))
    return target


def edit(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    beside = path.with_suffix(".cert.json")
    content = json.loads(beside.read_text())
    change(content)
    beside.write_text(json.dumps(content))


def test_the_certificate_is_proven_again_from_its_own_hints(path: Path) -> None:
    product, best = verify(path), verify(path, method="best")
    assert product.status == best.status == "verified"
    assert best.lipschitz_bound is not None and product.lipschitz_bound is not None
    assert best.lipschitz_bound.value < 0.9 * product.lipschitz_bound.value
    stated = float.fromhex(json.loads(path.with_suffix(".cert.json").read_text())["statement"]["lipschitz_bound_hex"])
    assert best.lipschitz_bound.value <= stated <= best.lipschitz_bound.value * (1 + 1e-8)


@pytest.mark.parametrize("value", [[], 3, "x", [["nan"]], [["-0x1p0"] * 8] * 2, [[1.0] * 8] * 2, None])
def test_edited_hints_prove_nothing_and_the_claim_fails(path: Path, value: object) -> None:
    edit(path, lambda content: content["nodes"][-1]["hints"].update(multipliers=value))
    for method in ("product", "best"):
        verdict = verify(path, method=method)  # type: ignore[arg-type]
        assert verdict.status == "integrity" and verdict.refusals[0].code == "LIP022"


def test_worse_hints_do_not_carry_the_claim(path: Path) -> None:
    def doubled(content: dict) -> None:  # type: ignore[type-arg]
        row = content["nodes"][-1]["hints"]
        row["multipliers"] = [[(2 * float.fromhex(v)).hex() for v in layer] for layer in row["multipliers"]]

    edit(path, doubled)
    assert verify(path).status == "integrity"


def test_hints_of_the_caller_do_not_replace_those_of_the_certificate(path: Path) -> None:
    own = [np.full(8, 50.0), np.full(8, 50.0)]
    assert verify(path, method="best", hints=own).status == "verified"


INSIDE = """g (float[N, 6] x) => (float[N, 4] y) {
    f = Clip(x) v = Gemm<transB = 1>(f, A) h = Relu(v) w = Gemm<transB = 1>(h, B) r = Relu(w) z = Gemm<transB = 1>(r, C)
    y = Softmax(z)
}"""


def test_a_chain_in_the_middle_of_a_graph_is_stored_and_proven_again(tmp_path: Path) -> None:
    """Clip in front, Softmax behind: the certificate's row names the tensor that the chain ends in."""
    proto = model(INSIDE)
    for name, weight in zip("ABC", normalised((6, 16, 16, 4), 3), strict=True):
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    verdict = verify(path, method="best", hints=find(path, seconds=2.0))
    product = verify(path)
    assert verdict.lipschitz_bound is not None and product.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value < 0.9 * product.lipschitz_bound.value
    assert verdict.pairwise is not None and product.pairwise is not None
    assert verdict.pairwise.max() < 0.9 * product.pairwise.max()
    assert best_ratio(double_runner(proto), (6,)) <= verdict.lipschitz_bound.value
    verdict.write_certificate(path.with_suffix(".cert.json"))
    again = verify(path, method="best")
    assert again.status == "verified" and again.lipschitz_bound == verdict.lipschitz_bound
    assert [node.name for node in again.nodes if node.rule == "diagonal multipliers"] == ["z"]
    edit(path, lambda content: content["nodes"][-1]["hints"]["multipliers"].pop())
    assert verify(path, method="best").status == "integrity"


def test_an_image_of_open_size_is_in_front(tmp_path: Path) -> None:
    """Height and width unknown: no matrix can be written out for them; the chain starts where the sizes are known."""
    proto = model(
        "g (float[N, 1, H, W] x) => (float[N, 4] y) { a = Conv<pads = [1, 1, 1, 1]>(x, K) b = Relu(a) "
        "c = GlobalMaxPool(b) d = Flatten(c) v = Gemm<transB = 1>(d, A) h = Relu(v) y = Gemm<transB = 1>(h, B) }"
    )
    rng = np.random.default_rng(0)
    weights = dict(zip("AB", normalised((6, 16, 4), 3), strict=True))
    weights["K"] = (rng.standard_normal((6, 1, 3, 3)) / 5).astype(np.float32)
    for name, weight in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    data = proto.SerializeToString()
    product = verify(data)
    assert product.status == "verified", product.refusals
    tight = verify(data, method="best", hints=find(data, seconds=2.0))
    assert tight.lipschitz_bound is not None and product.lipschitz_bound is not None
    assert tight.lipschitz_bound.value < 0.95 * product.lipschitz_bound.value
