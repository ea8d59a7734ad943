"""Layers made of small blocks: the norm of the worst corner, never less than what points show."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from onnx import numpy_helper

from tests.verify.models import Array, best_ratio, bound, double_runner, judge, model

HOUSEHOLDER = """g (float[N,6,2] x) => (float y) <float[1,3,1] s = {{{s}}}, float[1,3,1] c = {{{c}}}> {{
    two = Constant<value = float {{2.0}}>() a, b = Split<axis = 1, num_outputs = 2>(x)
    u = Mul(a, s) v = Mul(b, c) d = Sub(u, v) m = {rectifier}
    sm = Mul(m, s) sm2 = Mul(sm, two) cm = Mul(c, m) cm2 = Mul(two, cm)
    p = Sub(a, sm2) q = {last} y = Concat<axis = 1>(p, q) }}"""


def numbers(values: Array) -> str:
    return ", ".join(repr(float(np.float32(v))) for v in values)


def householder(angles: Array, rectifier: str = "Relu(d)", last: str = "Add(b, cm2)") -> str:
    sine, cosine = np.sin(angles / 2), np.cos(angles / 2)
    return HOUSEHOLDER.format(s=numbers(sine), c=numbers(cosine), rectifier=rectifier, last=last)


def test_householder_in_single_operators() -> None:
    """1 in ℓ2 up to the rounding of the stored sines; the exact rule of the operator gives the same."""
    angles = np.array([0.3, 1.1, 2.9])
    text = householder(angles)
    sine, cosine = (np.float32(f(angles / 2)).astype(np.float64) for f in (np.sin, np.cos))
    truth = max(1.0, np.abs(1 - 2 * (sine**2 + cosine**2)).max())
    assert truth <= bound(text) <= truth * (1 + 1e-12)
    rows = np.maximum(np.abs(1 - 2 * sine**2), np.abs(1 - 2 * cosine**2)) + 2 * np.abs(sine * cosine)
    assert bound(text, "linf") == pytest.approx(max(1.0, rows.max()), rel=1e-12)
    for norm in ("l2", "linf", "l1"):
        assert best_ratio(double_runner(model(text)), (6, 2), norm, samples=128, rounds=6) <= bound(text, norm) + 1e-9


def test_the_rectifier_may_be_a_choice() -> None:
    """Where(d ≤ 0, 0, d), as our own function body writes it."""
    text = householder(np.array([0.3, 1.1, 2.9]), "Where(no, zero, d)")
    text = text.replace("m = Where", "zero = Constant<value = float {0.0}>() no = LessOrEqual(d, zero) m = Where")
    assert bound(text) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Add(b, cm2)", "Sub(b, cm2)"),
        ("Mul(sm, two)", "Mul(sm, three)"),
        ("Sub(u, v)", "Add(u, v)"),
        ("Mul(b, c)", "Mul(b, s)"),
        ("Mul(m, s)", "Mul(m, c)"),
    ],
)
def test_one_change_and_it_is_no_reflection(old: str, new: str) -> None:
    text = householder(np.array([0.3, 1.1, 2.9])).replace(old, new)
    text = text.replace("two = Const", "three = Constant<value = float {3.0}>() two = Const")
    seen = best_ratio(double_runner(model(text)), (6, 2), samples=128, rounds=8)
    assert bound(text) >= seen
    assert bound(text) > 1.05


def test_a_choice_between_other_things_is_refused() -> None:
    """Where(d ≤ 0, 0, e) jumps, and so does a threshold that is not 0."""
    text = householder(np.array([0.3, 1.1, 2.9]), "Where(no, zero, d)")
    start = "zero = Constant<value = float {0.0}>() tenth = Constant<value = float {0.1}>() "
    for compared, chosen in (
        ("LessOrEqual(d, tenth)", "Where(no, zero, d)"),
        ("LessOrEqual(d, zero)", "Where(no, tenth, d)"),
        ("LessOrEqual(u, zero)", "Where(no, zero, d)"),
    ):
        changed = text.replace("m = Where(no, zero, d)", f"{start} no = {compared} m = {chosen}")
        assert judge(changed).status == "refused"


def test_the_branch_form_of_householder_jumps_and_is_refused() -> None:
    """Sharp edge 9: with folded sines the two branches differ on the line between them."""
    text = """g (float[N,2] x) => (float y) {
        s = Constant<value = float {0.52}>() c = Constant<value = float {0.85}>() zero = Constant<value = float {0.0}>()
        a, b = Split<axis = 1, num_outputs = 2>(x) u = Mul(a, s) v = Mul(b, c) d = Sub(u, v)
        far = Greater(d, zero) r = Mul(b, s) y = Where(far, r, a) }"""
    verdict = judge(text)
    assert verdict.refusals[0].code in ("LIP010", "LIP001")


MIXES = {
    "x − tanh(x)": ("t = Tanh(x) y = Sub(x, t)", 1.0),
    "x + relu(x)": ("t = Relu(x) y = Add(x, t)", 2.0),
    "x − relu(x)": ("t = Relu(x) y = Sub(x, t)", 1.0),
    "x − 2 relu(x)": ("w = Constant<value = float {2.0}>() t = Relu(x) u = Mul(t, w) y = Sub(x, u)", 1.0),
    "x − 4 sigmoid(x)": ("w = Constant<value = float {4.0}>() t = Sigmoid(x) u = Mul(t, w) y = Sub(x, u)", 1.0),
    "3/4 x + 1/4 relu(x)": (
        "w = Constant<value = float {0.75}>() v = Constant<value = float {0.25}>() "
        "t = Relu(x) u = Mul(t, v) s = Mul(x, w) y = Add(s, u)", 1.0,
    ),
    "max(x, −x/2)": ("w = Constant<value = float {-0.5}>() t = Mul(x, w) y = Max(x, t)", 1.5),
}  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_mixtures_of_a_tensor_and_its_activation(mix: str) -> None:
    body, truth = MIXES[mix]
    text = f"g (float[N,3] x) => (float y) {{ {body} }}"
    seen = best_ratio(double_runner(model(text)), (3,), samples=128, rounds=6)
    assert seen <= bound(text) * (1 + 1e-9)
    if mix != "max(x, −x/2)":  # judged as a maximum of two operands
        assert bound(text) == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_blocks_against_random_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f = [repr(round(float(v), 3)) for v in rng.uniform(-2, 2, 6)]
    factors = " ".join(f"f{i} = Constant<value = float {{{number}}}>()" for i, number in enumerate(f))
    text = f"""g (float[N,6] x) => (float y) {{ {factors}
        a, b = Split<axis = 1, num_outputs = 2>(x) p = Mul(a, f0) q = Mul(b, f1) s = Add(p, q)
        r = {["Relu", "Abs", "Tanh"][seed % 3]}(s) d = Sub(a, b) e = Relu(d) t = Mul(r, f2) u = Add(a, t)
        v = Mul(e, f3) w = Sub(u, v) g = Mul(r, f4) h = Add(g, b) i = Mul(e, f5) j = Add(h, i) k = Max(a, b)
        y = Concat<axis = 1>(w, j, k) }}"""
    for norm in ("l2", "linf", "l1"):
        seen = best_ratio(double_runner(model(text)), (6,), norm, samples=128, rounds=6, seed=seed)
        proven = bound(text, norm)
        assert seen <= proven * (1 + 1e-9)
        assert seen >= 0.5 * proven


def test_the_sum_of_parts_is_what_remains_when_blocks_are_large() -> None:
    """Every output reads all 40 inputs: no small block, so the norms of the parts add."""
    weights = ", ".join(["0.025"] * 1600)
    text = f"""g (float[N,40] x) => (float y) <float[40,40] W = {{{weights}}}> {{
        h = MatMul(x, W) r = Relu(h) y = Add(x, r) }}"""
    assert bound(text) == pytest.approx(2.0, rel=1e-6)
    assert math.isfinite(bound(text, "linf"))


def chain(length: int, layer: str, entries: int = 2) -> str:
    """``layer`` over and over: {h} is its input, {o} its output, {i} makes other names unique."""
    names = ["x", *(f"h{i}" for i in range(length))]
    layers = " ".join(layer.format(h=names[i], o=names[i + 1], i=i) for i in range(length))
    constants = "w = Constant<value = float {0.75}>() v = Constant<value = float {0.25}>()"
    return f"g (float[N,{entries}] x) => (float y) {{ {constants} {layers} y = Identity({names[-1]}) }}"


LONG_CHAINS = {
    "doubled": ("{o} = Add({h}, {h})", 2.0),
    "doubled by its negative": ("n{i} = Neg({h}) {o} = Sub({h}, n{i})", 2.0),
    "x + relu(x)": ("r{i} = Relu({h}) {o} = Add({h}, r{i})", 2.0),
    "an activation far back": (
        "a{i} = Relu({h}) b{i} = Neg(a{i}) c{i} = Neg(b{i}) {o} = Sub({h}, c{i})",
        1.0,
    ),
}


@pytest.mark.parametrize("name", LONG_CHAINS)
def test_a_thousand_small_nodes_end(name: str) -> None:
    """Looking back from each node is bounded: this took minutes, and deeper graphs overflowed Python's stack."""
    layer, factor = LONG_CHAINS[name]
    start = time.process_time()
    assert bound(chain(1000, layer)) == pytest.approx(factor**1000)
    assert time.process_time() - start < 40.0


@pytest.mark.parametrize("layers", [1, 8, 9, 100])
def test_an_activation_is_found_behind_a_few_linear_nodes(layers: int) -> None:
    """Relu, then doublings: one block while the way back to the bend is short, and a bound in any case."""
    doubled = chain(layers, "{o} = Add({h}, {h})").replace("h0 = Add(x, x)", "r = Relu(x) h0 = Sub(x, r)")
    assert 2.0 ** (layers - 1) <= bound(doubled) <= 2.0**layers


def test_every_layer_of_a_long_net_is_judged_as_a_block() -> None:
    """What may be read back suffices for nets that people train: 300 convex mixtures, 12 layers of reflections."""
    mixture = "r{i} = Relu({h}) p{i} = Mul(r{i}, v) q{i} = Mul({h}, w) {o} = Add(p{i}, q{i})"
    assert bound(chain(300, mixture)) == pytest.approx(1.0, abs=1e-9)
    reflection = (
        "a{i}, b{i} = Split<axis = 1, num_outputs = 2>({h}) u{i} = Mul(a{i}, s) k{i} = Mul(b{i}, c) "
        "d{i} = Sub(u{i}, k{i}) m{i} = Relu(d{i}) e{i} = Mul(m{i}, s2) f{i} = Mul(m{i}, c2) "
        "p{i} = Sub(a{i}, e{i}) q{i} = Add(b{i}, f{i}) {o} = Concat<axis = 1>(p{i}, q{i})"
    )
    stored = "s = Constant<value = float {0.6}>() c = Constant<value = float {0.8}>() "
    stored += "s2 = Constant<value = float {1.2}>() c2 = Constant<value = float {1.6}>() w ="
    text = chain(12, reflection, 64 * 32 * 32).replace("w =", stored, 1)
    assert bound(text) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("odd", [0, 51_234, 99_999])
def test_one_other_block_among_many_equal_ones_decides(odd: int) -> None:
    """x − w·relu(x) has the slopes 1 and 1 − w: w is 1, but 3.5 in one place of 100,000."""
    weights = np.ones(100_000, np.float32)
    weights[odd] = 3.5
    proto = model("g (float[N,100000] x) => (float y) { r = Relu(x) u = Mul(r, W) y = Sub(x, u) }")
    proto.graph.initializer.append(numpy_helper.from_array(weights, "W"))
    assert bound(proto) == pytest.approx(2.5, rel=1e-12)
