"""``lipdeploy verify``: the gate, one model or many, for people and for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lipdeploy.cli import judging, schema
from tests.cli.conftest import BROKEN, Cli, write_model

TRUE_CONSTANT = 0.75
FORGED = """
<ir_version: 9, opset_import: ["": 20]>
forged (float[N, 2] x) => (float[N, 2] y) { ["x\\nok.onnx  verified"] y = Det3 (x) }
"""


def check(document: object) -> None:
    """The document follows the published schema."""
    jsonschema.Draft202012Validator(json.loads(schema.read("verify-report/v1"))).validate(document)


def test_a_proven_model_is_code_0(cli: Cli, dense: Path) -> None:
    result = cli("verify", dense)
    assert (result.code, result.err) == (0, "")
    header, row = result.out.splitlines()[:2]
    assert header.split("  ")[0] == "model"
    assert row.split()[:3] == [str(dense), "verified", "l2"]
    assert TRUE_CONSTANT <= float(row.split()[3]) <= TRUE_CONSTANT * (1 + 1e-6)
    assert "A1" in result.out


@pytest.mark.parametrize(("limit", "code", "status"), [("0.76", 0, "verified"), ("0.7", 1, "exceeded")])
def test_the_limit_decides_between_0_and_1(limit: str, code: int, status: str, cli: Cli, dense: Path) -> None:
    result = cli("verify", dense, "--max-lipschitz", limit, "--json")
    assert result.code == code
    (model,) = result.document["models"]
    assert (model["status"], model["max_lipschitz"]) == (status, float(limit))


def test_json_is_one_document_that_follows_the_schema(cli: Cli, dense: Path) -> None:
    result = cli("verify", dense, "--json")
    assert result.err == ""
    check(result.document)
    (model,) = result.document["models"]
    assert model["path"] == str(dense)
    assert TRUE_CONSTANT <= model["lipschitz_bound"] <= TRUE_CONSTANT * (1 + 1e-9)
    assert float.fromhex(model["lipschitz_bound_hex"]) == model["lipschitz_bound"]
    assert model["pairwise"] is True
    assert {node["op"] for node in model["nodes"]} >= {"MatMul"}


def test_format_json_is_json(cli: Cli, dense: Path) -> None:
    check(cli("verify", dense, "--format", "json").document)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_norm_is_the_one_asked_for(norm: str, cli: Cli, dense: Path) -> None:
    result = cli("verify", dense, "--norm", norm, "--json")
    (model,) = result.document["models"]
    assert (result.code, model["norm"]) == (0, norm)
    assert TRUE_CONSTANT <= model["lipschitz_bound"] <= TRUE_CONSTANT * (1 + 1e-9)


def test_an_unknown_operator_is_refused_by_name(cli: Cli, unknown: Path) -> None:
    result = cli("verify", unknown)
    assert result.code == 3
    assert "LIP001" in result.out
    assert "wobble" in result.out
    assert "Det3" in result.out
    assert "lipdeploy explain LIP001" in result.out


def test_a_refusal_in_json(cli: Cli, unknown: Path) -> None:
    result = cli("verify", unknown, "--json")
    check(result.document)
    (model,) = result.document["models"]
    assert (result.code, model["status"], model["lipschitz_bound"]) == (3, "refused", None)
    assert model["refusals"][0]["code"] == "LIP001"


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_input_is_one_line_and_code_2(kind: str, cli: Cli, broken: dict[str, Path]) -> None:
    result = cli("verify", broken[kind])
    assert (result.code, result.out) == (2, "")
    assert str(broken[kind]) in result.error
    assert "(try: " in result.error


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_input_in_json_is_still_one_document(kind: str, cli: Cli, broken: dict[str, Path]) -> None:
    result = cli("verify", broken[kind], "--json")
    check(result.document)
    assert (result.code, result.document["models"]) == (2, [])
    (problem,) = result.document["errors"]
    assert (problem["path"], problem["exit_code"]) == (str(broken[kind]), 2)


def test_several_models_are_all_reported_and_the_worst_decides(
    cli: Cli, dense: Path, unknown: Path, broken: dict[str, Path]
) -> None:
    paths = (broken["missing"], dense, unknown, broken["foreign"])
    result = cli("verify", *paths, "--max-lipschitz", "0.1", "--json")
    check(result.document)
    assert result.code == 3
    assert [model["status"] for model in result.document["models"]] == ["exceeded", "refused"]
    assert [problem["path"] for problem in result.document["errors"]] == [str(paths[0]), str(paths[3])]
    assert len(result.err.splitlines()) == 2
    assert cli("verify", dense, broken["missing"]).code == 2
    assert cli("verify", dense, dense).code == 0


def test_a_crash_on_one_model_hides_neither_the_others_nor_itself(
    cli: Cli, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = judging.verdict_of
    odd = dense.parent / "odd.onnx"

    def judge(target: judging.Target, request: judging.Request, *rest: Any) -> object:
        if target.path == str(odd):
            raise ZeroDivisionError("odd")
        return real(target, request, *rest)

    monkeypatch.setattr(judging, "verdict_of", judge)
    result = cli("verify", odd, dense, "--json")
    check(result.document)
    assert (result.code, result.document["models"][0]["status"]) == (5, "verified")
    assert result.document["errors"][0]["exit_code"] == 5
    assert "internal error: ZeroDivisionError: odd" in result.error
    assert "Traceback" in cli("verify", odd, "--debug").err


def test_output_is_written_whole_and_nothing_is_printed(cli: Cli, dense: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    result = cli("verify", dense, "--json", "--output", target)
    assert (result.code, result.out) == (0, "")
    assert result.err == f"report written to {target}\n"
    check(json.loads(target.read_text()))
    cli("verify", dense, "--output", tmp_path / "report.txt")
    assert str(dense) in (tmp_path / "report.txt").read_text()


@pytest.mark.parametrize("where", ["no/such/folder/r.json", "."])
def test_an_unwritable_output_is_one_line_and_code_2(where: str, cli: Cli, dense: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = cli("verify", dense, "--output", tmp_path / where)
    assert (result.code, result.out) == (2, "")
    assert "cannot be written" in result.error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_output_does_not_hide_a_worse_verdict(cli: Cli, unknown: Path, tmp_path: Path) -> None:
    result = cli("verify", unknown, "--output", tmp_path / "no" / "r.json")
    assert result.code == 3
    assert "cannot be written" in result.error


def test_the_report_does_not_overwrite_a_model(cli: Cli, dense: Path, tmp_path: Path) -> None:
    before = dense.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(dense)
    result = cli("verify", dense, "--output", link)
    assert result.code == 2
    assert "is one of the models" in result.error
    assert dense.read_bytes() == before


def test_a_certificate_beside_the_model_is_written_and_then_checked(cli: Cli, dense: Path) -> None:
    beside = dense.with_suffix(".cert.json")
    result = cli("verify", dense, "--write-certificate")
    assert result.code == 0
    assert f"certificate written to {beside}" in result.out
    certificate = json.loads(beside.read_text())
    jsonschema.Draft202012Validator(json.loads(schema.read("certificate/v1"))).validate(certificate)
    assert float.fromhex(certificate["statement"]["lipschitz_bound_hex"]) >= TRUE_CONSTANT
    assert cli("verify", dense).code == 0
    first = beside.read_bytes()
    assert cli("verify", dense, "--write-certificate").code == 0
    assert beside.read_bytes() == first


def test_a_certificate_that_claims_too_much_is_code_4(cli: Cli, dense: Path) -> None:
    cli("verify", dense, "--write-certificate")
    beside = dense.with_suffix(".cert.json")
    certificate = json.loads(beside.read_text())
    certificate["statement"]["lipschitz_bound"] = "0.5"
    certificate["statement"]["lipschitz_bound_hex"] = (0.5).hex()
    beside.write_text(json.dumps(certificate))
    result = cli("verify", dense, "--json")
    check(result.document)
    assert (result.code, result.document["models"][0]["status"]) == (4, "integrity")
    assert cli("verify", dense).code == 4


def test_a_stale_certificate_is_replaced_when_asked_for(cli: Cli, dense: Path, tmp_path: Path) -> None:
    dense.with_suffix(".cert.json").write_text("{}")
    assert cli("verify", dense, "--write-certificate", tmp_path / "elsewhere.json").code == 4
    assert not (tmp_path / "elsewhere.json").exists()
    assert cli("verify", dense, "--write-certificate").code == 0
    assert cli("verify", dense).code == 0


@pytest.mark.parametrize("path", ["dense.cert.json", "./dense.cert.json", "link/dense.cert.json", "alias.json"])
def test_a_stale_certificate_is_replaced_under_any_name_of_its_own(
    path: str, cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense.with_suffix(".cert.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "alias.json").symlink_to("dense.cert.json")
    assert cli("verify", "dense.onnx", "--write-certificate", path).code == 0
    assert cli("verify", dense).code == 0
    assert json.loads(dense.with_suffix(".cert.json").read_text())["schema"] == "lipdeploy/certificate/v1"


def test_the_certificate_goes_where_it_is_told(cli: Cli, dense: Path, tmp_path: Path) -> None:
    assert cli("verify", dense, "--write-certificate", tmp_path / "c.json").code == 0
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "lipdeploy/certificate/v1"


def test_a_model_after_the_option_is_not_overwritten(cli: Cli, dense: Path, unknown: Path) -> None:
    before = dense.read_bytes()
    for words in (("--write-certificate", dense, unknown), (unknown, "--write-certificate", dense)):
        result = cli("verify", *words)
        assert result.code == 2
        assert "does not end in .json" in result.error
    assert dense.read_bytes() == before


def test_one_certificate_path_for_two_models_is_a_usage_error(cli: Cli, dense: Path, tmp_path: Path) -> None:
    result = cli("verify", dense, dense, "--write-certificate", tmp_path / "c.json")
    assert (result.code, (tmp_path / "c.json").exists()) == (2, False)
    assert "for 2 models" in result.error


@pytest.mark.parametrize("words", [("--max-lipschitz", "0.1"), ("--graph-output", "nothing")])
def test_no_certificate_without_a_proof_within_the_limit(words: tuple[str, ...], cli: Cli, dense: Path) -> None:
    assert cli("verify", dense, *words, "--write-certificate").code != 0
    assert not dense.with_suffix(".cert.json").exists()


def test_an_unwritable_certificate_is_one_line_and_code_2(cli: Cli, dense: Path, tmp_path: Path) -> None:
    result = cli("verify", dense, "--write-certificate", tmp_path / "no" / "c.json")
    assert result.code == 2
    assert "c.json" in result.error


def test_seconds_without_a_search_are_a_usage_error(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ((), ("--method", "product")):
        result = cli("verify", dense, "--search-seconds", "5", *words)
        assert (result.code, result.out) == (2, "")
        assert "--search-seconds: nothing is searched for (try: --method lmi or best" in result.error
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lipdeploy.toml").write_text('[[models]]\npath = "dense.onnx"\nmethod = "best"\n')
    assert cli("verify", "--search-seconds", "0").code == 0


@pytest.mark.parametrize("suffix", [".onnx", ".cert.json", ".sig.json", ".onnx.data", ".onnx_data"])
def test_a_touched_file_stands_for_the_model_beside_it(suffix: str, cli: Cli, dense: Path) -> None:
    beside = str(dense).removesuffix(".onnx") + suffix
    result = cli("verify", "--touched", beside, dense, "--json")
    assert [model["path"] for model in result.document["models"]] == [str(dense)]
    dense.write_bytes(b"")
    assert cli("verify", "--touched", beside).code == 2


def test_touched_files_of_no_model_are_nothing_to_verify(cli: Cli, dense: Path, broken: dict[str, Path]) -> None:
    baseline = dense.parent / "baselines" / "dense.cert.json"
    result = cli("verify", "--touched", baseline)
    assert (result.code, result.out) == (0, "")
    assert result.err == "no model lies beside the files that changed: nothing to verify\n"
    assert cli("verify", "--touched", baseline, broken["missing"]).code == 2
    assert cli("verify", "--touched").code == 2  # as without it: no model is named, and no configuration


def test_a_model_cannot_forge_a_line_of_the_report(cli: Cli, tmp_path: Path) -> None:
    result = cli("verify", write_model(tmp_path / "forged.onnx", FORGED))
    assert result.code == 3
    assert not any(line.startswith("ok.onnx") for line in result.out.splitlines())


def test_the_estimate_is_below_the_bound(cli: Cli, dense: Path) -> None:
    pytest.importorskip("onnxruntime")
    (model,) = cli("verify", dense, "--estimate", "--json").document["models"]
    assert model["lower_estimate"] <= TRUE_CONSTANT * (1 + 1e-6)
    assert math.isclose(model["lower_estimate"], TRUE_CONSTANT, rel_tol=0.05)
