"""Every way to end has the contract's exit code; a crash never looks like a verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from lipdeploy.cli import app
from lipdeploy.errors import (
    REASONS,
    InputError,
    IntegrityError,
    LimitExceeded,
    LipdeployError,
    Refusal,
    Refused,
)
from tests.cli.conftest import ROOT, Cli, command_line

DEBUG = " (try: run again with --debug and send us the output)"
SMALLER = " (try: a smaller model or batch, or a machine with more)"
REFUSAL = Refusal("LIP001", "conv1", "Frobnicate", "no rule for this operator")


def raising(problem: BaseException) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        raise problem

    return run


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (LimitExceeded("m.onnx: 1.2 is above 1"), 1, "error: m.onnx: 1.2 is above 1"),
        (InputError("m.onnx: cut off", hint="copy it again"), 2, "error: m.onnx: cut off (try: copy it again)"),
        (Refused([REFUSAL]), 3, f"error: {REFUSAL} (try: {REASONS['LIP001'].hint}; see lipdeploy explain LIP001)"),
        (IntegrityError("digest differs"), 4, "error: digest differs"),
        (LipdeployError("lost"), 5, "error: lost"),
        (click.UsageError("no such thing."), 2, "error: lipdeploy: no such thing (try: lipdeploy --help)"),
        (click.FileError("f", "gone"), 2, "error: lipdeploy: Could not open file 'f': gone (try: lipdeploy --help)"),
        (MemoryError(), 5, "error: internal error: out of memory" + SMALLER),
        (ValueError("odd\n  news"), 5, "error: internal error: ValueError: odd news" + DEBUG),
        (RecursionError(), 5, "error: internal error: RecursionError" + DEBUG),
        (SystemExit(1), 5, "error: internal error: SystemExit: 1" + DEBUG),
        (SystemExit(0), 5, "error: internal error: SystemExit: 0" + DEBUG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_each_error_is_one_line_and_one_code(
    problem: BaseException, code: int, line: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "run", raising(problem))
    result = cli("verify", "m.onnx")
    assert (result.code, result.error, result.out) == (code, line, "")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), click.Abort()])
def test_interruption_is_130(interruption: BaseException, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "run", raising(interruption))
    result = cli("verify", "m.onnx")
    assert (result.code, result.err) == (130, "interrupted\n")


@pytest.mark.parametrize("words", [("--debug", "explain", "X"), ("explain", "X", "--debug")])
def test_a_traceback_only_with_debug(words: tuple[str, ...], cli: Cli) -> None:
    result = cli(*words)
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1].startswith("error: unknown code 'X'")
    assert "Traceback" not in cli("explain", "X").err


def test_debug_after_a_double_dash_is_an_argument(cli: Cli) -> None:
    assert "Traceback" not in cli("explain", "--", "--debug").err


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (("frobnicate",), "error: lipdeploy: No such command 'frobnicate'"),
        (("--frobnicate",), "error: lipdeploy: No such option"),
        (("verify",), "error: lipdeploy verify: Missing argument 'MODEL...'"),
        (("verify", "m.onnx", "--wrong"), "error: lipdeploy verify: No such option"),
        (("verify", "m.onnx", "--norm", "l3"), "'l3' is not one of 'l2', 'linf', 'l1', 'l2-linf', 'l1-linf'"),
        (("verify", "m.onnx", "--max-lipschitz", "nan"), "'--max-lipschitz': 'nan' is not a finite number"),
        (("verify", "m.onnx", "--max-lipschitz", "inf"), "'inf' is not a finite number"),
        (("verify", "m.onnx", "--max-lipschitz", "-1"), "-1 is below 0"),
        (("verify", "m.onnx", "--max-lipschitz", "0"), "0 is not above 0"),
        (("verify", "m.onnx", "--max-lipschitz", "1/0"), "'1/0' is not a finite number"),
        (("verify", "m.onnx", "--format", "pdf"), "'pdf' is not one of 'text', 'json', 'sarif', 'junit'"),
        (("predict", "m.onnx"), "error: lipdeploy predict: Missing argument 'INPUT'"),
        (("predict", "m.onnx", "x.npy", "--epsilon", "nan"), "'--epsilon': 'nan' is not a finite number"),
        (("predict", "m.onnx", "x.npy", "--epsilon", "-0.1"), "-0.1 is below 0"),
        (("predict", "m.onnx", "x.npy", "--certify", "hope"), "'hope' is not one of"),
        (("export", "net.py:build"), "error: lipdeploy export: Missing option '-o' / '--output'"),
        (("export", "t", "-o", "m.onnx", "--input-shape", "3,0"), "'3,0' is not a shape without the batch axis"),
        (("export", "t", "-o", "m.onnx", "--input-shape", "3,-2"), "'3,-2' is not a shape without the batch axis"),
        (("export", "t", "-o", "m.onnx", "--mean", "0.1,x"), "'x' in '0.1,x' is not a finite number"),
        (("export", "t", "-o", "m.onnx", "--std", "0.1,0"), "holds a number that is not above 0"),
        (("export", "t", "-o", "m.onnx", "--input-scale", "0"), "0 is not above 0"),
        (("export", "t", "-o", "m.onnx", "--opset", "9"), "9 is not in the range 17<=x<=23"),
        (("diff", "old.onnx"), "error: lipdeploy diff: Missing argument 'NEW'"),
        (("diff", "a", "b", "--norm", "l3"), "'l3' is not one of"),
        (("inspect",), "error: lipdeploy inspect: Missing argument 'MODEL'"),
        (("explain", "LIP01"), "error: unknown code 'LIP01' (try: LIP0"),
        (("schema", "nonsense"), "'nonsense' is not one of"),
        (("completion", "tcsh"), "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (("doctor", "now"), "error: lipdeploy doctor: Got unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_usage_errors_are_one_line_and_code_2(words: tuple[str, ...], phrase: str, cli: Cli) -> None:
    result = cli(*words)
    assert result.code == 2
    assert phrase in result.error
    assert "(try: " in result.error
    assert result.out == ""


@pytest.mark.parametrize("words", [(), ("--debug",)])
def test_no_command_shows_the_help_and_is_a_usage_error(words: tuple[str, ...], cli: Cli) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


@pytest.mark.parametrize("words", [("--help",), ("-h",), *((name, "--help") for name in app.COMMANDS)])
def test_help_is_code_0(words: tuple[str, ...], cli: Cli) -> None:
    result = cli(*words)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: lipdeploy")


def test_version(cli: Cli) -> None:
    import lipdeploy

    assert cli("--version").out == f"lipdeploy {lipdeploy.__version__}\n"


def test_a_reader_that_goes_away_is_141() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command_line("explain"), stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command_line("explain"), stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: cannot write: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_standard_error_does_not_change_the_code() -> None:
    shell = f'"{sys.executable}" -m lipdeploy explain NOPE 2>&-'
    assert subprocess.run(shell, shell=True, cwd=ROOT).returncode == 2


def test_a_closed_standard_output_is_one_line() -> None:
    shell = f'"{sys.executable}" -m lipdeploy explain >&-'
    done = subprocess.run(shell, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: cannot write: it is closed")


def test_an_ascii_only_stream_is_no_crash() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command_line("explain", "ö"), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert r"'\xf6'" in done.stderr


def test_json_survives_an_ascii_only_stream(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    path = tmp_path / "größe.onnx"
    done = subprocess.run(
        command_line("verify", str(path), "--json"), capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert json.loads(done.stdout)["errors"][0]["path"] == str(path)


def test_sigint_while_working_is_130(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts without it
        "from lipdeploy.cli import app, main\n"
        "def run(words):\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "app.run = run\n"
        "sys.exit(main.main(['verify']))\n"
    )
    worker = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=_path())
    assert worker.stderr is not None
    assert worker.stderr.readline() == "ready\n"
    time.sleep(0.05)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=20) == 130
    assert worker.stderr.read() == "interrupted\n"


def test_a_broken_installation_is_5_and_not_1(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('click is damaged')\n")
    done = subprocess.run(
        command_line("verify", "m.onnx"), capture_output=True, text=True, cwd=ROOT, env=_path(tmp_path)
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr == "error: internal error: ImportError: click is damaged; is lipdeploy fully installed?\n"


def _path(*first: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*first, ROOT)))}


def test_a_model_whose_certificate_has_no_room_for_its_name(cli: Cli, dense: Path) -> None:
    """255 bytes are what a name may have, and a certificate's is five longer than its model's."""
    long = dense.rename(dense.with_name("a" * 250 + ".onnx"))
    assert cli("verify", long).code == 0
    assert cli("verify", long, "--method", "best", "--search-seconds", "0").code == 0
    for words in (["--write-certificate"], ["--baseline", dense.parent]):
        assert cli("verify", long, *words).code == 2
