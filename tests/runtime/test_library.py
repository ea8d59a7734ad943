"""The operator library: found, identified, or refused."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from lipdeploy.errors import IntegrityError
from lipdeploy.ops import VERSION
from lipdeploy.runtime import library
from lipdeploy.runtime.library import ENVIRONMENT_VARIABLE, find_library, inspect_library


@pytest.fixture
def named(monkeypatch):
    return lambda path: monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))


@pytest.fixture
def build(tmp_path):
    """Compile C source into a shared library."""

    def compile_source(source: str) -> Path:
        path = tmp_path / "library.so"
        command = [shutil.which("gcc") or "cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
        subprocess.run(command, input=source.encode(), check=True)
        return path

    return compile_source


PARTS = """void RegisterCustomOps(void){}
int lipdeploy_ops_has_cuda(void){return 0;}
const char* lipdeploy_ops_release(void){return "9.9";}
"""


def test_a_library_says_what_it_is(named, build):
    path = build(PARTS + f"int lipdeploy_ops_version(void){{return {VERSION};}}")
    named(path)
    found = find_library()
    assert (found.path, found.version, found.release, found.has_cuda) == (str(path), VERSION, "9.9", False)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_operator_version_is_refused(named, build):
    named(build(PARTS + "int lipdeploy_ops_version(void){return 77;}"))
    with pytest.raises(IntegrityError, match="implements operator version 77, needed is 1"):
        find_library()


def test_a_library_of_somebody_else_is_refused(named, build):
    named(build("int nothing(void){return 0;}"))
    with pytest.raises(IntegrityError, match="is not lipdeploy's operator library"):
        find_library()


def test_a_file_that_is_no_library_is_refused(named, tmp_path):
    path = tmp_path / "tampered.so"
    path.write_bytes(b"\x7fELF but not really")
    named(path)
    with pytest.raises(IntegrityError, match="cannot be loaded") as error:
        find_library()
    assert error.value.exit_code == 4


def test_a_named_library_must_exist(named, tmp_path):
    named(tmp_path / "missing.so")
    with pytest.raises(IntegrityError, match=f"{ENVIRONMENT_VARIABLE} names .*missing.so, which is not a file"):
        find_library()


def test_a_bare_name_means_the_file_here(named, build, monkeypatch):
    path = build(PARTS + f"int lipdeploy_ops_version(void){{return {VERSION};}}")
    monkeypatch.chdir(path.parent)
    named(path.name)
    assert find_library().path == str(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_library_that_is_cut_off_is_refused_before_it_kills_the_process(named, build, tmp_path, share):
    data = build(PARTS + f"int lipdeploy_ops_version(void){{return {VERSION};}}").read_bytes()
    path = tmp_path / "short.so"
    path.write_bytes(data[: int(share * len(data))])
    named(path)
    with pytest.raises(IntegrityError, match="the operator library"):
        find_library()


def test_an_empty_name_means_none(named):
    named("")
    assert find_library() is None


def test_without_an_installed_library_there_is_none(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "liblipdeploy_ops.so")
    assert find_library() is None


def test_the_built_library_has_a_kernel_entry_for_every_type():
    found = find_library()
    if found is None:
        pytest.skip("the operator library is not built (make build)")
    handle = ctypes.CDLL(found.path)
    for kind in ("f16", "bf16", "f32", "f64"):
        assert hasattr(handle, f"lipdeploy_group_sort_{kind}_cpu")


def test_a_library_that_is_exchanged_while_a_session_starts_is_noticed(build, tmp_path):
    found = inspect_library(build(PARTS + f"int lipdeploy_ops_version(void){{return {VERSION};}}"))
    copy = tmp_path / "liblipdeploy_ops.so"
    copy.write_bytes(Path(found.path).read_bytes())
    mine = dataclasses.replace(found, path=str(copy))
    mine.check({"GroupSort": found.version})
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="changed while it was loaded"):
        mine.check({})
    copy.unlink()
    with pytest.raises(IntegrityError, match="went away"):
        mine.check({})


def test_a_certificate_about_another_operator_version_is_refused(build):
    found = inspect_library(build(PARTS + f"int lipdeploy_ops_version(void){{return {VERSION};}}"))
    with pytest.raises(IntegrityError, match=f"certificate is about GroupSort {found.version + 1}"):
        found.check({"GroupSort": found.version + 1})


def test_a_pinned_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    library = find_library()
    if library is None:
        pytest.skip("the operator library is not built")
    monkeypatch.setenv("LIPDEPLOY_OPS_SHA256", library.sha256.upper())
    assert find_library() == library
    monkeypatch.setenv("LIPDEPLOY_OPS_SHA256", "0" * 64)
    with pytest.raises(IntegrityError, match=library.sha256):
        find_library()
    monkeypatch.setenv("LIPDEPLOY_OPS_LIBRARY", "")
    with pytest.raises(IntegrityError, match="there is no operator library"):
        find_library()
