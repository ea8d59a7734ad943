"""``lipdeploy inspect``: where the bound comes from."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from lipdeploy.cli import schema
from tests.cli.conftest import BROKEN, Cli, write_model

CHAIN = """
<ir_version: 9, opset_import: ["": 20]>
chain (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] tight = {0.5, 0.0, 0.0, 0.5}, float[2, 2] loose = {8.0, 0.0, 0.0, 8.0}> {
  [first] a = MatMul (x, tight)
  [second] b = MatMul (a, loose)
  [third] y = Relu (b)
}
"""


def test_the_loosest_node_comes_first(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect", write_model(tmp_path / "chain.onnx", CHAIN), "--no-estimate")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    order = [line.split()[0] for line in lines if line.split()[:1] in (["first"], ["second"], ["third"])]
    assert order == ["second", "third", "first"]
    assert any("input  x: float32 N×2" in line for line in lines)
    second = next(line.split() for line in lines if line.startswith("second"))
    assert second[1:3] == ["MatMul", "N×2"]
    assert 8.0 <= float(second[3]) <= 8.00001
    assert 4.0 <= float(second[4]) <= 4.00001


def test_bound_and_estimate_meet_on_a_linear_map(cli: Cli, dense: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = cli("inspect", dense)
    assert "The proven bound is at most 1.0" in result.out


def test_json_is_a_verify_report(cli: Cli, dense: Path) -> None:
    pytest.importorskip("onnxruntime")
    document = cli("inspect", dense, "--json").document
    jsonschema.Draft202012Validator(json.loads(schema.read("verify-report/v1"))).validate(document)
    (model,) = document["models"]
    assert 0.74 < model["lower_estimate"] <= model["lipschitz_bound"]


def test_a_refused_model_is_code_3(cli: Cli, unknown: Path) -> None:
    result = cli("inspect", unknown)
    assert result.code == 3
    assert "wobble" in result.out


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_model_is_one_line_and_code_2(kind: str, cli: Cli, broken: dict[str, Path]) -> None:
    result = cli("inspect", broken[kind])
    assert (result.code, result.out) == (2, "")
    assert str(broken[kind]) in result.error


@pytest.mark.parametrize("batch", ["1", "3"])
def test_a_fixed_batch_is_estimated_too(batch: str, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = CHAIN.replace("[N, 2]", f"[{batch}, 2]")
    (model,) = cli("inspect", write_model(tmp_path / "fixed.onnx", text), "--json").document["models"]
    assert 3.9 < model["lower_estimate"] <= model["lipschitz_bound"]


def test_an_integer_input_has_no_estimate_and_says_so(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    pixels (uint8[N, 2] x) => (float[N, 2] y) { y = Cast <to = 1> (x) }
    """
    result = cli("inspect", write_model(tmp_path / "pixels.onnx", text))
    assert result.code == 0
    assert "no estimate: the model needs exactly one floating-point input" in result.err


SORTED = """
<ir_version: 9, opset_import: ["": 20, "lipdeploy": 1]>
sorted (float[N, 4] x) => (float[N, 4] y) { y = lipdeploy.GroupSort <group_size = 2> (x) }
"""


def test_which_library_runs_the_operators(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from lipdeploy.runtime import find_library

    model, library = write_model(tmp_path / "sorted.onnx", SORTED), find_library()
    told = cli("inspect", model, "--no-estimate").out
    if library is not None:
        assert f"operators GroupSort 1; library version {library.version}" in told and library.sha256 in told
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", "")
    assert "no operator library, the function bodies would run" in cli("inspect", model, "--no-estimate").out
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", str(tmp_path / "nowhere.so"))
    assert "which is not a file" in cli("inspect", model, "--no-estimate").out
