"""``load_target``: what ``lipdeploy export TARGET --checkpoint FILE`` reads, and everything that can go wrong."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.export import load_target

FILE = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())

def make():
    return Network()

def broken():
    raise ValueError("no data\\nfor it")

def number():
    return 3

def needs(width):
    return nn.Linear(width, 3)

ready = Network()
text = "text"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return path


@pytest.mark.parametrize("name", ["make", "Network", "ready"])
def test_a_factory_in_a_file(file, name):
    assert type(load_target(f"{file}:{name}")).__name__ == "Network"


def test_a_factory_in_a_package():
    assert isinstance(load_target("torch.nn:Identity"), nn.Identity)


def test_a_module_in_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "lipdeploy_test_nets.py").write_text(FILE)
    assert type(load_target("lipdeploy_test_nets:make")).__name__ == "Network"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_a_checkpoint(file, wrap):
    weights = load_target(f"{file}:make").state_dict()
    torch.save(wrap(weights), file.parent / "weights.pt")
    loaded = load_target(f"{file}:make", file.parent / "weights.pt").state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("nets.py", "cannot read the target", "package.module:factory"),
        (":make", "cannot read the target", "package.module:factory"),
        ("{file}:nothing", "has no 'nothing'", "Network"),
        ("{file}:text", "is not callable", "function"),
        ("{file}:broken", "raised ValueError: no data$", "without arguments"),
        ("{file}:number", "returned int", "torch.nn.Module"),
        ("{file}:needs", "raised TypeError", "without arguments"),
        ("missing.py:make", "no file missing.py", "path"),
        ("no_such_package.part:make", "no module 'no_such_package'", "package.module:factory"),
        ("missing.pt2", "no file missing.pt2", "path"),
    ],
)
def test_a_target_that_cannot_be_used(file, target, message, hint):
    with pytest.raises(lip.InputError, match=message) as caught:
        load_target(target.format(file=file))
    assert hint in caught.value.hint and "\n" not in str(caught.value)


def test_a_file_that_does_not_import(file):
    file.write_text("import no_such_package")
    with pytest.raises(lip.InputError, match="ModuleNotFoundError: No module named 'no_such_package'"):
        load_target(f"{file}:make")


def test_a_checkpoint_that_does_not_fit_names_the_keys(file):
    path = file.parent / "weights.pt"
    weights = load_target(f"{file}:make").state_dict()
    weights["c.weight"] = weights.pop("a.weight")
    weights["b.bias"] = torch.zeros(7)
    torch.save(weights, path)
    message = r"missing a.weight; unexpected c.weight; b.bias is \(7,\), the network's is \(3,\)"
    with pytest.raises(lip.InputError, match=message):
        load_target(f"{file}:make", path)


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: torch.save({"state_dict": Payload()}, path), "holds more than weights"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "checkpoint|more than weights"),
        (lambda path: path.write_bytes(b""), "is not a readable checkpoint"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save({}, path), "holds no state dict"),
        (lambda path: None, "there is no file"),
    ],
    ids=["code", "garbage", "empty file", "list", "empty dict", "missing"],
)
def test_a_checkpoint_that_cannot_be_read(file, content, message):
    path = file.parent / "weights.pt"
    content(path)
    with pytest.raises(lip.InputError, match=message):
        load_target(f"{file}:make", path)


def test_a_pt2_program(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 4)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "network.pt2")
    result = lip.export(load_target(str(tmp_path / "network.pt2")), x, tmp_path / "model.onnx")
    assert result.verdict.status == "verified" and result.nodes == 3
    with pytest.raises(lip.InputError, match="holds its own weights"):
        load_target(str(tmp_path / "network.pt2"), tmp_path / "weights.pt")


def test_a_file_that_is_no_program(tmp_path):
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(lip.InputError, match=r"not a readable torch\.export program"):
        load_target(str(tmp_path / "bad.pt2"))
