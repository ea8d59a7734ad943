"""ℓ2 pooling and norms written with squares and roots: the constant of each is known."""

from __future__ import annotations

import math

import pytest

from tests.verify.models import best_ratio, bound, codes, double_runner, judge, model

POOL = """g (float[N,2,6,6] x) => (float y) {{
    {square} p = AveragePool<kernel_shape = [2, 2], strides = [{stride}, {stride}]>(q)
    four = Constant<value = float {{4.0}}>() m = Mul(p, four) {between} {root} }}"""
ADD = "eps = Constant<value = float {1e-6}>() n = Add(m, eps)"
TORCH = "s = Sign(m) a = Abs(m) r = Relu(a) n = Mul(s, r)"
SQUARES = {"product": "q = Mul(x, x)", "power": "two = Constant<value = float {2.0}>() q = Pow(x, two)"}
ROOTS = {"square root": "y = Sqrt(n)", "half power": "h = Constant<value = float {0.5}>() y = Pow(n, h)"}


def pool(square: str = "product", between: str = ADD, root: str = "square root", stride: int = 2) -> str:
    return POOL.format(square=SQUARES[square], between=between, root=ROOTS[root], stride=stride)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("between", [ADD, TORCH])
@pytest.mark.parametrize("root", ROOTS)
def test_disjoint_l2_pooling(square: str, between: str, root: str) -> None:
    text = pool(square, between, root)
    assert bound(text) == pytest.approx(1.0, abs=1e-12)
    assert bound(text, "l1") == pytest.approx(1.0, abs=1e-12)
    assert bound(text, "linf") == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize(("norm", "least"), [("l2", 0.6), ("l1", 0.6), ("linf", 0.4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_pair_of_points_beats_it(norm: str, least: float, stride: int) -> None:
    proto = model(pool(stride=stride))
    seen = best_ratio(double_runner(proto), (2, 6, 6), norm, samples=128, rounds=6)
    assert least * bound(proto, norm) / (4 if stride == 1 else 1) <= seen <= bound(proto, norm)


def test_overlapping_windows_count_entries_several_times() -> None:
    assert bound(pool(stride=1)) == pytest.approx(2.0, abs=1e-12)


SUMS = {
    "ReduceSum": ("q = Mul(x, x) m = ReduceSum<keepdims = 0>(q, axes)", 1.0, 6.0),
    "ReduceMean": ("q = Mul(x, x) m = ReduceMean(q, axes)", 1 / 6, 1.0),
    "ReduceSumSquare": ("m = ReduceSumSquare(x, axes)", 1.0, 6.0),
    "GlobalAveragePool": ("q = Mul(x, x) m = GlobalAveragePool(q)", 1 / 6, 1.0),
    "reshaped": (
        "q = Mul(x, x) s = Constant<value = int64[3] {-1, 2, 36}>() v = Reshape(q, s) "
        "two = Constant<value = int64[1] {2}>() m = ReduceSum(v, two)", 1.0, 6.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", SUMS)
def test_norms_of_whole_maps(form: str) -> None:
    body, l2, linf = SUMS[form]
    text = (
        f"""g (float[N,2,6,6] x) => (float y) {{ axes = Constant<value = int64[2] {{2, 3}}>() {body} y = Sqrt(m) }}"""
    )
    assert bound(text) == pytest.approx(l2, rel=1e-12)
    assert bound(text, "linf") == pytest.approx(linf, rel=1e-12)
    assert bound(text, "l1") == pytest.approx(l2, rel=1e-12)
    for norm in ("l2", "linf"):
        assert best_ratio(double_runner(model(text)), (2, 6, 6), norm) <= bound(text, norm) * (1 + 1e-9)


def test_a_residual_of_squares_stacks_its_sources() -> None:
    """√(x²/2 + f(x)²/2 + ε) with f = 3x: √(1/2 + 9/2)."""
    text = """g (float[N,4] x) => (float y) {
        three = Constant<value = float {3.0}>() half = Constant<value = float {0.5}>()
        eps = Constant<value = float {1e-6}>()
        f = Mul(x, three) a = Mul(x, x) b = Mul(f, f) c = Mul(half, a) d = Mul(b, half)
        s = Add(c, d) t = Add(s, eps) y = Sqrt(t) }"""
    truth = math.sqrt(5.0)
    assert bound(text) == pytest.approx(truth, rel=1e-12)
    assert bound(text, "linf") >= truth
    for norm in ("l2", "linf", "l1"):
        assert best_ratio(double_runner(model(text)), (4,), norm, samples=128) <= bound(text, norm)


NEAR_MISSES = {
    "cubes": pool("power").replace("{2.0}", "{3.0}"),
    "a cube root": pool(root="half power").replace("{0.5}", "{0.25}"),
    "a negative offset": pool().replace("{1e-6}", "{-1e-6}"),
    "a negative factor": pool().replace("{4.0}", "{-4.0}"),
    "a product of two tensors": pool().replace("Mul(x, x)", "Mul(x, w)").replace("q =", "w = Neg(x) q ="),
    "no square": pool().replace("q = Mul(x, x)", "q = Abs(x)"),
    "the sign of another tensor": pool(between=TORCH).replace("s = Sign(m)", "p2 = Neg(m) s = Sign(p2)"),
    "a division by the pool": pool().replace("m = Mul(p, four)", "m = Div(four, p)"),
    "an offset that replicates": pool().replace("float {1e-6}", "float[1,2,3,6] {" + ", ".join(["1.0"] * 36) + "}"),
    "a sum over the batch": pool().replace(
        "m = Mul(p, four)", "z = Constant<value = int64[1] {0}>() m = ReduceSum(p, z)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_what_is_no_norm_is_refused(miss: str) -> None:
    assert codes(NEAR_MISSES[miss])


def test_the_root_has_a_value_at_zero() -> None:
    """The size of activations starts from there: √ε = 0.5 per output entry."""
    text = pool().replace("{1e-6}", "{0.25}")
    report = judge(text.replace("y = Sqrt(n)", "w = Sqrt(n) y = Add(w, w)"))
    assert report.status == "verified"
