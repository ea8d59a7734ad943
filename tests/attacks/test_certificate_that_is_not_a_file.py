"""Beside the model lies something that only looks like a certificate: a pipe, a link to nowhere, text nobody can print.

Opening a pipe waits for a writer, so a verifier that merely opens ``model.cert.json`` hangs; a string with half of a
surrogate pair survives the JSON parser and breaks the program that prints the refusal. A link that leads nowhere does
not "exist" for a program that follows it: the certificate is gone, and so is the check.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipdeploy.errors import InputError, IntegrityError
from lipdeploy.runtime import CertifiedSession
from lipdeploy.serve.models import certificate_digest
from lipdeploy.verify import Verdict, verify
from tests.verify.models import model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.onnx"
    target.write_bytes(model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }").SerializeToString())
    verify(target).write_certificate(target.with_suffix(".cert.json"))
    return target


def test_a_pipe_in_place_of_the_certificate(path: Path) -> None:
    beside = path.with_suffix(".cert.json")
    beside.unlink()
    os.mkfifo(beside)
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(verify(path)), daemon=True)
    thread.start()
    thread.join(3.0)
    hangs = thread.is_alive()
    if hangs:
        os.close(os.open(beside, os.O_WRONLY | os.O_NONBLOCK))  # let the thread go
    assert not hangs
    assert found[0].status == "integrity"


@pytest.mark.parametrize("target", ["gone.json", "model.cert.json", "gone/../model.cert.json"])
def test_a_link_that_leads_nowhere_is_a_certificate_that_cannot_be_read(path: Path, target: str) -> None:
    beside = path.with_suffix(".cert.json")
    beside.unlink()
    os.symlink(target, beside)
    verdict = verify(path)
    assert (verdict.status, verdict.refusals[0].code) == ("integrity", "LIP022")
    assert "unreadable certificate" in verdict.refusals[0].message
    for load in (CertifiedSession, certificate_digest):
        with pytest.raises(IntegrityError, match="unreadable certificate"):
            load(path)


@pytest.mark.parametrize("target", ["gone.json", "model.cert.json"])
def test_a_link_that_leads_nowhere_can_be_replaced(path: Path, target: str) -> None:
    beside = path.with_suffix(".cert.json")
    beside.unlink()
    os.symlink(target, beside)
    verify(path, check_certificate=False).write_certificate(beside)
    assert verify(path).status == "verified"
    assert json.loads(beside.read_text())["schema"] == "lipdeploy/certificate/v1"


def test_a_link_to_a_certificate_is_one(path: Path) -> None:
    beside = path.with_suffix(".cert.json")
    beside.rename(path.with_name("elsewhere.json"))
    os.symlink("elsewhere.json", beside)
    assert verify(path).status == "verified"
    path.write_bytes(path.read_bytes().replace(b"Relu", b"Tanh"))
    assert verify(path).status == "integrity"


def test_a_name_that_leaves_no_room_for_a_certificate_s(path: Path) -> None:
    """255 bytes are what a name may have, so model.onnx exists and model.cert.json cannot."""
    long = path.with_name("a" * 250 + ".onnx")
    path.rename(long)
    verdict = verify(long)
    assert verdict.status == "verified"
    assert certificate_digest(long) is None
    with pytest.raises(InputError, match="File name too long"):
        verdict.write_certificate(long.with_suffix(".cert.json"))
    with pytest.raises(InputError, match="File name too long"):
        verify(path.with_name("a" * 300 + ".onnx"))


def test_a_path_too_long_for_the_certificate_hides_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4095 bytes are what a path may have; the certificate's, five longer, cannot be opened, and still lies there."""
    monkeypatch.chdir(path.parent)
    path.with_name("d").mkdir()
    path.write_bytes(path.read_bytes().replace(b"Relu", b"Tanh"))
    long = "d/../" * 817 + path.name
    assert len(long) == 4095
    assert verify(long).status == "integrity"


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "norm": lambda content: content["statement"].update(norm="\ud800"),
    "output": lambda content: content["statement"].update(output="\udfff"),
    "operators": lambda content: content["ops"].update({"\ud800": 1}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_text_that_no_stream_prints(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    beside = path.with_suffix(".cert.json")
    content = json.loads(beside.read_text())
    edit(content)
    beside.write_text(json.dumps(content))
    verdict = verify(path)
    assert verdict.status == "integrity"
    for refusal in verdict.refusals:
        str(refusal).encode()


def test_a_key_that_no_stream_prints_twice(path: Path) -> None:
    path.with_suffix(".cert.json").write_text('{"\\ud800": 1, "\\ud800": 2}')
    verdict = verify(path)
    assert verdict.status == "integrity"
    assert "duplicate key" in verdict.refusals[0].message
    str(verdict.refusals[0]).encode()
