"""``--baseline``: what is proven now must not be above what an earlier certificate states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lipdeploy.cli import schema
from tests.cli.conftest import DENSE, Cli, write_model


def model(path: Path, a: float = 0.75, b: float = 0.5) -> Path:
    """diag(a, −b)·x + c: constant max(a, b), the one class pair √(a² + b²)."""
    return write_model(path, DENSE.replace("0.75", str(a)).replace("-0.5", str(-b)))


@pytest.fixture
def baseline(cli: Cli, dense: Path, tmp_path: Path) -> Path:
    """The certificate of diag(0.75, −0.5), in a folder of baselines."""
    (tmp_path / "baselines").mkdir()
    path = tmp_path / "baselines" / "dense.cert.json"
    assert cli("verify", dense, "--write-certificate", path).code == 0
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def entry(cli: Cli, *words: object) -> dict[str, Any]:
    """The only model of a report, which follows the schema."""
    document = cli("verify", *words, "--json").document
    jsonschema.Draft202012Validator(json.loads(schema.read("verify-report/v1"))).validate(document)
    (found,) = document["models"]
    return dict(found)


def test_the_same_model_is_within_its_own_baseline(cli: Cli, dense: Path, baseline: Path) -> None:
    result = cli("verify", dense, "--baseline", baseline)
    assert (result.code, result.err) == (0, "")
    assert f"not above its baseline: baseline {baseline} states 0.75" in result.out
    assert "since then, the model means the same" in result.out
    found = entry(cli, dense, "--baseline", baseline)
    assert (found["status"], found["baseline"]["same_meaning"], found["baseline"]["regressions"]) == (
        "verified", True, [],
    )  # fmt: skip
    assert float.fromhex(found["baseline"]["lipschitz_bound_hex"]) == found["baseline"]["lipschitz_bound"] >= 0.75


def test_a_better_model_passes_and_is_said_to_have_changed(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    better = model(tmp_path / "better.onnx", a=0.5)
    result = cli("verify", better, "--baseline", baseline)
    assert result.code == 0
    assert "the model has changed" in result.out


def test_a_worse_model_is_exceeded_with_one_clear_sentence(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    worse = model(tmp_path / "worse.onnx", a=0.8)
    result = cli("verify", worse, "--baseline", baseline)
    assert result.code == 1
    (line,) = (line for line in result.out.splitlines() if "is above 0.75" in line)
    assert f"which baseline {baseline} states, and the model has changed; gains that grew: '" in line
    found = entry(cli, worse, "--baseline", baseline)
    assert (found["status"], found["max_lipschitz"], found["baseline"]["same_meaning"]) == ("exceeded", None, False)
    assert len(found["baseline"]["regressions"]) == 2  # the bound, and the class pair


def test_a_little_worse_is_worse(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    """0.75 + 2⁻²³ is the next float32 number that the file could hold: 1.6e-7 above, far beyond the head-room."""
    assert cli("verify", model(tmp_path / "w.onnx", a=0.75 + 2.0**-23), "--baseline", baseline).code == 1


def test_the_largest_class_pair_counts_too(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    """diag(0.75, −0.7) has the same constant 0.75, and √(0.75² + 0.7²) > √(0.75² + 0.5²) for its classes."""
    found = entry(cli, model(tmp_path / "w.onnx", b=0.7), "--baseline", baseline)
    (sentence,) = found["baseline"]["regressions"]
    assert sentence.startswith("the largest class-pair bound 1.02")
    assert found["status"] == "exceeded"


def test_doc_strings_do_not_change_the_meaning(cli: Cli, dense: Path, baseline: Path) -> None:
    import onnx

    proto = onnx.load(dense)
    proto.doc_string = "another story"
    dense.write_bytes(proto.SerializeToString())
    found = entry(cli, dense, "--baseline", baseline)
    assert (found["status"], found["baseline"]["same_meaning"]) == ("verified", True)


def lower_bound(content: dict[str, Any]) -> None:
    content["statement"].update(lipschitz_bound="0.7", lipschitz_bound_hex=(0.7).hex())


def lower_decimal(content: dict[str, Any]) -> None:
    content["statement"]["lipschitz_bound"] = "0.7"


def lower_pair(content: dict[str, Any]) -> None:
    content["statement"]["pairwise"][1][0] = 0.5


def lower_error(content: dict[str, Any]) -> None:
    content["statement"]["numeric_error"]["f64"]["c1"] = 0.0


def larger_inputs(content: dict[str, Any]) -> None:
    content["statement"]["numeric_error"]["f32"]["x_max"] *= 1 + 1e-8


def any_inputs(content: dict[str, Any]) -> None:
    content["statement"]["numeric_error"]["f32"]["x_max"] = None


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lower_bound, "which baseline {} states, although the model means the same"),
        (lower_decimal, "is above 0.7000000000000001, which baseline {} states"),
        (lower_pair, "1 class-pair bounds are above what baseline {} states, the first for classes 1 and 0"),
        (lower_error, "the error bound of the f64 program is above what baseline {} states"),
        (larger_inputs, "the error bound of the f32 program is above what baseline {} states"),
        (any_inputs, "the error bound of the f32 program is above what baseline {} states"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_same_model_must_hold_everything(
    change: Callable[[dict[str, Any]], None], phrase: str, cli: Cli, dense: Path, baseline: Path
) -> None:
    edit(baseline, change)
    (sentence,) = entry(cli, dense, "--baseline", baseline)["baseline"]["regressions"]
    assert phrase.format(baseline) in sentence
    assert cli("verify", dense, "--baseline", baseline).code == 1


def test_the_limit_and_the_baseline_both_speak(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    worse = model(tmp_path / "worse.onnx", a=0.9)
    text = cli("verify", worse, "--baseline", baseline, "--max-lipschitz", "0.8").out
    assert "is above the limit 0.8" in text
    assert "which baseline" in text
    rules = [
        result["ruleId"]
        for result in json.loads(
            cli("verify", worse, "--baseline", baseline, "--max-lipschitz", "0.8", "--format", "sarif").out
        )["runs"][0]["results"]
    ]
    assert rules == ["exceeded", "regressed", "regressed"]


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (("--norm", "linf"), "is about norm 'l2', not 'linf'; they cannot be compared"),
        (("--graph-output", "h"), "is about output 'y', not 'h'; they cannot be compared"),
    ],
)
def test_other_statements_are_not_compared(
    words: tuple[str, ...], phrase: str, cli: Cli, tmp_path: Path, baseline: Path
) -> None:
    two = write_model(tmp_path / "two.onnx", DENSE.replace("(float[N, 2] y)", "(float[N, 2] y, float[N, 2] h)"))
    result = cli("verify", two, "--graph-output", "y", *words, "--baseline", baseline, "--json")
    assert result.code == 2
    assert phrase in result.error
    assert result.document["models"][0]["status"] == "verified"  # what was proven is still reported


@pytest.mark.parametrize("damage", ["{}", "not json", '{"schema": 1, "schema": 2}'])
def test_a_damaged_baseline_is_code_4(damage: str, cli: Cli, dense: Path, baseline: Path) -> None:
    baseline.write_text(damage)
    result = cli("verify", dense, "--baseline", baseline)
    assert result.code == 4
    assert str(baseline) in result.error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lipschitz_bound", "lots"), ("lipschitz_bound", 1.0), ("lipschitz_bound_hex", "0xfg"),
        ("lipschitz_bound_hex", "inf"), ("lipschitz_bound_hex", "nan"), ("lipschitz_bound_hex", None),
        ("pairwise", [[1.0], [1.0]]), ("pairwise", [["x", "y"], [1.0, 2.0]]), ("pairwise", 3),
        ("pairwise", [[0.0, "9"], ["9", 0.0]]), ("numeric_error", []), ("numeric_error", {"f64": {}}),
        ("numeric_error", {"f64": {"c0": 1.0, "c1": 1.0}}),
        ("numeric_error", {"f64": {"c0": 1.0, "c1": 1.0, "x_max": "9"}}),
        ("numeric_error", {"f64": {"c0": None, "c1": 1.0, "x_max": 1.0}}),
    ],
)  # fmt: skip
def test_a_malformed_statement_is_code_4(key: str, value: object, cli: Cli, dense: Path, baseline: Path) -> None:
    edit(baseline, lambda content: content["statement"].update({key: value}))
    result = cli("verify", dense, "--baseline", baseline)
    assert result.code == 4
    assert "malformed statement" in result.error


def test_a_missing_baseline_is_an_error_and_not_a_pass(cli: Cli, dense: Path, tmp_path: Path) -> None:
    for where in (tmp_path / "none.cert.json", tmp_path):
        result = cli("verify", dense, "--baseline", where)
        assert result.code == 2
        assert "there is no baseline certificate (try: --update-baseline" in result.error


def test_a_baseline_that_is_no_certificate_is_an_error(cli: Cli, dense: Path) -> None:
    result = cli("verify", dense, "--baseline", dense, "--update-baseline")
    assert result.code == 2
    assert "dense.onnx: not a certificate" in result.error


def test_a_refused_model_stays_refused(cli: Cli, unknown: Path, baseline: Path) -> None:
    assert cli("verify", unknown, "--baseline", baseline).code == 3


def test_a_folder_holds_the_baselines_of_several_models(cli: Cli, dense: Path, baseline: Path, tmp_path: Path) -> None:
    other = model(tmp_path / "other.onnx", a=0.25)
    assert cli("verify", other, "--write-certificate", baseline.parent / "other.cert.json").code == 0
    assert cli("verify", dense, other, "--baseline", baseline.parent).code == 0
    model(other, a=0.6)
    document = cli("verify", dense, other, "--baseline", baseline.parent, "--json").document
    assert [found["status"] for found in document["models"]] == ["verified", "exceeded"]
    assert "--baseline: one certificate" in cli("verify", dense, other, "--baseline", baseline).error


def test_models_of_one_name_do_not_share_a_baseline(cli: Cli, dense: Path, baseline: Path, tmp_path: Path) -> None:
    """In one folder both would be dense.cert.json, so that a model could hide behind the record of another one."""
    (tmp_path / "other").mkdir()
    other = model(tmp_path / "other" / "dense.onnx", a=0.25)
    for words in ((dense, other, "--baseline", baseline.parent), (other, dense, "--baseline", baseline.parent)):
        result = cli("verify", *words)
        assert (result.code, result.out) == (2, "")
        assert f"dense.cert.json would be the baseline of {words[0]} and of {words[1]}" in result.error
    (tmp_path / "c.toml").write_text(f'[[models]]\npath = "**/dense.onnx"\nbaseline = "{baseline}"\n')
    assert cli("verify", "--config", tmp_path / "c.toml").code == 2
    link = tmp_path / "other" / "link"
    link.symlink_to(tmp_path)
    assert cli("verify", dense, link / "dense.onnx", "--baseline", baseline.parent).code == 0  # one model, named twice


def test_a_configured_baseline_is_relative_to_the_configuration(
    cli: Cli, dense: Path, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lipdeploy.toml").write_text('baseline = "baselines"\n[[models]]\npath = "dense.onnx"\n')
    monkeypatch.chdir(tmp_path)
    assert cli("verify").code == 0
    monkeypatch.chdir(tmp_path / "baselines")
    assert cli("verify").code == 0
    edit(baseline, lower_bound)
    assert cli("verify").code == 1


def test_the_baseline_can_be_tightened_in_place_but_not_loosened(
    cli: Cli, dense: Path, baseline: Path, tmp_path: Path
) -> None:
    before = baseline.read_bytes()
    model(dense, a=0.8)
    assert cli("verify", dense, "--baseline", baseline, "--write-certificate", baseline).code == 1
    assert baseline.read_bytes() == before
    model(dense, a=0.6)
    assert cli("verify", dense, "--baseline", baseline, "--write-certificate", baseline).code == 0
    assert baseline.read_bytes() != before
    model(dense)
    assert cli("verify", dense, "--baseline", baseline).code == 1


def test_update_baseline_makes_the_first_one_and_accepts_a_worse_one(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lipdeploy.toml").write_text('baseline = "kept"\n[[models]]\npath = "dense.onnx"\n')
    assert cli("verify").code == 2
    first = cli("verify", "--update-baseline")
    assert first.code == 0
    assert "certificate written to kept/dense.cert.json" in first.out
    assert cli("verify").code == 0
    model(dense, a=0.9)
    assert cli("verify").code == 1
    assert cli("verify", "--update-baseline").code == 0
    assert cli("verify").code == 0


def test_update_baseline_accepts_nothing_above_the_limit_or_unproven(
    cli: Cli, dense: Path, unknown: Path, baseline: Path
) -> None:
    before = baseline.read_bytes()
    assert cli("verify", dense, "--baseline", baseline, "--update-baseline", "--max-lipschitz", "0.1").code == 1
    assert cli("verify", unknown, "--baseline", baseline, "--update-baseline").code == 3
    assert baseline.read_bytes() == before
    assert [path.name for path in baseline.parent.iterdir()] == ["dense.cert.json"]


def test_update_baseline_names_the_models_without_one(cli: Cli, dense: Path, tmp_path: Path) -> None:
    model(tmp_path / "other.onnx")
    (tmp_path / "c.toml").write_text(
        '[[models]]\npath = "dense.onnx"\nbaseline = "kept"\n[[models]]\npath = "other.onnx"\n'
    )
    result = cli("verify", "--config", tmp_path / "c.toml", "--update-baseline")
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.endswith("other.onnx: no baseline is named for it, so none is written")


def test_update_baseline_needs_one_baseline_per_requirement(
    cli: Cli, dense: Path, baseline: Path, tmp_path: Path
) -> None:
    assert "--update-baseline: no baseline is named" in cli("verify", dense, "--update-baseline").error
    (tmp_path / "c.toml").write_text(
        f'[[models]]\npath = "dense.onnx"\nbaseline = "{baseline}"\n'
        '[[models]]\npath = "dense.onnx"\nnorm = "l1"\nbaseline = "baselines"\n'
    )
    result = cli("verify", "--config", tmp_path / "c.toml", "--update-baseline")
    assert "--update-baseline: several requirements are about" in result.error
    assert result.code == 2


def test_update_baseline_leaves_the_certificate_of_another_model_alone(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    model(tmp_path / "other" / "dense.onnx", a=0.25)
    (tmp_path / "c.toml").write_text(
        '[[models]]\npath = "dense.onnx"\nbaseline = "other"\n[[models]]\npath = "other/dense.onnx"\n'
    )
    monkeypatch.chdir(tmp_path)
    result = cli("verify", "--config", "c.toml", "--update-baseline")
    assert (result.code, result.out) == (2, "")
    assert "--update-baseline: other/dense.cert.json is the certificate of a model" in result.error
    assert cli("verify", dense, "--baseline", tmp_path, "--update-baseline").code == 0  # beside it is its own


def test_a_folder_that_is_missing_is_not_taken_for_a_file(cli: Cli, dense: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"{missing / 'dense.cert.json'}: there is no baseline" in cli("verify", dense, "--baseline", missing).error
    assert not missing.exists()
    assert cli("verify", dense, "--baseline", missing, "--update-baseline").code == 0
    assert [path.name for path in missing.iterdir()] == ["dense.cert.json"]
