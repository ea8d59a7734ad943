"""Which graphs are chains, with which slopes, and that everything else is left to the product of norms."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import mpmath
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find
from lipdeploy.verify import verify
from lipdeploy.verify.chain import GELU_INTERVALS, INTERVALS, SILU_INTERVAL, Chain, Slopes, Sorting, parts_of
from lipdeploy.verify.chain.builder import MOST_WRITTEN, Builder, Signal
from lipdeploy.verify.check import walked
from tests.verify.models import best_ratio, double_runner, model

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
    return last(built(body, header))


def last(proto: onnx.ModelProto) -> Chain | None:
    """The part of the graph nearest to its output that a certificate can be about."""
    return next(reversed(walked(proto, "l2").segments()), None)


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
    repeated = "i = Constant<value = int64[4] {3, 0, 0, 1}>() a = Gather<axis = 1>(x, i) b = Abs(a) y = MatMul(b, B)"
    assert agrees(built(repeated), (4,))


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
    """The chain, run with ReLU and sorting as its activations, is the network (no biases in these).

    Slopes that compose have no one function, so here every activation becomes a layer of its own.
    """

    def apart(self: Builder, name: str, activation: Slopes | Sorting) -> Signal:
        if self.signals[name].pending is not None:
            self.settle()
        return Signal(self.signals[name].rows, activation)

    with mock.patch.object(Builder, "activate", apart):
        found = last(proto)
    assert found is not None and found.front.value == 1.0
    x = np.random.default_rng(0).standard_normal((7, *shape))
    h = x.reshape(7, -1)
    for weight, activation in zip(found.weights, found.activations, strict=False):
        v = h @ weight.T
        h = v.copy()
        for part, entries in parts_of(activation):
            if isinstance(part, Sorting):
                for group in part.groups + entries.start:
                    h[:, group] = np.sort(v[:, group], axis=1)
            else:
                h[:, entries] = np.where(v[:, entries] > 0, v[:, entries] * part.high, v[:, entries] * part.low)
    return bool(np.allclose(h @ found.weights[-1].T, double_runner(proto)(x).reshape(7, -1), atol=1e-12))


#: Graphs in one straight line, and not: what each must be read as is what onnx's own evaluator makes of it.
BRANCHES = {
    "a residual": "v = MatMul(x, A) h = Relu(v) r = MatMul(h, A) z = Add(x, r) y = MatMul(z, B)",
    "a residual that is subtracted": "v = MatMul(x, A) h = Relu(v) r = MatMul(h, A) z = Sub(x, r) y = MatMul(z, B)",
    "a residual without a last matrix": "v = MatMul(x, A) h = Relu(v) z = Add(x, h) y = MatMul(z, B)",
    "subtracted from": "v = MatMul(x, A) h = Abs(v) r = MatMul(h, A) y = Sub(r, x)",
    "a linear residual": "a = MatMul(x, A) b = Add(x, a) h = Relu(b) y = MatMul(h, B)",
    "two residuals": """a = MatMul(x, A) b = Relu(a) d = MatMul(b, A) e = Add(x, d)
        f = MatMul(e, A) g = lipdeploy.GroupSort(f) h = MatMul(g, A) i = Add(h, e) y = MatMul(i, B)""",
    "a residual around a residual": """a = MatMul(x, A) b = Relu(a) d = MatMul(b, A) e = Add(b, d)
        f = Abs(e) g = MatMul(f, A) h = Add(g, x) y = MatMul(h, B)""",
    "x + x": "h = Relu(x) z = Add(h, h) y = MatMul(z, B)",
    "x − x": "h = Relu(x) z = Sub(h, h) w = Add(z, x) y = MatMul(w, B)",
    "three terms": "a = MatMul(x, A) b = Relu(a) d = Abs(x) z = Sum(x, b, d) y = MatMul(z, B)",
    "branches that are joined": "a = Relu(x) b = MatMul(x, A) d = lipdeploy.GroupSort(b) y = Concat<axis = 1>(a, d, x)",
    "one tensor joined twice": "a = MatMul(x, A) b = Relu(a) y = Concat<axis = 1>(b, b)",
    "CReLU": "a = MatMul(x, A) n = Neg(a) p = Relu(a) q = Relu(n) y = Concat<axis = 1>(p, q)",
    "CReLU, the other way round": """a = MatMul(x, A) n = Neg(a) q = Relu(n) p = Relu(a) d = Concat<axis = 1>(p, q)
        e = Abs(d) z = Concat<axis = 1>(e, x) w = Relu(z) y = Neg(w)""",
    "nearly CReLU": """a = MatMul(x, A) n = Neg(a) p = Relu(a) b = Neg(n) q = Relu(b)
        y = Concat<axis = 1>(p, q)""",
    "three rectifiers": """a = MatMul(x, A) n = Neg(a) p = Relu(a) q = Relu(n) r = Relu(n)
        y = Concat<axis = 1>(p, q, r)""",
    "Min and Max over an axis of two": """s = Constant<value = int64[3] {0, 2, 2}>()
        t = Constant<value = int64[2] {0, 4}>() i = Constant<value = int64[1] {2}>() v = MatMul(x, A) p = Reshape(v, s)
        low = ReduceMin<keepdims = 1>(p, i) high = ReduceMax<keepdims = 1>(p, i) q = Concat<axis = 2>(low, high)
        h = Reshape(q, t) y = MatMul(h, B)""",
    "the other axis of two": """s = Constant<value = int64[3] {0, 2, 2}>() t = Constant<value = int64[2] {0, 4}>()
        i = Constant<value = int64[1] {1}>() v = MatMul(x, A) p = Reshape(v, s)
        high = ReduceMax<keepdims = 1>(p, i) low = ReduceMin<keepdims = 1>(p, i) q = Concat<axis = 1>(high, low)
        h = Reshape(q, t) y = MatMul(h, B)""",
    "joined along another axis": """s = Constant<value = int64[3] {0, 2, 2}>() t = Constant<value = int64[2] {0, 4}>()
        i = Constant<value = int64[1] {2}>() v = MatMul(x, A) p = Reshape(v, s)
        low = ReduceMin<keepdims = 1>(p, i) high = ReduceMax<keepdims = 1>(p, i) q = Concat<axis = 1>(low, high)
        h = Reshape(q, t) y = MatMul(h, B)""",
    "only maxima": """s = Constant<value = int64[3] {0, 2, 2}>() i = Constant<value = int64[1] {2}>()
        v = MatMul(x, A) p = Reshape(v, s) y = ReduceMax<keepdims = 0>(p, i)""",
    "Split, Max, Min": """v = MatMul(x, A) a, b = Split<axis = 1, num_outputs = 2>(v)
        high = Max(a, b) low = Min(b, a) h = Concat<axis = 1>(high, low) y = MatMul(h, B)""",
    "Slice, Max, Min": """z = Constant<value = int64[1] {0}>() o = Constant<value = int64[1] {1}>()
        e = Constant<value = int64[1] {9223372036854775807}>() t = Constant<value = int64[1] {2}>()
        v = MatMul(x, A) a = Slice(v, z, e, o, t) b = Slice(v, o, e, o, t)
        low = Min(a, b) high = Max(a, b) h = Concat<axis = 1>(low, high) y = MatMul(h, B)""",
    "Max of rectified halves": """v = MatMul(x, A) r = Relu(v) a, b = Split<axis = 1, num_outputs = 2>(r)
        w = Abs(b) high = Max(a, w) y = MatMul(high, D)""",
    "TopK of all": """k = Constant<value = int64[1] {4}>() v = MatMul(x, A)
        h, i = TopK<axis = 1, largest = 0>(v, k) y = MatMul(h, B)""",
    "TopK of some": "k = Constant<value = int64[1] {2}>() v = MatMul(x, A) h, i = TopK(v, k) y = MatMul(h, D)",
    "means": "i = Constant<value = int64[1] {1}>() v = MatMul(x, A) h = Relu(v) y = ReduceMean<keepdims = 1>(h, i)",
    "a permutation before sorting": """i = Constant<value = int64[4] {3, 1, 0, 2}>() v = MatMul(x, A)
        p = Gather<axis = 1>(v, i) h = lipdeploy.GroupSort(p) q = Gather<axis = 1>(h, i) r = Relu(q)
        y = MatMul(r, B)""",
}
BRANCH_HEAD = HEAD.replace("float[4] c", "float[2, 2] D = {1, -1, 0.5, 2}, float[4] c")


@pytest.mark.parametrize("body", BRANCHES.values(), ids=BRANCHES.keys())
def test_branches_are_read_for_what_they_compute(body: str) -> None:
    """The chain computes the network; and what multipliers prove for it no pair of points beats."""
    proto = built(body, BRANCH_HEAD)
    assert agrees(proto, (4,))
    data = proto.SerializeToString()
    product = verify(data).lipschitz_bound
    tight = verify(data, method="best", hints=find(data, seconds=2.0)).lipschitz_bound
    assert tight is not None and product is not None
    assert best_ratio(double_runner(proto), (4,)) <= tight.value <= product.value


def random_body(rng: np.random.Generator) -> str:
    """A graph of ten random nodes over vectors of four entries; each node reads one or two of the last tensors."""
    lines, names = [], ["x"]
    for index in range(10):
        recent = names[-3:]
        first, second = rng.choice(recent), rng.choice(names)
        options = (
            f"MatMul({first}, A)",
            f"MatMul({first}, A)",
            f"Relu({first})",
            f"Abs({first})",
            f"Neg({first})",
            f"Add({first}, {second})",
            f"Sub({first}, {second})",
            f"Max({first}, {second})",
            f"lipdeploy.GroupSort<group_size = {rng.choice([2, 4])}, layout = {rng.integers(2)}>({first})",
            f"Gather<axis = 1>({first}, i)",
            f"lipdeploy.Householder({first}, s, t)",
        )
        lines.append(f"t{index} = {rng.choice(options)}")
        names.append(f"t{index}")
    return f"{' '.join(lines)} u = Add({names[-1]}, {names[-2]}) y = MatMul(u, B)"


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_are_read_for_what_they_compute(seed: int) -> None:
    header = HEAD.replace(
        "float[4] c", "float[2] s = {0.5, -0.25}, float[2] t = {0.75, 2}, int64[4] i = {2, 0, 3, 1}, float[4] c"
    )
    assert agrees(built(random_body(np.random.default_rng(seed)), header), (4,))


def test_two_inputs_are_one_vector() -> None:
    header = "g (float[N, 4] x, float[N, 4] z) => (float y) <float[4, 2] B = {1, 0, 0, 1, 1, 1, 2, 0}>"
    found = chain("a = Relu(x) b = Add(a, z) y = MatMul(b, B)", header)
    assert found is not None and found.weights[0].shape == (8, 8)
    data = built("a = Relu(x) b = Add(a, z) y = MatMul(b, B)", header).SerializeToString()
    tight = verify(data, method="best", hints=find(data, seconds=1.0)).lipschitz_bound
    exact = np.linalg.norm(stored("B"), 2) * 2**0.5
    assert tight is not None and exact * (1 - 1e-9) <= tight.value <= exact * (1 + 1e-3)


FIVE = "s = Constant<value = int64[3] {0, 2, 2}>() i = Constant<value = int64[1] {2}>() p = Reshape(x, s) "


@pytest.mark.parametrize(
    "body",
    [
        f"{FIVE} j = Constant<value = int64[1] {{1}}>() a = ReduceMin<keepdims = 0>(p, i) "
        "b = ReduceMax<keepdims = 0>(p, j) y = Concat<axis = 1>(a, b)",
        "a, b = Split<axis = 1, num_outputs = 2>(x) p = Max(a, b) q = Min(a, a) y = Concat<axis = 1>(p, q)",
        "a, b = Split<axis = 1, num_outputs = 2>(x) r = Relu(b) p = Max(a, b) q = Min(a, r) y = Concat<axis = 1>(p, q)",
    ],
    ids=["two axes", "Min of one half", "another half"],
)
def test_what_nearly_sorts_is_not_taken_for_sorting(body: str) -> None:
    """The constants of these exceed 1 (the same entry is chosen twice), and so do the bounds."""
    proto = built(body)
    data = proto.SerializeToString()
    hints = find(data, seconds=1.0)
    for tau in (hints, [np.full(2, v) for v in (0.5, 2.0)], [np.full(4, 2.0)], [np.full(2, 2.0)]):
        tight = verify(data, method="best", hints=tau).lipschitz_bound
        assert tight is not None
        assert tight.value >= best_ratio(double_runner(proto), (4,)) > 1.3


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
    "SiLU": lambda t: t / (1 + mpmath.exp(-t)),
    "Mish": lambda t: t * mpmath.tanh(mpmath.log(1 + mpmath.exp(t))),
    "Gelu": lambda t: t / 2 * (1 + mpmath.erf(t / mpmath.sqrt(2))),
    "Gelu tanh": lambda t: t / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf("0.044715") * t**3))),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_intervals_contain_all_slopes_and_are_close(name: str) -> None:
    """Slopes on a fine grid, and at the extrema polished with 40 digits."""
    others = {"Gelu": GELU_INTERVALS["none"], "Gelu tanh": GELU_INTERVALS["tanh"], "SiLU": SILU_INTERVAL}
    low, high = {**INTERVALS, **others}[name]
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
    large, small = (
        chain(f"{body} y = Identity({name})", f"g (float[N, {size}] x) => (float y)") for size in (4096, 64)
    )
    assert small is not None and small.whole and small.output == "y"
    assert large is None or sum(weight.size for weight in large.weights) <= MOST_WRITTEN


TAIL = "v = MatMul(c0, A) h = Relu(v) w = MatMul(h, A) g = lipdeploy.GroupSort(w) y = MatMul(g, B)"


def test_the_end_of_a_graph_is_a_chain_behind_the_product() -> None:
    """Clip has no reader: the chain starts behind it, and its bound is multiplied by what the rules proved there."""
    proto = built(f"f = MatMul(x, A) c0 = Clip(f) {TAIL}")
    found, alone = last(proto), required(TAIL.replace("c0", "x"))
    assert found is not None and len(found.weights) == len(alone.weights)
    assert all(np.array_equal(a, b) for a, b in zip(found.weights, alone.weights, strict=True))
    before = np.linalg.norm(stored_square(), 2)
    assert before <= found.front.value <= before * (1 + 1e-9)
    data = proto.SerializeToString()
    hints = find(data, seconds=2.0)
    product, tight = verify(data), verify(data, method="best", hints=hints)
    short = verify(built(TAIL.replace("c0", "x")).SerializeToString(), method="best", hints=hints)
    assert (
        product.lipschitz_bound is not None and tight.lipschitz_bound is not None and short.lipschitz_bound is not None
    )
    assert tight.lipschitz_bound.value < 0.99 * product.lipschitz_bound.value
    assert tight.lipschitz_bound.value == pytest.approx(short.lipschitz_bound.value * before, rel=1e-8)
    assert tight.lipschitz_bound.value >= best_ratio(double_runner(proto), (4,))
    assert tight.pairwise is not None and short.pairwise is not None
    assert tight.pairwise[0, 1] >= short.pairwise[0, 1] * before * (1 - 1e-12)


def stored_square() -> np.ndarray:
    return np.array([[1, 2, 0, 1], [0, 1, 3, 0], [1, 0, 1, 1], [2, 0, 0, 1]], np.float64)


@pytest.mark.parametrize(
    "body",
    [
        f"f = MatMul(x, A) c0 = Clip(f) {TAIL.replace('y =', 'z =')} u = MatMul(x, B) y = Add(z, u)",
        f"f = MatMul(x, A) c0 = Clip(f) {TAIL.replace('y =', 'z =')} u = MatMul(f, B) y = Concat<axis = 1>(z, u)",
        f"f = MatMul(x, A) c0 = Clip(f) d = HardSigmoid(f) {TAIL.replace('y =', 'z =')} u = MatMul(d, B) y = Sub(z, u)",
    ],
    ids=["around", "before it", "beside it"],
)
def test_what_passes_by_a_tensor_makes_it_no_cut(body: str) -> None:
    """Near-miss: y depends on x another way too, so no chain to y may start at c0; one to z, which does not, may."""
    found = walked(built(body), "l2").segments()
    assert all((part.source, part.output) in ((None, "f"), ("c0", "z")) for part in found)
    assert found[-1].output == "z"


ENDS = {
    "Softmax": "y = Softmax(g)",
    "a matrix behind it": "t = Softmax(g) y = MatMul(t, B)",
    "two branches behind it": "t = Clip(g) u = HardSigmoid(g) d = Sub(t, u) y = MatMul(d, B)",
    "a length": "y = ReduceL2<keepdims = 1>(g, i)",
}


@pytest.mark.parametrize("front", ["c0 = Relu(x)", "f = MatMul(x, A) c0 = Clip(f)"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_chain_may_end_before_the_output(end: str, front: str) -> None:
    """The rules go on from the chain's end with its bound: what they make of it is in the same proportion."""
    proto = built(f"i = Constant<value = int64[1] {{1}}>() {front} {TAIL.split(' y =')[0]} {end}")
    found = last(proto)
    assert found is not None and found.output == "g" and (found.front.value == 1.0) == ("Clip" not in front)
    data = proto.SerializeToString()
    hints = find(data, seconds=2.0)
    product, tight = verify(data), verify(data, method="best", hints=hints)
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    row, ratio = tight.nodes[-1], tight.lipschitz_bound.value / product.lipschitz_bound.value
    before = next(node.bound_after for node in product.nodes if node.op == "lipdeploy.GroupSort")
    assert row.rule == "diagonal multipliers" and row.name == "g"
    assert ratio == pytest.approx(row.gain.value / before.value, rel=1e-9) and ratio < 0.99
    assert [node.rule for node in tight.nodes[:-1]] == [node.rule for node in product.nodes]
    assert tight.lipschitz_bound.value >= best_ratio(double_runner(proto), (4,))
    for wrong in ([np.ones(2)], [-tau for layers in (hints or {}).values() for tau in layers]):
        assert verify(data, method="best", hints=wrong).lipschitz_bound == product.lipschitz_bound


def test_what_passes_by_the_end_of_a_chain_counts_in_full() -> None:
    """Softmax of the chain's end, and x again: |Δy| ≤ ½·|Δg| + |Δx|, and only |Δg| is tightened."""
    proto = built(f"f = MatMul(x, A) c0 = Relu(f) {TAIL.split(' y =')[0]} t = Softmax(g) y = Add(t, x)")
    tight = verify(proto.SerializeToString(), method="best", hints=find(proto.SerializeToString(), seconds=2.0))
    row = tight.nodes[-1]
    assert tight.lipschitz_bound is not None and row.name == "g"
    assert tight.lipschitz_bound.value == pytest.approx(row.gain.value / 2 + 1, rel=1e-9)
    assert tight.lipschitz_bound.value >= best_ratio(double_runner(proto), (4,))


@pytest.mark.parametrize(
    "pool",
    [
        "MaxPool<kernel_shape = [2, 2], strides = [2, 2]>",
        "MaxPool<kernel_shape = [3, 2], strides = [3, 2]>",
        "MaxPool<kernel_shape = [1, 1]>",
        "AveragePool<kernel_shape = [2, 2], strides = [2, 2]>",
        "AveragePool<kernel_shape = [1, 4], strides = [1, 4]>",
        "GlobalAveragePool",
    ],
)
def test_pools_whose_windows_lie_side_by_side(pool: str) -> None:
    header = (
        "g (float[N, 2, 6, 5] x) => (float y) <int64[2] s = {0, -1}, float[3, 2, 2, 2] k = {"
        + ", ".join(str(v % 7 - 3) for v in range(24))
        + "}>"
    )
    proto = built(f"v = Conv<pads = [1, 0, 0, 1]>(x, k) h = Relu(v) p = {pool}(h) y = Reshape(p, s)", header)
    assert agrees(proto, (2, 6, 5))
    data = proto.SerializeToString()
    tight = verify(data, method="lmi", hints=find(data, seconds=1.0))
    assert tight.lipschitz_bound is not None and tight.nodes[-1].rule == "diagonal multipliers"
    assert best_ratio(double_runner(proto), (2, 6, 5)) <= tight.lipschitz_bound.value


@pytest.mark.parametrize(
    "pool",
    [
        "MaxPool<kernel_shape = [2, 2]>",
        "MaxPool<kernel_shape = [2, 2], strides = [2, 1]>",
        "MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [0, 1, 0, 0]>",
        "MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>",
        "AveragePool<kernel_shape = [3, 3], strides = [2, 2]>",
    ],
)
def test_windows_that_overlap_or_are_padded_are_not_sorted(pool: str) -> None:
    """Near-misses: no reader claims to know these; the dense end behind them is the chain."""
    header = "g (float[N, 1, 7, 7] x) => (float y) <int64[2] s = {0, -1}>"
    body = f"p = {pool}(x) f = Reshape(p, s) r = Relu(f) y = Abs(r)"
    found = chain(body, header)
    assert found is not None and not found.whole and found.front.value > 0.4


def test_a_convolution_too_large_to_write_out_is_in_front() -> None:
    """3 × 64 × 64 into 8 × 64 × 64 is not written out; the dense end behind it is a chain."""
    rng = np.random.default_rng(0)
    header = "g (float[N, 3, 64, 64] x) => (float y) <int64[2] s = {0, -1}>"
    body = """a = Conv<pads = [1, 1, 1, 1]>(x, k) b = Relu(a) d = MaxPool<kernel_shape = [9, 9], strides = [8, 8]>(b)
        e = Reshape(d, s) f = Gemm<transB = 1>(e, u) h = Relu(f) y = Gemm<transB = 1>(h, w)"""
    proto = built(body, header)
    weights = {"k": (8, 3, 3, 3), "u": (24, 392), "w": (3, 24)}
    for name, shape in weights.items():
        stored_tensor = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(stored_tensor, name))
    found = last(proto)
    assert found is not None and [w.shape for w in found.weights] == [(24, 392), (3, 24)]
    data = proto.SerializeToString()
    product, tight = verify(data), verify(data, method="best", hints=find(data, seconds=2.0))
    assert product.lipschitz_bound is not None and tight.lipschitz_bound is not None
    assert tight.lipschitz_bound.value < 0.95 * product.lipschitz_bound.value


def test_crelu_has_one_bend_for_both_halves() -> None:
    """relu(−v) = relu(v) − v: with two independent neurons the certificate would be √2, not 1, for W = I."""
    eye = "g (float[N, 4] x) => (float y) <float[4, 4] I = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>"
    body = "a = MatMul(x, I) n = Neg(a) p = Relu(a) q = Relu(n) y = Concat<axis = 1>(p, q)"
    data = built(body, eye).SerializeToString()
    tight = verify(data, method="lmi", hints=find(data, seconds=2.0))
    assert tight.lipschitz_bound is not None and tight.nodes[-1].rule == "diagonal multipliers"
    assert 1.0 <= tight.lipschitz_bound.value <= 1.001
    wrong = built(body.replace("Relu(n)", "Relu(a)"), eye).SerializeToString()  # both halves the same: √2 is true
    near = verify(wrong, method="lmi", hints=find(wrong, seconds=2.0))
    assert near.lipschitz_bound is not None and near.lipschitz_bound.value >= 2**0.5
