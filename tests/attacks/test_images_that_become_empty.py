"""An image of open size that becomes empty inside: two rows under a window of three.

A reduction of it has nothing to reduce, and a bound of 1 says enough. But ONNX Runtime takes an axis that is counted
from the end for none of the reduced ones there, so that an axis is left over: what is added to it is copied along that,
and a bound of 1.0017 was proven of a program that moved forty times as far (l1).
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, parser

from lipdeploy.verify import verify
from lipdeploy.verify.open_sizes import OpenSize


def model(shrinking: str, axes: str, opset: int = 18, keep: int = 0, operator: str = "ReduceMean") -> ModelProto:
    reduced = f"{operator}<keepdims = {keep}>(t, a)"
    if opset < 18:
        reduced = f"{operator}<keepdims = {keep}, axes = [{axes}]>(t)"
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N,1,H,W] x) => (float y)
        <int64[{axes.count(",") + 1}] a = {{{axes}}}, float small = {{0.001}}> {{
            t = {shrinking} u = {reduced} s = Mul(u, small) p = GlobalMaxPool(x)
            z = {"Identity" if keep else "Flatten"}(p) y = Add(s, z)
        }}"""
    )


EMPTIES = ["MaxPool<kernel_shape = [3, 1]>(x)", "AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)"]
KEEP = ["MaxPool<kernel_shape = [3, 1], pads = [1, 0, 1, 0]>(x)", "Relu(x)"]


def moved(made: ModelProto) -> float:
    """How far the output moves, in l1, when one entry of an image of 2 × 40, or 1 × 40, does by 1."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = 0.0
    for height in (1, 2):
        x = np.zeros((1, 1, height, 40), np.float32)
        higher = x.copy()
        higher[0, 0, 0, 0] = 1.0
        try:
            before, after = (session.run(None, {"x": image})[0] for image in (x, higher))
        except Exception as error:  # too small an image for the pool
            assert type(error).__module__.startswith("onnxruntime"), error
        else:
            found = max(found, float(np.abs(after - before).sum()))
    return found


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [13, 17, 18, 22])
@pytest.mark.parametrize("axes", ["2, -1", "2, 3", "-2, -1", "3, -2"])
@pytest.mark.parametrize("shrinking", EMPTIES + KEEP)
def test_no_program_moves_further_than_its_bound(shrinking: str, axes: str, opset: int, keep: int) -> None:
    made = model(shrinking, axes, opset, keep)
    verdict = verify(made.SerializeToString(), norm="l1")
    if "-" in axes and shrinking in EMPTIES:
        assert [refusal.code for refusal in verdict.refusals] == ["LIP006"]
        assert "count the axes from the front" in verdict.refusals[0].hint
    else:
        assert verdict.status == "verified" and verdict.lipschitz_bound is not None
        assert moved(made) <= verdict.lipschitz_bound


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_extremes_too(operator: str) -> None:
    assert verify(model(EMPTIES[0], "-1, -2", operator=operator).SerializeToString()).status == "refused"


def test_that_program_does_move() -> None:
    assert moved(model(EMPTIES[0], "2, -1")) == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("history", "empty"),
    [
        ((), False),
        ((("window", -2, 1),), True),
        ((("window", -1, 2),), False),
        ((("window", -2, 2),), True),
        ((("stretch", 4, -3), ("window", -2, 1)), True),
        ((("stretch", 4, 0), ("window", -2, 1)), False),
        ((("shrink", 2, 0),), True),
        ((("stretch", 2, 0), ("shrink", 2, 0)), False),
    ],
)
def test_which_lengths_may_vanish(history: tuple[tuple[str, int, int], ...], empty: bool) -> None:
    assert OpenSize("x[2]", history).may_be_empty == empty
