"""The liar gives a Resize a scale whose product with the size is just below a whole number.

Nineteen pixels times the float32 number nearest to 3/19 are 2.9999999…: two pixels by the standard's text and by
onnx's reference evaluator, three for ONNX Runtime, whose product is a float32 number. The sum over the result then
takes one pixel more than the verifier has judged; a Reshape behind it would hand one sample's pixels to another.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.verify.models import bound, codes, model, run

GRAPH = """g (float[N, 1, {size}] x) => (float[N, 1, 1] y) <float[3] s = {{1.0, 1.0, {scale}}}, int64[1] axes = {{2}}>
    {{ r = Resize<mode = "{mode}", coordinate_transformation_mode = "{placing}">(x, , s)
       y = ReduceSum(r, axes) }}"""
MODES = [("nearest", "asymmetric"), ("nearest", "half_pixel"), ("linear", "half_pixel")]


@pytest.mark.parametrize(("mode", "placing"), MODES)
@pytest.mark.parametrize(("size", "wanted"), [(19, 3), (23, 3), (25, 1)])
def test_a_product_that_float32_rounds_up(size: int, wanted: int, mode: str, placing: str) -> None:
    scale = float(np.float32(wanted / size))
    assert int(size * scale) == wanted - 1  # in float64
    proto = model(GRAPH.format(size=size, scale=repr(scale), mode=mode, placing=placing))
    columns = run(proto, np.eye(size, dtype=np.float32)[:, None, :]).reshape(-1)
    assert columns.sum() == pytest.approx(wanted)  # the runtime has one pixel more
    assert codes(proto) == ["LIP002"]


@pytest.mark.parametrize(("size", "scale"), [(19, 2.0), (10, 0.5), (10, 1.25), (7, 0.5), (19, 0.2)])
def test_other_scales_stay_accepted(size: int, scale: float) -> None:
    proto = model(GRAPH.format(size=size, scale=repr(scale), mode="linear", placing="half_pixel"))
    columns = run(proto, np.eye(size, dtype=np.float32)[:, None, :]).reshape(-1)
    assert bound(proto) >= np.linalg.norm(columns) * (1.0 - 1e-6)
