"""Multipliers that travel in the certificate: re-checked without a search, never believed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from tests.prove.test_multipliers import normalised, saved


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
