"""Printing: bounds up, radii down, nothing forged, nothing half-written, JSON that reads back exactly."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy.cli import report
from lipdeploy.errors import InputError
from lipdeploy.verify.bound import Bound, Estimate
from lipdeploy.verify.rounding import decimal_down, decimal_up
from tests.cli.conftest import ROOT

FINITE = st.floats(min_value=0.0, allow_infinity=False)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(FINITE)
def test_a_printed_bound_is_never_below_and_an_estimate_never_above(value: float) -> None:
    assert Fraction(f"{Bound(value)}") >= Fraction(value)
    assert Fraction(f"{Estimate(value)}") <= Fraction(value)
    assert Fraction(decimal_down(value, 3)) <= Fraction(value) <= Fraction(decimal_up(value, 3))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_numbers_read_back_as_the_same_number(value: float) -> None:
    assert json.loads(report.as_json({"v": [value]})) == {"v": [value]}


def test_json_has_no_infinity() -> None:
    assert json.loads(report.as_json({"a": math.inf, "b": (math.nan, 1.5)})) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1", "conv1"),
        ("Größe ≤ 3", "Größe ≤ 3"),
        ("a\nverified", r"a\nverified"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff", r"\udcff"),
        ("[red]no markup[/red]", "[red]no markup[/red]"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    report.show([text, report.Table(("node",), ((text,),))])
    assert capsys.readouterr().out.splitlines() == [shown, "node", shown]


def test_an_error_is_one_line_even_if_the_message_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    report.error("first\n  second\x1b[1m", hint="third\nfourth")
    assert capsys.readouterr().err == "error: first second\\x1b[1m (try: third fourth)\n"


def test_a_piped_table_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    report.show([report.Table(("model", "bound ≤"), (("a.onnx", "1.5"), ("longer.onnx", "12")))])
    assert capsys.readouterr().out == "model        bound ≤\na.onnx       1.5\nlonger.onnx  12\n"


@pytest.mark.parametrize("columns", [20, 40, 60, 100])
def test_no_terminal_is_so_narrow_that_a_number_breaks(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.99999 above 83 is read as 0.99999: below the bound."""
    numbers = ("0.9999983", "1.000000000000002", "-12")
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", terminal)
    cells = ("layers.0.parametrizations.weight", *numbers, "models/a_rather_long_name.onnx")
    report.show([report.Table(("node", "bound ≤", "limit", "shape", "file"), (cells,))])
    drawn = terminal.getvalue()
    assert all(number in drawn for number in numbers)
    assert "…" not in drawn  # and nothing is cut off


@pytest.mark.parametrize("no_color", [True, False])
def test_a_table_on_a_terminal_is_drawn_and_honours_no_color(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    report.show([report.Table(("model", "status"), (("[b]a.onnx\x1b[31m", "verified"),))])
    drawn = terminal.getvalue()
    assert "[b]a.onnx\\x1b[31m" in drawn
    assert "─" in drawn
    assert ("\x1b[32m" in drawn) is not no_color


def test_others_cannot_print_into_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with report.working("exporting"):
        print("chatter of a library")
    report.document({"a": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert captured.err == "chatter of a library\n"


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")
    report.save(str(target), "new ≤\n")
    assert target.read_text("utf-8") == "new ≤\n"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~_umask()


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "r.json"
    link.symlink_to(tmp_path / "real" / "r.json")
    report.save(str(link), "new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "r.json").read_text() == "new"


def test_saving_to_a_device_does_not_replace_the_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    report.save(str(pipe), "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_saving_to_standard_output_that_is_a_pipe() -> None:
    script = "from lipdeploy.cli import report; report.save('/dev/stdout', 'through')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "through"), done.stderr


@pytest.mark.parametrize("where", ["", "missing/folder/r.json", "file/r.json"])
def test_an_unwritable_place_is_one_clear_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        InputError, match=r"cannot be written: (Is a directory|No such file or directory|Not a directory)"
    ):
        report.save(str(tmp_path / where), "x")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        report.save(str(target), "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
