"""Nothing is left behind when an export fails, and an older model stays as it was."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
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


def publish_over_older(folder, monkeypatch, replace, link=os.link) -> None:
    """A model with external data over an older one, with other programs in place of two of the system's."""
    for file in staged(folder, b"old"):
        file.rename(folder / file.name)
    (folder / ".staged").rmdir()
    (folder / "stale").write_bytes(b"old")
    files = staged(folder, b"new")
    monkeypatch.setattr(assemble.os, "replace", replace)
    monkeypatch.setattr(assemble.os, "link", link)
    assemble.publish(files, folder, stale=[folder / "stale"])


OLDER = {name: b"old" for name in ("model.onnx.data", "model.onnx", "model.cert.json", "stale")}
NEWER = {name: b"new" for name in ("model.onnx.data", "model.onnx", "model.cert.json")}


def no_links(source, target):
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize("link", [os.link, no_links])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("failing", range(3))
def test_a_failed_rename_puts_the_older_files_back(failing, late, link, tmp_path, monkeypatch):
    """Each rename fails once, as on a disk that fills up, or an interrupt comes right after it."""
    calls, real = [], os.replace

    def replace(source, target):
        calls.append(source)
        if len(calls) == failing + 1 and not late:
            raise OSError(28, "No space left on device")
        real(source, target)
        if len(calls) == failing + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if late else lip.InputError):
        publish_over_older(tmp_path, monkeypatch, replace, link)
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == OLDER


def test_what_cannot_be_removed_last_puts_the_older_files_back(tmp_path, monkeypatch):
    def unlink(path, missing_ok=False):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(assemble.Path, "unlink", unlink)
    with pytest.raises(lip.InputError, match="Read-only"):
        publish_over_older(tmp_path, monkeypatch, os.replace)
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == OLDER


@pytest.mark.parametrize("link", [os.link, no_links])
def test_a_whole_file_lies_at_every_path_before_and_after_each_rename(link, tmp_path, monkeypatch):
    """What a kill would leave."""
    seen, real = [], os.replace

    def replace(source, target):
        seen.append([(tmp_path / name).read_bytes() for name in NEWER])
        real(source, target)
        seen.append([(tmp_path / name).read_bytes() for name in NEWER])

    publish_over_older(tmp_path, monkeypatch, replace, link)
    assert seen[0] == [b"old"] * 3 and seen[-1] == [b"new"] * 3
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == NEWER


KILLED = """
import os, signal, sys, torch
import lipdeploy as lip
path = sys.argv[1]
lip.export(torch.nn.Linear(4, 2), torch.zeros(2, 4), path)
real = os.replace
def replace(source, target):
    real(source, target)
    if os.path.dirname(path) in (os.path.dirname(source), os.path.dirname(target)):
        os.kill(os.getpid(), signal.SIGTERM)
os.replace = replace
lip.export(torch.nn.Linear(4, 3), torch.zeros(2, 4), path)
"""


def test_a_kill_leaves_a_whole_model_and_another_export_repairs_the_rest(tmp_path):
    """SIGTERM, to which Python has no answer, right after the first rename in the folder."""
    path = tmp_path / "model.onnx"
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert onnx.load(path).graph.initializer[0].dims[0] == 3
    assert lip.verify(path).status == "integrity"  # the certificate is still the older one
    lip.export(nn.Linear(4, 3), X, path)
    assert lip.verify(path).status == "verified"
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["model.cert.json", "model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx.data", "model.cert.json", "model.onnx"])
def test_a_folder_in_the_way_is_never_removed(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_bytes(b"data")
    with pytest.raises(lip.InputError, match=f"{name} is "):
        lip.export(nn.Linear(4, 3), X, tmp_path / "model.onnx")
    with pytest.raises(lip.InputError, match="cannot write"):
        assemble.publish(staged(tmp_path, b"new"), tmp_path)
    shutil.rmtree(tmp_path / ".staged")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert contents(tmp_path / name) == {"precious": b"data"}


def test_a_stale_folder_is_never_removed(tmp_path):
    (tmp_path / "stale").mkdir()
    with pytest.raises(lip.InputError, match="cannot write"):
        assemble.publish(staged(tmp_path, b"new"), tmp_path, stale=[tmp_path / "stale"])
    shutil.rmtree(tmp_path / ".staged")
    assert [path.name for path in tmp_path.iterdir()] == ["stale"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(there, tmp_path):
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "real.onnx", tmp_path / "model.onnx"
    if there:
        lip.export(nn.Linear(4, 2), X, real)
    link.symlink_to(real)
    result = lip.export(nn.Linear(4, 3), X, link)
    assert link.is_symlink() and result.path == link
    assert not real.is_symlink() and onnx.load(real).graph.initializer[0].dims[0] == 3
    assert lip.verify(link).status == "verified" and result.certificate_path == tmp_path / "model.cert.json"


def test_a_link_that_fails_leaves_its_target(tmp_path, monkeypatch):
    real, link = tmp_path / "real.onnx", tmp_path / "model.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    move = os.replace

    def replace(source, target):
        if Path(target) == real:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        move(source, target)

    monkeypatch.setattr(assemble.os, "replace", replace)
    with pytest.raises(lip.InputError, match="cross-device") as caught:
        lip.export(nn.Linear(4, 3), X, link)
    assert "another file system" in caught.value.hint
    assert link.is_symlink() and contents(tmp_path) == {"real.onnx": b"old", "model.onnx": b"old"}


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [("real.onnx", {"external_data_bytes": 10}, "is a link"), ("missing/real.onnx", {}, "missing does not exist")],
)
def test_links_that_are_refused(target, options, message, tmp_path):
    (tmp_path / "model.onnx").symlink_to(tmp_path / target)
    with pytest.raises(lip.InputError, match=message):
        lip.export(nn.Linear(40, 40), torch.zeros(2, 40), tmp_path / "model.onnx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_publishing_replaces_all_and_removes_what_would_mislead(tmp_path):
    (tmp_path / "stale").write_bytes(b"old")
    assemble.publish(staged(tmp_path, b"new"), tmp_path, stale=[tmp_path / "stale"])
    shutil.rmtree(tmp_path / ".staged")
    assert contents(tmp_path) == NEWER


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


def test_two_names_of_one_file_are_refused(tmp_path):
    (tmp_path / "model.cert.json").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(lip.InputError, match="links to one file"):
        lip.export(nn.Linear(4, 3), torch.zeros(2, 4), tmp_path / "model.onnx")
