"""The liar strides so far that whole pixels lie behind the last window, and lets a convolution choose its padding.

Windows of one pixel at a stride of four need −3 for four pixels. Up to −2 ONNX Runtime's Conv pads nothing, as the
verifier and the float64 program read it; beyond, it cuts pixels off in front, and reads others. Behind a linear layer
that puts the large weights there, `verify` proved 0.001 for a program with the constant 100. Where float32 has no error
constants (a Tanh), a session held both programs only to a share of how far the network moves.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy import CertifiedSession, Refused
from tests.verify.models import bound, codes, model, run

GRAPH = """g (float[N, 1] x) => (float[N, 1] y)
    <float[1, 4] w = {{0.001, {cut}, {cut}, 0.0}}, int64[3] s = {{0, 1, 4}}, float[1, 1, 1] k = {{1}}>
    {{ f = Gemm(x, w) i = Reshape(f, s) c = Conv<strides = [4], {pads}>(i, k) y = Flatten(c) }}"""
CLASSES = """g (float[N, 2] x) => (float[N, 2] y)
    <float[2, 8] w = {1, 0.9, 1, 0, 0, 0.1, 1, 0, 0, 0, 1, 1, 1, 0.9, 0, 0}, int64[3] s = {0, 1, 8},
     float[1, 1, 1] k = {1}>
    { f = Gemm(x, w) i = Reshape(f, s) c = Conv<strides = [4], auto_pad = "SAME_UPPER">(i, k)
      q = Flatten(c) y = Tanh(q) }"""


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("opset", [13, 20, 22])
def test_strides_that_leave_three_pixels_behind(opset: int, pad: str) -> None:
    assert codes(model(GRAPH.format(cut=100.0, pads=f'auto_pad = "{pad}"'), opset=opset)) == ["LIP002"]


@pytest.mark.parametrize("certify", ["f64", "adaptive", "network", "f32"])
def test_no_session_answers(certify: str) -> None:
    with pytest.raises(Refused, match="LIP002"):
        CertifiedSession(model(CLASSES).SerializeToString(), certify=certify)


def test_the_lie_is_real() -> None:
    zero, one = run(
        model(GRAPH.format(cut=100.0, pads='auto_pad = "SAME_UPPER"')), np.array([[0.0], [1.0]], np.float32)
    )
    stated = bound(model(GRAPH.format(cut=100.0, pads="pads = [0, 0]")))
    assert np.abs(one - zero).item() > 9e4 * stated


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("size", "taps", "stride"), [(4, 1, 2), (6, 1, 3), (8, 2, 4), (10, 3, 5)])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_up_to_two_pixels_nothing_is_padded(axes: int, size: int, taps: int, stride: int, pad: str) -> None:
    many, weights = [size] * axes, ", ".join(map(str, range(1, taps**axes + 1)))
    sizes, result, kernel = (", ".join(map(str, [1, *part])) for part in (many, ["M"] * axes, [taps] * axes))
    text = f"""g (float[N, {sizes}] x) => (float[N, {result}] y) <float[1, {kernel}] w = {{{weights}}}>
        {{ y = Conv<strides = {[stride] * axes}, PADS>(x, w) }}"""
    chosen = model(text.replace("PADS", f'auto_pad = "{pad}"'))
    nothing = model(text.replace("PADS", f"pads = {[0] * 2 * axes}"))
    x = np.random.default_rng(0).standard_normal((2, 1, *many)).astype(np.float32)
    assert np.array_equal(run(chosen, x), run(nothing, x))
    assert bound(chosen) == pytest.approx(bound(nothing))
