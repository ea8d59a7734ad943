"""docs/ci.md, the GitHub Action and the pre-commit hooks: read by their own readers, and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml
from pre_commit import clientlib
from sarif import loader

from tests.cli.conftest import DENSE, UNKNOWN, write_model
from tests.journeys.conftest import ROOT, Shell, blocks

PAGE = "docs/ci.md"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
INSTALL, VERIFY = ACTION["runs"]["steps"]
OTHERS = r"github\.action_path|steps\.install\.outputs\.program"
PLAIN = DENSE.replace("0.75", "0.25")  # its ℓ2 constant is 0.5


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project of docs/ci.md, with two models and the page's own configuration."""
    for folder in ("models", "baselines", ".git"):
        (tmp_path / folder).mkdir()
    write_model(tmp_path / "models" / "plain.onnx", PLAIN)
    write_model(tmp_path / "models" / "robust.onnx", DENSE)
    (configuration,) = blocks(PAGE, "toml")
    (tmp_path / ".lipdeploy.toml").write_text(configuration)
    return tmp_path


@pytest.fixture
def accepted(project: Path, shell: Shell) -> Path:
    """The same, with the baselines that its configuration asks for."""
    done = shell("lipdeploy verify --update-baseline", project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_the_configuration_of_the_readme_runs(accepted: Path, shell: Shell) -> None:
    (accepted / ".lipdeploy.toml").unlink()
    (configuration,) = blocks("README.md", "toml")
    (accepted / "pyproject.toml").write_text(configuration)
    done = shell("lipdeploy verify", accepted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" verified ") == 2


def test_the_configuration_of_the_page_knows_every_key_of_its_table() -> None:
    from lipdeploy.cli import config

    (text,) = blocks(PAGE, "toml")
    assert set(tomllib.loads(text)) <= set(config.TOP_KEYS)
    named = re.findall(r"^\| `(\w+)` \|", (ROOT / PAGE).read_text("utf-8"), flags=re.MULTILINE)
    assert set(named) & {*config.TOP_KEYS, *config.MODEL_KEYS} == {*config.KEYS, "path"}


def test_the_commands_of_the_page_run_as_they_stand(accepted: Path, shell: Shell) -> None:
    commands, _ = blocks(PAGE, "sh")
    done = shell(commands, accepted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both mean the same; the new bound is not worse." in done.stdout
    assert loader.load_sarif_file(str(accepted / "lipdeploy.sarif")).get_result_count() == 0
    (suite,) = JUnitXml.fromfile(str(accepted / "lipdeploy.xml"))
    assert (suite.tests, suite.failures, suite.errors) == (3, 0, 0)
    assert (accepted / "summary.md").read_text("utf-8").startswith("## Lipschitz bounds")


def test_the_ratchet_of_the_page_runs_as_it_stands(accepted: Path, shell: Shell) -> None:
    _, ratchet = blocks(PAGE, "sh")
    done = shell(ratchet, accepted)
    assert done.returncode == 0, done.stdout + done.stderr
    write_model(accepted / "models" / "plain.onnx", DENSE)
    assert shell("lipdeploy verify", accepted).returncode == 1


def test_the_workflows_of_the_page_follow_the_schema_of_workflows(tmp_path: Path) -> None:
    for number, text in enumerate(blocks(PAGE, "yaml")[:2]):
        (tmp_path / f"{number}.yml").write_text(text)
        validate("vendor.github-workflows", tmp_path / f"{number}.yml")


def validate(name: str, path: Path) -> None:
    """``path`` follows a schema that check-jsonschema carries."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def steps(number: int) -> list[dict[str, Any]]:
    workflow = yaml.safe_load(blocks(PAGE, "yaml")[number])
    return list(workflow["jobs"]["verify"]["steps"])


def test_the_workflow_by_hand_runs(accepted: Path, shell: Shell, tmp_path: Path) -> None:
    install, *commands = [step["run"] for step in steps(1) if "run" in step]
    assert install == "pip install lipdeploy"
    summary = tmp_path / "step-summary"
    for command in commands:
        done = shell(command, accepted, GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == 0, done.stdout + done.stderr
    assert summary.read_text("utf-8").startswith("## Lipschitz bounds")
    assert (accepted / "lipdeploy.sarif").is_file()


def test_the_workflow_with_the_action_uses_what_the_action_has() -> None:
    (use,) = [step for step in steps(0) if step.get("id") == "lipdeploy"]
    assert set(use["with"]) <= set(ACTION["inputs"])
    used = set(re.findall(r"steps\.lipdeploy\.outputs\.([\w-]+)", blocks(PAGE, "yaml")[0]))
    assert used and used <= set(ACTION["outputs"])


def test_the_action_follows_the_schema_of_actions() -> None:
    validate("vendor.github-actions", ROOT / "action.yml")


def test_the_actions_scripts_hold_no_expression_that_could_be_injected() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert subprocess.run(["bash", "-n", "-c", step["run"]]).returncode == 0
        for value in step["env"].values():
            (name,) = re.findall(rf"^\$\{{\{{ (?:inputs\.([\w-]+)|{OTHERS}) \}}\}}$", value)
            assert not name or name in ACTION["inputs"]


@pytest.mark.parametrize(
    ("version", "arguments"),
    [("", ["-C", "wheel.cmake=false", "/where/the action is"]), ("0.1.0", ["lipdeploy==0.1.0"])],
)
def test_the_actions_installation(version: str, arguments: list[str], tmp_path: Path, shell: Shell) -> None:
    recorder = tmp_path / "python"
    recorder.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\nif [ "$2" = venv ]; then mkdir "$3/bin"; cp "$0" "$3/bin"; fi\n'
    )
    recorder.chmod(0o755)
    output = tmp_path / "output"
    script = f"PATH='{tmp_path}':$PATH\n{INSTALL['run']}"
    given = {"VERSION": version, "ACTION_PATH": "/where/the action is", "RUNNER_TEMP": str(tmp_path)}
    done = shell(script, tmp_path, GITHUB_OUTPUT=str(output), **given)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words == ["-m", "venv", words[2], "-m", "pip", "install", "--quiet", *arguments]
    assert output.read_text() == f"program={words[2]}/bin/lipdeploy\n"


def act(shell: Shell, cwd: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str], str]:
    """Run the action's step ``verify``: how it ended, its outputs, and the job's summary."""
    inputs_of = ((key, re.search(r"inputs\.([\w-]+)", value)) for key, value in VERIFY["env"].items())
    names = {key: found[1] for key, found in inputs_of if found is not None}
    given = {key: inputs.get(name.replace("-", "_"), ACTION["inputs"][name]["default"]) for key, name in names.items()}
    runner = cwd.parent / f"{cwd.name}-runner"
    runner.mkdir(exist_ok=True)
    files = {name: runner / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("")
    variables = {name: str(file) for name, file in files.items()}
    done = shell(VERIFY["run"], cwd, RUNNER_TEMP=str(runner), LIPDEPLOY="lipdeploy", **variables, **given)
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text("utf-8").splitlines())
    return done, outputs, files["GITHUB_STEP_SUMMARY"].read_text("utf-8")


def test_the_action_verifies_the_configured_models(accepted: Path, shell: Shell) -> None:
    done, outputs, summary = act(shell, accepted)
    assert (done.returncode, outputs["exit-code"]) == (0, "0"), done.stdout + done.stderr
    assert set(outputs) == set(ACTION["outputs"])
    assert "3 of 3 proven and within their limits" in summary
    assert done.stdout.count("::notice ") == 3
    assert [m["status"] for m in json.loads(Path(outputs["json"]).read_text())["models"]] == ["verified"] * 3


def test_the_action_passes_its_inputs_on(project: Path, shell: Shell) -> None:
    (project / ".lipdeploy.toml").unlink()
    (project / "models" / "deep").mkdir()
    write_model(project / "models" / "deep" / "odd name; exit 0.onnx", DENSE)
    done, outputs, summary = act(
        shell, project, models="  models/plain.onnx\n\nmodels/**/odd*.onnx\n", norm="linf", max_lipschitz="0.6"
    )
    assert (done.returncode, outputs["exit-code"]) == (1, "1"), done.stdout + done.stderr
    found = json.loads(Path(outputs["json"]).read_text())["models"]
    assert [(m["path"], m["norm"], m["max_lipschitz"], m["status"]) for m in found] == [
        ("models/plain.onnx", "linf", 0.6, "verified"),
        ("models/deep/odd name; exit 0.onnx", "linf", 0.6, "exceeded"),
    ]
    assert "1 of 2" in summary
    assert loader.load_sarif_file(outputs["sarif"]).get_result_count() == 1


def test_the_action_knows_baselines_and_configurations(accepted: Path, shell: Shell) -> None:
    (accepted / ".lipdeploy.toml").rename(accepted / "other.toml")
    assert act(shell, accepted, config="other.toml")[0].returncode == 0
    assert act(shell, accepted, models="models/*.onnx", baseline="baselines")[0].returncode == 0
    write_model(accepted / "models" / "plain.onnx", DENSE)
    done, outputs, _ = act(shell, accepted, models="models/*.onnx", baseline="baselines")
    assert (done.returncode, outputs["exit-code"]) == (1, "1")


@pytest.mark.parametrize(
    ("models", "code"),
    [("models/none*.onnx", "2"), ("models/odd.onnx", "3"), ("--help", "2"), ("$(touch injected)", "2"), ("", "2")],
)
def test_the_action_ends_with_the_exit_code_of_the_gate(models: str, code: str, project: Path, shell: Shell) -> None:
    (project / ".lipdeploy.toml").unlink()
    write_model(project / "models" / "odd.onnx", UNKNOWN)
    done, outputs, _ = act(shell, project, models=models)
    assert (str(done.returncode), outputs["exit-code"]) == (code, code), done.stdout + done.stderr
    assert all(Path(outputs[name]).is_file() for name in set(outputs) - {"exit-code"})
    assert done.stdout.count("::error ") == 1
    assert not (project / "injected").exists()


def test_where_nothing_was_judged_the_action_names_no_reports_and_says_why(project: Path, shell: Shell) -> None:
    (project / ".lipdeploy.toml").write_text('norm = "100%\\n::notice::l2"')
    done, outputs, summary = act(shell, project)
    assert (done.returncode, outputs, summary) == (2, {"exit-code": "2"}, "")
    assert done.stderr.startswith("error: ")
    (line,) = done.stdout.splitlines()
    assert line.startswith("::error title=lipdeploy verify::") and "is not known (try: one of l2, linf" in line
    assert "100%25\\n::notice" in line


def test_a_crash_ends_the_action_with_5(project: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('click is damaged')\n")
    done = shell(
        f"export PYTHONPATH='{tmp_path}':$PYTHONPATH\n{VERIFY['run']}", project,
        RUNNER_TEMP=str(tmp_path), GITHUB_OUTPUT=str(tmp_path / "out"), GITHUB_STEP_SUMMARY=str(tmp_path / "summary"),
        LIPDEPLOY="lipdeploy", MODELS="models/plain.onnx", NORM="", MAX_LIPSCHITZ="", BASELINE="", CONFIG="",
    )  # fmt: skip
    assert done.returncode == 5
    assert (tmp_path / "out").read_text() == "exit-code=5\n"
    assert "::error title=lipdeploy verify::internal error: ImportError: click is damaged" in done.stdout


def test_the_hooks_follow_the_format_of_pre_commit() -> None:
    hooks = clientlib.load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    (_, _, text) = blocks(PAGE, "yaml")
    used = yaml.safe_load(text)["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == [hook["id"] for hook in used]


def test_the_page_configures_pre_commit_as_pre_commit_wants_it(tmp_path: Path) -> None:
    (tmp_path / ".pre-commit-config.yaml").write_text(blocks(PAGE, "yaml")[2])
    clientlib.load_config(str(tmp_path / ".pre-commit-config.yaml"))


@pytest.mark.skipif(shutil.which("git") is None, reason="pre-commit works on a git repository")
def test_pre_commit_runs_the_hooks(accepted: Path, shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The hooks as published, run where they are (``language: system``) instead of in an installation of their own."""
    (accepted / ".git").rmdir()
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    local = [{**hook, "language": "system"} for hook in hooks]
    local[0]["args"] = ["--max-lipschitz", "0.8"]
    (accepted / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": local}]}))
    home = str(tmp_path_factory.mktemp("home"))
    run = f"'{sys.executable}' -m pre_commit run --all-files"

    def commit(script: str) -> subprocess.CompletedProcess[str]:
        return shell(f"git add --all\n{script}", accepted, HOME=home, PRE_COMMIT_HOME=f"{home}/cache", NO_COLOR="1")

    shell("git init --quiet", accepted, HOME=home)
    fine = commit(run)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert fine.stdout.count("Passed") == 2
    write_model(accepted / "models" / "plain.onnx", DENSE.replace("0.75", "0.9"))
    worse = commit(run)
    assert worse.returncode == 1
    assert worse.stdout.count("exit code: 1") == 2, worse.stdout
    assert "is above the limit 0.8" in worse.stdout
    assert "baselines/plain.cert.json states" in worse.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="pre-commit works on a git repository")
@pytest.mark.parametrize("name", ["plain.cert.json", "plain.sig.json", "plain.onnx.data"])
def test_pre_commit_runs_the_hooks_for_what_lies_beside_a_model(name: str, project: Path, shell: Shell) -> None:
    """A commit of nothing but a certificate: an edited one contradicts the model, which is exit code 4."""
    (project / ".git").rmdir()
    (project / "models" / "plain.cert.json").write_text("{}")
    (project / "models" / name).write_text("{}")
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    local = [{**hook, "language": "system"} for hook in hooks]
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": local}]}))
    home = str(project.parent / f"{project.name}-home")
    run = f"git init --quiet; git add --all; '{sys.executable}' -m pre_commit run --files models/{name}"
    done = shell(run, project, HOME=home, PRE_COMMIT_HOME=f"{home}/cache", NO_COLOR="1")
    assert done.returncode == 1
    assert done.stdout.count("exit code: 4") == 2, done.stdout + done.stderr


def test_nothing_here_names_a_place_on_one_machine() -> None:
    for name in ("action.yml", ".pre-commit-hooks.yaml", PAGE):
        assert not re.search(r"/(home|tmp|work|root)/", (ROOT / name).read_text("utf-8")), name
