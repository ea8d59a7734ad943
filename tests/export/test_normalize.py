"""``normalize=True``: the proven bound meets the target, and no class changes."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import lipdeploy as lip
from lipdeploy.export.normalize import _toward_zero, scale_output
from lipdeploy.nn import SpectralConv2d, bake
from tests.export.foreign import papers
from tests.export.running import initializers, run_onnxruntime


def classifier() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.mark.parametrize(("target", "norm"), [(None, "l2"), (1e-3, "linf")])
def test_the_proven_bound_meets_the_target(target, norm, tmp_path):
    network = classifier()
    network[4].weight.data *= 10
    result = lip.export(
        network, torch.randn(2, 6), tmp_path / "model.onnx", normalize=True, max_lipschitz=target, norm=norm
    )
    limit = 1.0 if target is None else target
    bound = lip.verify(result.path, norm=norm).lipschitz_bound.value
    assert limit * (1 - 1e-5) <= bound <= limit
    x = torch.randn(200, 6)
    with torch.no_grad():
        expected = network(x).numpy()
    (actual,) = run_onnxruntime(result.path, {"input": x.numpy()})
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(actual, expected * result.output_scale, atol=1e-6 * limit * 100)


def test_a_denoiser_whose_layers_multiply_to_more_than_one(tmp_path):
    """As Lipschitz_DSNN builds them: cyclic convolutions with splines between, here with 1.10 in place of 1."""
    torch.manual_seed(3)
    sizes, share = [1, 4, 4, 1], 1.10 ** (1 / 3)
    layers: list[nn.Module] = []
    for size, width in pairwise(sizes):
        cyclic = {"padding": 1, "padding_mode": "circular", "input_size": (8, 8), "lipschitz": share}
        layers += [
            bake(SpectralConv2d(size, width, 3, **cyclic)),
            papers.LinearSpline("conv", width, 21, 0.1, "identity", True),
        ]
    network = nn.Sequential(*layers[:-1]).eval()
    example = torch.rand(2, 1, 8, 8)
    norms = [_cyclic_norm(layer.weight.detach().numpy(), 8) for layer in network if isinstance(layer, nn.Conv2d)]
    assert np.prod(norms) == pytest.approx(1.10, rel=1e-4)
    plain = lip.export(network, example, tmp_path / "plain.onnx").verdict.lipschitz_bound.value
    assert plain == pytest.approx(np.prod(norms), rel=1e-3)
    result = lip.export(network, example, tmp_path / "model.onnx", normalize=True)
    assert 1 - 1e-5 <= lip.verify(result.path).lipschitz_bound.value <= 1
    with torch.no_grad():
        expected = result.output_scale * network(example).numpy()
    np.testing.assert_allclose(run_onnxruntime(result.path, {"input": example.numpy()})[0], expected, atol=1e-5)


def _cyclic_norm(kernel: np.ndarray, size: int) -> float:
    """Largest singular value of the symbols: the operator norm of a circular convolution, in float64."""
    symbols = np.fft.fft2(kernel.astype(np.float64), (size, size)).transpose(2, 3, 0, 1)
    return float(np.linalg.svd(symbols, compute_uv=False).max())


def test_only_the_last_layer_changes(tmp_path):
    network = classifier()
    network[4].weight.data *= 10
    result = lip.export(network, torch.randn(2, 6), tmp_path / "model.onnx", normalize=True)
    stored = initializers(result)
    for name, value in network.state_dict().items():
        assert np.array_equal(stored[name], value.numpy()) is (not name.startswith("4."))


def test_a_network_within_the_limit_is_left_alone(tmp_path):
    network = nn.Linear(4, 3)
    network.weight.data /= 100
    result = lip.export(network, torch.randn(2, 4), tmp_path / "model.onnx", normalize=True)
    assert result.output_scale == 1.0
    assert np.array_equal(initializers(result)["weight"], network.weight.detach().numpy())


def test_no_last_linear_layer_is_an_error(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(lip.InputError, match="comes from a linear layer"):
        lip.export(network, torch.randn(2, 4), tmp_path / "model.onnx", normalize=True, max_lipschitz=1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_toward_zero(dtype):
    values = np.random.default_rng(0).normal(size=200).astype(dtype)
    factor = 0.7123456789
    scaled = _toward_zero(values, factor)
    for before, after in zip(values.tolist(), scaled.tolist(), strict=True):
        assert abs(Fraction(after)) <= abs(Fraction(before) * Fraction(factor))
        assert after * before >= 0
    np.testing.assert_allclose(scaled, values * factor, rtol=4 * np.finfo(dtype).eps)


def test_a_weight_shared_with_an_earlier_layer_is_not_scaled_there():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 20]>
        net (float[N,2] x) => (float[N,2] y) { a = Gemm(x, w) b = Relu(a) y = Gemm(b, w) }""")
    weight = np.array([[1, 2], [3, 4]], dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    scaled = scale_output(model, 0.5)
    first, _, last = scaled.graph.node
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in scaled.graph.initializer}
    np.testing.assert_array_equal(stored[first.input[1]], weight)
    np.testing.assert_array_equal(stored[last.input[1]], weight / 2)
