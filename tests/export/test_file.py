"""What is in the file: names, metadata, versions, the same bytes every time, and preprocessing in the graph."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import lipdeploy as lip
import lipdeploy.nn as lipnn
from lipdeploy.export.assemble import inline_functions
from tests.export.capturing import captured
from tests.export.running import export_and_compare, initializers, operators, run_onnxruntime

ROOT = Path(__file__).resolve().parents[2]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.sort = lipnn.GroupSort(4)
        self.spline = lipnn.LinearSpline(8)
        nn.init.uniform_(self.spline.scaling, 0.5, 2)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = self.spline(self.sort(self.stem(x)))
        return self.head(self.unshuffle(x + 1).flatten(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def test_names_are_torch_paths(tmp_path):
    result = export_and_compare(network(), (3, 4, 4), tmp_path)
    graph = onnx.load(result.path).graph
    assert [node.name for node in graph.node] == [
        "stem.0", "sort", "spline/Mul", "spline/LinearSpline", "spline/Mul_1", "Add",
        "unshuffle/Reshape", "unshuffle/Transpose", "Reshape", "head",
    ]  # fmt: skip
    assert {"stem.0.weight", "stem.0.bias", "spline.coefficients", "head.weight", "head.bias"} <= set(
        initializers(result)
    )
    assert [value.name for value in graph.input] == ["input"] and [value.name for value in graph.output] == ["output"]


def test_only_our_own_metadata_and_no_paths_of_this_machine(tmp_path):
    result = export_and_compare(network(), (3, 4, 4), tmp_path, class_names=["a", "b", "c", "d", "é"])
    model = onnx.load(result.path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties.pop("lipdeploy.version") == lip.__version__ == model.producer_version
    assert json.loads(properties.pop("lipdeploy.class_names")) == ["a", "b", "c", "d", "é"]
    assert properties == {"lipdeploy.norm": "l2"} and model.producer_name == "lipdeploy"
    for node in model.graph.node:
        assert not node.metadata_props and not node.doc_string
    assert not model.graph.value_info and not model.graph.metadata_props
    content = result.path.read_bytes()
    for trace in (b"site-packages", b".py", os.fsencode(ROOT), os.fsencode(tmp_path)):
        assert trace not in content


def test_shapes_are_static_but_for_the_batch(tmp_path):
    model = captured(network(), torch.zeros(1, 3, 4, 4), tmp_path)
    for value, rest in ((model.graph.input[0], [3, 4, 4]), (model.graph.output[0], [5])):
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch" and [dim.dim_value for dim in others] == rest
    static = captured(network(), torch.zeros(1, 3, 4, 4), tmp_path, dynamic_batch=False)
    assert [dim.dim_value for dim in static.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 4, 4]


@pytest.mark.parametrize("opset", [17, 23])
def test_opset_and_ir_version(opset, tmp_path):
    result = export_and_compare(network(), (3, 4, 4), tmp_path, opset=opset)
    model = onnx.load(result.path)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset, "lipdeploy": 1}
    assert model.ir_version <= 10  # ONNX Runtime 1.20 reads up to 10


def test_an_opset_that_torch_cannot_write_is_an_error_and_no_other_opset(tmp_path):
    with pytest.raises(lip.InputError, match=r"cannot write this network in opset 17, only in 18") as caught:
        lip.export(nn.AdaptiveAvgPool2d(1), torch.zeros(2, 3, 4, 4), tmp_path / "model.onnx", opset=17)
    assert "--opset 18" in caught.value.hint and list(tmp_path.iterdir()) == []


SCRIPT = """
import hashlib, sys, torch
import lipdeploy as lip
from tests.export.test_file import network
result = lip.export(network(), torch.zeros(2, 3, 4, 4), sys.argv[1] + "/model.onnx")
for path in (result.path, result.certificate_path):
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_the_same_bytes_in_another_process(tmp_path):
    result = lip.export(network(), torch.zeros(2, 3, 4, 4), tmp_path / "model.onnx")
    here = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (result.path, result.certificate_path)]
    (tmp_path / "again").mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.fspath(ROOT)}
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "again"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here


def test_standard_operators_only(tmp_path):
    model = captured(network(), torch.zeros(2, 3, 4, 4), tmp_path)
    flat = inline_functions(model)
    assert [entry.domain for entry in flat.opset_import] == [""] and not flat.functions
    assert all(node.domain == "" for node in flat.graph.node)
    names = [node.name for node in flat.graph.node]
    assert len(set(names)) == len(names) and {name.split("/")[0] for name in names} >= {
        "stem.0",
        "sort",
        "spline",
        "head",
    }
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    for a, b in zip(run_onnxruntime(model, {"input": x}), run_onnxruntime(flat, {"input": x}), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lipnn.GroupSort(2), (8,)),
        (lipnn.MaxMin(), (8, 3)),
        (lipnn.GroupSort(3, axis=-1, layout="strided"), (4, 6)),
        (lipnn.FullSort(descending=True), (8,)),
    ],
    ids=["adjacent", "MaxMin", "strided along the last axis", "FullSort"],
)
def test_sorting_in_standard_operators_is_verified(layer, shape, tmp_path):
    result = export_and_compare(layer, shape, tmp_path, standard_ops=True)
    assert operators(result) == ["Reshape", "TopK", "Reshape"]
    assert result.verdict.lipschitz_bound.value == 1.0
    assert {entry.domain for entry in onnx.load(result.path).opset_import} == {""}


def test_preprocessing_is_in_the_graph(tmp_path):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    pixels = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8)
    result = lip.export(
        inner, pixels, tmp_path / "model.onnx", input_dtype="uint8", input_scale=1 / 255, mean=mean, std=std
    )
    assert operators(result)[:4] == ["Cast", "Mul", "Sub", "Div"]
    shape = (1, 3, 1, 1)
    with torch.no_grad():
        expected = inner((pixels.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))
    (actual,) = run_onnxruntime(result.path, {"input": pixels.numpy()})
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)

    # Radii are in the caller's units: 1/255 and 1/std are part of the bound. A linear net's constant is known.
    def whole(x: torch.Tensor) -> torch.Tensor:
        return inner.double()((x.view(1, 3, 4, 4) / 255) / torch.tensor(std, dtype=torch.float64).view(shape))[0]

    jacobian = torch.autograd.functional.jacobian(whole, torch.zeros(48, dtype=torch.float64))
    exact = float(torch.linalg.matrix_norm(jacobian, 2))
    assert exact * (1 - 1e-6) <= result.verdict.lipschitz_bound.value <= exact * (1 + 1e-5)


def test_float64(tmp_path):
    torch.manual_seed(0)
    inner = nn.Sequential(lipnn.BjorckLinear(6, 6), lipnn.GroupSort(3), nn.Linear(6, 3)).eval()
    result = lip.export(inner, torch.randn(2, 6), tmp_path / "model.onnx", dtype="float64", input_dtype="float64")
    assert {str(value.dtype) for value in initializers(result).values()} == {"float64"}
    x = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = inner.double()(x).numpy()
    np.testing.assert_allclose(run_onnxruntime(result.path, {"input": x.numpy()})[0], expected, atol=1e-14)


def test_the_module_is_not_changed(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Dropout())
    module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    lip.export(module, torch.randn(2, 4), tmp_path / "model.onnx")
    assert module.training and all(layer.training for layer in module.modules())
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_large_weights_go_to_one_data_file(tmp_path):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    result = lip.export(inner, torch.zeros(2, 40), tmp_path / "model.onnx", external_data_bytes=4000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.cert.json", "model.onnx", "model.onnx.data"]
    assert result.bytes == sum((tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    x = torch.randn(3, 40)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnxruntime(result.path, {"input": x.numpy()})[0], inner(x).numpy(), atol=1e-5)
    lip.export(inner, torch.zeros(2, 40), tmp_path / "model.onnx")  # small again: the old data file would mislead
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.cert.json", "model.onnx"]


@pytest.mark.parametrize("network", [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))])
def test_small_tensors_alone_need_no_external_data(network, tmp_path):
    """Shapes and axes stay in the file: when nothing larger is there, no second file is."""
    (tmp_path / "model.onnx.data").write_bytes(b"of an older model")
    result = lip.export(network, torch.zeros(2, 4), tmp_path / "model.onnx", external_data_bytes=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.cert.json", "model.onnx"]
    assert result.bytes == result.path.stat().st_size and lip.verify(result.path).status == "verified"


def test_the_report(tmp_path):
    result = lip.export(nn.Linear(4, 3), torch.zeros(2, 4), tmp_path / "model.onnx")
    report = result.to_json()
    assert report.keys() == {"schema", "path", "certificate", "lipschitz_bound", "norm", "parity", "nodes", "bytes"}
    assert report["schema"] == "lipdeploy/export-report/v1" and report["nodes"] == 1
    assert report["parity"].keys() == {"max_abs", "max_ulp", "argmax_agreement"}
    assert report["certificate"] == str(tmp_path / "model.cert.json")
    json.dumps(report)
