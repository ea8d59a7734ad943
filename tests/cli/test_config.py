"""``[tool.lipdeploy]``: found, merged, and never half understood."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lipdeploy.cli import config
from lipdeploy.errors import REASONS
from tests.cli.conftest import DENSE, Cli, write_model

HALF = DENSE.replace("0.75", "0.25")  # diag(0.25, −0.5): its ℓ2 constant is 0.5


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two models (constants 0.75 and 0.5), as working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "models" / "deep").mkdir(parents=True)
    write_model(tmp_path / "models" / "dense.onnx", DENSE)
    write_model(tmp_path / "models" / "deep" / "half.onnx", HALF)
    return tmp_path


def judged(cli: Cli, *words: object) -> list[tuple[str, str, float | None, str]]:
    """(path, norm, limit, status) of everything that one run judged."""
    models = cli("verify", *words, "--json").document["models"]
    return [(model["path"], model["norm"], model["max_lipschitz"], model["status"]) for model in models]


def test_the_configured_models_are_verified(cli: Cli, project: Path) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.lipdeploy]\nnorm = "linf"\nmax_lipschitz = 1\n'
        '[[tool.lipdeploy.models]]\npath = "models/dense.onnx"\n'
        '[[tool.lipdeploy.models]]\npath = "models/**/half.onnx"\nmax_lipschitz = 0.1\nnorm = "l2"\n'
    )
    assert judged(cli) == [
        ("models/dense.onnx", "linf", 1.0, "verified"),
        ("models/deep/half.onnx", "l2", 0.1, "exceeded"),
    ]
    assert cli("verify").code == 1
    assert cli("verify", "--max-lipschitz", "0.9").code == 0


def test_the_own_file_needs_no_prefix_and_may_have_it(cli: Cli, project: Path) -> None:
    own = project / ".lipdeploy.toml"
    for text in ('[[models]]\npath = "models/dense.onnx"', '[[tool.lipdeploy.models]]\npath = "models/dense.onnx"'):
        own.write_text(text)
        assert judged(cli) == [("models/dense.onnx", "l2", None, "verified")]


def test_paths_are_relative_to_the_configuration_and_the_nearest_one_counts(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "models/dense.onnx"')
    (project / "models" / "pyproject.toml").write_text("[tool.other]\n")
    monkeypatch.chdir(project / "models" / "deep")
    assert [path for path, *_ in judged(cli)] == [str(project / "models" / "dense.onnx")]
    (project / "models" / ".lipdeploy.toml").write_text('[[models]]\npath = "deep/half.onnx"')
    assert [path for path, *_ in judged(cli)] == ["half.onnx"]


def test_nothing_is_read_beyond_the_repository(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "models/dense.onnx"')
    (project / "models" / ".git").mkdir()
    monkeypatch.chdir(project / "models")
    assert cli("verify").code == 2


def test_an_explicit_configuration(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text("nonsense = 1")
    (project / "other.toml").write_text('max_lipschitz = 0.6\n[[models]]\npath = "models/dense.onnx"')
    assert judged(cli, "--config", "other.toml") == [("models/dense.onnx", "l2", 0.6, "exceeded")]
    assert "other.onnx" in cli("verify", "--config", "other.onnx").error
    (project / "pyproject.toml").write_text("[tool.other]\n")
    assert "no [tool.lipdeploy]" in cli("verify", "--config", "pyproject.toml").error


def test_options_win_over_a_models_table_which_wins_over_the_rest(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(
        'norm = "l1"\nmax_lipschitz = 3\n[[models]]\npath = "models/dense.onnx"\nnorm = "linf"\n'
    )
    assert judged(cli) == [("models/dense.onnx", "linf", 3.0, "verified")]
    assert judged(cli, "--norm", "l2", "--max-lipschitz", "2") == [("models/dense.onnx", "l2", 2.0, "verified")]


def test_a_named_model_meets_its_own_requirements_and_any_other_the_common_ones(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(
        'max_lipschitz = 3\n[[models]]\npath = "models/d*.onnx"\nmax_lipschitz = 0.6\n'
    )
    assert judged(cli, "./models/dense.onnx", "models/deep/half.onnx") == [
        ("./models/dense.onnx", "l2", 0.6, "exceeded"),
        ("models/deep/half.onnx", "l2", 3.0, "verified"),
    ]


def test_no_requirement_loosens_another(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(
        '[[models]]\npath = "models/dense.onnx"\nmax_lipschitz = 0.6\n'
        '[[models]]\npath = "models/*.onnx"\nmax_lipschitz = 9\n'
        '[[models]]\npath = "models/../models/dense.onnx"\nmax_lipschitz = 9\n'
    )
    found = judged(cli)
    assert [(limit, status) for _, _, limit, status in found][:2] == [(0.6, "exceeded"), (9.0, "verified")]
    assert cli("verify").code == 1
    assert cli("verify", "models/dense.onnx").code == 1
    assert "--write-certificate: several requirements are about" in cli("verify", "--write-certificate").error


def test_a_pattern_without_a_match_is_an_error_and_hides_no_other(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "old/*.onnx"\n[[models]]\npath = "models/dense.onnx"')
    result = cli("verify", "--json")
    assert (result.code, result.document["models"][0]["status"]) == (2, "verified")
    assert "'old/*.onnx' matches no file" in result.document["errors"][0]["message"]
    assert "'old/*.onnx' matches no file" in result.error


def test_a_file_whose_name_looks_like_a_pattern(cli: Cli, project: Path) -> None:
    write_model(project / "net[1].onnx", HALF)
    write_model(project / "net1.onnx", DENSE)
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "net[1].onnx"')
    assert [path for path, *_ in judged(cli)] == ["net[1].onnx"]


@pytest.mark.parametrize("kind", ["broken link", "pipe", "folder", "link to a folder"])
def test_what_a_pattern_matches_is_judged_whatever_it_is(kind: str, cli: Cli, project: Path) -> None:
    """git-annex and DVC leave broken links where a file was not fetched: such a model is not proven."""
    odd = project / "models" / "annex.onnx"
    {
        "broken link": lambda: odd.symlink_to("nowhere/annex.onnx"),
        "pipe": lambda: os.mkfifo(odd),
        "folder": odd.mkdir,
        "link to a folder": lambda: odd.symlink_to("deep"),
    }[kind]()
    for pattern in ("models/*.onnx", "models/**/*.onnx", "models/annex.onnx"):
        (project / ".lipdeploy.toml").write_text(f'[[models]]\npath = "{pattern}"')
        result = cli("verify")
        assert result.code == 2
        assert "models/annex.onnx: " in result.error


@pytest.mark.parametrize("pattern", ["models/*", "models/**"])
def test_a_pattern_for_every_name_passes_folders_over_and_nothing_else(pattern: str, cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(f'[[models]]\npath = "{pattern}"')
    assert cli("verify").code == 0
    (project / "models" / "annex").symlink_to("nowhere")
    assert "models/annex: No such file" in cli("verify").error


@pytest.mark.parametrize("pattern", ["models/*/half.onnx", "models/**/half.onnx", "mod*/*/*.onnx", "*/*/half.onnx"])
def test_a_folder_that_was_not_fetched_hides_its_models(pattern: str, cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(f'[[models]]\npath = "{pattern}"')
    assert cli("verify").code == 0
    (project / "models" / "annex").symlink_to("nowhere")
    result = cli("verify")
    assert result.code == 2
    assert "models/annex: No such file" in result.error


@pytest.mark.parametrize("pattern", ["models/*/half.onnx", "models/**/*.onnx"])
def test_a_folder_that_nobody_may_list_hides_its_models(
    pattern: str, cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".lipdeploy.toml").write_text(f'[[models]]\npath = "{pattern}"')
    (project / "models" / "locked").mkdir()
    assert cli("verify").code == 0
    allowed = os.access  # root may list every folder
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in os.fspath(path) and allowed(path, mode))
    result = cli("verify")
    assert result.code == 2
    assert "models/locked: " in result.error


def test_a_broken_link_whose_name_looks_like_a_pattern(cli: Cli, project: Path) -> None:
    (project / "net[1].onnx").symlink_to("nowhere")
    write_model(project / "net1.onnx", DENSE)
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "net[1].onnx"')
    assert "net[1].onnx: No such file" in cli("verify").error


@pytest.mark.parametrize("name", [".lipdeploy.toml", "pyproject.toml"])
@pytest.mark.parametrize("kind", ["broken link", "pipe", "folder"])
def test_a_configuration_that_cannot_be_read_is_not_one_that_is_absent(
    kind: str, name: str, cli: Cli, project: Path
) -> None:
    path = project / name
    {"broken link": lambda: path.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    result = cli("verify", "models/dense.onnx")
    assert (result.code, result.out) == (2, "")
    assert f"{name}: " in result.error


@pytest.mark.parametrize("text", [None, "", 'norm = "l2"', "models = []"])
def test_nothing_to_judge_is_a_usage_error(text: str | None, cli: Cli, project: Path) -> None:
    if text is not None:
        (project / ".lipdeploy.toml").write_text(text)
    result = cli("verify")
    assert result.code == 2
    assert "lipdeploy verify: Missing argument 'MODEL...'" in result.error
    assert "[[tool.lipdeploy.models]]" in result.error


def test_two_configurations_in_one_folder_are_one_too_many(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "models/dense.onnx"')
    (project / "pyproject.toml").write_text("[tool.lipdeploy]\n")
    assert "keep one of them" in cli("verify").error


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("max_lipshitz = 1", ": unknown key 'max_lipshitz'; did you mean 'max_lipschitz'? (try: one of norm, "),
        ("max-lipschitz = 1", "unknown key 'max-lipschitz'; did you mean 'max_lipschitz'?"),
        ("model = []", "unknown key 'model'; did you mean 'models'?"),
        ("zzz = 1", "unknown key 'zzz' (try: one of norm, max_lipschitz, method, graph_output, baseline"),
        ("[[models]]\npath = 'm'\nnrom = 'l2'", "[[tool.lipdeploy.models]] number 1: unknown key 'nrom'; did you mean"),
        ("[[models]]\npath = 'm'\nmodels = []", "number 1: unknown key 'models'"),
        ("[[models]]\nnorm = 'l2'", "number 1: path: None is not a path or a pattern"),
        ("[[models]]\npath = ''", "number 1: path: '' is not a path or a pattern"),
        ("[models]\npath = 'm'", "models: {'path': 'm'} is not a list of tables"),
        ("norm = 'l3'", "norm: 'l3' is not known (try: one of l2, linf, l1, l2-linf, l1-linf)"),
        ("norm = 2", "norm: 2 is not known"),
        ("max_lipschitz = 'one'", "max_lipschitz: 'one' is not a finite number above 0"),
        ("max_lipschitz = true", "max_lipschitz: True is not a finite number above 0"),
        ("max_lipschitz = 0", "max_lipschitz: 0 is not a finite number above 0"),
        ("max_lipschitz = -1.5", "max_lipschitz: -1.5 is not a finite number above 0"),
        ("max_lipschitz = inf", "max_lipschitz: inf is not a finite number above 0"),
        ("max_lipschitz = nan", "max_lipschitz: nan is not a finite number above 0"),
        (f"max_lipschitz = 1{'0' * 400}", "is not a finite number above 0"),
        ("method = 'magic'", "method: 'magic' is not known"),
        ("baseline = ['a']", "baseline: ['a'] is not a name"),
        ("graph_output = ''", "graph_output: '' is not a name"),
        ("require_signature = false", "require_signature: False is not a name"),
        ("[[models]]\npath = 'm'\nrequire_signature = ''", "number 1: require_signature: '' is not a name"),
        ("ignore = 'LIP001'", "ignore: 'LIP001' is not a list of codes"),
        ("ignore = ['LIP099']", "ignore: unknown code 'LIP099'; did you mean"),
        ("[[models]]\npath = 'm'\nignore = ['LIP001']", "number 1: ignore: LIP001 is a soundness code"),
        ("[tool.lipdeploy]\n[other]", "unknown key 'other'"),
        ("[tool.lipdeploi]\nmax_lipschitz = 0.1", "[tool]: unknown key 'lipdeploi'; did you mean 'lipdeploy'?"),
        ("[tool]", "no [tool.lipdeploy]"),
        ("tool = 3", "no [tool.lipdeploy]"),
        ("[tool]\nlipdeploy = 3", "tool.lipdeploy is not a table"),
        ("norm = ", "not a TOML file"),
        ("norm = 'l2'\nnorm = 'l1'", "not a TOML file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [False, True])
def test_what_is_not_understood_is_an_error(text: str, phrase: str, named: bool, cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(text)
    result = cli("verify", *(["models/dense.onnx"] if named else []))
    assert (result.code, result.out) == (2, "")
    assert phrase in result.error
    assert ".lipdeploy.toml" in result.error


def test_a_configuration_that_is_no_text(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_bytes(b"\xff\xfe")
    assert "not a TOML file" in cli("verify", "models/dense.onnx").error


@pytest.mark.parametrize("code", REASONS)
def test_no_soundness_code_can_be_suppressed(code: str, cli: Cli, project: Path, unknown: Path) -> None:
    (project / ".lipdeploy.toml").write_text(f'ignore = ["{code.lower()}"]')
    result = cli("verify", unknown)
    assert result.code == 2
    assert f"ignore: {code.lower()} is a soundness code, and those cannot be suppressed" in result.error


def test_an_empty_list_of_codes_and_the_known_method_are_fine(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text(f'ignore = []\nmethod = "{config.METHODS[0]}"')
    assert cli("verify", "models/dense.onnx").code == 0


def test_the_output_to_judge(cli: Cli, project: Path) -> None:
    text = DENSE.replace("(float[N, 2] y)", "(float[N, 2] y, float[N, 2] h)")
    write_model(project / "two.onnx", text)
    assert cli("verify", "two.onnx").code == 3
    (project / ".lipdeploy.toml").write_text('[[models]]\npath = "two.onnx"\ngraph_output = "h"')
    assert cli("verify").code == 0
    assert cli("verify", "--graph-output", "nothing").code == 3


def test_help_needs_no_configuration(cli: Cli, project: Path) -> None:
    (project / ".lipdeploy.toml").write_text("broken")
    assert cli("verify", "--help").code == 0
