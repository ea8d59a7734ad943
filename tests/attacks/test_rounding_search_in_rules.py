"""The same search (test_rounding_search_in_programs.py) on networks whose staircase passes through other operators.

Over the reals each is a linear classifier on the inputs that are tried, so that truth is exact; in floating point a
huge bias, or a huge whole number that the next layer takes away again, swallows what tells the classes apart:

- huge whole numbers: y = (M·A + D)x − (M·A)x with M up to 2²¹: collapsed to one matrix the network has a small
  constant, and the program rounds at the size of M;
- Householder reflections, whose pairs all lie far on one side of their lines;
- Gelu, Softplus, Elu, Mish and x·sigmoid(x) far on the right, where they are the identity to within e^−8192;
- roots of squares of numbers that are far from 0, and linear interpolation between two of them.

Naive certificates fall in each; ours stand in every mode that answers, and f32 refuses where its rounding is unknown.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy import CertifiedSession
from lipdeploy.errors import Refused
from tests.attacks.test_rounding_search_in_programs import HIDDEN, INPUTS, Fragile, flips, lies, targets

Array = np.ndarray
HEADER = '<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>\n'
BIAS = {"f32": 2.0**13, "f64": 2.0**43}
#: What stands between the biased layer h and the last one, a; the identity on numbers that are large enough.
BETWEEN = {
    "gelu": "a = Gelu(h)",
    "gelu in nodes": "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) a = Mul(g, half)",
    "softplus": "a = Softplus(h)",
    "elu": "a = Elu(h)",
    "mish": "a = Mish(h)",
    "silu": "s = Sigmoid(h) a = Mul(h, s)",
    "root": "q = Mul(h, h) r = Unsqueeze(q, last) s = ReduceSum<keepdims=0>(r, last) a = Sqrt(s)",
    "lp pool": "u = Unsqueeze(h, second) p = LpPool<kernel_shape=[1]>(u) a = Squeeze(p, second)",
}
#: The mode that certifies, and the program that the network makes fragile.
MODES = [("f32", "f32"), ("f64", "f64"), ("adaptive", "f64"), ("adaptive", "f32")]
REFLECTION = (0.5, 0.75)  # sine and cosine: I − 2vvᵀ has short binary fractions and a constant of 1


def built(text: str, difference: Array, **weights: Array) -> Fragile:
    proto = onnx.parser.parse_model(HEADER + text)
    for name, value in weights.items():
        stored = value if value.dtype.kind == "i" else value.astype(np.float32)
        assert value.dtype.kind == "i" or np.array_equal(stored.astype(np.float64), value), "or no truth is known"
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    return Fragile(proto.SerializeToString(), difference)


def layers(rng: np.random.Generator) -> tuple[Array, Array]:
    first = rng.integers(-8, 9, (HIDDEN, INPUTS)) / 8.0
    second = rng.integers(-4, 5, (2, HIDDEN)) / 4.0
    second[1] = -second[0]
    return first, second


def through(body: str, bias: float, seed: int) -> Fragile:
    """x → W1 x + B → body → W2 a − W2 B."""
    first, second = layers(np.random.default_rng(seed))
    text = f"""g (float[N,{INPUTS}] x) => (float[N,2] y) {{
        h = Gemm<transB=1>(x, w1, b1) {body} y = Gemm<transB=1>(a, w2, b2) }}"""
    shift = np.full(HIDDEN, bias)
    constants = {
        "root": np.float64(np.float32(np.sqrt(2))), "one": np.float64(1.0), "half": np.float64(0.5),
        "last": np.array([2], np.int64), "second": np.array([1], np.int64),
    }  # fmt: skip
    used = {name: np.asarray(value) for name, value in constants.items() if name in body.replace("(", " ")}
    return built(text, (second[0] - second[1]) @ first, w1=first, b1=shift, w2=second, b2=-second @ shift, **used)


def reflected(bias: float, seed: int) -> Fragile:
    """Strided pairs (a, b) with a near B and b near 0, so that every pair is reflected."""
    first, second = layers(np.random.default_rng(seed))
    pairs, (s, c) = HIDDEN // 2, REFLECTION
    shift = np.concatenate([np.full(pairs, bias), np.zeros(pairs)])
    mirror = np.eye(HIDDEN)
    for k in range(pairs):
        v = np.zeros(HIDDEN)
        v[k], v[k + pairs] = s, -c
        mirror -= 2.0 * np.outer(v, v)
    text = f"""g (float[N,{INPUTS}] x) => (float[N,2] y) {{
        h = Gemm<transB=1>(x, w1, b1) a = lipdeploy.Householder(h, sine, cosine) y = Gemm<transB=1>(a, w2, b2) }}"""
    weights = {"w1": first, "b1": shift, "w2": second, "b2": -second @ mirror @ shift}
    angles = {"sine": np.full(pairs, s), "cosine": np.full(pairs, c)}
    return built(text, (second[0] - second[1]) @ mirror @ first, **weights, **angles)


def whole_numbers(size: float, seed: int) -> Fragile:
    """h = [(M·A + D)x, M·A·x], y = ±(Σh₁ − Σh₂): over the reals ±ΣDx."""
    rng = np.random.default_rng(seed)
    small, large = rng.integers(-2, 3, (HIDDEN, INPUTS)), rng.integers(-3, 4, (HIDDEN, INPUTS)) * int(size)
    first = np.concatenate([large + small, large]).astype(np.float64)
    row = np.concatenate([np.ones(HIDDEN), -np.ones(HIDDEN)])
    text = f"""g (float[N,{INPUTS}] x) => (float[N,2] y) {{
        h = Gemm<transB=1>(x, w1) y = Gemm<transB=1>(h, w2) }}"""
    return built(text, 2.0 * small.sum(axis=0).astype(np.float64), w1=first, w2=np.stack([row, -row]))


def interpolated(bias: float, seed: int) -> Fragile:
    """The hidden numbers as an image row of twice the length: (3·left + right)/4 and (left + 3·right)/4."""
    first, _ = layers(np.random.default_rng(seed))
    row = np.random.default_rng(seed + 9).integers(-4, 5, 2 * HIDDEN) / 4.0
    second = np.stack([row, -row])
    text = f"""g (float[N,{INPUTS}] x) => (float[N,2] y) {{
        h = Gemm<transB=1>(x, w1, b1) u = Unsqueeze(h, axis)
        r = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(u, , scales)
        a = Squeeze(r, axis) y = Gemm<transB=1>(a, w2, b2) }}"""
    blend = np.zeros((2 * HIDDEN, HIDDEN))
    for j in range(2 * HIDDEN):
        position = min(max(j / 2 - 0.25, 0.0), HIDDEN - 1.0)
        left = int(position)
        blend[j, left] += 1.0 - (position - left)
        blend[j, min(left + 1, HIDDEN - 1)] += position - left
    weights = {"w1": first, "b1": np.full(HIDDEN, bias), "w2": second, "b2": -second @ blend @ np.full(HIDDEN, bias)}
    axis, scales = np.array([1], np.int64), np.array([1.0, 1.0, 2.0])
    return built(text, (second[0] - second[1]) @ blend @ first, **weights, axis=axis, scales=scales)


def searched(networks: list[tuple[Fragile, float]], mode: str, program: str) -> None:
    """Every certificate of ``mode`` survives, and naive ones of the program that is fragile fall."""
    fallen, certified = 0, 0
    for seed, (network, step) in enumerate(networks):
        session = CertifiedSession(network.model, certify=mode, threads=1)
        rng = np.random.default_rng(seed)
        x = targets(network, step, rng)
        if program == "f64":  # an exponential's bound is 10⁴ roundings; every number stays far below the bias
            x = np.concatenate([x, targets(network, 2.0**14 * step, rng)[:100]])
        found = session.predict(x)
        assert lies(network, x, found.label, found.radius) == 0
        assert flips(session, network, x, found.label, found.radius) == 0
        certified += int((found.radius > 0).sum())

        plain = session if mode == program else CertifiedSession(network.model, certify=program, threads=1)
        answers = plain.predict(x)
        naive = np.abs(answers.logits[:, 0] - answers.logits[:, 1]) / np.linalg.norm(network.difference)
        fallen += lies(network, x, answers.label, naive)
    assert fallen > 60, "the naive certificate must fall, or the search means nothing"
    assert certified > 20, "a certificate that is always zero proves nothing either"


@pytest.mark.parametrize("mode", ["f64", "adaptive"])
@pytest.mark.parametrize("kind", BETWEEN)
def test_written_out_operators(kind: str, mode: str) -> None:
    step = BIAS["f64"] * 2.0**-52
    networks = [(through(BETWEEN[kind], BIAS["f64"], seed), step) for seed in range(2)]
    searched(networks, mode, "f64")
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(networks[0][0].model, certify="f32")


@pytest.mark.parametrize("mode", ["f64", "adaptive"])
def test_interpolation(mode: str) -> None:
    searched([(interpolated(BIAS["f64"], seed), BIAS["f64"] * 2.0**-52) for seed in range(2)], mode, "f64")


@pytest.mark.parametrize(("mode", "program"), MODES)
def test_reflections(mode: str, program: str) -> None:
    step = BIAS[program] * 2.0 ** (-23 if program == "f32" else -52)
    searched([(reflected(BIAS[program], seed), step) for seed in range(3)], mode, program)


@pytest.mark.parametrize(("mode", "program"), MODES)
def test_huge_whole_numbers(mode: str, program: str) -> None:
    size, unit = (2.0**9, 2.0**-23) if program == "f32" else (2.0**21, 2.0**-52)
    searched([(whole_numbers(size, seed), 8 * size * unit) for seed in range(3)], mode, program)


def test_whole_numbers_that_swallow_every_margin() -> None:
    """At 2²¹ the float32 bound is above the whole constant of the network: f32 refuses, adaptive goes to float64."""
    network = whole_numbers(2.0**21, 0)
    with pytest.raises(Refused, match="larger than any margin"):
        CertifiedSession(network.model, certify="f32")
    x = targets(network, 1.0, np.random.default_rng(0))
    assert set(CertifiedSession(network.model, certify="adaptive").predict(x).program) == {"f64"}


def test_the_truth_is_the_truth() -> None:
    """The networks' differences, against exact rational arithmetic through all of their weights."""
    network = whole_numbers(2.0**21, 0)
    proto = onnx.load_from_string(network.model)
    first, second = (numpy_helper.to_array(t).astype(object) for t in proto.graph.initializer)
    exact = np.vectorize(Fraction)(second) @ np.vectorize(Fraction)(first)
    assert [Fraction(float(v)) for v in network.difference] == list(exact[0] - exact[1])
