"""ConvTranspose, Pad and Resize of images of open size: one bound that dominates every size, and near misses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.verify.models import judge, matrix, model, operator_norm
from tests.verify.test_open_sizes import two_models, weight

SIZES = [(1, 1), (1, 4), (2, 3), (3, 3), (5, 2), (6, 7), (9, 8)]
PADS = np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64)


def dominates(body: str, norm: str, loose: float, rounding: float = 1e-12, **stored: np.ndarray) -> None:
    """The bound for open sizes is above the norm at each size, and at most ``loose`` times the largest.

    ``rounding``: how far the runtime's own weights may be from the real ones.
    """
    largest, proven = 0.0, 0.0
    for size in SIZES:
        opened, fixed = two_models(body, 2, size, **stored)
        verdict = judge(opened, norm)
        assert verdict.status == "verified", verdict.refusals
        assert verdict.lipschitz_bound is not None and verdict.output is not None
        assert all(error is None for error in verdict.numeric_error.values())
        proven = verdict.lipschitz_bound.value
        if judge(fixed, norm).status == "refused":
            continue  # nothing of so small an image is left
        rows, _ = matrix(fixed, (2, *size))
        largest = max(largest, operator_norm(rows, norm))
        assert proven >= operator_norm(rows, norm) * (1 - rounding), size
    assert 0.0 < largest * (1 - rounding) <= proven <= loose * largest


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize(
    "attributes",
    [
        "strides=[1,1]",
        "pads=[1,1,1,1]",
        "strides=[2,2]",
        "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]",
        "strides=[2,3], pads=[0,1,1,0], dilations=[2,1]",
        "strides=[1,2], dilations=[3,2], output_padding=[0,1]",
        "strides=[2,2], group=2",
    ],
)
def test_a_transposed_convolution(attributes: str, norm: str) -> None:
    kernel = weight(1, 2, 1 if "group" in attributes else 3, 3, 3)
    dominates(f"y = ConvTranspose <{attributes}> (x, w)", norm, 1.5, w=kernel)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_padding(mode: str, norm: str) -> None:
    dominates(f'y = Pad <mode="{mode}"> (x, pads)', norm, 1.0 + 1e-12, pads=PADS)


def test_padding_of_some_axes_with_a_value() -> None:
    body = "y = Pad (x, some, fill, axes)"
    some, axes = np.array([2, 1, 0, 5], np.int64), np.array([-1, 1], np.int64)
    dominates(body, "l2", 1.0 + 1e-12, some=some, axes=axes, fill=np.array(7, np.float32))


FACTORS = [(2, 2), (3, 1), (1, 4), (7, 2), (0.5, 0.5), (0.25, 2), (0.125, 1), (5, 6)]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("placing", ["half_pixel", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing(mode: str, placing: str, norm: str) -> None:
    for factors in FACTORS:
        scales = np.array([1, 1, *factors], np.float32)
        for nearest in ("floor", "round_prefer_ceil") if mode == "nearest" else ("floor",):
            if (judge(resized(mode, placing, nearest, scales)).refusals or [None])[0] is not None:
                assert mode == "nearest"  # a tie that runtimes may round to either pixel
                continue
            body = BODY.format(mode, placing, nearest)
            dominates(body, norm, 2.0, 1e-12 if mode == "nearest" else 1e-6, s=scales)


BODY = 'y = Resize <mode="{}", coordinate_transformation_mode="{}", nearest_mode="{}"> (x, , s)'


def resized(mode: str, placing: str, nearest: str, scales: np.ndarray) -> onnx.ModelProto:
    opened, _ = two_models(BODY.format(mode, placing, nearest), 2, (4, 4), s=scales)
    assert isinstance(opened, onnx.ModelProto)
    return opened


@pytest.mark.parametrize(("factor", "truth"), [(2.0, 2.0), (3.0, 3.0), (0.5, 1.0)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_gain_is_that_of_constant_images(mode: str, factor: float, truth: float) -> None:
    """An image of one colour becomes √s·√s times as long: no smaller gain is true."""
    proven = judge(
        resized(mode, "half_pixel", "round_prefer_floor", np.array([1, 1, factor, factor], np.float32))
    ).lipschitz_bound
    assert proven is not None and proven.value <= truth * (1 + 1e-9)
    if factor > 1:
        assert proven.value >= truth * (1 - 1e-12)


def test_an_encoder_and_its_decoder_meet_where_their_sizes_are_the_same_function() -> None:
    """Twice the size by a transposed convolution and by interpolation are the same size, so their sum is judged."""
    body = "u = ConvTranspose <strides=[2,2]> (x, w) v = Resize (x, , s) y = Add (u, v)"
    dominates(body, "l2", 1.6, w=weight(2, 2, 2, 2, 2), s=np.array([1, 1, 2, 2], np.float32))


NEAR_MISSES = {
    "down and up again": "d = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) u = Resize (d, , s) y = Add (x, u)",
    "transposed, one pixel more": "u = ConvTranspose <strides=[2,2]> (x, w3) v = Resize (x, , s) y = Add (u, v)",
    "padded by one": "u = Pad (x, pads) y = Add (x, u)",
    "cut by negative pads": "y = Pad (x, cut)",
    "reflected": 'y = Pad <mode="reflect"> (x, pads)',
    "wrapped": 'y = Pad <mode="wrap"> (x, pads)',
    "batch axis padded": "y = Pad (x, batch)",
    "pads that depend on the input": "z = Shape (x) y = Pad (x, z)",
    "half as much again": "y = Resize (x, , odd)",
    "a third": "y = Resize (x, , third)",
    "nearly a half": "y = Resize (x, , nearly)",
    "batch axis resized": "y = Resize (x, , lots)",
    "to a stated size": "y = Resize (x, , , sizes)",
    "cubic": 'y = Resize <mode="cubic"> (x, , s)',
    "corners aligned": 'y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, , s)',
    "a tie between two pixels": 'y = Resize <coordinate_transformation_mode="asymmetric"> (x, , s6)',
    "shrunk to nothing": "y = Resize (x, , none)",
    "beyond the limit": "y = Resize (x, , huge)",
    "an output shape": "y = ConvTranspose <output_shape=[8,8]> (x, w3)",
    "automatic pads": 'y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w3)',
    "a stride of zero": "y = ConvTranspose <strides=[0,1]> (x, w3)",
    "another number of channels": "y = ConvTranspose (x, w4)",
    "a bias of another length": "y = ConvTranspose (x, w3, b)",
}
STORED = {
    "w": weight(2, 2, 2, 2, 2), "w3": weight(2, 2, 2, 3, 3), "w4": weight(2, 3, 2, 3, 3), "b": weight(3, 3),
    "pads": PADS, "cut": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "batch": np.array([1, 0, 0, 0, 0, 0, 0, 0]),
    "s": np.array([1, 1, 2, 2], np.float32), "odd": np.array([1, 1, 1.5, 1], np.float32),
    "third": np.array([1, 1, 1 / 3, 1], np.float32), "none": np.array([1, 1, 0, 1], np.float32),
    "nearly": np.array([1, 1, np.nextafter(np.float32(0.5), np.float32(1)), 1], np.float32),
    "lots": np.array([2, 1, 1, 1], np.float32), "sizes": np.array([1, 2, 8, 8]),
    "huge": np.array([1, 1, 128, 1], np.float32), "s6": np.array([1, 1, 6, 1], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_refused(body: str) -> None:
    proto = model(f"g (float[N, 2, H, W] x) => (float y) {{ {body} }}")
    words = set(body.replace(",", " ").replace(")", " ").replace("(", " ").split())
    proto.graph.initializer.extend(numpy_helper.from_array(STORED[name], name) for name in sorted(words & set(STORED)))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    verdict = judge(proto)
    assert verdict.status == "refused", verdict.lipschitz_bound
    assert {refusal.code for refusal in verdict.refusals} <= {"LIP002", "LIP005", "LIP006", "LIP013"}
