"""``doctor``, ``explain``, ``schema``, ``completion``, and the page that is generated from ``--help``."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest

from lipdeploy.cli import app, doctor, export, needs, options, predict, schema
from lipdeploy.errors import REASONS
from tests.cli.conftest import ROOT, Cli


def test_norm_names_are_those_of_the_verifier() -> None:
    from lipdeploy.verify.norms import PAIRS

    assert tuple(PAIRS) == options.NORMS


def test_modes_are_those_of_the_session() -> None:
    pytest.importorskip("onnxruntime")
    from lipdeploy.runtime.session import MODES

    assert predict.MODES == MODES


def test_choices_of_export_are_those_of_the_exporter() -> None:
    pytest.importorskip("torch")
    from lipdeploy.export import options as exporter

    assert (export.DTYPES, export.INPUT_DTYPES) == (exporter.DTYPES, exporter.INPUT_DTYPES)
    assert (export.OPSETS.min, export.OPSETS.max) == (exporter.OPSETS.start, exporter.OPSETS.stop - 1)


def test_every_command_of_the_list_exists_and_takes_debug(cli: Cli) -> None:
    for name in app.COMMANDS:
        assert "--debug" in cli(name, "--help").out


def test_doctor_says_what_a_bug_report_needs(cli: Cli) -> None:
    result = cli("doctor", "--json")
    assert result.code == 0, result.out
    checks = {check["name"]: check for check in result.document["checks"]}
    assert {"lipdeploy", "python", "machine", "numpy", "onnx", "torch", "arithmetic", "onnxruntime"} <= set(checks)
    assert checks["arithmetic"]["status"] == "ok"
    text = cli("doctor").out
    assert all(name in text for name in checks)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_doctor_describes_the_operator_library(cli: Cli, ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", str(ops_library))
    checks = {check["name"]: check for check in cli("doctor", "--json").document["checks"]}
    detail = checks["operator library"]["detail"]
    assert re.search(r"version 1 of lipdeploy \S+, CPU kernels (avx512|avx2|baseline), CUDA kernels (yes|no), ", detail)
    assert hashlib.sha256(ops_library.read_bytes()).hexdigest() in detail
    assert "CPUExecutionProvider" in checks


def test_doctor_finds_two_runtimes_in_each_others_way(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "distribution_version", lambda name: "1.0")
    result = cli("doctor", "--json")
    check = next(check for check in result.document["checks"] if check["name"] == "onnxruntime")
    assert (result.code, check["status"]) == (4, "failed")
    assert "pip uninstall" in check["hint"]


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
@pytest.mark.parametrize("kind", ["missing", "foreign"])
def test_doctor_names_a_broken_operator_library(
    kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib.so"
    if kind == "foreign":
        library.write_bytes(b"not a library")
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", str(library))
    result = cli("doctor", "--json")
    check = next(check for check in result.document["checks"] if check["name"] == "operator library")
    assert (result.code, check["status"]) == (4, "failed")
    assert str(library) in check["detail"]


def test_the_arithmetic_check_sees_flushed_subnormals() -> None:
    torch = pytest.importorskip("torch")
    assert torch.set_flush_denormal(True), "this processor cannot flush subnormals"
    try:
        assert doctor._arithmetic().status == "failed"
    finally:
        torch.set_flush_denormal(False)
    assert doctor._arithmetic().status == "ok"


@pytest.mark.parametrize("code", REASONS)
def test_explain_says_why_and_what_to_try(code: str, cli: Cli) -> None:
    result = cli("explain", code.lower())
    assert result.code == 0
    assert result.out.startswith(f"{code}: {REASONS[code].title}\n")
    assert REASONS[code].explanation in result.out
    assert f"Try: {REASONS[code].hint}." in result.out


def test_explain_lists_all_codes(cli: Cli) -> None:
    assert [line.split()[0] for line in cli("explain").out.splitlines()[1:]] == list(REASONS)
    assert [reason["code"] for reason in cli("explain", "--json").document["reasons"]] == list(REASONS)


@pytest.mark.parametrize("name", schema.NAMES)
def test_schemas_are_valid_schemas_and_strict(name: str, cli: Cli) -> None:
    document = cli("schema", name).document
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["title"] == f"lipdeploy/{name}"
    assert document["properties"]["schema"] == {"const": f"lipdeploy/{name}"}
    assert document["additionalProperties"] is False
    assert schema.read(name).isascii()


@pytest.mark.parametrize("command", ["doctor", "explain"])
def test_what_helpers_print_for_programs_has_its_schema(command: str, cli: Cli) -> None:
    document = cli(command, "--json").document
    published = json.loads(schema.read(document["schema"].removeprefix("lipdeploy/")))
    jsonschema.Draft202012Validator(published).validate(document)


def test_options_of_another_engine_are_not_ignored(cli: Cli, dense: Path, tmp_path: Path) -> None:
    serve = cli("serve", dense, "--replicas", "2")
    assert (serve.code, "--replicas is for --engine ray" in serve.error) == (2, True)
    certify = cli("certify", dense, tmp_path / "none.npz", "--workers", "2")
    assert (certify.code, "--workers is for --engine ray" in certify.error) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, cli: Cli) -> None:
    result = cli("completion", shell)
    assert result.code == 0
    assert app.COMPLETION_VARIABLE in result.out


def test_completion_completes(process: Cli) -> None:
    import os

    environment = {
        **os.environ,
        app.COMPLETION_VARIABLE: "bash_complete",
        "COMP_WORDS": "lipdeploy ver",
        "COMP_CWORD": "1",
    }
    result = process(env=environment)
    assert (result.code, result.out.split(",")) == (0, ["plain", "verify\n"])


def test_bash_accepts_the_completion_script(cli: Cli, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(cli("completion", "bash").out)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


@pytest.mark.parametrize(("tool", "page", "needs"), [("docs_cli", "cli.md", "click"), ("docs_api", "api.md", "torch")])
def test_generated_pages_are_up_to_date(tool: str, page: str, needs: str) -> None:
    pytest.importorskip(needs)
    location = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    assert location is not None and location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    assert (ROOT / "docs" / page).read_text("utf-8") == module.page(), "run: make docs"


def test_the_glossary_and_the_certificate_page_exist() -> None:
    for name in ("glossary.md", "certificate.md", "cli.md", "status.md"):
        assert (ROOT / "docs" / name).is_file()


def test_the_published_schemas_are_all_listed() -> None:
    files = {path.stem for path in (ROOT / "lipdeploy" / "cli" / "schemas").glob("*.json")}
    assert files == {name.replace("/", "-") for name in schema.NAMES}
    assert json.loads(schema.read("prediction/v1"))["title"] == "lipdeploy/prediction/v1"


@pytest.mark.parametrize(("word", "meant"), [("verfy", "verify"), ("exprot", "export"), ("predic", "predict")])
def test_a_misspelled_command_is_answered_with_the_near_one(word: str, meant: str, cli: Cli) -> None:
    result = cli(word, "net.onnx")
    assert result.code == 2
    assert f"no such command '{word}'; did you mean {meant}" in result.error


def test_a_group_alone_prints_its_help(cli: Cli) -> None:
    result = cli("package")
    assert result.code == 2
    assert result.err.startswith("Usage: lipdeploy package")
    assert "\n  triton" in result.err
