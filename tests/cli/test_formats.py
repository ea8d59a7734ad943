"""Reports for programs written by others: checked against their schemas, and read with their readers."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as Tree

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt
from sarif import loader

from lipdeploy.cli import findings, formats, judging
from lipdeploy.cli import schema as schemas
from lipdeploy.cli.formats import FORMATS, github, junit, markdown, sarif
from lipdeploy.cli.judging import Judged
from lipdeploy.errors import REASONS, InputError, IntegrityError, Refusal
from lipdeploy.verify import Verdict
from lipdeploy.verify.bound import Bound
from tests.cli.conftest import DENSE, ROOT, Cli, command_line, with_external_data, write_model

SARIF_SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-schema-2.1.0.json").read_text("utf-8"))
NASTY = "a\n::error::forged\r%0A:,|`[x](http://evil)<b>&amp;\x1b[31m\x00\ufffe\u202e größe {0} \ud800 </failure>]]>"
WIPED = '<ir_version: 9, opset_import: ["": 20]> g (float[N, 2] x) => (float[N, 2] y) { ["NODE"] y = Det3 (x) }'


def check_sarif(text: str) -> Any:
    """The log's only run, once the log has followed the OASIS schema."""
    log = json.loads(text)
    jsonschema.Draft4Validator(SARIF_SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    (run,) = log["runs"]
    return run


def refused(path: str, *refusals: Refusal) -> Judged:
    return Judged(path, Verdict(path, "refused", "l2", None, refusals=refusals))


def verified(path: str) -> Judged:
    return Judged(path, Verdict(path, "verified", "l2", Bound(0.75), 1.0, file_sha256="0" * 64))


def nasty() -> list[Judged]:
    path = NASTY.replace("\ud800", "\udcff")  # what Python makes of a byte that is no UTF-8
    problem = InputError(f"{NASTY}: odd", hint=NASTY)
    return [refused(path, Refusal("LIP001", NASTY, NASTY, NASTY, NASTY)), verified(path), Judged(path, None, problem)]


@pytest.fixture
def mixed(dense: Path, unknown: Path, tmp_path: Path) -> tuple[Path, ...]:
    """One model each that is exceeded, refused, unreadable, and contradicted by its certificate."""
    forged = write_model(tmp_path / "forged.onnx", DENSE)
    forged.with_suffix(".cert.json").write_text("{}")
    return dense, unknown, tmp_path / "gone.onnx", forged


def report_of(cli: Cli, form: str, *words: object) -> str:
    return cli("verify", *words, "--format", form).out


def test_the_schema_is_the_one_of_oasis_and_is_strict() -> None:
    assert SARIF_SCHEMA["id"] == sarif.SCHEMA
    with pytest.raises(jsonschema.ValidationError):
        check_sarif('{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x", "odd": 1}}}]}')


def test_sarif_follows_the_oasis_schema_and_has_every_model(cli: Cli, mixed: tuple[Path, ...]) -> None:
    run = check_sarif(report_of(cli, "sarif", *mixed, "--max-lipschitz", "0.5"))
    assert [result["ruleId"] for result in run["results"]] == ["exceeded", "LIP001", "not-judged", "LIP022"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == [*REASONS, "exceeded", "regressed", "integrity", "not-judged"]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    assert all(result["level"] == "error" for result in run["results"])
    refusal = run["results"][1]["locations"][0]
    assert refusal["logicalLocations"][0]["fullyQualifiedName"] == "wobble"
    assert refusal["physicalLocation"]["artifactLocation"]["uri"].endswith("/unknown.onnx")
    (invocation,) = run["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 4)
    assert "gone.onnx" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert [model["status"] for model in run["properties"]["models"]] == ["exceeded", "refused", "integrity"]


def test_sarif_of_a_proven_model_has_no_result_but_its_digest(cli: Cli, dense: Path) -> None:
    import hashlib

    run = check_sarif(report_of(cli, "sarif", dense))
    assert (run["results"], run["invocations"][0]["executionSuccessful"]) == ([], True)
    assert run["artifacts"][0]["hashes"] == {"sha-256": hashlib.sha256(dense.read_bytes()).hexdigest()}
    assert run["properties"]["models"][0]["lipschitz_bound"] >= 0.75


def test_sarif_is_read_by_sarif_tools(cli: Cli, mixed: tuple[Path, ...], tmp_path: Path) -> None:
    target = tmp_path / "r.sarif"
    cli("verify", *mixed, "--max-lipschitz", "0.5", "--report", f"sarif={target}")
    read = loader.load_sarif_file(str(target))
    assert (read.get_result_count(), read.get_distinct_tool_names()) == (4, ["lipdeploy"])
    assert read.get_report().get_issue_count_for_severity("error") == 4
    codes = {record["Code"].split()[0]: record for record in read.get_records()}
    assert set(codes) == {"exceeded", "LIP001", "not-judged", "LIP022"}
    assert codes["LIP001"]["Location"].endswith("unknown.onnx")


def test_sarif_paths_are_relative_to_the_working_folder_and_are_uris(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    names = ["a b:c%.onnx", "größe.onnx", "../outside.onnx"]
    uris = [entry["location"]["uri"] for entry in check_sarif(report_of(cli, "sarif", *names))["artifacts"]]
    assert uris[:2] == ["a%20b%3Ac%25.onnx", "gr%C3%B6%C3%9Fe.onnx"]
    assert [unquote(uri) for uri in uris[:2]] == names[:2]
    assert uris[2] == (tmp_path / "outside.onnx").as_uri()
    assert check_sarif(report_of(cli, "sarif", tmp_path / "work" / "x.onnx"))["artifacts"][0]["location"] == {
        "uri": "x.onnx"
    }


def test_fingerprints_know_a_finding_again_and_tell_findings_apart() -> None:
    def prints(*judged: Judged) -> list[str]:
        run = check_sarif(sarif.render(judged))
        return [result["partialFingerprints"]["lipdeploy/v1"] for result in run["results"]]

    first, moved = Refusal("LIP001", "conv1", "Odd", "12 of them"), Refusal("LIP001", "conv1", "Odd", "13 of them")
    other = Refusal("LIP001", "conv2", "Odd", "12 of them")
    assert prints(refused("m.onnx", first)) == prints(verified("a.onnx"), refused("m.onnx", moved))
    assert len(set(prints(refused("m.onnx", first, first, other), refused("n.onnx", first)))) == 4


def test_junit_is_read_by_junitparser(cli: Cli, mixed: tuple[Path, ...], tmp_path: Path) -> None:
    target = tmp_path / "r.xml"
    cli("verify", *mixed, "--max-lipschitz", "0.5", "--report", f"junit={target}")
    (suite,) = JUnitXml.fromfile(str(target))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (6, 5, 1, 0)
    outcomes = {(Path(case.classname).name, case.name): [type(fault) for fault in case.result] for case in suite}
    assert outcomes == {
        ("dense.onnx", "proven in l2, within the limit"): [Failure],
        ("unknown.onnx", "proven in l2, within the limit"): [Failure],
        ("unknown.onnx", "LIP001 wobble"): [Failure],
        ("gone.onnx", "proven, within the limit"): [Error],
        ("forged.onnx", "proven in l2, within the limit"): [Failure],
        ("forged.onnx", "LIP022"): [Failure],
    }
    assert next(iter(suite)).result[0].type == "exceeded"


def test_junit_tells_two_requirements_on_one_model_apart(
    cli: Cli, dense: Path, unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dense.parent)
    Path("c.toml").write_text(
        '[[models]]\npath = "*.onnx"\nmax_lipschitz = 9\n[[models]]\npath = "dense.onnx"\nmax_lipschitz = 0.4\n'
        '[[models]]\npath = "unknown.onnx"\nmax_lipschitz = 0.4\n'
    )
    (suite,) = JUnitXml.fromstring(report_of(cli, "junit", "--config", "c.toml").encode())
    outcomes = [(case.classname, case.name, [fault.type for fault in case.result]) for case in suite]
    assert outcomes == [
        ("dense.onnx", "proven in l2, within the limit", []),
        ("unknown.onnx", "proven in l2, within the limit", ["LIP001"]),
        ("unknown.onnx", "LIP001 wobble", ["LIP001"]),
        ("dense.onnx", "proven in l2, within the limit (2)", ["exceeded"]),
        ("unknown.onnx", "proven in l2, within the limit (2)", ["LIP001"]),
        ("unknown.onnx", "LIP001 wobble (2)", ["LIP001"]),
    ]


def test_junit_of_a_proven_model_passes(cli: Cli, dense: Path) -> None:
    (suite,) = JUnitXml.fromstring(report_of(cli, "junit", dense).encode())
    (case,) = suite
    assert (case.is_passed, suite.failures, suite.errors) == (True, 0, 0)
    properties = {
        item.attrib["name"]: item.attrib["value"] for item in Tree.fromstring(case.tostring()).iter("property")
    }
    assert 0.75 <= float(properties["lipschitz_bound"]) < 0.751


def annotations(text: str) -> list[tuple[str, dict[str, str], str]]:
    """The annotations of a log, parsed as the runner does (actions/runner, ActionCommand.TryParseV2)."""
    found, stopped = [], ""
    for line in text.splitlines():
        if not line.startswith("::") or line.count("::") < 2:
            continue
        head, data = line[2:].split("::", 1)
        kind, _, properties = head.partition(" ")
        if stopped:
            stopped = "" if kind == stopped else stopped
        elif kind == "stop-commands":
            stopped = data
        else:
            pairs = (pair.split("=", 1) for pair in properties.split(","))
            found.append((kind, {key: _unescaped(value) for key, value in pairs}, _unescaped(data)))
    assert not stopped
    return found


def _unescaped(value: str) -> str:
    for escaped, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        value = value.replace(escaped, char)
    return value


def test_github_annotations(cli: Cli, mixed: tuple[Path, ...]) -> None:
    good = write_model(mixed[0].parent / "good.onnx", DENSE.replace("0.75", "0.25"))
    found = annotations(report_of(cli, "github", *mixed, good, "--max-lipschitz", "0.7"))
    files = [(kind, Path(properties["file"]).name) for kind, properties, _ in found]
    assert files == [
        ("error", "forged.onnx"), ("error", "unknown.onnx"), ("error", "gone.onnx"), ("error", "dense.onnx"),
        ("notice", "good.onnx"),
    ]  # fmt: skip
    assert found[1][1]["title"] == "lipdeploy LIP001: unknown operator"
    assert "node 'wobble' (Det3): there is no rule for Det3" in found[1][2]
    assert "proven Lipschitz bound 0.5" in found[4][2]


def test_github_says_how_many_there_are_when_it_will_not_show_them_all() -> None:
    many = refused("m.onnx", *(Refusal("LIP001", f"n{i}", "Odd", "no rule") for i in range(12)))
    found = annotations(github.render([many]))
    assert len(found) == 13
    assert found[0][2].startswith("12 findings; GitHub shows 10")


def test_no_text_of_a_model_becomes_a_workflow_command() -> None:
    found = annotations(github.render(nasty()))
    assert [kind for kind, _, _ in found] == ["error", "error", "notice"]
    assert all(properties["file"].startswith("a\\n::error::forged\\r%0A:,|`") for _, properties, _ in found)
    assert "\x1b" not in github.render(nasty())
    command = refused("::error::x", Refusal("LIP001", "", "", "::stop-commands::x"))
    assert len(annotations(github.render([command]))) == 1


def rendered(text: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(text))


def table_of(text: str) -> list[list[str]]:
    """The cells of the report's table, as a Markdown library shows them."""
    root = Tree.fromstring(f"<x>{re.search('<table>.*?</table>', rendered(text), re.S)[0]}</x>")  # type: ignore[index]
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_markdown_has_one_row_per_model(cli: Cli, mixed: tuple[Path, ...]) -> None:
    text = report_of(cli, "markdown", *mixed, "--max-lipschitz", "0.5")
    header, *rows = table_of(text)
    assert header == ["model", "status", "norm", "bound ≤", "limit", "baseline"]
    assert [row[0] for row in rows] == list(map(str, mixed))
    assert [row[1].split()[1] for row in rows] == ["exceeded", "refused", "no", "integrity"]
    assert 0.75 <= float(rows[0][3]) < 0.751
    assert "<strong>LIP001</strong>" in rendered(text)


def test_no_text_of_a_model_becomes_markdown() -> None:
    text = markdown.render(nasty())
    assert all(
        row[0].startswith("a ::error::forged %0A:,|`[x](http://evil)<b>&amp;\\x1b[31m") for row in table_of(text)[1:]
    )
    assert [len(row) for row in table_of(text)] == [6, 6, 6, 6]
    assert "<a " not in rendered(text)
    assert "<b>" not in rendered(text)
    assert rendered(text).count("<h2>") == 1


def test_a_long_markdown_summary_stays_below_the_limit_of_github() -> None:
    many = refused("m.onnx", *(Refusal("LIP001", "n" * 5000, "Odd", "x" * 5000) for _ in range(2000)))
    text = markdown.render([many])
    assert len(text.encode()) < 2**20
    assert "and 1500 more" in text


@pytest.mark.parametrize("form", FORMATS)
def test_hostile_names_break_no_format(form: str) -> None:
    text = formats.render(form, nasty())
    text.encode("utf-8")
    assert not set(text) & {"\x1b", "\x00", "\ufffe", "\u202e", "\r"}
    if form == "junit":
        (suite,) = JUnitXml.fromstring(text.encode())
        assert suite.tests == 4
    if form == "sarif":
        check_sarif(text)
    if form == "json":
        jsonschema.Draft202012Validator(json.loads(schemas.read("verify-report/v1"))).validate(json.loads(text))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_name_and_any_message_survive_every_reader(name: str, message: str) -> None:
    judged = [refused("m.onnx", Refusal("LIP001", name, "Odd", message, "hint")), verified("v.onnx")]
    (result,) = check_sarif(sarif.render(judged))["results"]
    assert result["ruleId"] == "LIP001"
    (suite,) = JUnitXml.fromstring(junit.render(judged).encode())
    assert (suite.tests, suite.failures) == (3, 2)
    assert [kind for kind, _, _ in annotations(github.render(judged))] == ["error", "notice"]
    assert len(table_of(markdown.render(judged))) == 3
    assert len(rendered(markdown.render(judged)).split("<li>")) == 2


def test_sarif_messages_have_neither_placeholders_nor_links() -> None:
    message = check_sarif(sarif.render(nasty()))["results"][0]["message"]["text"]
    assert "](" not in message
    assert "{{0}}" in message


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_models_give_the_same_report(form: str, cli: Cli, mixed: tuple[Path, ...]) -> None:
    def once() -> str:
        text = report_of(cli, form, *mixed, "--max-lipschitz", "0.5")
        return re.sub(r'(time="|"elapsed_seconds": )[0-9.e-]+', r"\1", text)

    assert once() == once()
    if form not in ("json", "junit"):
        assert report_of(cli, form, *mixed) == report_of(cli, form, *mixed)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_every_model_and_the_exit_code_is_the_worst(
    form: str, cli: Cli, mixed: tuple[Path, ...]
) -> None:
    result = cli("verify", *mixed, "--max-lipschitz", "0.5", "--format", form)
    assert result.code == 4
    assert all(path.name in result.out + result.err for path in mixed)
    if form != "text":
        assert all(path.name in result.out for path in mixed)


@pytest.mark.parametrize("form", FORMATS)
def test_a_crash_never_looks_like_a_verdict(form: str, cli: Cli, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(judging, "verdict_of", crash)
    result = cli("verify", dense, "--format", form)
    assert result.code == 5
    assert "internal error: ZeroDivisionError: odd" in result.err
    if form == "text":
        assert result.out == ""
    else:
        assert "internal error: ZeroDivisionError: odd" in result.out
        assert "verified" not in result.out


def test_several_reports_in_one_run(cli: Cli, dense: Path, unknown: Path, tmp_path: Path) -> None:
    targets = {form: tmp_path / f"r.{form}" for form in FORMATS}
    words = [word for form, path in targets.items() for word in ("--report", f"{form}={path}")]
    result = cli("verify", dense, unknown, *words)
    assert result.code == 3
    assert result.out.startswith("model ")
    assert all(path.read_text("utf-8") for path in targets.values())
    assert result.err.count("report written to ") == len(FORMATS)
    check_sarif(targets["sarif"].read_text())
    assert targets["text"].read_text("utf-8") == result.out


def test_a_report_that_cannot_be_written_hides_no_other(cli: Cli, dense: Path, tmp_path: Path) -> None:
    good, before = tmp_path / "good.xml", sorted(tmp_path.iterdir())
    bad = tmp_path / "no" / "r.sarif"
    result = cli("verify", dense, "--report", f"sarif={bad}", "--report", f"junit={good}", "--json")
    assert (result.code, result.document["models"][0]["status"]) == (2, "verified")
    assert "cannot be written" in result.err
    assert sorted(tmp_path.iterdir()) == sorted([*before, good])


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (("--report", "sarif"), "'sarif' is not FMT=FILE with FMT one of text, json, sarif"),
        (("--report", "pdf=r.pdf"), "'pdf=r.pdf' is not FMT=FILE"),
        (("--report", "sarif="), "'sarif=' is not FMT=FILE"),
        (("--report", "sarif=r", "--report", "junit=./r"), "is already another output"),
        (("--report", "sarif=r", "--output", "r"), "is already another output"),
        (("--report", "sarif=dense.onnx"), "dense.onnx is one of the models"),
        (("--report", "sarif=c.json", "--write-certificate", "c.json"), "c.json is the certificate"),
        (("--report", "sarif=c.json", "--baseline", "c.json"), "c.json is a baseline"),
        (("--report", "sarif=b/dense.cert.json", "--baseline", "b"), "dense.cert.json is a baseline"),
        (("--report", "json=dense.cert.json"), "dense.cert.json is the certificate of a model"),
        (("--report", "json=dense.sig.json"), "dense.sig.json is the signature of a model"),
        (("--report", "json=dense.onnx.data"), "dense.onnx.data is the external data of a model"),
        (("--output", "key.pem", "--require-signature", "key.pem"), "key.pem is the key"),
        (("--output", "c.toml", "--config", "c.toml"), "c.toml is the configuration"),
        (("--write-certificate", "link.json"), "--write-certificate: link.json is one of the models"),
        (("--write-certificate", "dense.sig.json"), "dense.sig.json is the signature of a model"),
        (("--write-certificate", "k.json", "--require-signature", "k.json"), "k.json is the key"),
        (("--baseline", "link.json", "--update-baseline"), "--update-baseline: link.json is one of the models"),
        (("--json", "--format", "sarif"), "--json and --format sarif"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_unusable_reports_are_usage_errors(
    words: tuple[str, ...], phrase: str, cli: Cli, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dense.parent)
    Path("link.json").symlink_to("dense.onnx")
    Path("c.toml").write_text("max_lipschitz = 9")
    before = {path: path.read_bytes() for path in dense.parent.iterdir()}
    result = cli("verify", "dense.onnx", *words)
    assert (result.code, result.out) == (2, "")
    assert phrase in result.error
    assert {path: path.read_bytes() for path in dense.parent.iterdir()} == before


def test_no_report_replaces_external_data_of_any_name(cli: Cli, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "m.onnx", "weights.bin")
    before = (tmp_path / "weights.bin").read_bytes()
    result = cli("verify", path, "--report", f"json={tmp_path / 'weights.bin'}", "--json")
    assert (result.code, result.document["models"][0]["status"]) == (2, "verified")
    assert "weights.bin is the external data of a model" in result.error
    assert (tmp_path / "weights.bin").read_bytes() == before


@pytest.mark.parametrize("form", ["sarif", "junit", "json"])
def test_reports_for_programs_survive_an_ascii_only_stream(form: str, tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    model = write_model(tmp_path / "größe.onnx", WIPED.replace("NODE", "größe"))
    done = subprocess.run(
        command_line("verify", model.name, "--format", form), capture_output=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 3, done.stderr
    text = done.stdout.decode("ascii")
    if form == "junit":
        assert JUnitXml.fromstring(text.encode())
        assert Tree.fromstring(text).find(".//testcase").get("classname") == "größe.onnx"  # type: ignore[union-attr]
    else:
        assert "größe" in json.dumps(json.loads(text), ensure_ascii=False)


def test_an_integrity_problem_is_no_missing_verdict() -> None:
    (finding,) = findings.of([Judged("m.onnx", None, IntegrityError("c.json: unreadable"))])
    assert (finding.rule, finding.exit_code) == ("integrity", 4)
    (suite,) = JUnitXml.fromstring(junit.render([Judged("m.onnx", None, IntegrityError("x"))]).encode())
    assert (suite.tests, suite.errors, suite.failures) == (2, 1, 1)


def test_a_report_to_standard_output_twice(process: Cli, dense: Path) -> None:
    result = process("verify", dense, "--format", "text", "--report", "markdown=/dev/stdout")
    assert result.code == 0
    assert "## Lipschitz bounds" in result.out
    assert io.StringIO(result.out).readline().startswith("model ")
