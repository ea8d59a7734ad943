"""Weights in float16, bfloat16 and int8: what is stored, what it means, and what it costs.

Truth: ml_dtypes' and NumPy's conversions, exact rationals, ONNX's reference evaluator and ONNX Runtime without our
library, NumPy's singular values.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import lipdeploy as lip
import lipdeploy.nn as lipnn
from lipdeploy.cli import schema
from lipdeploy.export.storage import quantised, store
from tests.export.running import initializers, operators, run_onnxruntime

FORMATS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": "float16"}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"weights": "int8"},
}  # fmt: skip
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 254}


class Tied(nn.Module):
    """One parameter in two layers, one of them transposed."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.inner(x)) @ self.inner.weight


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Flatten(), nn.Linear(6 * 64, 5),
    )  # fmt: skip


def splines() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 20), lipnn.GroupSort(2), nn.Linear(20, 20), lipnn.LinearSpline(20), nn.Linear(20, 3)
    )


NETWORKS = {"splines": (splines, (12,)), "convolutions": (convolutions, (1, 6, 6)), "tied": (Tied, (6,))}


def exported(name: str, form: str, folder, **options: Any) -> lip.ExportResult:
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    return lip.export(make(), torch.randn(4, *shape), folder / "model.onnx", **FORMATS[form], **options)


def weights_of(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in network.named_parameters()}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_stored_and_what_runs(name, form, tmp_path):
    result = exported(name, form, tmp_path)
    model, stored = onnx.load(result.path), initializers(result)
    onnx.checker.check_model(model, full_check=True)
    torch.manual_seed(1)
    network = NETWORKS[name][0]()
    for parameter, value in weights_of(network).items():
        if value.ndim < 2 or "coefficients" in parameter:
            continue
        kind = {"float16": "float16", "bfloat16": "bfloat16", "int8": "int8"}[form]
        assert stored[parameter].dtype.name == kind and stored[parameter].shape == value.shape
    x = np.random.default_rng(0).standard_normal((5, *NETWORKS[name][1])).astype(np.float32)
    (plain,) = run_onnxruntime(result.path, {"input": x})
    reference = ReferenceEvaluator(model).run(None, {"input": x})[0]
    np.testing.assert_allclose(plain, reference, rtol=0, atol=2e-6 * max(1.0, np.abs(plain).max()))
    np.testing.assert_allclose(lip.CertifiedSession(result.path).predict(x).logits, plain, rtol=0, atol=1e-5)
    with torch.no_grad():
        torchs = network.eval()(torch.from_numpy(x)).numpy()
    assert 0 < np.abs(plain - torchs).max() < 40 * UNIT[form] * max(1.0, np.abs(torchs).max())


@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_to_nearest_and_biases_too(form, tmp_path):
    result = exported("convolutions", form, tmp_path)
    narrow = np.float16 if form == "float16" else ml_dtypes.bfloat16
    stored = initializers(result)
    for name, value in weights_of(convolutions()).items():
        assert stored[name].tobytes() == value.astype(narrow).tobytes(), name
    assert result.dtype == form and result.stored is not None
    assert (result.stored.form, result.stored.tensors, result.stored.became_zero) == (form, 8, 0)


def test_int8_has_a_scale_per_output_channel_and_float32_biases(tmp_path):
    result = exported("convolutions", "int8", tmp_path)
    stored, nodes = initializers(result), onnx.load(result.path).graph.node
    for name, value in weights_of(convolutions()).items():
        if value.ndim == 1:
            np.testing.assert_array_equal(stored[name], value)
            continue
        axis = 1 if name == "4.weight" else 0  # a transposed convolution keeps its outputs on axis 1
        (node,) = [n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] == name]
        assert list(node.input) == [name, f"{name}.scale"]
        assert {a.name: a.i for a in node.attribute} == {"axis": axis}
        scale = stored[f"{name}.scale"]
        assert scale.shape == (value.shape[axis],) and scale.dtype == np.float32
        others = tuple(k for k in range(value.ndim) if k != axis)
        np.testing.assert_allclose(scale, np.abs(value).max(axis=others) / 127, rtol=2.0**-15)
        shape = [-1 if k == axis else 1 for k in range(value.ndim)]
        meant = stored[name].astype(float) * scale.astype(float).reshape(shape)
        assert np.all(np.abs(meant - value) <= scale.astype(float).reshape(shape) / 2)
    assert operators(result).count("DequantizeLinear") == 4 and "Cast" not in operators(result)


@pytest.mark.parametrize("seed", range(6))
def test_products_of_int8_are_float32_numbers(seed):
    """Then nothing is rounded on the way into the layer, in any runtime."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((7, 30)) * 10.0 ** rng.uniform(-36, 36, (7, 1))).astype(np.float32)
    weight[3] = 0.0
    q, scale = quantised(weight, 0)
    assert q.dtype == np.int8 and q.min() >= -127
    assert scale[3] == 1.0 and not q[3].any()
    assert np.all(np.abs(q).max(axis=1)[[0, 1, 2, 4, 5, 6]] >= 126)
    for row, factor, exact in zip(q.tolist(), scale, weight, strict=True):
        for number, wanted in zip(row, exact.tolist(), strict=True):
            product = number * Fraction(float(factor))
            assert Fraction(float(np.float32(number) * factor)) == product
            assert abs(product - Fraction(wanted)) <= Fraction(float(factor)) / 2


@pytest.mark.parametrize("form", FORMATS)
def test_the_bound_is_that_of_the_stored_numbers(form, tmp_path):
    torch.manual_seed(3)
    network = nn.Linear(30, 20)
    result = lip.export(network, torch.randn(4, 30), tmp_path / "m.onnx", **FORMATS[form])
    stored = initializers(result)
    meant = stored["weight"].astype(float)
    if form == "int8":
        meant = meant * stored["weight.scale"].astype(float)[:, None]
    truth = np.linalg.norm(meant, 2)
    assert truth * (1 - 1e-14) <= result.verdict.lipschitz_bound.value <= truth * (1 + 1e-9)
    assert result.verdict.lipschitz_bound.value != np.linalg.norm(network.weight.detach().numpy().astype(float), 2)
    report = result.to_json()
    assert report["dtype"] == form
    assert report["storage"].keys() == {"tensors", "became_zero", "samples", "classes_changed", "margin_change"}
    jsonschema.Draft202012Validator(json.loads(schema.read("export-report/v1"))).validate(report)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("target", [0.25, 0.01])
def test_normalise_meets_its_target_with_the_stored_weights(form, target, tmp_path):
    result = exported("splines", form, tmp_path, normalize=True, max_lipschitz=target)
    assert 0.97 * target < result.verdict.lipschitz_bound.value <= target
    assert result.output_scale < 1.0
    assert lip.verify(result.path, max_lipschitz=target).status == "verified"  # with the certificate beside it


def test_error_constants_do_not_grow(tmp_path):
    """The float32 program reads float32 numbers, so it rounds no more than that of float32 weights."""
    make, shape = NETWORKS["splines"]
    torch.manual_seed(1)
    plain = lip.export(make(), torch.randn(4, *shape), tmp_path / "plain.onnx").verdict
    for form in FORMATS:
        verdict = exported("splines", form, tmp_path).verdict
        growth = verdict.lipschitz_bound.value / plain.lipschitz_bound.value
        for mode in ("f32", "f64", "tf32"):
            ours, theirs = verdict.numeric_error[mode], plain.numeric_error[mode]
            assert ours.c1 <= theirs.c1 * max(growth, 1.0) * 1.02 and ours.c0 <= theirs.c0 * 1.05, (form, mode)


def test_the_cost_of_an_arithmetic_in_sixteen_bits_is_known_for_its_own_weights(tmp_path):
    f16 = exported("convolutions", "float16", tmp_path).verdict.numeric_error
    assert f16["f16"] is not None and f16["bf16"] is None and f16["f16"].c1 > 1000 * f16["f32"].c1
    bf16 = exported("convolutions", "bfloat16", tmp_path).verdict.numeric_error
    assert bf16["bf16"] is not None and bf16["bf16"].c1 > 1000 * bf16["f32"].c1


def test_files_shrink_as_they_should(tmp_path):
    network = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200))
    sizes = {}
    for form, given in {"float32": {}, **FORMATS}.items():
        sizes[form] = lip.export(network, torch.randn(4, 200), tmp_path / "m.onnx", **given).bytes
    weights = 2 * 200 * 200
    assert sizes["float32"] > 4 * weights
    assert sizes["float16"] == sizes["bfloat16"] < 2.1 * weights
    assert sizes["int8"] < 1.1 * weights


@pytest.mark.parametrize("form", FORMATS)
def test_a_shared_tensor_is_stored_once(form, tmp_path):
    result = exported("tied", form, tmp_path)
    names = [name for name in initializers(result) if "weight" in name and "scale" not in name]
    assert names == ["inner.weight"]
    assert sum(op in ("Cast", "DequantizeLinear") for op in operators(result)) == (1 if form == "int8" else 2)


def test_groups_of_a_transposed_convolution_share_their_scales(tmp_path):
    torch.manual_seed(2)
    network = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2).eval()
    result = lip.export(
        network, torch.randn(2, 8, 3, 3), tmp_path / "m.onnx", weights="int8",
        run=lambda model, feeds: run_onnxruntime(model, feeds),
    )  # fmt: skip
    assert initializers(result)["weight.scale"].shape == (3,)
    assert result.parity.max_abs < 0.05 and lip.verify(result.path).status == "verified"


def test_a_matrix_on_the_left_has_its_outputs_first():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 3, 2] x) => (float[N, 4, 2] y) { y = MatMul(W, x) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0 ** np.arange(12).reshape(4, 3)), "W"))
    made, _ = store(model, "int8")
    scale = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}["W.scale"]
    np.testing.assert_allclose(scale, 2.0 ** np.array([2, 5, 8, 11]) / 127, rtol=1e-4)
    assert model.graph.node[0].input[0] == "W"  # the original is left alone


def test_tables_and_preprocessing_stay(tmp_path):
    """A rounded knot changes a slope; 1/255 in eight bits would move every pixel."""
    network = nn.Sequential(nn.Linear(12, 20), lipnn.LinearSpline(20), nn.Linear(20, 3))
    result = lip.export(
        network, np.zeros((2, 12), np.uint8), tmp_path / "m.onnx",
        dtype="bfloat16", input_dtype="uint8", input_scale=1 / 255, mean=0.3, std=0.7,
    )  # fmt: skip
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(result.path).graph.initializer}
    sixteen = {name for name, kind in kinds.items() if kind == TensorProto.BFLOAT16}
    assert sixteen == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert kinds["1.coefficients"] == TensorProto.FLOAT and {"preprocess.mean", "preprocess.std"} <= set(kinds)


@pytest.mark.parametrize("form", FORMATS)
def test_networks_of_other_types(form, tmp_path):
    """float64 weights are rounded to float32 first; float16 ones go through unchanged."""
    torch.manual_seed(5)
    wide = nn.Linear(8, 4).double()
    assert lip.export(wide, torch.randn(4, 8), tmp_path / "m.onnx", **FORMATS[form]).dtype == form
    half = nn.Linear(8, 4).half()
    result = lip.export(half, torch.randn(4, 8), tmp_path / "m.onnx", **FORMATS[form])
    if form == "float16":
        assert initializers(result)["weight"].tobytes() == half.weight.detach().numpy().tobytes()
        assert result.parity.max_abs < 1e-6


def test_the_same_bytes_every_time_and_external_data(tmp_path):
    first = exported("convolutions", "int8", tmp_path).path.read_bytes()
    assert exported("convolutions", "int8", tmp_path).path.read_bytes() == first
    result = exported("convolutions", "float16", tmp_path, external_data_bytes=1000)
    assert (tmp_path / "model.onnx.data").is_file()
    assert lip.verify(result.path).status == "verified"
    p = lip.CertifiedSession(result.path).predict(np.zeros((2, 1, 6, 6), np.float32))
    assert p.radius.shape == (2,)


def test_standard_operators_only(tmp_path):
    network = nn.Sequential(nn.Linear(12, 20), lipnn.GroupSort(2), nn.Linear(20, 3))
    result = lip.export(network, torch.randn(4, 12), tmp_path / "m.onnx", weights="int8", standard_ops=True)
    assert {entry.domain for entry in onnx.load(result.path).opset_import} == {""}


@pytest.mark.parametrize("opset", [17, 19, 23])
def test_every_opset(opset, tmp_path):
    for form in FORMATS if opset >= 19 else ("float16", "bfloat16"):
        result = exported("convolutions", form, tmp_path, opset=opset)
        (found,) = run_onnxruntime(result.path, {"input": np.ones((1, 1, 6, 6), np.float32)})
        assert np.isfinite(found).all()


# What cannot be stored is refused, and nothing is written.


def scaled(factor: float) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    network[2].weight.data *= factor
    return network


REFUSED = [
    ("float16", 1e6, r"layer '2': '2\.weight' holds .* too large for float16", "bfloat16"),
    ("float16", 1e-7, r"layer '2': float16 keeps too little of '2\.weight'", "bfloat16"),
    ("int8", 1e-42, r"layer '2': int8 keeps too little of '2\.weight'", "float32"),
]


@pytest.mark.parametrize(("form", "factor", "words", "hint"), REFUSED)
def test_weights_outside_the_format_are_refused(form, factor, words, hint, tmp_path):
    with pytest.raises(lip.InputError, match=words) as caught:
        lip.export(scaled(factor), torch.randn(4, 6), tmp_path / "m.onnx", tolerance=1e9, **FORMATS[form])
    assert hint in caught.value.hint and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "factor"), [("bfloat16", 1e6), ("bfloat16", 1e-30), ("int8", 1e6), ("int8", 1e-30)])
def test_wide_formats_take_them(form, factor, tmp_path):
    assert lip.export(scaled(factor), torch.randn(4, 6), tmp_path / "m.onnx", **FORMATS[form]).dtype == form


def test_a_bias_too_large_is_refused_too(tmp_path):
    network = scaled(1.0)
    network[0].bias.data[0] = 70000.0
    with pytest.raises(lip.InputError, match=r"layer '0': '0\.bias' holds 70000, which is too large"):
        lip.export(network, torch.randn(4, 6), tmp_path / "m.onnx", dtype="float16")


def test_single_weights_that_become_zero_are_counted(tmp_path):
    network = scaled(1.0)
    network[0].weight.data[0, :2] = torch.tensor([1e-9, -1e-9])
    result = lip.export(network, torch.randn(4, 6), tmp_path / "m.onnx", dtype="float16")
    assert result.stored.became_zero == 2
    stored = initializers(result)["0.weight"]
    assert not stored[0, :2].any() and np.count_nonzero(stored) == stored.size - 2


def test_a_tolerance_holds_for_stored_weights(tmp_path):
    with pytest.raises(
        lip.IntegrityError, match=r"with its weights in int8 the model differs .* 1e-06 is allowed"
    ) as e:
        lip.export(scaled(1.0), torch.randn(4, 6), tmp_path / "m.onnx", weights="int8", tolerance=1e-6)
    assert "--tolerance" in e.value.hint and list(tmp_path.iterdir()) == []


def test_an_exporter_that_errs_cannot_hide_behind_the_tolerance_of_int8(tmp_path, monkeypatch):
    """The float32 program is compared with torch first, at float32's own tolerance."""
    from lipdeploy.export import pipeline

    honest = pipeline.run_reference

    def wrong(model, feeds):
        return [value + np.float32(1e-3) for value in honest(model, feeds)]

    with pytest.raises(lip.IntegrityError, match=r"the exported model differs from the torch module by 0\.001"):
        lip.export(scaled(1.0), torch.randn(4, 6), tmp_path / "m.onnx", weights="int8", run=wrong)


def test_changed_classes_are_counted(tmp_path):
    """Two logits that float16 makes equal: the rows are near a tie, and the report says how many changed."""
    network = nn.Linear(2, 2, bias=False)
    network.weight.data = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2.0**-13]])
    x = np.float32([[1, 1], [-1, -1], [2, 2], [3, -3]])
    result = lip.export(network, x, tmp_path / "m.onnx", dtype="float16", samples=x)
    assert result.parity.changed == 2 and result.parity.argmax_agreement == 0.5
    assert result.parity.margin_change == pytest.approx(3 * 2.0**-13)
    assert json.loads(json.dumps(result.to_json()))["storage"]["classes_changed"] == 2
