"""Beside the model lies something that only looks like a certificate: a pipe that never ends, text nobody can print.

Opening a pipe waits for a writer, so a verifier that merely opens ``model.cert.json`` hangs; a string with half of a
surrogate pair survives the JSON parser and breaks the program that prints the refusal.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
