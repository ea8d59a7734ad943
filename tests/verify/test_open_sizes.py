"""Images of open height and width: one bound that holds for every size, and refusals by name for what depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.verify.operator_norm.symbol import Symbol, every_frequency_up
from tests.verify.models import best_ratio, judge, matrix, model, operator_norm, run

OPEN = ["H", "W", "D"]


def two_models(body: str, channels: int, size: tuple[int, ...], **weights: np.ndarray) -> tuple[Any, Any]:
    """(open, fixed): the same graph for images of any size and of one size; ``y`` is the output."""
    made = []
    for dims in (OPEN[: len(size)], size):
        axes = ", ".join(map(str, dims))
        proto = model(f"g (float[N, {channels}, {axes}] x) => (float y) {{ {body} }}")
        proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        made.append(proto)
    return made[0], made[1]


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 3


SIZES = [(1, 1), (1, 5), (3, 4), (5, 5), (7, 2), (9, 11), (13, 13)]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize(
    "attributes",
    [
        "pads=[1,1,1,1]",
        "pads=[0,2,1,0]",
        "pads=[1,1,1,1], strides=[2,2]",
        "pads=[2,2,2,2], dilations=[2,2]",
        "pads=[2,2,2,2], dilations=[2,2], strides=[2,2]",
        "pads=[3,3,3,3], dilations=[2,3], strides=[3,2]",
        "pads=[1,1,1,1], group=2",
    ],
)
def test_a_convolution_dominates_every_size(attributes: str, norm: str) -> None:
    groups = 2 if "group" in attributes else 1
    kernel = weight(1, 4, 2 // groups * 1, 3, 3)
    proven = None
    for size in SIZES:
        opened, fixed = two_models(f"y = Conv <{attributes}> (x, w)", 2, size, w=kernel)
        verdict = judge(opened, norm)
        assert verdict.status == "verified", verdict.refusals
        assert verdict.lipschitz_bound is not None and verdict.output is not None
        assert verdict.output.shape[1:] == (4, None, None)
        assert all(error is None for error in verdict.numeric_error.values())
        proven = verdict.lipschitz_bound.value
        if judge(fixed, norm).status == "refused":
            continue  # the image is smaller than the window
        rows, _ = matrix(fixed, (2, *size))
        assert proven >= operator_norm(rows, norm) * (1 - 1e-12), size
    assert proven is not None and proven <= 4 * operator_norm(rows, norm)


def test_the_bound_is_near_that_of_large_images() -> None:
    kernel = weight(2, 3, 3, 3)
    opened, _ = two_models("y = Conv <pads=[1,1]> (x, w)", 3, (400,), w=kernel)
    large = np.zeros((3 * 400, 3 * 402))
    for p in range(400):
        for t in range(3):
            large[p::400, p + t :: 402] = kernel[:, :, t]
    truth = np.linalg.norm(large[:, :], 2)
    bound = judge(opened).lipschitz_bound
    assert bound is not None
    assert truth * (1 - 1e-4) <= bound.value <= truth * 1.01


@pytest.mark.parametrize("taps", [(2,), (3,), (4,), (7,), (3, 2), (3, 3), (2, 2, 3), (1, 5)])
def test_no_frequency_beats_the_supremum(taps: tuple[int, ...]) -> None:
    """Ehlich and Zeller: random frequencies, and a local search around the best of them."""
    rng = np.random.default_rng(len(taps))
    for _ in range(4):
        kernel = rng.standard_normal((2, 3, *taps))
        proven = every_frequency_up(Symbol(kernel[None])).value
        offsets = np.stack([i.reshape(-1) for i in np.meshgrid(*map(np.arange, taps), indexing="ij")])

        def value(w: np.ndarray, kernel: np.ndarray = kernel, offsets: np.ndarray = offsets) -> float:
            return float(np.linalg.norm(kernel.reshape(2, 3, -1) @ np.exp(1j * w @ offsets), 2))

        points = rng.uniform(0, 2 * np.pi, (400, len(taps)))
        best = max(points, key=value)
        step = 0.2
        for _ in range(200):
            moved = best + step * rng.standard_normal(len(taps))
            best, step = (moved, step) if value(moved) > value(best) else (best, step * 0.97)
        assert value(best) <= proven <= value(best) * 1.02


NETWORK = """
    a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <pads=[1,1,1,1]> (b, w2)
    d = Add (a, c)
    e = MaxPool <kernel_shape=[2,2], strides=[2,2]> (d)
    f = Conv <pads=[1,1,1,1], strides=[2,2]> (e, w3)
    g = LeakyRelu (f)
    h = GlobalAveragePool (g)
    i = Flatten (h)
    y = Gemm <transB=1> (i, w4, b4)
"""


def network_weights() -> dict[str, np.ndarray]:
    return {
        "w1": weight(1, 4, 2, 3, 3), "b1": weight(2, 4), "w2": weight(3, 4, 4, 3, 3), "w3": weight(4, 6, 4, 3, 3),
        "w4": weight(5, 3, 6), "b4": weight(6, 3),
    }  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_network_dominates_every_size(norm: str) -> None:
    for size in ((4, 4), (5, 9), (12, 12)):
        opened, fixed = two_models(NETWORK, 2, size, **network_weights())
        verdict = judge(opened, norm)
        assert verdict.status == "verified", verdict.refusals
        assert verdict.lipschitz_bound is not None and verdict.pairwise is not None
        found = best_ratio(
            lambda x, m=fixed: run(m, x.astype(np.float32)).astype(np.float64), (2, *size), norm, dtype=np.float32
        )
        assert verdict.lipschitz_bound.value >= found * (1 - 1e-3)
        assert verdict.inputs[0].shape == (None, 2, None, None)


@pytest.mark.parametrize(
    ("body", "truth"),
    [
        ("y = AveragePool <kernel_shape=[3,3], strides=[1,1]> (x)", 1.0),
        ("y = AveragePool <kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1], count_include_pad=1> (x)", 1.0),
        ("y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x)", 1.0),
        ("y = AveragePool <kernel_shape=[3,3], strides=[2,2]> (x)", 1.0),
        ("y = ReduceMean (x, axes)", 1.0),
        ("y = ReduceMax <keepdims=0> (x, axes)", 1.0),
        ("y = GlobalMaxPool (x)", 1.0),
        ("y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)", 2.0),
        ("y = BatchNormalization (x, two, zero, zero, one)", 2.0),
        ("y = Add (x, shift)", 1.0),
        ("u = Relu (x) y = Concat <axis=1> (x, u)", 1.4143),
    ],
)
def test_other_operators_dominate_every_size(body: str, truth: float) -> None:
    constants = {
        "axes": np.array([2, 3], np.int64), "two": np.full(2, 2, np.float32), "zero": np.zeros(2, np.float32),
        "one": np.ones(2, np.float32), "shift": weight(0, 2, 1, 1),
    }  # fmt: skip
    used = {name: value for name, value in constants.items() if f"{name}" in body.replace("(x", "")}
    for size in ((3, 3), (4, 7), (8, 8)):
        opened, fixed = two_models(body, 2, size, **used)
        verdict = judge(opened)
        assert verdict.status == "verified", verdict.refusals
        assert verdict.lipschitz_bound is not None and verdict.output is not None
        assert verdict.lipschitz_bound.value <= truth * 1.01
        found = best_ratio(
            lambda x, m=fixed: run(m, x.astype(np.float32)).astype(np.float64), (2, *size), dtype=np.float32
        )
        assert verdict.lipschitz_bound.value >= found * (1 - 1e-4), size
        shape = run(fixed, np.zeros((1, 2, *size), np.float32)).shape
        assert all(n in (None, m) for n, m in zip(verdict.output.shape, shape, strict=True))


@pytest.mark.parametrize(
    "body",
    [
        "y = Flatten (x)",
        "s = Shape (x) y = Reshape (x, s)",
        "y = Add (x, wide)",  # an image one pixel wide would be copied
        "y = Mul (x, wide)",
        "y = Transpose <perm=[0,1,3,2]> (x)",
        "y = Softmax <axis=3> (x)",
        "y = Concat <axis=2> (x, x)",
        'y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)',
        "y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x)",
        "y = MaxPool <kernel_shape=[3,3], ceil_mode=1> (x)",
        "y = MaxPool <kernel_shape=[2,2], pads=[1,1,1,1], dilations=[2,2]> (x)",
        "u = Conv (x, w) y = Add (x, u)",  # two pixels less than the image
        "u = MaxPool <kernel_shape=[1,1], strides=[2,2]> (x) y = Add (x, u)",
        'y = Pad <mode="reflect"> (x, pads)',
        'y = Pad <mode="wrap"> (x, pads)',
        'y = Resize <mode="nearest"> (x, , , sizes)',
    ],
)
def test_what_depends_on_the_size_is_refused(body: str) -> None:
    constants = {
        "wide": weight(0, 2, 1, 7), "w": weight(1, 2, 2, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "sizes": np.array([1, 2, 8, 8], np.int64),
    }  # fmt: skip
    used = {
        name: value for name, value in constants.items() if name in body.replace("kernel", "").replace("strides", "")
    }
    opened, _ = two_models(body, 2, (8, 8), **used)
    verdict = judge(opened)
    assert verdict.status == "refused", verdict.lipschitz_bound
    assert {refusal.code for refusal in verdict.refusals} <= {"LIP001", "LIP002", "LIP005", "LIP006", "LIP013"}


def test_two_inputs_of_the_same_symbol_may_differ() -> None:
    """Runtimes do not enforce that two inputs' H agree; a one-pixel image would be copied to fit the other."""
    proto = model("g (float[N, 2, H, W] x, float[N, 2, H, W] z) => (float y) { y = Add (x, z) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert judge(proto).status == "refused"


def test_height_and_width_of_one_symbol_may_differ() -> None:
    proto = model("g (float[N, 2, H, H] x) => (float y) { t = MaxPool <kernel_shape=[1,1]> (x) y = Add (x, t) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert judge(proto).status == "verified"
    turned = model("g (float[N, 2, H, H] x) => (float y) { t = Transpose <perm=[0,1,3,2]> (x) y = Add (x, t) }")
    turned.graph.output[0].type.tensor_type.ClearField("shape")
    assert judge(turned).status == "refused"


def test_channels_must_be_known() -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(model("g (float[N, C, 8, 8] x) => (float y) { y = Relu (x) }"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert [refusal.code for refusal in judge(proto).refusals] == ["LIP006"]


def test_the_gain_in_l2_is_no_less_than_the_plain_torus() -> None:
    kernel = weight(3, 4, 4, 3, 3)
    opened, fixed = two_models("y = Conv <pads=[1,1,1,1]> (x, w)", 4, (33, 31), w=kernel)
    assert judge(opened).lipschitz_bound >= judge(fixed).lipschitz_bound * (1 - 1e-9)  # type: ignore[operator]


def test_an_open_size_that_is_left_alone_is_no_row_of_scores() -> None:
    """The channels are reduced away: an output (N, H) has a bound, and as many entries as the image has rows."""
    verdict = judge("g (float[N, 3, H] x) => (float[N, H] y) <int64[1] a = {1}> { y = ReduceMax <keepdims=0> (x, a) }")
    assert verdict.status == "verified", verdict.refusals
    assert verdict.lipschitz_bound == 1.0
    assert verdict.output is not None
    assert verdict.output.shape == (None, None)
    assert verdict.class_bounds is None
