"""One operator with odd attributes, in any opset: what the verifier means is what every program computes.

False radii came from here: the verifier, ONNX Runtime's kernels, ONNX's shape inference and the rewriting to float64
must agree on which pixels a window reads. Truth: ONNX Runtime without optimisation, in float32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy.errors import Refused
from lipdeploy.runtime import engine as engines
from lipdeploy.runtime.double import double_model
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.providers import choose
from tests.verify.models import judge, session, single

EXAMPLES = int(os.environ.get("LIPDEPLOY_EXAMPLES", "400"))  # for each family; another number draws others each time
Draw = Any
SMALL = st.integers(1, 3)
SIZE = st.integers(1, 7)


@dataclass(frozen=True)
class Case:
    """One node on (N, *shape)."""

    op: str
    shape: tuple[int, ...]
    opset: int
    constants: dict[str, np.ndarray | None] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        stored = {name: None if value is None else value.tolist() for name, value in self.constants.items()}
        return f"{self.op} opset {self.opset} on {self.shape}: {self.attributes} {stored}"


def opsets(draw: Draw) -> int:
    return draw(st.integers(13, 23))


def numbers(draw: Draw, *shape: int) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)


def several(draw: Draw, of: st.SearchStrategy[int], count: int) -> list[int]:
    return draw(st.lists(of, min_size=count, max_size=count))


def windowed(draw: Draw, rank: int) -> dict[str, Any]:
    """Strides beyond the kernel, padding as wide as it, every automatic padding."""
    given: dict[str, Any] = {}
    if draw(st.integers(0, 3)):
        given["strides"] = several(draw, st.integers(1, 6), rank)
    if draw(st.booleans()):
        given["dilations"] = several(draw, SMALL, rank)
    kind = draw(st.sampled_from(["", "pads", "SAME_UPPER", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "pads":
        given["pads"] = several(draw, st.integers(0, 3), 2 * rank)
    elif kind:
        given["auto_pad"] = kind
    return given


@st.composite
def convolutions(draw: Draw) -> Case:
    rank, groups, inputs, outputs = draw(st.integers(1, 2)), draw(SMALL), draw(st.integers(1, 2)), draw(SMALL)
    kernel = several(draw, SMALL, rank)
    op = draw(st.sampled_from(["Conv", "Conv", "ConvTranspose"]))
    channels = (outputs * groups, inputs) if op == "Conv" else (inputs * groups, outputs)
    given = windowed(draw, rank) | {"group": groups}
    if op == "ConvTranspose" and draw(st.booleans()):
        given["output_padding"] = several(draw, st.integers(0, 2), rank)
    shape = (inputs * groups, *several(draw, SIZE, rank))
    return Case(op, shape, opsets(draw), {"w": numbers(draw, *channels, *kernel)}, given)


@st.composite
def pools(draw: Draw) -> Case:
    op, rank = draw(st.sampled_from(["MaxPool", "AveragePool", "LpPool"])), draw(st.integers(1, 2))
    given = windowed(draw, rank) | {"kernel_shape": several(draw, SMALL, rank)}
    if draw(st.booleans()):
        given["ceil_mode"] = 1
    if op == "AveragePool":
        given["count_include_pad"] = draw(st.integers(0, 1))
    if op == "LpPool":
        given["p"] = draw(st.integers(1, 2))
    return Case(op, (2, *several(draw, SIZE, rank)), opsets(draw), {}, given)


@st.composite
def reductions(draw: Draw) -> Case:
    rank = draw(st.integers(1, 3))
    shape = tuple(several(draw, st.integers(1, 4), rank))
    if draw(st.booleans()):
        op = draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]))
        return Case(op, shape, opsets(draw), {}, {"p": draw(st.integers(1, 2))} if op == "GlobalLpPool" else {})
    op = draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"]))
    opset, axis = opsets(draw), st.sampled_from([*range(1, rank + 1), *range(-rank, 0)])
    axes = draw(st.lists(axis, max_size=2))
    given: dict[str, Any] = {"keepdims": draw(st.integers(0, 1))}
    if op == "ReduceSum" or opset >= 18:
        given["noop_with_empty_axes"] = draw(st.integers(0, 1))
        return Case(op, shape, opset, {"axes": np.array(axes, np.int64)}, given)
    return Case(op, shape, opset, {}, given | ({"axes": axes} if axes else {}))


@st.composite
def resizes(draw: Draw) -> Case:
    rank = draw(st.integers(1, 2))
    shape = (2, *several(draw, st.integers(1, 5), rank))
    given = {
        "mode": draw(st.sampled_from(["nearest", "linear"])),
        "coordinate_transformation_mode": draw(
            st.sampled_from(["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
        ),
        "nearest_mode": draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])),
    }
    scale = st.sampled_from([1.0, 2.0, 0.5, 1.5, 3.0, 0.75, 0.4, 1.1, 1.3])
    scales = np.array([1.0, 1.0, *draw(st.lists(scale, min_size=rank, max_size=rank))], np.float32)
    return Case("Resize", shape, opsets(draw), {"roi": None, "scales": scales}, given)


@st.composite
def pieces(draw: Draw) -> Case:
    rank = draw(st.integers(1, 3))
    shape = tuple(several(draw, SIZE, rank))
    axis = draw(st.sampled_from([*range(1, rank + 1), *range(-rank, 0)]))
    end = st.one_of(st.integers(-8, 8), st.sampled_from([2**31 - 1, 2**63 - 1, -(2**63)]))
    if draw(st.booleans()):
        step = draw(st.sampled_from([1, 2, 3, -1, -2, 2**31, -(2**40)]))
        words = {"starts": draw(end), "ends": draw(end), "axes": axis, "steps": step}
        return Case("Slice", shape, opsets(draw), {name: np.array([word]) for name, word in words.items()})
    mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
    pads = [0, *several(draw, st.integers(-2, 3), rank), 0, *several(draw, st.integers(-2, 3), rank)]
    return Case("Pad", shape, opsets(draw), {"pads": np.array(pads)}, {"mode": mode})


FAMILIES = {
    "convolutions": convolutions,
    "pools": pools,
    "reductions": reductions,
    "resizes": resizes,
    "pieces": pieces,
}


def float64_programs(case: Case, proto: Any, sizes: Any, x: np.ndarray) -> list[np.ndarray]:
    """What the programs that may answer say, with the library's products and without."""
    found = []
    for own in (False, True):
        opener = Engine(choose(None), 1, find_library() if own else None)
        try:
            program = double_model(proto, "y", own, sizes)
        except Refused:
            continue
        opened = opener.open_to_compare(program, f"float64 program of {case}")
        found.append(engines.run(opened, "y", {"x": x.astype(np.float64)}))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_proven_is_what_every_program_computes(family: str) -> None:
    answered = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES == 400)
    @given(FAMILIES[family](), st.integers(0, 99))
    def check(case: Case, seed: int) -> None:
        proto = single(case.op, case.shape, case.constants, opset=case.opset, **case.attributes)
        verdict = judge(proto)
        if verdict.status != "verified":
            return
        try:
            runtime = session(proto)
            x = np.random.default_rng(seed).standard_normal((3, *case.shape)).astype(np.float32)
            y = runtime.run(None, {"x": x})[0]
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                return  # what does not run answers nothing
            raise
        answered.append(case)
        assert verdict.output is not None and verdict.lipschitz_bound is not None
        assert y.shape[1:] == verdict.output.shape[1:], case
        near = {"rtol": 1e-4, "atol": 1e-4, "err_msg": repr(case)}
        np.testing.assert_allclose(np.concatenate([runtime.run(None, {"x": row[None]})[0] for row in x]), y, **near)
        for logits in float64_programs(case, proto, verdict.sizes, x):
            np.testing.assert_allclose(logits, y, **near)
        moved = np.linalg.norm((y[0] - y[1]).astype(np.float64))
        assert moved <= verdict.lipschitz_bound.value * np.linalg.norm(x[0] - x[1]) * (1 + 1e-4) + 1e-4, case

    check()
    assert len(answered) > 30, f"only {len(answered)} of {family} were accepted and ran"
