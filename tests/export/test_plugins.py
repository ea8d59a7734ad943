"""Adapters of other distributions: the entry-point group ``lipdeploy.adapters``, with one laid out as pip leaves it."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest
import torch

import lipdeploy as lip
from lipdeploy import nn
from lipdeploy.errors import InputError
from tests.export.running import export_and_compare, operators

LIBRARY = """
import torch

class AcmeSort(torch.nn.Module):
    def forward(self, x):
        if x.detach().numpy().sum() > 1e9:  # looks at the values: cannot be traced
            raise ValueError
        return x.sort(dim=1).values

class AcmeOther(AcmeSort):
    def forward(self, x):
        return x.relu()

class AcmeHolder(torch.nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = [held]  # in a list: not one of its modules

    def forward(self, x):
        return self.held[0](x)
"""
ADAPTER = """
import copy

import torch

import lipdeploy.nn

def adapt(layer):
    return lipdeploy.nn.FullSort()

def wrong(layer):
    return lipdeploy.nn.FullSort(descending=True)

def nothing(layer):
    return None

def fails(layer):
    raise KeyError("no such thing")

def unpack(layer):
    return copy.deepcopy(layer.held[0])

def itself(layer):
    return torch.nn.Sequential(layer, torch.nn.Identity())

table = {}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a library and a distribution with adapters on the path; returns the library."""

    def make(*lines: str):
        site = tmp_path / "site"
        for name, text in (("acme_nets", LIBRARY), ("acme_lipdeploy", ADAPTER)):
            (site / name).mkdir(parents=True, exist_ok=True)
            (site / name / "__init__.py").write_text(textwrap.dedent(text))
        for number, line in enumerate(lines):
            info = site / f"acme_{number}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{number}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[lipdeploy.adapters]\n{line}\n")
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        return importlib.import_module("acme_nets")

    yield make
    for name in ("acme_nets", "acme_lipdeploy"):
        sys.modules.pop(name, None)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_an_adapter_of_another_distribution_is_used(install, out):
    library = install("acme_nets.AcmeSort = acme_lipdeploy:adapt")
    result = export_and_compare(torch.nn.Sequential(library.AcmeSort()), (6,), out)
    assert operators(result) == ["GroupSort"]


def test_without_it_the_layer_is_named(install, out):
    library = install()
    with pytest.raises(InputError, match="AcmeSort"):
        lip.export(torch.nn.Sequential(library.AcmeSort()), torch.zeros(1, 6), out / "model.onnx")


def test_nothing_is_imported_before_its_class_is_met(install, out):
    install("acme_nets.AcmeSort = acme_lipdeploy:adapt")
    export_and_compare(torch.nn.Linear(6, 3), (6,), out)
    assert "acme_lipdeploy" not in sys.modules


def test_a_subclass_with_its_own_forward_is_left_alone(install, out):
    library = install("acme_nets.AcmeSort = acme_lipdeploy:adapt")
    assert operators(export_and_compare(library.AcmeOther(), (6,), out)) == ["Relu"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LinearSpline(6, init="absolute_value"),
        lambda: nn.Householder(6),
        lambda: nn.BjorckLinear(6, 6),
        lambda: nn.SpectralLinear(6, 6),
        lambda: torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(6, 6)),
    ],
    ids=["spline", "householder", "bjorck", "spectral", "orthogonal"],
)
def test_what_an_adapter_returns_is_made_constant(make, install, out):
    library = install("acme_nets.AcmeHolder = acme_lipdeploy:unpack")
    torch.manual_seed(0)
    layer = make()
    bound = export_and_compare(library.AcmeHolder(layer.eval()), (6,), out).verdict.lipschitz_bound
    alone = lip.export(layer, torch.zeros(1, 6), out / "alone.onnx").verdict.lipschitz_bound
    assert float(bound.value) == float(alone.value)


def test_what_an_adapter_returns_may_need_another_adapter(install, out):
    library = install("acme_nets.AcmeHolder = acme_lipdeploy:unpack")
    assert operators(export_and_compare(library.AcmeHolder(torch.nn.Softplus()), (6,), out)) == ["Softplus"]


def test_an_adapter_may_return_its_layer(install, out):
    library = install("acme_nets.AcmeOther = acme_lipdeploy:itself")
    assert operators(export_and_compare(library.AcmeOther(), (6,), out)) == ["Relu"]


def test_numbers_that_cannot_be_stored_name_the_layer(install, out):
    library = install("acme_nets.AcmeHolder = acme_lipdeploy:unpack")
    spline = nn.LinearSpline(6)
    torch.nn.init.zeros_(spline.scaling)
    with pytest.raises(InputError, match=r"layer '0'.*AcmeHolder.*scaling holds a zero"):
        lip.export(torch.nn.Sequential(library.AcmeHolder(spline)), torch.zeros(1, 6), out / "model.onnx")


def test_a_wrong_adapter_fails_parity(install, out):
    library = install("acme_nets.AcmeSort = acme_lipdeploy:wrong")
    with pytest.raises(lip.LipdeployError, match=r"does not compute|differs"):
        lip.export(torch.nn.Sequential(library.AcmeSort()), torch.randn(2, 6), out / "model.onnx")
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["acme_nets.AcmeSort = acme_lipdeploy:nothing"], "returned NoneType"),
        (["acme_nets.AcmeSort = acme_lipdeploy:fails"], "acme_lipdeploy:fails of acme-0.*KeyError"),
        (["acme_nets.AcmeSort = acme_lipdeploy:table"], "not a function"),
        (["acme_nets.AcmeSort = acme_lipdeploy:missing"], "cannot be loaded"),
        (
            ["acme_nets.AcmeSort = acme_lipdeploy:adapt", "acme_nets.AcmeSort = acme_lipdeploy:wrong"],
            "several adapters.*acme-0.*acme-1",
        ),
    ],
)
def test_a_broken_adapter_is_named(lines, words, install, out):
    library = install(*lines)
    with pytest.raises(InputError, match=words):
        lip.export(torch.nn.Sequential(library.AcmeSort()), torch.randn(2, 6), out / "model.onnx")
