"""The attacker builds a fragile network and searches for a flip of the *program* inside the ball (Jia & Rinard 2021).

A hidden bias B swallows the low bits of the input, and the last layer takes B away again: over the reals the network
is a plain linear classifier with a small Lipschitz constant, in floating point it is a staircase with steps of B·u. A
naive certificate divides the program's own margin by the real constant; it is right about neither the network at
x (the staircase rounded up) nor the program nearby (the next stair is inside the ball). The search (Jin, Ohrimenko &
Rubinstein 2022): walk from x towards the boundary to the rim of the claimed ball, then shake the last bits.

Naive certificates fall in float32 and in float64; ours are put through the same search, in every deployed mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy import CertifiedSession

INPUTS, HIDDEN, ROWS, SHAKES = 6, 8, 300, 24
Array = np.ndarray


@dataclass(frozen=True)
class Fragile:
    """x → W1 x + B → ReLU → W2 h − W2 B: over the reals W2 W1 x wherever |W1 x| < B."""

    model: bytes
    difference: Array  # (inputs,), exact in float64: gradient of y0 − y1


def fragile(bias: float, seed: int) -> Fragile:
    rng = np.random.default_rng(seed)
    first = rng.integers(-8, 9, (HIDDEN, INPUTS)) / 8.0
    second = rng.integers(-4, 5, (2, HIDDEN)) / 4.0
    second[1] = -second[0]
    weights = {"w1": first, "b1": np.full(HIDDEN, bias), "w2": second, "b2": -second @ np.full(HIDDEN, bias)}
    stored = {name: value.astype(np.float32) for name, value in weights.items()}
    assert all(np.array_equal(stored[name].astype(np.float64), value) for name, value in weights.items())
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", INPUTS])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Fragile(model.SerializeToString(), (second[0] - second[1]) @ first)


def targets(network: Fragile, step: float, rng: np.random.Generator) -> Array:
    """Inputs whose real margin is from a hundredth of a stair to many stairs."""
    x = rng.standard_normal((ROWS, INPUTS))
    unit = network.difference / np.linalg.norm(network.difference)
    distance = step * 10.0 ** rng.uniform(-2, 4, ROWS) * rng.choice([-1.0, 1.0], ROWS)
    x += (distance - x @ unit)[:, None] * unit
    return x.astype(np.float32)


def flips(session: CertifiedSession, network: Fragile, x: Array, label: Array, radius: Array) -> int:
    """Rows with a representable point strictly inside the ball (exact arithmetic) that the program calls otherwise."""
    rng = np.random.default_rng(1)
    fallen = np.zeros(len(x), bool)
    unit = network.difference / np.linalg.norm(network.difference)
    away = np.where(label == 0, -1.0, 1.0)[:, None] * unit
    reach = np.where(np.isfinite(radius), np.minimum(radius, 1e6), 0.0)
    for k in range(SHAKES):
        part = 1.0 - 2.0 ** -rng.uniform(1, 24) if k else 0.999
        rim = (x + part * reach[:, None] * away).astype(np.float32)
        shaken = rng.integers(-2, 3, rim.shape) if k % 2 else np.zeros(rim.shape, int)
        point = rim + shaken.astype(np.float32) * np.spacing(rim)
        other = session.predict(point).label != label
        for row in np.flatnonzero(other & ~fallen & (radius > 0)):
            apart = sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(point[row], x[row], strict=True))
            fallen[row] = apart < Fraction(float(radius[row])) ** 2
    return int(fallen.sum())


def lies(network: Fragile, x: Array, label: Array, radius: Array) -> int:
    """Rows whose radius reaches beyond the real network's decision boundary (or whose label is not the network's)."""
    exact = [Fraction(float(v)) for v in network.difference]
    length = sum(v * v for v in exact)
    count = 0
    for row in np.flatnonzero(radius > 0):
        score = sum(w * Fraction(float(v)) for w, v in zip(exact, x[row], strict=True))
        signed = score if label[row] == 0 else -score
        count += signed <= 0 or Fraction(float(radius[row])) ** 2 > signed * signed / length
    return count


BIASES = {"f32": 2.0**13, "f64": 2.0**43}


@pytest.mark.parametrize(
    ("mode", "program"), [("f32", "f32"), ("f64", "f64"), ("adaptive", "f64"), ("adaptive", "f32")]
)
def test_the_search_flips_naive_certificates_and_none_of_ours(mode: str, program: str) -> None:
    naive_lies, naive_flips, certified = 0, 0, 0
    for seed in range(3):
        network = fragile(BIASES[program], seed)
        step = BIASES[program] * 2.0 ** (-23 if program == "f32" else -52)
        session = CertifiedSession(network.model, certify=mode, threads=1)
        x = targets(network, step, np.random.default_rng(seed))
        found = session.predict(x)
        assert lies(network, x, found.label, found.radius) == 0
        assert flips(session, network, x, found.label, found.radius) == 0
        certified += int((found.radius > 0).sum())

        plain = CertifiedSession(network.model, certify=program, threads=1)
        answers = plain.predict(x)
        naive = np.abs(answers.logits[:, 0] - answers.logits[:, 1]) / np.linalg.norm(network.difference)
        naive_lies += lies(network, x, answers.label, naive)
        naive_flips += flips(plain, network, x, answers.label, naive)
    assert naive_lies > 100 and naive_flips > 100, "the naive certificate must fall, or the search means nothing"
    assert certified > 50, "a certificate that is always zero proves nothing either"


def test_the_network_guarantee_is_about_the_network() -> None:
    """``network`` promises nothing about the program, but what it says about the network is never a lie."""
    network = fragile(BIASES["f32"], 0)
    session = CertifiedSession(network.model, certify="network", threads=1)
    x = targets(network, BIASES["f32"] * 2.0**-23, np.random.default_rng(0))
    found = session.predict(x)
    assert lies(network, x, found.label, found.radius) == 0
    assert (found.radius > 0).sum() > 20
