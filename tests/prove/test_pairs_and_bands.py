"""What a served model's radii and bands are made of: pair constants by the last layer and by the multipliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.prove.multipliers import find
from lipdeploy.runtime import CertifiedSession
from lipdeploy.verify import verify
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import certify
from tests.prove.test_multipliers import normalised, saved
from tests.verify.models import double_runner


def certified(path: Path, weights: list[np.ndarray], kind: str = "Relu") -> bytes:
    """A network on disk with a certificate that stores multipliers."""
    data = saved(kind, weights)
    path.write_bytes(data)
    verify(path, method="best", hints=find(data, seconds=3.0)).write_certificate(path.with_suffix(".cert.json"))
    return data


def normalised_rows(weight: np.ndarray) -> np.ndarray:
    """A last-layer-normalised head: every row has length 1."""
    return (weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32)


def test_pairs_of_a_normalised_head_are_the_distances_of_its_rows() -> None:
    """Behind an orthogonal body |Δ(y_i − y_j)| = |w_i − w_j| is attained; √2 of the head's norm would be far off."""
    rng = np.random.default_rng(0)
    body = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    head = normalised_rows(rng.standard_normal((5, 8)))
    head[1] = np.nextafter(head[0], 1)  # two rows that nearly agree
    nodes = [
        helper.make_node("Gemm", ["x", "A"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "B"], ["y"], transB=1),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", s]) for n, s in (("x", 8), ("y", 5)))
    stored = [numpy_helper.from_array(body, "A"), numpy_helper.from_array(head, "B")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    pairs = verify(model.SerializeToString()).pairwise
    assert pairs is not None
    wide = head.astype(np.float64)
    exact = np.linalg.norm((wide[:, None] - wide[None]) @ body.astype(np.float64), axis=2)
    assert np.all(exact * (1 - 1e-12) <= pairs)
    assert np.all(pairs <= exact * (1 + 1e-6))
    assert pairs.max() <= 2 * (1 + 1e-6) and pairs[0, 1] < 1e-6


@pytest.mark.parametrize("kind", ["Relu", "GroupSort"])
def test_radii_use_the_smaller_of_both_pair_constants(tmp_path: Path, kind: str) -> None:
    weights = [*normalised((12, 24, 24), 5), normalised_rows(np.random.default_rng(3).standard_normal((6, 24)))]
    path = tmp_path / "net.onnx"
    data = certified(path, weights, kind)
    session = CertifiedSession(path)
    product, (chain,) = verify(data).pairwise, walked(onnx.load_from_string(data), "l2").segments()
    stored = session.verdict.nodes[-1].hints["multipliers"]
    hints = [np.array([float.fromhex(v) for v in layer]) for layer in stored]
    assert product is not None
    multiplied = certify(chain, hints)
    assert multiplied is not None
    expected = np.minimum(product, multiplied.pairwise)
    assert session.verdict.pairwise is not None
    assert np.allclose(session.verdict.pairwise, expected, rtol=1e-12)
    assert (expected < 0.9 * product)[~np.eye(6, dtype=bool)].all()
    x = np.random.default_rng(1).standard_normal((40, 12)).astype(np.float32)
    answers = session.predict(x)
    scores = double_runner(onnx.load_from_string(data))(x)
    for row, label, radius in zip(scores, answers.label, answers.radius, strict=True):
        others = np.arange(6) != label
        best = ((row[label] - row) / np.where(others, expected[label], 1.0))[others].min()
        assert best * (1 - 1e-6) - 1e-9 <= radius < best


def test_no_pair_of_classes_moves_further_than_its_constant(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    head = normalised_rows(np.random.default_rng(4).standard_normal((4, 16)))
    data = certified(path, [*normalised((6, 16, 16), 8), head], "GroupSort")
    pairs = CertifiedSession(path).verdict.pairwise
    assert pairs is not None
    run = double_runner(onnx.load_from_string(data))
    rng, best = np.random.default_rng(2), np.zeros((4, 4))
    x, step = rng.standard_normal((2, 400, 6))
    for _ in range(30):
        moved, length = run(x + step) - run(x), np.linalg.norm(step, axis=1)
        ratios = np.abs(moved[:, :, None] - moved[:, None]) / length[:, None, None]
        best = np.maximum(best, ratios.max(axis=0))
        top = np.argsort(ratios.max(axis=(1, 2)))[-40:].repeat(10)
        x, step = x[top], step[top] * (1 + 0.2 * rng.standard_normal(x.shape))
    assert np.all(best <= pairs) and best.max() > 0.3 * pairs.max()


def test_one_logit_has_the_constant_of_the_multipliers(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    data = certified(path, normalised((8, 16, 16, 1), 2))
    session = CertifiedSession(path)
    product = verify(data).lipschitz_bound
    assert product is not None and session.lipschitz_bound < 0.9 * product.value
    x = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    answers = session.predict(x)
    scores = double_runner(onnx.load_from_string(data))(x)[:, 0]
    expected = np.abs(scores) / session.lipschitz_bound
    assert np.all(answers.radius <= expected) and np.all(answers.radius >= expected * (1 - 1e-6) - 1e-9)
    assert np.array_equal(answers.label, scores > 0)


@pytest.mark.parametrize("shape", [(1,), (3,), (6,), (2, 3), (3, 2, 1), (1, 6)])
def test_bands_hold_for_outputs_of_every_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A regression network: no output moves out of the band, whatever its shape; the band is L·ε rounded up."""
    size = int(np.prod(shape))
    data = saved("Relu", normalised((7, 16, 16, size), 4))
    model = onnx.load_from_string(data)
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *shape], np.int64), "shape"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", *shape]))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    verify(path, method="best", hints=find(path, seconds=2.0)).write_certificate(path.with_suffix(".cert.json"))
    session = CertifiedSession(path)
    product = verify(path, method="product").lipschitz_bound
    assert product is not None and session.lipschitz_bound <= product.value
    assert session.verdict.nodes[-1].rule == "diagonal multipliers"
    run, rng = double_runner(model), np.random.default_rng(0)
    x, step = rng.standard_normal((2, 300, 7))
    for epsilon in (0.0, 1e-6, 0.25, 3.0):
        moved = run(x + epsilon * step / np.linalg.norm(step, axis=1, keepdims=True)) - run(x)
        farthest = np.linalg.norm(moved.reshape(300, -1), axis=1).max()
        band = session.output_band(epsilon)
        assert farthest <= band * (1 + 1e-9) + 1e-12
        assert session.lipschitz_bound * epsilon <= band <= session.lipschitz_bound * epsilon * (1 + 1e-15)
