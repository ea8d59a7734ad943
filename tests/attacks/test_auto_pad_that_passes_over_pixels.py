"""The liar strides further than the window reaches, and lets the runtime choose the padding.

Windows of one row at a stride of three need less than no padding for six rows: −2. Convolutions pad nothing then, and
read rows 0 and 3. ONNX Runtime's AveragePool (of opset 19 and later) and LpPool take the negative number, and read rows
1 and 4. Collapsed with the layer before it, which puts the large weights into the rows that the standard's text passes
over, the network had the constant 0.0057; the program's is 565.
"""

from __future__ import annotations

import numpy as np
import pytest

from lipdeploy import CertifiedSession, Refused
from tests.verify.models import bound, codes, model, run

GRAPH = """g (float[N, 1] x) => (float[N, 2] y)
    <float[1, 12] w = {{0.001, 0.001, 100, 100, 0, 0, 0.001, 0.001, 100, 100, 0, 0}}, int64[4] s = {{0, 1, 6, 2}},
     float[4, 2] v = {{1, -1, 1, -1, 1, -1, 1, -1}}>
    {{ f = Gemm(x, w) i = Reshape(f, s) p = {pool}<kernel_shape = [1, 3], strides = [3, 1], auto_pad = {pad}>(i)
       q = Flatten(p) y = Gemm(q, v) }}"""


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("pool", ["AveragePool", "LpPool", "MaxPool"])
@pytest.mark.parametrize("opset", [18, 19, 22])
def test_padding_below_nothing(pool: str, pad: str, opset: int) -> None:
    proto = model(GRAPH.format(pool=pool, pad=f'"{pad}"'), opset=opset)
    assert codes(proto) == ["LIP002"]
    with pytest.raises(Refused, match="LIP002"):
        CertifiedSession(proto.SerializeToString(), certify="f32")


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
def test_the_lie_is_real(pad: str) -> None:
    text = GRAPH.format(pool="AveragePool", pad=f'"{pad}"')
    zero, one = run(model(text), np.array([[0.0], [1.0]], np.float32))
    stated = model(text.replace(f'auto_pad = "{pad}"', "pads = [0, 1, 0, 1]"))
    assert np.linalg.norm(one - zero) > (5e4 if pad == "SAME_UPPER" else 0.9) * bound(stated)


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("size", "taps", "stride"), [(6, 1, 1), (7, 1, 3), (6, 3, 3), (7, 2, 3), (8, 3, 2)])
def test_windows_that_reach_both_ends_stay_accepted(pad: str, size: int, taps: int, stride: int) -> None:
    given = f'kernel_shape = [{taps}], strides = [{stride}], auto_pad = "{pad}"'
    proto = model(f"g (float[N, 1, {size}] x) => (float[N, 1, M] y) {{ y = AveragePool<{given}>(x) }}")
    matrix = run(proto, np.eye(size, dtype=np.float32)[:, None, :])[:, 0].T
    assert bound(proto) >= np.linalg.norm(matrix, 2) * (1.0 - 1e-6)


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
def test_a_convolution_pads_nothing_then(pad: str) -> None:
    """As every export of a 1 × 1 convolution with strides from TensorFlow needs it."""
    text = f"""g (float[N, 1, 6] x) => (float[N, 1, M] y) <float[1, 1, 1] w = {{1}}>
        {{ y = Conv<strides = [3], auto_pad = "{pad}">(x, w) }}"""
    assert run(model(text), np.arange(6, dtype=np.float32).reshape(1, 1, 6)).reshape(-1).tolist() == [0.0, 3.0]
    assert bound(text) == pytest.approx(1.0)
