"""Attacks on certificates for several parts of one graph.

The claims name the tensors that their parts end in. A liar may give one part's multipliers to another, name tensors
that are no ends, that overlap, that do not exist, that are the input or a weight, or very many of them; may take a row
out of a certificate, or name a tensor that only seems to carry everything. Nothing below the truth comes out.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from lipdeploy.verify.check import walked
from tests.verify.models import best_ratio, double_runner
from tests.verify.test_segments import RULE, network, three, weights


@pytest.fixture(scope="module")
def honest() -> tuple[bytes, dict[str, tuple[np.ndarray, ...]], float, float]:
    """(model, its hints, a lower bound of its constant, the product)."""
    proto = three()
    data = proto.SerializeToString()
    hints, product = find(data, seconds=3.0), verify(data).lipschitz_bound
    assert hints is not None and product is not None
    return data, hints, best_ratio(double_runner(proto), (6,), rounds=12), product.value


def bound(data: bytes, hints: object) -> float:
    verdict = verify(data, method="best", hints=hints)  # type: ignore[arg-type]
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None
    return verdict.lipschitz_bound.value


def test_multipliers_of_one_part_for_another(honest) -> None:  # type: ignore[no-untyped-def]
    data, hints, truth, product = honest
    for order in itertools.permutations(hints):
        assert truth <= bound(data, dict(zip(order, hints.values(), strict=True))) <= product


def test_names_that_are_no_ends(honest) -> None:  # type: ignore[no-untyped-def]
    """Not there, the input, a weight, what no reader knows, Python's own names, an empty one."""
    data, hints, _, product = honest
    for name in ("nowhere", "x", "A", "p1", "", "__class__", "y\x00"):
        assert bound(data, {name: hints["p"]}) == product
    for value in ((), [None], [np.ones(3)], [hints["p"]], [[1.0] * 16]):
        assert bound(data, {"p": value}) == product


def test_parts_that_overlap(honest) -> None:  # type: ignore[no-untyped-def]
    """A claim for a tensor inside another part counts only once: the later end is not multiplied by it."""
    data, hints, truth, _ = honest
    alone = bound(data, hints)
    inside = {"v": (), "h": (hints["p"][0],), "w": (), "g": (hints["q"][0],), "z": (*hints["y"][:1],)}
    assert truth <= bound(data, {**inside, **hints}) <= alone
    assert truth <= bound(data, inside)


def test_very_many_names_do_not_cost_more_time(honest) -> None:  # type: ignore[no-untyped-def]
    data, hints, _, product = honest
    started = time.process_time()
    assert bound(data, {f"t{k}": hints["p"] for k in range(200_000)}) == product
    assert time.process_time() - started < 5.0


def test_a_row_that_was_taken_out(honest, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The bound of three certificates with the rows of two of them: the claim fails."""
    data, hints, _, _ = honest
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    beside = path.with_suffix(".cert.json")
    verify(path, method="best", hints=hints).write_certificate(beside)
    whole = json.loads(beside.read_text())
    rows = [node for node in whole["nodes"] if node["rule"] == RULE]
    assert len(rows) == 3
    for row in rows:
        beside.write_text(json.dumps({**whole, "nodes": [node for node in whole["nodes"] if node is not row]}))
        assert verify(path).status == "integrity"
        renamed = [{**node, "name": "nowhere"} if node is row else node for node in whole["nodes"]]
        beside.write_text(json.dumps({**whole, "nodes": renamed}))
        assert verify(path).status == "integrity"
    swapped = [node for node in whole["nodes"] if node["rule"] != RULE]
    swapped += [{**row, "hints": other["hints"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    beside.write_text(json.dumps({**whole, "nodes": swapped}))
    assert verify(path).status == "integrity"
    beside.write_text(json.dumps(whole))
    assert verify(path).status == "verified"


PASSES_BY = "v = Gemm<transB = 1>(x, A) h = Relu(v) p = Gemm<transB = 1>(h, B) c = Clip(p) "
BRANCHES = {
    "what the part starts from, again": PASSES_BY + "w = Gemm<transB = 1>(c, C) g = Relu(w) q = Gemm<transB = 1>(g, D) "
    "k = Clip(q) y = Add(k, c)",
    "what lies inside the part, again": PASSES_BY + "w = Gemm<transB = 1>(c, C) g = Relu(w) q = Gemm<transB = 1>(g, D) "
    "k = Clip(q) m = Gemm<transB = 1>(h, B) y = Sub(k, m)",
    "the part's end twice": PASSES_BY + "e = Neg(c) d = Clip(e) y = Sub(c, d)",
    "the part's end beside its start": PASSES_BY + "y = Concat<axis = 1>(c, x)",
}


@pytest.mark.parametrize("body", BRANCHES.values(), ids=BRANCHES)
def test_what_passes_by_a_part_still_counts(body: str) -> None:
    """An end that is tightened is not all that moves: the sum behind it counts every summand."""
    proto = network(body)
    data = proto.SerializeToString()
    hints = find(data, seconds=2.0)
    assert hints is not None
    truth = best_ratio(double_runner(proto), (6,), rounds=16, samples=256)
    assert truth <= bound(data, hints) <= bound(data, None)
    for scale in (1e-3, 0.3, 3.0, 1e3):
        assert truth <= bound(data, {k: [tau * scale for tau in layers] for k, layers in hints.items()})


def test_a_cut_is_one_tensor_not_one_name() -> None:
    """Two inputs of a sum, both from x, one of them around the cut: a part may not start at the other."""
    stored = weights()
    stored["A"], stored["B"] = stored["A"][:8], stored["B"][:, :8]
    body = (
        "a = Gemm<transB = 1>(x, A) b = Clip(a) c = Clip(x) d = Gemm<transB = 1>(c, A) "
        "s = Add(b, d) h = Relu(s) y = Gemm<transB = 1>(h, B)"
    )
    proto = network(body, stored=stored)
    for part in walked(proto, "l2").segments():
        assert part.output != "y" or part.source == "s"
    data = proto.SerializeToString()
    truth = best_ratio(double_runner(proto), (6,), rounds=12)
    assert truth <= bound(data, find(data, seconds=2.0))


def test_other_norms_are_not_touched() -> None:
    """The certificates are ℓ2 → ℓ2: stated about any other pair of norms they are not used."""
    proto: onnx.ModelProto = three()
    data = proto.SerializeToString()
    hints = find(data, seconds=1.0)
    for norm in ("linf", "l1", "l2-linf", "l1-linf"):
        plain = verify(data, norm=norm).lipschitz_bound
        assert plain is not None and verify(data, norm=norm, method="best", hints=hints).lipschitz_bound == plain
