"""The liar brings a network whose constant is known exactly, and hopes that the verifier says less.

The probes of ``tools/soundness`` (every sharp edge has one). Each truth is shown by ONNX Runtime, not by us: linear
graphs by the norm of the matrix that it computes, the others by two points that attain the constant.
"""

from __future__ import annotations

import numpy as np
import pytest
from mpmath import mp, mpf

from lipdeploy.ops import attach_functions
from lipdeploy.verify import verify
from tests.verify.models import Array, lengths, operator_norm, session
from tools.soundness import activations
from tools.soundness.probe import LINEAR, Probe
from tools.soundness.run import OWN_SLACK, PROBES, Answer, below, loosened, ours

FINITE = [probe for probe in PROBES if probe.truth is not None]
REFUSED = [probe for probe in PROBES if probe.truth is None]
BY_NAME = {probe.name: probe for probe in PROBES}


def named(probe: Probe) -> str:
    return probe.name


@pytest.mark.parametrize("probe", FINITE, ids=named)
def test_never_less_than_the_truth(probe: Probe) -> None:
    answer = ours(probe)
    assert isinstance(answer.claim, str) or answer.claim >= probe.truth * (1 - OWN_SLACK)


@pytest.mark.parametrize("probe", REFUSED, ids=named)
def test_what_has_no_constant_is_refused(probe: Probe) -> None:
    assert verify(probe.build().SerializeToString(), norm=probe.norm).status == "refused"


def feeds(probe: Probe, points: object) -> dict[str, Array]:
    value = probe.build().graph.input[0]
    kind = np.uint8 if value.type.tensor_type.elem_type == 2 else np.float32
    return {value.name: np.asarray(points, dtype=kind)}


def matrix(probe: Probe) -> Array:
    """The matrix of an affine graph, from unit vectors through ONNX Runtime, one column an input entry."""
    proto = probe.build()
    runner, sizes, kinds = session(proto), {}, {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        sizes[value.name] = tuple(dim.dim_value or 3 for dim in tensor.shape.dim[1:])
        kinds[value.name] = np.float64 if tensor.elem_type == 11 else np.float32
    zeros = {name: np.zeros((1, *size), kinds[name]) for name, size in sizes.items()}
    at_zero, columns = runner.run(None, zeros)[0].astype(np.float64), []
    for name, size in sizes.items():
        for index in np.ndindex(*size):
            unit = {**zeros, name: zeros[name].copy()}
            unit[name][(0, *index)] = 1.0
            columns.append((runner.run(None, unit)[0].astype(np.float64) - at_zero).reshape(-1))
    return np.stack(columns, axis=1)


#: Truths that are limits, or sizes at which the matrix would be too large, or numbers that a runtime rounds away.
BY_ARGUMENT = {
    "a row too long to write out", "convolution on an image of any size", "product that underflows",
    "weights whose squares underflow", "weights whose squares overflow",
}  # fmt: skip


@pytest.mark.parametrize("probe", [p for p in FINITE if p.shown == LINEAR and p.name not in BY_ARGUMENT], ids=named)
def test_the_truth_of_linear_graphs(probe: Probe) -> None:
    computed = operator_norm(matrix(probe), probe.norm)
    assert computed == pytest.approx(probe.truth, rel=2e-6)


@pytest.mark.parametrize("probe", [p for p in FINITE if not isinstance(p.shown, str)], ids=named)
def test_the_truth_of_the_others(probe: Probe) -> None:
    proto = probe.build()
    if any(entry.domain == "lipdeploy" for entry in proto.opset_import):
        attach_functions(proto, {1})
    runner = session(proto)
    first, second = (feeds(probe, points) for points in probe.shown)
    moved = runner.run(None, second)[0].astype(np.float64) - runner.run(None, first)[0]
    (x,), (z,) = first.values(), second.values()
    kind = {"l2-linf": ("l2", "linf"), "l1-linf": ("l1", "linf")}.get(probe.norm, (probe.norm, probe.norm))
    ratio = lengths(moved, kind[1]) / lengths(z.astype(np.float64) - x, kind[0])
    assert float(ratio[0]) == pytest.approx(probe.truth, rel=2e-3)


def test_nothing_is_merely_claimed() -> None:
    assert [probe.name for probe in FINITE if probe.shown == ""] == []


def test_the_arguments_in_closed_form() -> None:
    """What a runtime cannot show: the limit of a Toeplitz norm, and powers of ten far outside float32."""
    for size in (10, 100, 1000):
        ones = np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)
        assert np.linalg.norm(ones, 2) == pytest.approx(1 + 2 * np.cos(np.pi / (size + 1)), rel=1e-12)
    assert BY_NAME["a row too long to write out"].truth == pytest.approx(1 + 2 * np.cos(np.pi / 4001))
    assert BY_NAME["convolution on an image of any size"].truth == 3.0
    assert BY_NAME["weights whose squares underflow"].truth == pytest.approx(float(np.hypot(3e-200, 4e-200)))


def test_slopes_of_smooth_activations() -> None:
    mp.dps = 40

    def steepest(function: object, start: float) -> float:
        at = mp.findroot(lambda t: mp.diff(function, t, 2), start)
        return float(mp.diff(function, at))

    c = mp.sqrt(2 / mp.pi)
    truths = {
        "GELU_SLOPE": steepest(lambda t: t * mp.ncdf(t), 1.4),
        "GELU_TANH_SLOPE": steepest(lambda t: t / 2 * (1 + mp.tanh(c * (t + mpf("0.044715") * t**3))), 1.4),
        "SILU_SLOPE": steepest(lambda t: t / (1 + mp.exp(-t)), 2.4),
        "MISH_SLOPE": steepest(lambda t: t * mp.tanh(mp.log1p(mp.exp(t))), 1.5),
    }
    for name, truth in truths.items():
        assert truth * (1 - 2e-6) <= getattr(activations, name) <= truth * (1 + 2e-5), (name, truth)


@pytest.mark.parametrize("probe", [p for p in FINITE if p.module is not None], ids=named)
def test_the_torch_module_is_the_same_network(probe: Probe) -> None:
    torch = pytest.importorskip("torch")
    proto = probe.build()
    if any(entry.domain == "lipdeploy" for entry in proto.opset_import):
        attach_functions(proto, {1})
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32) * 2
    assert probe.module is not None
    with torch.no_grad():
        expected = probe.module()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(session(proto).run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_tool_that_says_less_is_named() -> None:
    """The suite's own logic: below the truth is LESS, and any finite number is where there is no constant."""
    residual, square = BY_NAME["x + relu(x)"], BY_NAME["x·x"]
    assert below(residual, 1.9999, 1e-6)
    assert below(residual, float("nan"), 1e-6)
    assert not below(residual, 2.0, 0.0)
    assert below(square, 1e300, 1e-6)
    assert str(Answer(1.0, less=True)) == "LESS 1"
    assert loosened(residual, {"lipdeploy": Answer(3.0, less=False)}) == "+50 %"


def test_names_are_distinct_and_there_are_enough() -> None:
    assert len(BY_NAME) == len(PROBES) >= 60
