"""The level of graph optimisation: the highest at which nothing unverified runs, whatever ONNX Runtime fuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, reference

from lipdeploy import CertifiedSession
from lipdeploy.errors import IntegrityError
from lipdeploy.runtime.engine import OPTIMISATIONS, Engine
from lipdeploy.runtime.executed import check_executed
from lipdeploy.runtime.library import find_library
from lipdeploy.runtime.optimised import check_optimised
from lipdeploy.runtime.providers import choose

LEVELS = onnxruntime.GraphOptimizationLevel
ALL, EXTENDED, BASIC = OPTIMISATIONS
NONE = LEVELS.ORT_DISABLE_ALL
RANDOM = np.random.default_rng(11)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def opener(library=False):
    return Engine(choose(None), 1, find_library() if library else None)


def level_of(session):
    return session.get_session_options().graph_optimization_level


def executed(model, level, path):
    """What ONNX Runtime makes of the model at this level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def operators(model):
    return [f"{node.domain}.{node.op_type}".strip(".") for node in model.graph.node]


IMAGE = "g (float[N,16,6,6] x) => (float[N,3] y)"
TAIL = "f = Flatten(a)\n y = Gemm<transB=1>(f, w, b) }"


@pytest.fixture
def fusible(parse):
    """Graphs that some level rewrites: text, weights, operators that are gone at the highest level."""
    image = {"k": normal(16, 16, 3, 3), "kb": normal(16), "w": normal(3, 256), "b": normal(3)}
    bn = {name: np.abs(normal(16)) + 0.5 for name in ("scale", "shift", "mean", "variance")}
    dense = {"w": normal(4, 3), "b": normal(3)}
    return {
        "Conv+BN": parse(
            f"{IMAGE} {{ h = Conv(x, k, kb)\n a = BatchNormalization(h, scale, shift, mean, variance)\n {TAIL}",
            **image, **bn,
        ),
        "Conv+Mul": parse(f"{IMAGE} {{ h = Conv(x, k, kb)\n a = Mul(h, c)\n {TAIL}", c=normal(16, 1, 1), **image),
        "Conv+Add": parse(f"{IMAGE} {{ h = Conv(x, k)\n a = Add(h, c)\n {TAIL}", c=normal(16, 1, 1), **image),
        "Conv+residual": parse(
            f"{IMAGE} {{ g = Conv(x, k, kb)\n h = Conv<pads=[1,1,1,1]>(g, k, kb)\n a = Add(h, g)\n {TAIL}", **image
        ),
        "Gemm+Add": parse("g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w)\n y = Add(h, b) }", **dense),
        "MatMul scale": parse(
            "g (float[N,2,4] x) => (float[N,2,3] y) { h = Mul(x, c)\n y = MatMul(h, w) }",
            c=np.float32(0.3), w=normal(4, 3),
        ),
        "folded factor": parse(
            "g (float[N,4] x) => (float[N,3] y) { v = Mul(w, c)\n y = MatMul(x, v) }", c=np.float32(0.3), w=normal(4, 3)
        ),
        "Conv+Tanh": parse(f"{IMAGE} {{ h = Conv(x, k, kb)\n a = Tanh(h)\n {TAIL}", **image),
    }  # fmt: skip


REWRITTEN = [
    "Conv+BN", "Conv+Mul", "Conv+Add", "Conv+residual", "Gemm+Add", "MatMul scale", "folded factor", "Conv+Tanh",
]  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_changes_a_number_or_its_rounding_does_not_run(fusible, name, tmp_path):
    model = fusible[name]
    rewritten = executed(model, ALL, tmp_path / "all.onnx")
    assert operators(rewritten) != operators(model), "ONNX Runtime no longer rewrites this graph: the test is void"
    with pytest.raises(IntegrityError):
        check_optimised(model, rewritten, "program")
    session = opener().open(model, "program")
    assert level_of(session) != ALL
    # What was opened is what was verified: the same graph again, dumped at the level that was chosen.
    chosen = executed(model, level_of(session), tmp_path / "chosen.onnx")
    if level_of(session) == NONE:
        check_executed(model, chosen, "program")
    else:
        assert operators(chosen) == operators(model), "a level that changes nothing here"
        stored = {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}
        assert {t.name: numpy_helper.to_array(t).tobytes() for t in chosen.graph.initializer} == stored


@pytest.fixture
def layouts(parse):
    """Graphs whose rewrites are exact."""
    return {
        "blocks": parse(
            f"{IMAGE} {{ h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k, kb)\n a = Relu(h)\n {TAIL}",
            k=normal(16, 16, 3, 3), kb=normal(16), w=normal(3, 144), b=normal(3),
        ),
        "few channels in, filled blocks out": parse(
            """g (float[N,3,6,6] x) => (float[N,3] y) {
                h = Conv(x, k, kb)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)\n r = Relu(p)
                f = Flatten(r)\n y = Gemm<transB=1>(f, w, b)
            }""",
            k=normal(20, 3, 3, 3), kb=normal(20), w=normal(3, 80), b=normal(3),
        ),
        "one channel a group": parse(
            "g (float[N,32,5,5] x) => (float[N,32,3,3] y) { y = Conv<group=32>(x, k) }", k=normal(32, 1, 3, 3)
        ),
        "groups": parse(
            "g (float[N,32,5,5] x) => (float[N,32,3,3] y) { y = Conv<group=2>(x, k) }", k=normal(32, 16, 3, 3)
        ),
        "two convolutions": parse(
            """g (float[N,16,8,8] x) => (float[N,48,4,4] y) {
                h = Conv(x, k)\n r = Relu(h)\n y = Conv(r, l, lb)
            }""",
            k=normal(32, 16, 3, 3), l=normal(48, 32, 3, 3), lb=normal(48),
        ),
        "Gemm+Relu": parse(
            "g (float[N,4] x) => (float[N,3] y) { h = Gemm<transB=1>(x, w, b)\n y = Relu(h) }",
            w=normal(3, 4), b=normal(3),
        ),
        "moved constant": parse(
            "g (float[N,4] x) => (float[N,3] y) { v = Transpose<perm=[1,0]>(w)\n i = Identity(x)\n y = MatMul(i, v) }",
            w=normal(3, 4),
        ),
    }  # fmt: skip


EXACT = [
    "blocks", "few channels in, filled blocks out", "one channel a group", "groups", "two convolutions", "Gemm+Relu",
    "moved constant",
]  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_exact_rewrites_are_recognised_and_compute_the_same(layouts, name, tmp_path):
    model = layouts[name]
    rewritten = executed(model, ALL, tmp_path / "all.onnx")
    check_optimised(model, rewritten, "program")
    session = opener().open(model, "program")
    assert level_of(session) == ALL
    shape = [2, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = normal(*shape)
    (found,) = session.run(None, {"x": x})
    (expected,) = reference.ReferenceEvaluator(model).run(None, {"x": x})
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_some_of_these_really_are_rewritten(layouts, tmp_path):
    """Or the tests above would accept graphs that nobody touched."""
    seen = set()
    for name, model in layouts.items():
        seen |= set(operators(executed(model, ALL, tmp_path / f"{EXACT.index(name)}.onnx")))
    assert {"com.microsoft.FusedGemm"} <= seen
    blocks = any("nchwc" in name for name in seen)
    assert blocks or "com.microsoft.FusedConv" in seen


def edits(graph):
    """Every float constant with one bit changed, and every node changed in a way that ONNX Runtime's kernels obey."""
    for index, tensor in enumerate(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            changed = values.copy()
            changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.float32(9))
            yield f"last bit of {tensor.name}", index, changed
            if values.ndim > 1 and values.shape[0] > 1:
                yield f"order of {tensor.name}", index, np.ascontiguousarray(values[::-1])


@pytest.mark.parametrize("name", EXACT)
def test_every_change_of_a_rewritten_graph_is_noticed(layouts, name, tmp_path):
    model = layouts[name]
    rewritten = executed(model, ALL, tmp_path / "all.onnx")
    tried = 0
    for what, index, changed in edits(rewritten.graph):
        copy = onnx.ModelProto()
        copy.CopyFrom(rewritten)
        tensor = copy.graph.initializer[index]
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        with pytest.raises(IntegrityError):
            check_optimised(model, copy, what)
        tried += 1
    for position, node in enumerate(rewritten.graph.node):
        for attribute, value in (
            ("activation", b"Tanh"),
            ("alpha", 0.5),
            ("channels", 7),
            ("channels_last", 1),
            ("group", 4),
        ):
            there = next((i for i, a in enumerate(node.attribute) if a.name == attribute), None)
            if there is None:
                continue
            copy = onnx.ModelProto()
            copy.CopyFrom(rewritten)
            edited = copy.graph.node[position].attribute
            del edited[there]
            edited.append(onnx.helper.make_attribute(attribute, value))
            with pytest.raises(IntegrityError):
                check_optimised(model, copy, f"{node.op_type}.{attribute}")
            tried += 1
        if node.op_type in ("ReorderInput", "ReorderOutput", "Relu", "MaxPool"):
            copy = onnx.ModelProto()
            copy.CopyFrom(rewritten)
            copy.graph.node[position].op_type = "Identity"
            copy.graph.node[position].domain = ""
            del copy.graph.node[position].attribute[:]
            with pytest.raises(IntegrityError):
                check_optimised(model, copy, f"{node.op_type} dropped")
            tried += 1
    assert tried


def test_a_transposed_square_weight_is_another_function(parse):
    """The bits are an exact transpose of verified ones, and the node did not change with them."""
    text = "g (float[N,4] x) => (float[N,4] y) { y = Gemm(x, w, b) }"
    w, b = normal(4, 4), normal(4)
    with pytest.raises(IntegrityError):
        check_optimised(parse(text, w=w, b=b), parse(text, w=w.T.copy(), b=b), "program")
    flipped = text.replace("Gemm", "Gemm<transB=1>")
    check_optimised(parse(text, w=w, b=b), parse(flipped, w=w.T.copy(), b=b), "program")


def test_a_session_reports_its_levels(parse):
    model = parse(
        f"{IMAGE} {{ h = Conv(x, k, kb)\n a = Relu(h)\n {TAIL}",
        k=normal(16, 16, 3, 3), kb=normal(16), w=normal(3, 256), b=normal(3),
    )  # fmt: skip
    session = CertifiedSession(model.SerializeToString(), certify="adaptive", threads=1)
    assert session.optimisation["stored"] == "ORT_ENABLE_ALL"
    x = normal(5, 16, 6, 6)
    error = session.verdict.numeric_error["f32"]
    (found,) = session.run(None, {"x": x})
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    (expected,) = reference.ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float64)})
    norms = np.linalg.norm(x.reshape(5, -1).astype(np.float64), axis=1)
    assert np.all(np.abs(found - expected).max(axis=1) <= error.c0 + error.c1 * norms)
