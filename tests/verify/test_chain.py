"""Which graphs are chains, with which slopes, and that everything else is left to the product of norms."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.verify.chain import GELU_INTERVALS, INTERVALS, Chain, Slopes, Sorting
from lipdeploy.verify.check import prove
from tests.verify.models import double_runner, model

HEAD = """g (float[N, 4] x) => (float y) <
    float[4, 4] A = {1, 2, 0, 1, 0, 1, 3, 0, 1, 0, 1, 1, 2, 0, 0, 1},
    float[4, 2] B = {1, 0, 0, 1, 1, 1, 2, 0},
    float[4] c = {1, -2, 0.5, 3}>"""


def built(body: str, header: str = HEAD) -> onnx.ModelProto:
    custom = "lipdeploy." in body
    proto = model(f"{header}\n{{ {body} }}", imports={"lipdeploy": 1} if custom else None)
    if custom:
        attach_functions(proto, {onnx.TensorProto.FLOAT})
    return proto


def chain(body: str, header: str = HEAD) -> Chain | None:
    return prove(built(body, header), "l2", with_chain=True).chain


def required(body: str) -> Chain:
    found = chain(body)
    assert found is not None
    return found


def stored(name: str) -> np.ndarray:
    tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in built("y = MatMul(x, B)").graph.initializer}
    return tensors[name]


def test_layers_biases_and_layouts_of_weights() -> None:
    found = required("a = MatMul(x, A) b = Add(c, a) d = Relu(b) y = Gemm(d, B)")
    assert np.array_equal(found.weights[0], stored("A").T) and np.array_equal(found.weights[1], stored("B").T)
    assert isinstance(found.activations[0], Slopes)
    transposed = required("a = Gemm<transB = 1>(x, A, c) b = Relu(a) y = MatMul(b, B)")
    assert np.array_equal(transposed.weights[0], stored("A"))


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("group_size = 2", [[0, 1], [2, 3]]),
        ("group_size = 2, layout = 1, descending = 1", [[0, 2], [1, 3]]),
        ("group_size = 0", [[0, 1, 2, 3]]),
        ("group_size = 4, axis = -1", [[0, 1, 2, 3]]),
    ],
)
def test_groups(attributes: str, groups: list[list[int]]) -> None:
    found = required(f"a = MatMul(x, A) b = lipdeploy.GroupSort<{attributes}>(a) y = MatMul(b, B)")
    (activation,) = found.activations
    assert isinstance(activation, Sorting)
    assert activation.groups.tolist() == groups


def test_groups_of_one_move_nothing() -> None:
    found = required("a = MatMul(x, A) b = lipdeploy.GroupSort<group_size = 1>(a) y = MatMul(b, B)")
    assert all(isinstance(a, Slopes) and np.all(a.low == 1) and np.all(a.high == 1) for a in found.activations)


def test_groups_along_an_axis_of_an_image_are_those_that_the_operator_sorts() -> None:
    header = "g (float[N, 4, 2, 3] x) => (float[N, 24] y) <int64[2] s = {0, 24}>"
    found = chain("a = lipdeploy.GroupSort<group_size = 2, axis = 1, layout = 1>(x) y = Reshape(a, s)", header)
    assert found is not None and isinstance(found.activations[0], Sorting)
    x = np.random.default_rng(0).standard_normal((1, 4, 2, 3))
    y = double_runner(
        built("a = lipdeploy.GroupSort<group_size = 2, axis = 1, layout = 1>(x) y = Reshape(a, s)", header)
    )
    expected = x.reshape(-1).copy()
    for group in found.activations[0].groups:
        expected[group] = np.sort(expected[group])
    assert np.array_equal(y(x)[0], expected)


def test_a_scaled_spline_composes_channel_by_channel() -> None:
    """Mul(α), spline with slopes −0.5 and 1 (channel 1: 2 and 0), Mul(β): the interval times αβ, signs included."""
    header = (
        "g (float[N, 2] x) => (float[N, 2] y) <float[2, 3] k = {0.5, 0, 1, 0, 2, 2}, "
        "float[2] alpha = {2, -3}, float[2] beta = {-1, 0.5}>"
    )
    body = "a = Mul(x, alpha) b = lipdeploy.LinearSpline<lower = -1.0, knot_spacing = 1.0>(a, k) y = Mul(b, beta)"
    found = chain(body, header)
    assert found is not None
    slopes = found.activations[0]
    assert isinstance(slopes, Slopes)
    exact = [(Fraction(-2), Fraction(1)), (Fraction(-3), Fraction(0))]
    for low, high, (least, most) in zip(slopes.low, slopes.high, exact, strict=True):
        assert least - Fraction(1, 10**14) <= Fraction(low) <= least
        assert most <= Fraction(high) <= most + Fraction(1, 10**14)


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, A) b = Add(x, a) y = MatMul(b, B)",  # a residual
        "a = MatMul(x, A) b = Relu(a) y = Concat<axis = 1>(b, b)",
        "a = MatMul(x, A) b = Clip(a) y = MatMul(b, B)",  # true slopes [0, 1], but not on the list
        "a = MatMul(x, A) b = HardSigmoid(a) y = MatMul(b, B)",
        "a = MatMul(x, A) b = Elu<alpha = -1.0>(a) y = MatMul(b, B)",
        "a = MatMul(x, A) b = Softmax(a) y = MatMul(b, B)",
        "y = Gemm<alpha = 2.0>(x, B)",
    ],
)
def test_what_is_not_a_chain_falls_back(body: str) -> None:
    assert chain(body) is None


def test_an_activation_first_and_last_meets_identities() -> None:
    found = required("a = Relu(x) b = MatMul(a, B) y = Abs(b)")
    assert [w.shape for w in found.weights] == [(4, 4), (2, 4), (2, 2)]
    assert np.array_equal(found.weights[0], np.eye(4)) and np.array_equal(found.weights[2], np.eye(2))


def test_permutations_fold_into_the_next_matrix() -> None:
    """MaxMin of LNets: GroupSort, then a permutation, which moves the columns of the next weight."""
    found = required(
        "a = MatMul(x, A) b = lipdeploy.GroupSort<group_size = 2, descending = 1>(a) "
        "i = Constant<value = int64[4] {0, 2, 1, 3}>() d = Gather<axis = 1>(b, i) y = MatMul(d, B)"
    )
    assert len(found.weights) == 2 and isinstance(found.activations[0], Sorting)
    assert np.array_equal(found.weights[1][:, [0, 2, 1, 3]], stored("B").T)


def test_permutations_first_last_and_before_an_activation() -> None:
    body = (
        "i = Constant<value = int64[4] {3, 0, 2, 1}>() j = Constant<value = int64[2] {2, 0}>() "
        "a = Gather<axis = 1>(x, i) b = lipdeploy.GroupSort(a) d = Gather<axis = 1>(b, i) e = Relu(d) "
        "y = Gather<axis = 1>(e, j)"
    )
    assert agrees(built(body), (4,))
    repeated = "i = Constant<value = int64[4] {3, 0, 0, 1}>() a = Gather<axis = 1>(x, i) y = MatMul(a, B)"
    assert chain(repeated) is None


@pytest.mark.parametrize(
    "attributes", ["group = 2, pads = [1, 0, 1, 2]", "strides = [2, 1], dilations = [1, 2], group = 2"]
)
def test_small_convolutions_are_written_out(attributes: str) -> None:
    header = (
        "g (float[N, 4, 4, 5] x) => (float y) <float[6, 2, 2, 2] k = {"
        + ", ".join(str(v % 7 - 3) for v in range(48))
        + "}, float[6] b = {0, 0, 0, 0, 0, 0}, int64[2] s = {0, -1}>"
    )
    body = f"v = Conv<{attributes}>(x, k, b) h = Relu(v) t = Transpose<perm = [0, 2, 3, 1]>(h) y = Reshape(t, s)"
    assert agrees(built(body, header), (4, 4, 5))


def agrees(proto: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    """The chain, run with ReLU and sorting as its activations, is the network (no biases in these)."""
    found = prove(proto, "l2", with_chain=True).chain
    assert found is not None
    x = np.random.default_rng(0).standard_normal((7, *shape))
    h = x.reshape(7, -1)
    for weight, activation in zip(found.weights, found.activations, strict=False):
        h = h @ weight.T
        if isinstance(activation, Sorting):
            for group in activation.groups:
                h[:, group] = np.sort(h[:, group], axis=1)
        else:
            h = np.where(h > 0, h * activation.high, h * activation.low)
    return bool(np.allclose(h @ found.weights[-1].T, double_runner(proto)(x).reshape(7, -1), atol=1e-12))


def test_a_division_is_bracketed() -> None:
    found = required("a = Div(x, c) y = MatMul(a, B)")
    slopes = found.activations[0]
    assert isinstance(slopes, Slopes)
    for low, high, c in zip(slopes.low, slopes.high, stored("c"), strict=True):
        assert Fraction(low) <= 1 / Fraction(c) <= Fraction(high)


FUNCTIONS = {
    "Tanh": mpmath.tanh,
    "Softplus": lambda t: mpmath.log(1 + mpmath.exp(t)),
    "Sigmoid": lambda t: 1 / (1 + mpmath.exp(-t)),
    "Mish": lambda t: t * mpmath.tanh(mpmath.log(1 + mpmath.exp(t))),
    "Gelu": lambda t: t / 2 * (1 + mpmath.erf(t / mpmath.sqrt(2))),
    "Gelu tanh": lambda t: t / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf("0.044715") * t**3))),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_intervals_contain_all_slopes_and_are_close(name: str) -> None:
    """Slopes on a fine grid, and at the extrema polished with 40 digits."""
    low, high = GELU_INTERVALS["tanh"] if name == "Gelu tanh" else {**INTERVALS, "Gelu": GELU_INTERVALS["none"]}[name]
    with mpmath.workdps(40):
        function = FUNCTIONS[name]
        slopes = [(mpmath.diff(function, mpmath.mpf(k) / 8), k) for k in range(-80, 81)]
        ends = []
        for _, k in (min(slopes), max(slopes)):
            points = [mpmath.mpf(k) / 8 + mpmath.mpf(j) / 800 for j in range(-100, 101)]
            ends.append([mpmath.diff(function, p) for p in points])
        least, most = min(ends[0]), max(ends[1])
        assert low <= least and most <= high
        assert least - low < 1e-4 and high - most < 1e-4


def test_what_a_graph_can_make_the_chain_write_out_is_limited() -> None:
    """Sorting and ReLU in turn on 4,096 entries ask for an identity between every two: 128 MB each."""
    body, name = "", "x"
    for index in range(4):
        body += f"a{index} = lipdeploy.GroupSort({name}) b{index} = Relu(a{index}) "
        name = f"b{index}"
    assert chain(f"{body} y = Identity({name})", "g (float[N, 4096] x) => (float y)") is None
    assert chain(f"{body} y = Identity({name})", "g (float[N, 64] x) => (float y)") is not None
