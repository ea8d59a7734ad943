"""``lipdeploy diff``: what changed, and whether it got worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lipdeploy.cli import schema
from tests.cli.conftest import DENSE, Cli, write_model

CHAIN = """
<ir_version: 9, opset_import: ["": 20]>
chain (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {GAIN, 0.0, 0.0, 0.5}, float[2, 2] v = {1.0, 0.0, 0.0, 0.5}> {
  [FIRST] h = MatMul (x, w)
  [middle] a = ACTIVATION (h)
  [last] y = MatMul (a, v)
}
"""


def chain(path: Path, first: str = "first", activation: str = "Relu", gain: float = 1.0) -> Path:
    text = CHAIN.replace("FIRST", first).replace("ACTIVATION", activation).replace("GAIN", str(gain))
    return write_model(path, text)


def difference(cli: Cli, *words: object, code: int = 0) -> dict[str, Any]:
    """The document that ``diff --json`` prints, which follows its schema."""
    result = cli("diff", *words, "--json")
    assert result.code == code, result.err
    jsonschema.Draft202012Validator(json.loads(schema.read("diff/v1"))).validate(result.document)
    return dict(result.document)


def names(nodes: list[dict[str, Any]]) -> list[str]:
    return [node["name"] for node in nodes]


def test_a_model_does_not_differ_from_itself_nor_from_its_certificate(cli: Cli, dense: Path) -> None:
    cli("verify", dense, "--write-certificate")
    certificate = dense.with_suffix(".cert.json")
    for old in (dense, certificate):
        for new in (dense, certificate):
            found = difference(cli, old, new)
            assert (found["same_meaning"], found["comparable"], found["worse"]) == (True, True, False)
            assert found["nodes"] == {"added": [], "removed": [], "renamed": [], "gains": []}
    assert cli("diff", dense, certificate).out.endswith("Both mean the same; the new bound is not worse.\n")


def test_a_larger_bound_is_code_1_and_a_smaller_one_code_0(cli: Cli, tmp_path: Path) -> None:
    one, two = chain(tmp_path / "one.onnx"), chain(tmp_path / "two.onnx", gain=2.0)
    worse = difference(cli, one, two, code=1)
    assert (worse["worse"], worse["same_meaning"]) == (True, False)
    assert worse["old"]["lipschitz_bound"] == pytest.approx(1.0)
    assert worse["new"]["lipschitz_bound"] == pytest.approx(2.0)
    assert names(worse["nodes"]["gains"]) == ["first"]
    assert difference(cli, two, one)["worse"] is False
    result = cli("diff", one, two)
    assert result.code == 1
    assert "gain of 'first': 1.00" in result.out
    assert result.out.endswith("The models do not mean the same; the new bound is worse.\n")


def test_nodes_added_removed_and_renamed(cli: Cli, tmp_path: Path) -> None:
    old = chain(tmp_path / "old.onnx")
    renamed = difference(cli, old, chain(tmp_path / "renamed.onnx", first="start"))["nodes"]
    assert renamed == {"added": [], "removed": [], "renamed": [{"old": "first", "new": "start"}], "gains": []}
    swapped = difference(cli, old, chain(tmp_path / "swapped.onnx", activation="Sigmoid"))["nodes"]
    assert (names(swapped["added"]), names(swapped["removed"])) == (["middle"], ["middle"])
    assert (swapped["added"][0]["op"], swapped["removed"][0]["op"]) == ("Sigmoid", "Relu")
    text = cli("diff", old, tmp_path / "swapped.onnx").out
    assert "node added: 'middle' (Sigmoid), gain ≤ 0.25" in text
    assert "node removed: 'middle' (Relu), gain ≤ 1" in text


def test_the_numeric_error_and_the_class_pairs_are_shown(cli: Cli, tmp_path: Path) -> None:
    found = difference(cli, chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", gain=2.0), code=1)
    for mode in ("f32", "f64"):
        assert found["new"]["numeric_error"][mode]["c1"] > found["old"]["numeric_error"][mode]["c1"]
    assert found["new"]["pairwise"] > found["old"]["pairwise"]


def test_models_are_proven_in_the_norm_of_the_certificate(cli: Cli, dense: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "c.json"
    cli("verify", dense, "--norm", "linf", "--write-certificate", certificate)
    found = difference(cli, certificate, dense)
    assert (found["old"]["norm"], found["new"]["norm"], found["new"]["kind"]) == ("linf", "linf", "model")


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_norm_can_be_chosen(norm: str, cli: Cli, dense: Path) -> None:
    assert difference(cli, dense, dense, "--norm", norm)["new"]["norm"] == norm


def test_different_norms_are_reported_and_not_compared(cli: Cli, dense: Path, tmp_path: Path) -> None:
    for norm in ("l2", "linf"):
        cli("verify", dense, "--norm", norm, "--write-certificate", tmp_path / f"{norm}.json")
    found = difference(cli, tmp_path / "l2.json", tmp_path / "linf.json", code=2)
    assert (found["comparable"], found["worse"]) == (False, None)
    result = cli("diff", tmp_path / "l2.json", tmp_path / "linf.json")
    assert "state different things: norm 'l2' and 'linf'" in result.error
    assert "their bounds cannot be compared" in result.out


def test_a_renamed_output_is_reported_and_not_compared(cli: Cli, dense: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.onnx", DENSE.replace("y)", "z)").replace("y = ", "z = "))
    cli("verify", dense, "--write-certificate", tmp_path / "c.json")
    assert difference(cli, tmp_path / "c.json", other, code=2)["new"]["output"] == "z"


def test_the_worse_problem_decides_and_both_are_reported(cli: Cli, unknown: Path, tmp_path: Path) -> None:
    result = cli("diff", tmp_path / "gone.onnx", unknown)
    assert (result.code, result.out) == (3, "")
    first, second = result.err.splitlines()
    assert "gone.onnx: No such file" in first
    assert f"{unknown}: LIP001 node 'wobble'" in second
    assert cli("diff", tmp_path / "gone.json", tmp_path / "gone.onnx").code == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("lipschitz_bound_hex", "odd"), ("pairwise", [[]]), ("numeric_error", {"f64": 3}), ("pairwise", [[None]])],
)
def test_a_malformed_certificate_is_code_4(key: str, value: object, cli: Cli, dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    cli("verify", dense, "--write-certificate", path)
    content = json.loads(path.read_text())
    content["statement"][key] = value
    path.write_text(json.dumps(content))
    result = cli("diff", path, dense)
    assert (result.code, result.out) == (4, "")
    path.write_text("{}")
    assert cli("diff", dense, path).code == 4


def test_a_certificate_beside_a_model_must_hold_unless_it_is_the_one_compared(cli: Cli, dense: Path) -> None:
    cli("verify", dense, "--write-certificate")
    before = dense.with_suffix(".cert.json")
    write_model(dense, DENSE.replace("0.75", "0.8"))
    assert cli("diff", dense, dense).code == 4
    assert difference(cli, before, dense, code=1)["same_meaning"] is False


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.0 + 5e-10, 0), (1.0 + 2e-9, 1), (1.0 - 1e-3, 0)])
def test_worse_is_more_than_proofs_differ_between_machines(
    factor: float, code: int, cli: Cli, dense: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    cli("verify", dense, "--write-certificate", old)
    content = json.loads(old.read_text())
    bound = float.fromhex(content["statement"]["lipschitz_bound_hex"]) * factor
    content["statement"].update(lipschitz_bound=repr(bound), lipschitz_bound_hex=bound.hex())
    new.write_text(json.dumps(content))
    assert difference(cli, old, new, code=code)["worse"] is bool(code)
