"""Residual networks: what multipliers prove for x + W₂σ(W₁x), SLL layers, and blocks of several kinds in a row."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find
from lipdeploy.verify import Verdict, verify
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import certify
from tests.verify.models import best_ratio, double_runner
from tests.verify.test_lmi import exact_inequality, is_psd


def residual(
    blocks: list[tuple[np.ndarray, np.ndarray]], kind: str, head: np.ndarray, join: str = "Add"
) -> onnx.ModelProto:
    """x → x ± G·σ(F·x + b) for every (F, G), then a last matrix."""
    rng = np.random.default_rng(9)
    nodes, stored, name = [], [], "x"
    for index, (inner, outer) in enumerate(blocks):
        bias = rng.standard_normal(len(inner))
        for label, value in ((f"F{index}", inner), (f"G{index}", outer), (f"b{index}", bias)):
            stored.append(numpy_helper.from_array(value.astype(np.float32), label))
        domain = {"domain": "lipdeploy", "group_size": 2} if kind == "GroupSort" else {}
        nodes += [
            helper.make_node("Gemm", [name, f"F{index}", f"b{index}"], [f"v{index}"], transB=1),
            helper.make_node(kind, [f"v{index}"], [f"h{index}"], **domain),
            helper.make_node("Gemm", [f"h{index}", f"G{index}"], [f"r{index}"], transB=1),
            helper.make_node(join, [name, f"r{index}"], [f"z{index}"]),
        ]
        name = f"z{index}"
    stored.append(numpy_helper.from_array(head.astype(np.float32), "head"))
    nodes.append(helper.make_node("Gemm", [name, "head"], ["y"], transB=1))
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", size])
        for n, size in (("x", blocks[0][0].shape[1]), ("y", len(head)))
    )
    imports = [helper.make_opsetid("", 20), *([helper.make_opsetid("lipdeploy", 1)] if kind == "GroupSort" else [])]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=imports, ir_version=10)
    if kind == "GroupSort":
        attach_functions(model, {onnx.TensorProto.FLOAT})
    return model


def gaussian(
    count: int, features: int, width: int, seed: int, scale: float = 1.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = [(rng.standard_normal((width, features)), rng.standard_normal((features, width))) for _ in range(count)]
    return [(f / np.linalg.norm(f, 2), scale * g / np.linalg.norm(g, 2)) for f, g in pairs]


def sll(count: int, features: int, width: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    inner = [rng.standard_normal((width, features)) for _ in range(count)]
    return [(f, -2.0 * f.T / np.abs(f @ f.T).sum(axis=1)) for f in inner]


def proven(model: onnx.ModelProto, seconds: float = 5.0) -> tuple[float, float, Verdict]:
    """(product, certificate, its verdict)."""
    data = model.SerializeToString()
    product, tight = verify(data), verify(data, method="lmi", hints=find(data, seconds=seconds))
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    assert tight.nodes[-1].rule == "diagonal multipliers"
    return product.lipschitz_bound.value, tight.lipschitz_bound.value, tight


@pytest.mark.parametrize("kind", ["Relu", "Abs", "Tanh", "GroupSort"])
@pytest.mark.parametrize("join", ["Add", "Sub"])
def test_no_pair_of_points_beats_a_residual_network(kind: str, join: str) -> None:
    model = residual(gaussian(3, 6, 10, 1), kind, np.eye(6), join)
    product, tight, verdict = proven(model)
    run = double_runner(model)
    assert best_ratio(run, (6,), rounds=12) <= tight
    assert tight < (0.85 if kind in ("Relu", "Tanh", "GroupSort") else 1.0001) * product
    first, second = np.random.default_rng(0).standard_normal((2, 400, 6))
    apart = run(first) - run(second)
    lengths = np.linalg.norm(first - second, axis=1)
    assert verdict.pairwise is not None
    assert np.all((np.abs(apart[:, :, None] - apart[:, None]) / lengths[:, None, None]).max(axis=0) <= verdict.pairwise)


@pytest.mark.parametrize("kind", ["Relu", "GroupSort"])
def test_the_exact_inequality_holds_for_a_residual_network(kind: str) -> None:
    """LipSDP's matrix of the whole network, in rationals, is positive semidefinite where it is proven to be."""
    model = residual(gaussian(2, 3, 4, 6), kind, np.eye(3))
    (chain,), found = walked(model, "l2").segments(), find(model.SerializeToString(), seconds=3.0)
    assert found is not None
    hints = found[chain.output]
    certified = certify(chain, hints)
    assert certified is not None
    rho = Fraction(certified.bound.value) ** 2
    assert is_psd(exact_inequality(chain, list(hints), rho))
    assert not is_psd(exact_inequality(chain, list(hints), rho * (1 - Fraction(1, 10**6))))


def test_sll_layers_in_a_row_are_one_lipschitz() -> None:
    """SLL is the case where the multipliers of a residual block prove exactly 1 (T of the layer is λ)."""
    model = residual(sll(3, 6, 9, 2), "Relu", np.eye(6))
    _, tight, _ = proven(model, 8.0)
    assert best_ratio(double_runner(model), (6,), rounds=6) <= tight <= 1.001


def test_an_sll_layer_with_sorting_is_not() -> None:
    """The proof of SLL needs slopes in [0, 1]; with GroupSort the constant of the same weights exceeds 1."""
    model = residual(sll(2, 4, 8, 5), "GroupSort", np.eye(4))
    _, tight, _ = proven(model)
    assert 1.0 < best_ratio(double_runner(model), (4,), rounds=12) <= tight


@pytest.mark.parametrize("value", [1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e3])
@pytest.mark.parametrize("kind", ["Relu", "GroupSort"])
def test_no_claimed_multipliers_go_below_the_truth(value: float, kind: str) -> None:
    """x + relu(x) − 0·…: the constant is 2, whatever is claimed."""
    model = residual([(np.eye(4), np.eye(4))], kind, np.eye(4))
    truth = 2.0
    count = 4 if kind == "Relu" else 2
    for tau in (np.full(count, value), np.linspace(value, 2 * value, count)):
        verdict = verify(model.SerializeToString(), method="best", hints=[tau])
        assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value >= truth


def test_a_wide_residual_network_is_checked_quickly() -> None:
    blocks = gaussian(3, 128, 256, 4, 0.5)
    rng = np.random.default_rng(0)
    head = rng.standard_normal((10, 128))
    product, tight, verdict = proven(residual(blocks, "Relu", head / np.linalg.norm(head, 2)), 6.0)
    assert tight < 0.75 * product
    assert verdict.elapsed_seconds < 5.0
