"""The gate between torch and the file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.export.parity import compare, require


def test_units_in_the_last_place():
    one = np.array([[1.0, -0.0, 5e-324]])
    two = np.array([[np.nextafter(1.0, 2.0), 0.0, -5e-324]])
    parity = compare([one], [two])
    assert parity.max_ulp == 2  # from the smallest positive to the smallest negative number, across zero
    assert parity.max_abs == 2.0**-52
    assert compare([one.astype(np.float32)], [one.astype(np.float32)]).max_ulp == 0


def test_the_farthest_floats_do_not_overflow():
    largest = np.array([[np.finfo(np.float64).max]])
    assert compare([largest], [-largest]).max_ulp == 2 * int(largest.view(np.int64).item())


def test_an_output_without_axes():
    assert compare([np.float32(1.0).reshape(())], [np.nextafter(np.float32(1), np.float32(2)).reshape(())]).max_ulp == 1


def test_classes():
    logits = np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    assert compare([logits], [logits[:, ::-1]]).argmax_agreement == 0.0
    assert compare([logits[:, :1]], [-logits[:, :1]]).argmax_agreement == 0.0
    assert compare([logits[None]], [logits[None]]).argmax_agreement is None


def test_nan_against_a_number_is_infinitely_far():
    nan, one = np.array([[np.nan]]), np.array([[1.0]])
    assert math.isinf(compare([nan], [one]).max_abs)
    assert compare([nan], [nan]).max_abs == 0.0
    with pytest.raises(lip.LipdeployError, match="differs from the torch module by inf"):
        require(compare([nan], [one]), [nan], [one], 1e9)


def test_shapes_must_agree():
    with pytest.raises(lip.LipdeployError, match="shape"):
        compare([np.zeros((2, 3))], [np.zeros((2, 4))])


class Fickle(nn.Module):
    """Computes something else than what the exporter sees, like a layer whose weights are cached."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return y if not torch.onnx.is_in_onnx_export() else y * 1.001


def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(lip.LipdeployError, match="differs from the torch module by") as caught:
        lip.export(Fickle(), torch.randn(2, 4), tmp_path / "model.onnx")
    assert caught.value.exit_code == 4 and "--tolerance" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    result = lip.export(Fickle(), torch.randn(2, 4), tmp_path / "model.onnx", tolerance=0.1)
    assert 0 < result.parity.max_abs < 0.1


def test_another_class_fails_whatever_the_tolerance():
    expected = np.array([[1.0, 2.0]], dtype=np.float32)
    parity = compare([expected], [expected[:, ::-1]])
    with pytest.raises(lip.LipdeployError, match="chooses another class than torch, where torch's lead is 1"):
        require(parity, [expected], [expected[:, ::-1]], 10.0)
    tie = np.array([[1.0, np.nextafter(np.float32(1), np.float32(2))]], dtype=np.float32)
    require(compare([tie], [tie[:, ::-1]]), [tie], [tie[:, ::-1]], None)


def test_the_given_samples_and_runner_are_used(tmp_path):
    seen = []

    def run(model, feeds):
        seen.append(feeds["input"])
        return [feeds["input"] @ weight.T]

    layer = nn.Linear(4, 3, bias=False)
    weight = layer.weight.detach().numpy()
    samples = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    result = lip.export(layer, torch.zeros(2, 4), tmp_path / "model.onnx", samples=samples, run=run)
    np.testing.assert_array_equal(seen[0], samples)
    assert result.parity.samples == 40


def hooked(factor: float) -> nn.Module:
    """A layer that is replaced or folded, with a hook that the stand-in does not have."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    norm.register_forward_hook(lambda module, inputs, output: output * factor)
    return nn.Sequential(nn.Linear(6, 3), norm)


class BesideLarge(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = hooked(3.0)

    def forward(self, x):
        return 1e6 * x, self.inner(x)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = hooked(-3.0)

    def forward(self, x):
        return 1e-6 * self.inner(x)


def test_a_small_output_beside_a_large_one_is_compared(tmp_path):
    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(BesideLarge(), torch.randn(2, 6), tmp_path / "model.onnx", output_name="output_1")


def test_small_outputs_are_compared(tmp_path):
    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(Tiny(), torch.randn(2, 6), tmp_path / "model.onnx")


def test_parity_comes_before_normalising(tmp_path):
    network = nn.Sequential(
        hooked(1.5), *[nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(4)], nn.Linear(3, 2)
    )
    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(network, torch.randn(2, 6), tmp_path / "model.onnx", normalize=True, max_lipschitz=1e-7)


def test_what_cancels_in_torch_may_differ_by_its_rounding(tmp_path):
    """Outputs of 1e-6 from intermediate numbers of 1: float32 itself is off by more than 2e-5 of them."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 64), nn.Linear(64, 3, bias=False)
    network = nn.Sequential(first, second)
    with torch.no_grad():
        first.bias.fill_(1.0)
        first.weight.mul_(1e-6)
        second.weight.sub_(second.weight.mean(dim=1, keepdim=True))
    assert lip.export(network, torch.randn(2, 6), tmp_path / "model.onnx").verdict.status == "verified"


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.fft.rfft(torch.randn(6)))
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x * torch.fft.irfft(self.filter, n=6))


def test_complex_numbers_keep_their_imaginary_part(tmp_path):
    """Exported as they are, or refused; not the real part alone."""
    torch.manual_seed(0)
    network = Spectrum().eval()
    x = torch.randn(4, 6)
    expected = network(x).detach().numpy()
    try:
        result = lip.export(network, x, tmp_path / "model.onnx")
    except lip.LipdeployError:
        return
    session = lip.CertifiedSession(result.path)
    np.testing.assert_allclose(session.predict(x.numpy()).logits, expected, atol=1e-5)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 3), factor

    def forward(self, x):
        return self.linear(x) * self.factor


def test_a_number_that_torch_writes_in_float32_is_named(tmp_path):
    """A float64 network; the factor as a tensor stays what it is."""
    options = {"dtype": "float64", "input_dtype": "float64"}
    with pytest.raises(lip.IntegrityError, match="differs from the torch module") as caught:
        lip.export(Scaled(0.1), torch.randn(2, 4), tmp_path / "model.onnx", **options)
    assert "Python numbers" in caught.value.hint
    exact = Scaled(torch.tensor(0.1, dtype=torch.float64))
    lip.export(exact, torch.randn(2, 4), tmp_path / "model.onnx", **options)


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x -= 0.5
        return self.linear(x)


@pytest.mark.parametrize("network", [WritesToItsInput, lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))])
@pytest.mark.parametrize("rows", [2, 20])
def test_a_network_that_writes_to_its_input_changes_nothing_of_the_callers(network, rows, tmp_path):
    example = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    samples = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    before = example.copy(), samples.copy()
    assert lip.export(network(), example, tmp_path / "model.onnx").parity.max_abs < 1e-5
    assert lip.export(network(), example, tmp_path / "model.onnx", samples=samples).parity.max_abs < 1e-5
    assert np.array_equal(example, before[0]) and np.array_equal(samples, before[1])


def wrong_in_the_file(change):
    """The file holds ``change`` of what torch computes."""

    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.inner = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            y = self.linear(x) + 1e-20 * (1e20 * self.inner(x))
            return change(y) if torch.onnx.is_in_onnx_export() else y

    return Changed()


def test_a_row_that_overflows_does_not_excuse_the_others(tmp_path):
    x = torch.randn(8, 6)
    x[0] = 1e30  # in float32 infinite, in float64 not
    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(wrong_in_the_file(lambda y: 1.5 * y), x, tmp_path / "model.onnx", samples=x)


def test_a_row_of_large_numbers_does_not_excuse_small_ones(tmp_path):
    x = torch.randn(8, 6)
    samples = torch.cat([x, 1e4 * x])
    with pytest.raises(lip.LipdeployError, match=r"differs from the torch module by 0\.01"):
        lip.export(wrong_in_the_file(lambda y: y + 0.01), x, tmp_path / "model.onnx", samples=samples)


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a, b):
        difference = a - b
        return self.linear(-difference if torch.onnx.is_in_onnx_export() else difference)


def test_equal_examples_are_varied_each_in_its_own_way(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(Swapped(), (torch.zeros(1, 4), torch.zeros(1, 4)), tmp_path / "model.onnx")


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.SiLU])
def test_what_onnx_runtime_rounds_in_small_outputs_is_no_difference(activation, tmp_path):
    """Its sigmoid errs by 1e-7 where the value is 1e-8."""
    ort = pytest.importorskip("onnxruntime")

    def run(model, feeds):
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), activation())
    with torch.no_grad():
        network[2].bias.fill_(-16.0)
    result = lip.export(network, torch.zeros(1, 4), tmp_path / "model.onnx", run=run)
    assert result.parity.max_abs > 1e-8

    def wrong(model, feeds):
        (output,) = run(model, feeds)
        return [output + np.float32(1e-4)]

    with pytest.raises(lip.LipdeployError, match="differs from the torch module"):
        lip.export(network, torch.zeros(1, 4), tmp_path / "wrong.onnx", run=wrong)


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.linear, self.dtype = nn.Linear(64, 1000), dtype

    def forward(self, x):
        return self.linear(x).to(self.dtype)


def test_outputs_in_float16_may_differ_by_a_rounding(tmp_path):
    torch.manual_seed(0)
    assert lip.export(Cast(torch.float16), torch.randn(4, 64), tmp_path / "model.onnx").verdict.status == "verified"


def test_outputs_in_bfloat16_are_refused(tmp_path):
    with pytest.raises(lip.LipdeployError, match="returns a tensor of bfloat16"):
        lip.export(Cast(torch.bfloat16), torch.randn(4, 64), tmp_path / "model.onnx")
