"""Casts that are not what they seem: to a type that drops digits, or in a place where a stand-in rewrites them.

The spline in standard operators casts its numbers "like" x. Like a tensor of integers 0.4 becomes 0 and the knots
move: whoever reads off 0.4 proves another function than the one that runs. ONNX Runtime writes each CastLike as a Cast,
which a session accepts; and a stored float64 network without kernels runs as a rewritten program, in which casts of the
input are drawn anew. A wrong type in any of these is a wrong function under a certificate.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, inliner, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import lipdeploy as lip
from lipdeploy.errors import IntegrityError, LipdeployError, Refused
from lipdeploy.ops import attach_functions
from lipdeploy.runtime.program import rewritten_program
from lipdeploy.verify import verify

SPLINE = """<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>
g (float[N,3] x) => (float[N,3] y)
<float[3,6] k = {0, 0.25, 0.125, 0.5, 0.5, 0.25, 1, 0.5, 0.5, 0, 0.25, 0.5, 0, 0, 0.5, 1, 1, 0}>
{ y = lipdeploy.LinearSpline<lower = -1.4, knot_spacing = 0.5>(x, k) }"""

LIKE = {
    "integers": np.int64(3),
    "truth": np.bool_(True),
    "bytes": np.uint8(1),
    "halves": np.float16(1),
    "doubles": np.float64(1),
}
WAYS = [*LIKE, "the shape of x"]


def written_out() -> onnx.ModelProto:
    """The spline as ``--standard-ops`` writes it."""
    model = parser.parse_model(SPLINE)
    attach_functions(model, {TensorProto.FLOAT})
    return inliner.inline_local_functions(model)


CASTS = [index for index, node in enumerate(written_out().graph.node) if node.op_type == "CastLike"]


def cast_like(index: int, way: str) -> onnx.ModelProto:
    """The spline with one of its casts to another type, and back to float32."""
    model = written_out()
    node = model.graph.node[index]
    if way in LIKE:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(LIKE[way]), "like"))
        before = []
    else:
        before = [helper.make_node("Shape", ["x"], ["like"])]
    result, node.input[1], node.output[0] = node.output[0], "like", "dropped"
    nodes = list(model.graph.node)
    nodes[index : index + 1] = [*before, node, helper.make_node("Cast", ["dropped"], [result], to=TensorProto.FLOAT)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def steepest(model: onnx.ModelProto) -> float:
    """The largest slope between neighbours on a grid, by ONNX's reference evaluator."""
    grid = np.linspace(-3, 3, 1201, dtype=np.float32)
    (values,) = ReferenceEvaluator(model).run(None, {"x": np.repeat(grid[:, None], 3, axis=1)})
    return float(np.abs(np.diff(values.astype(np.float64), axis=0)).max() / (grid[1] - grid[0]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", CASTS)
def test_a_spline_whose_numbers_lose_digits_is_judged_by_what_is_left(index: int, way: str) -> None:
    model = cast_like(index, way)
    verdict = verify(model.SerializeToString())
    if verdict.lipschitz_bound is None:
        return
    assert steepest(model) <= verdict.lipschitz_bound.value * (1 + 1e-3)
    x = np.random.default_rng(index).uniform(-3, 3, (64, 3)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    for mode in ("f64", "adaptive", "f32", "network"):
        try:
            session = lip.CertifiedSession(model.SerializeToString(), certify=mode)
        except (Refused, IntegrityError):  # ONNX Runtime joins casts that follow one another
            continue
        np.testing.assert_allclose(session.predict(x).logits, expected, atol=1e-6)


def test_the_spline_itself_is_proven_and_answers() -> None:
    """Otherwise the cases above show nothing."""
    assert len(CASTS) >= 4
    model = written_out()
    verdict = verify(model.SerializeToString())
    assert verdict.lipschitz_bound is not None
    truth = max(
        abs(Fraction(float(b)) - Fraction(float(a))) / Fraction(1, 2)
        for row in numpy_helper.to_array(model.graph.initializer[0])
        for a, b in itertools.pairwise(row)
    )
    assert truth <= Fraction(verdict.lipschitz_bound.value) <= truth * (1 + Fraction(1, 10**6))
    lip.CertifiedSession(model.SerializeToString(), certify="f32").predict(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("way", WAYS)
def test_an_activation_cast_like_something_else_is_no_identity(way: str) -> None:
    """Digits dropped from an activation are steps: no bound, whatever comes after."""
    like = "like = Shape(x)" if way not in LIKE else "like = Identity(given)"
    text = f"""<ir_version: 10, opset_import: ["": 20]>
    g (float[N,3] x) => (float[N,3] y) {{ {like} d = CastLike(x, like) y = Cast<to = 1>(d) }}"""
    model = parser.parse_model(text)
    if way in LIKE:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(LIKE[way]), "given"))
    verdict = verify(model.SerializeToString())
    assert verdict.status == "refused" or way in ("doubles", "halves")
    if way == "doubles":  # which holds every float32
        assert verdict.lipschitz_bound is None or verdict.lipschitz_bound.value >= 1.0


@pytest.mark.parametrize("claimed", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.DOUBLE])
def test_a_claimed_type_does_not_choose_the_cast(claimed: int) -> None:
    """``value_info`` is the file's word about what a CastLike casts to; ONNX Runtime goes by the tensor."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
    g (float[N,3] x) => (float[N,3] y) {
        n = Neg(x) c = Constant<value_float = 0.3>() l = CastLike(c, n) y = Mul(x, l)
    }""")
    model.graph.value_info.append(helper.make_tensor_value_info("n", claimed, ["N", 3]))
    x = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    try:
        session = lip.CertifiedSession(model.SerializeToString(), certify="f32")
    except LipdeployError as error:
        assert isinstance(error, Refused | IntegrityError) or "cannot load" in str(error)
        return
    assert session.lipschitz_bound >= float(np.float32(0.3))
    np.testing.assert_array_equal(session.predict(x).logits, (x * np.float32(0.3)).astype(np.float64))


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL])
def test_a_rewritten_program_drops_the_digits_that_the_stored_one_drops(kind: int) -> None:
    """A cast of the input to integers stays one, though casts to float64 stand in its place in the stand-in's graph."""
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
    g (float[N,3] x) => (double[N,3] y) {{
        i = Cast<to = {kind}>(x) d = Cast<to = 11>(i) e = Cast<to = 11>(x) s = Elu(e) y = Add(d, s)
    }}""")
    x = np.array([[0.75, -1.5, 2.25], [0.0, 3.9, -0.2]], np.float32)
    program = rewritten_program(model, "y", False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-12)
