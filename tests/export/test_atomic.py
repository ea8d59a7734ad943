"""Nothing is left behind when an export fails, and an older model stays as it was."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.export import assemble

X = torch.zeros(2, 4)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nan_network() -> nn.Module:
    network = nn.Linear(4, 3)
    network.weight.data[0, 0] = float("nan")
    return network


FAILURES = {
    "refused": (lambda: nn.LayerNorm(4), {}, lip.Refused, 3),
    "not finite": (nan_network, {}, lip.Refused, 3),
    "above the limit": (lambda: nn.Linear(4, 3), {"max_lipschitz": 1e-3}, lip.LimitExceeded, 1),
    "not the same function": (
        lambda: nn.Linear(4, 3), {"run": lambda model, feeds: [torch.ones(16, 3).numpy()]}, lip.IntegrityError, 4,
    ),
    "wrong input": (lambda: nn.Linear(5, 3), {}, lip.InputError, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    lip.export(nn.Linear(4, 2), X, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_the_older_model_as_it_was(name, older, tmp_path):
    folder = shutil.copytree(older, tmp_path / "models")
    before = contents(folder)
    network, options, error, code = FAILURES[name]
    with pytest.raises(error) as caught:
        lip.export(network(), X, folder / "model.onnx", **options)
    assert caught.value.exit_code == code and contents(folder) == before


def test_a_refusal_leaves_an_empty_folder_empty(tmp_path):
    with pytest.raises(lip.Refused):
        lip.export(nn.LayerNorm(4), X, tmp_path / "model.onnx")
    assert contents(tmp_path) == {}


def staged(folder, word: bytes):
    (folder / ".staged").mkdir()
    files = [folder / ".staged" / name for name in ("model.onnx.data", "model.onnx", "model.cert.json")]
    for file in files:
        file.write_bytes(word)
    return files


@pytest.mark.parametrize("failing", range(6))
def test_a_failed_move_puts_the_older_files_back(failing, tmp_path, monkeypatch):
    """Each rename of the final step fails once, as on a disk that fills up: three away, three in."""
    for file in staged(tmp_path, b"old"):
        file.rename(tmp_path / file.name)
    (tmp_path / ".staged").rmdir()
    files, calls, real = staged(tmp_path, b"new"), [], os.replace

    def replace(source, target):
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(assemble.os, "replace", replace)
    with pytest.raises(lip.InputError, match="No space left on device"):
        assemble.publish(files, tmp_path)
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == {file.name: b"old" for file in files}


def test_publishing_replaces_all_and_removes_what_would_mislead(tmp_path):
    (tmp_path / "stale").write_bytes(b"old")
    assemble.publish(staged(tmp_path, b"new"), tmp_path, stale=[tmp_path / "stale"])
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == {"model.onnx.data": b"new", "model.onnx": b"new", "model.cert.json": b"new"}


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(model, feeds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lip.export(nn.Linear(4, 3), X, tmp_path / "model.onnx", run=interrupt)
    assert contents(tmp_path) == {}


def test_overwriting_leaves_a_consistent_pair(tmp_path):
    lip.export(nn.Linear(4, 2), X, tmp_path / "model.onnx")
    lip.export(nn.Linear(4, 3), X, tmp_path / "model.onnx")
    assert lip.verify(tmp_path / "model.onnx").status == "verified"
    assert sorted(contents(tmp_path)) == ["model.cert.json", "model.onnx"]


def test_files_have_ordinary_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        result = lip.export(nn.Linear(4, 2), X, tmp_path / "model.onnx")
    finally:
        os.umask(mask)
    assert result.path.stat().st_mode & 0o777 == result.certificate_path.stat().st_mode & 0o777 == 0o644
