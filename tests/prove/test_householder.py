"""Householder and sorting by the multipliers of Pauli et al. (ICLR 2024): which are sound, and what they prove here.

With J the projection onto what an activation keeps (11ᵀ/s of a sorted group; I − vvᵀ of a reflection) the quadratic
form is λ(|Δx|² − |Δy|²) + (terms in JΔx, JΔy that cancel because JΔx = JΔy), with λ ≥ 0 and the other factors free.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.ops import OPERATORS, attach_functions
from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from lipdeploy.verify.check import walked
from tests.verify.models import best_ratio, double_runner

Function = Callable[[np.ndarray], np.ndarray]


def reflection(angle: float) -> tuple[Function, np.ndarray]:
    """One pair with unit (s, c), and what it keeps: the line perpendicular to v = (s, −c)."""
    s, c = np.array([np.sin(angle / 2)]), np.array([np.cos(angle / 2)])
    v = np.array([s[0], -c[0]])
    return lambda x: OPERATORS["Householder"].evaluate(x, s, c), np.eye(2) - np.outer(v, v)


def sorting(size: int) -> tuple[Function, np.ndarray]:
    return lambda x: np.sort(x, axis=1), np.ones((size, size))


def form(kept: np.ndarray, lam: float, gam: float, nu: float, tau: float) -> np.ndarray:
    """[[T − 2S, P + S], [P + S, −T − 2P]] of the paper for one group."""
    t, s, p = lam * np.eye(len(kept)) + gam * kept, nu * kept, tau * kept
    return np.block([[t - 2 * s, p + s], [p + s, -t - 2 * p]])


def least(function: Function, matrix: np.ndarray) -> float:
    """The least value of the form over many pairs of points, relative to their distance."""
    rng = np.random.default_rng(0)
    size = len(matrix) // 2
    x = rng.standard_normal((20_000, size)) * 10.0 ** rng.uniform(-1, 1, (20_000, 1))
    z = np.where(rng.random((20_000, 1)) < 0.5, x + 0.1 * rng.standard_normal(x.shape), rng.standard_normal(x.shape))
    both = np.concatenate([x - z, function(x) - function(z)], axis=1)
    return float((np.einsum("ni,ij,nj->n", both, matrix, both) / np.square(x - z).sum(axis=1)).min())


@pytest.mark.parametrize(
    "kind", [lambda: reflection(0.7), lambda: reflection(np.pi / 2), lambda: sorting(2), lambda: sorting(5)]
)
def test_the_forms_of_the_paper_hold_and_their_neighbours_do_not(
    kind: Callable[[], tuple[Function, np.ndarray]],
) -> None:
    function, kept = kind()
    rng = np.random.default_rng(1)
    for _ in range(20):
        lam, free = rng.uniform(0, 2), rng.standard_normal(3)
        assert least(function, form(kept, lam, *free)) >= -1e-9
    assert least(function, form(kept, -0.1, 0.0, 0.0, 0.0)) < -1e-3  # λ < 0
    other = np.roll(np.eye(len(kept)), 1, axis=0)
    spoiled = form(kept, 0.1, 0.0, 0.0, 0.0)
    spoiled[: len(kept), len(kept) :] += 0.3 * (other + other.T)
    spoiled[len(kept) :, : len(kept)] += 0.3 * (other + other.T)
    assert least(function, spoiled) < -1e-3  # a term that couples other directions
    slope = np.eye(len(kept))
    restricted = np.block([[0 * slope, slope], [slope, -2 * slope]])  # "slopes in [0, 1]", as eclipse-nn takes it
    assert least(function, restricted) < -1e-3


def network(
    sizes: tuple[int, ...], seed: int, length: float = 1.0, layout: int = 1, normalise: bool = True
) -> onnx.ModelProto:
    """Gaussian layers of norm 1 with Householder between them, whose (s, c) have the given length."""
    rng = np.random.default_rng(seed)
    nodes, stored, name = [], [], "x"
    for index, (a, b) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((b, a))
        weight = weight / np.linalg.norm(weight, 2) if normalise else np.linalg.qr(weight)[0]
        stored.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        last = index == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [name, f"w{index}"], ["y" if last else f"v{index}"], transB=1))
        if not last:
            angles = rng.uniform(0, 2 * np.pi, b // 2)
            for label, values in ((f"s{index}", np.sin(angles / 2)), (f"c{index}", np.cos(angles / 2))):
                stored.append(numpy_helper.from_array((length * values).astype(np.float32), label))
            inputs = [f"v{index}", f"s{index}", f"c{index}"]
            nodes.append(helper.make_node("Householder", inputs, [f"h{index}"], domain="lipdeploy", layout=layout))
            name = f"h{index}"
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", size])
        for n, size in (("x", sizes[0]), ("y", sizes[-1]))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    attach_functions(model, {onnx.TensorProto.FLOAT})
    return model


def bounds(model: onnx.ModelProto, seconds: float = 5.0) -> tuple[float, float]:
    """(product, certificate)."""
    data = model.SerializeToString()
    found = [verify(data), verify(data, method="lmi", hints=find(data, seconds=seconds))]
    assert all(v.lipschitz_bound is not None for v in found)
    assert found[1].nodes[-1].rule == "diagonal multipliers"
    return tuple(v.lipschitz_bound.value for v in found)  # type: ignore[return-value, union-attr]


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("length", [1.0, 0.6, 1.2])
def test_no_pair_of_points_beats_a_reflecting_network(layout: int, length: float) -> None:
    model = network((6, 12, 12, 4), 3, length, layout)
    product, tight = bounds(model)
    assert best_ratio(double_runner(model), (6,), rounds=12) <= tight < 0.95 * product


def test_one_reflection_in_closed_form() -> None:
    """W = I: max(1, |1 − 2(s² + c²)|), also where (s, c) is no unit vector, and 1 across it."""
    for length, truth in ((1.0, 1.0), (0.5, 1.0), (1.5, 3.5)):
        eye = np.eye(4, dtype=np.float32)
        model = network((4, 4, 4), 0, length)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("w"):
                tensor.CopyFrom(numpy_helper.from_array(eye, tensor.name))
        _, tight = bounds(model, 2.0)
        assert truth * (1 - 1e-6) <= tight <= truth * (1 + 1e-3)


def test_an_orthogonal_reflecting_network_is_certified_near_one() -> None:
    model = network((8, 8, 8, 8), 5, normalise=False)
    product, tight = bounds(model)
    assert 1 - 1e-6 <= tight <= min(product, 1.0) * (1 + 1e-3)


def test_half_a_pi_is_the_sorted_pair() -> None:
    """θ = π/2 sorts: both ways of writing it prove the same bound, but for the rounding of √½."""
    model = network((6, 8, 8, 3), 7)
    for tensor in model.graph.initializer:
        if tensor.name[0] in "sc":
            half = np.full(tuple(tensor.dims), 0.5**0.5, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    sorted_model = onnx.ModelProto()
    sorted_model.CopyFrom(model)
    for node in sorted_model.graph.node:
        if node.op_type == "Householder":
            node.op_type = "GroupSort"
            del node.input[1:]
            node.attribute.append(helper.make_attribute("group_size", 2))
    del sorted_model.functions[:]
    attach_functions(sorted_model, {onnx.TensorProto.FLOAT})
    (_, reflected), (_, ordered) = bounds(model), bounds(sorted_model)
    assert reflected == pytest.approx(ordered, rel=2e-3)


def test_what_is_nearly_a_reflection_is_read_as_it_is() -> None:
    """The same formula in standard operators with one factor 3 instead of 2: not taken for the operator."""
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[N, 4] x) => (float[N, 4] y) <float[2] s = {0.6, 0}, float[2] c = {0.8, 1}, float[1] k = {FACTOR}> {
        a, b = Split<axis = 1, num_outputs = 2>(x)
        p = Mul(a, s) q = Mul(b, c) u = Sub(p, q) m = Relu(u) t = Mul(m, k)
        d = Mul(t, s) e = Mul(t, c) f = Sub(a, d) g = Add(b, e)
        y = Concat<axis = 1>(f, g)
    }"""
    for factor, truth in ((2, 1.0), (3, 2.0)):
        model = onnx.parser.parse_model(text.replace("FACTOR", str(factor)))
        data = model.SerializeToString()
        assert len(walked(model, "l2").segments()) == 1
        tight = verify(data, method="lmi", hints=find(data, seconds=2.0))
        assert tight.lipschitz_bound is not None and tight.nodes[-1].rule == "diagonal multipliers"
        assert truth * (1 - 1e-6) <= tight.lipschitz_bound.value <= truth * (1 + 1e-3)
