"""The liar points external data at a file outside the model's folder, or at a link that leads there.

The certificate would be about bytes that somebody else can change, or leak a file of the machine. Locations that leave
the folder, links on the way, and stated sizes that do not fit are refused (LIP012); tests/verify/test_source.py tries
many spellings.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lipdeploy.verify import verify
from tests.verify.test_source import external


@pytest.mark.parametrize("trick", ["dots", "absolute", "link", "linked folder", "too long", "too short"])
def test_the_escape_is_refused(tmp_path: Path, trick: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    np.ones(2, np.float32).tofile(secret)
    os.symlink(secret, folder / "link.bin")
    os.symlink(tmp_path, folder / "up")
    np.ones(2, np.float32).tofile(folder / "weights.bin")
    location, size = {
        "dots": ("../secret.bin", "8"),
        "absolute": (str(secret), "8"),
        "link": ("link.bin", "8"),
        "linked folder": ("up/secret.bin", "8"),
        "too long": ("weights.bin", "12"),
        "too short": ("weights.bin", "4"),
    }[trick]
    (folder / "model.onnx").write_bytes(external(location, length=size).SerializeToString())
    verdict = verify(folder / "model.onnx")
    assert verdict.status == "refused"
    assert verdict.refusals[0].code in {"LIP012", "LIP013"}


def test_without_a_trick_it_is_accepted(tmp_path: Path) -> None:
    np.ones(2, np.float32).tofile(tmp_path / "weights.bin")
    (tmp_path / "model.onnx").write_bytes(external("weights.bin", length="8").SerializeToString())
    assert verify(tmp_path / "model.onnx").status == "verified"
