"""The verifier's own view of a file: what is malformed is refused with a code, whatever it is; nothing crashes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.errors import REASONS, LimitExceeded
from tests.verify.models import bound, codes, judge, model, run, single

ROOT = Path(__file__).resolve().parents[2]


def test_verifying_loads_neither_torch_nor_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(single("Conv", (2, 5, 5), {"W": np.ones((2, 2, 3, 3), np.float32)}), path)
    program = (
        "import sys; from lipdeploy.verify import verify;"
        "v = verify(sys.argv[1]); v.write_certificate(sys.argv[1] + '.c');"
        "loaded = {'torch', 'onnxruntime', 'scipy', 'click', 'rich'} & set(sys.modules);"
        "assert v.status == 'verified' and not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=ROOT)


MALFORMED: dict[str, str] = {
    "undefined input": "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(z) }",
    "used before its definition": "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(a) a = Relu(x) }",
    "defined twice": "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) y = Abs(x) }",
    "feeds itself": "g (float[N, 2] x) => (float[N, 2] y) { y = Add(x, y) }",
    "output from nowhere": "g (float[N, 2] x) => (float[N, 2] y) { z = Relu(x) }",
    "output is a constant": "g (float[N, 2] x) => (float[2] c) <float[2] c = {1, 2}> { z = Relu(x) }",
    "shapes that do not meet": "g (float[N, 2] x) => (float[N, 2] y) <float[3] c = {1, 2, 3}> { y = Add(x, c) }",
    "weights that do not meet": "g (float[N, 2] x) => (float[N, 2] y) <float[3, 1] W = {1, 2, 3}> { y = MatMul(x, W) }",
    "too few inputs": "g (float[N, 2] x) => (float[N, 2] y) { y = Gemm(x) }",
    "too many inputs": "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x, x) }",
    "no input": "g (float[N, 2] x) => (float[N, 2] y) { y = Relu() }",
    "axes from a shape": "g (float[N, 2] x) => (float[N] y) { s = Shape(x) y = ReduceSum<keepdims = 0>(x, s) }",
    "a shape as an operand": "g (float[N, 2] x) => (float[N, 2] y) { s = Shape(x) y = Add(x, s) }",
    "a shape as a weight": "g (float[N, 2] x) => (float[N, 2] y) { s = Shape(x) y = PRelu(x, s) }",
    "nothing left": """g (float[N, 2] x) => (float[N] y) <int64[1] s = {0}, int64[1] a = {1}>
        { z = Slice(x, s, s, a) y = ReduceMean<keepdims = 0>(z, a) }""",
    "a constant cast to nothing": """g (float[N, 1] x) => (float[N, 1] y) <int64[1] s = {0}>
        { z = Cast<to = 999>(s) y = Add(x, z) }""",
    "an activation cast to nothing": "g (float[N, 1] x) => (float[N, 1] y) { y = Cast<to = 999>(x) }",
    "two types meet": "g (float[N, 2] x, double[N, 2] z) => (float[N, 2] y) { y = Add(x, z) }",
    "random": "g (float[N, 2] x) => (float[N, 2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }",
    "split sizes": "g (float[N, 4] x) => (float[N, 2] y) <int64[2] s = {3, 3}> { y, z = Split<axis = 1>(x, s) }",
    "split count": "g (float[N, 6] x) => (float[N, 2] y) { y, z = Split<axis = 1, num_outputs = 3>(x) }",
    "index outside": "g (float[N, 2] x) => (float[N, 1] y) <int64[1] i = {2}> { y = Gather<axis = 1>(x, i) }",
    "k too large": "g (float[N, 2] x) => (float[N, 3] y) <int64[1] k = {3}> { y, i = TopK(x, k) }",
    "unsorted": "g (float[N, 3] x) => (float[N, 2] y) <int64[1] k = {2}> { y, i = TopK<sorted = 0>(x, k) }",
}  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_graphs_are_refused(text: str) -> None:
    for code in codes(model(text)):
        assert code in REASONS


def test_a_node_of_no_type_and_an_attribute_of_no_type() -> None:
    proto = single("LeakyRelu", (2,), alpha=3.0)
    proto.graph.node[0].attribute[0].type = onnx.AttributeProto.UNDEFINED
    assert codes(proto) == ["LIP013"]
    proto.graph.node[0].op_type = ""
    assert judge(proto).status == "refused"


def test_an_attribute_twice_or_by_reference() -> None:
    proto = single("LeakyRelu", (2,), alpha=3.0)
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.5))
    assert codes(proto) == ["LIP013"]
    proto = single("LeakyRelu", (2,), alpha=3.0)
    proto.graph.node[0].attribute[0].ref_attr_name = "alpha"
    assert codes(proto) == ["LIP013"]


@pytest.mark.parametrize("version", [0, 3, 6, 14, 99])
def test_ir_versions(version: int) -> None:
    proto = single("Relu", (2,))
    proto.ir_version = version
    if version:
        assert codes(proto) == ["LIP020"]


@pytest.mark.parametrize("field", ["raw too short", "raw too long", "wrong type number", "negative size", "segment"])
def test_malformed_tensors_are_refused(field: str) -> None:
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    tensor = proto.graph.initializer[0]
    if field == "raw too short":
        tensor.raw_data = tensor.raw_data[:-1]
    elif field == "raw too long":
        tensor.raw_data = tensor.raw_data + b"\0\0\0\0"
    elif field == "wrong type number":
        tensor.data_type = 999
    elif field == "negative size":
        tensor.dims[0] = -2
    else:
        tensor.segment.begin, tensor.segment.end = 0, 1
    assert set(codes(proto)) <= {"LIP013", "LIP021"}


@pytest.mark.parametrize(
    "kind", [TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.INT4]
)
def test_types_without_numbers_are_refused(kind: int) -> None:
    proto = single("Relu", (2,))
    values: list[Any] = [b"5"] if kind == TensorProto.STRING else [1]
    proto.graph.initializer.append(helper.make_tensor("c", kind, [1], values))
    proto.graph.node[0].op_type = "Mul"
    proto.graph.node[0].input.append("c")
    assert judge(proto).status == "refused"


def test_the_rest_of_the_graph_does_not_matter() -> None:
    """Only what the output depends on is judged; the other outputs may be anything."""
    text = "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) { y = Relu(x) z = Exp(x) }"
    assert codes(text) == ["LIP016"]
    assert bound(text, output_name="y") == 1.0
    assert codes(text, output_name="z") == ["LIP010"]
    assert codes(text, output_name="q") == ["LIP016"]


def test_several_inputs_are_one_vector() -> None:
    text = "g (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Add(a, b) }"
    assert bound(text) >= 2**0.5, "(a, b) ↦ a + b has norm √2"
    assert bound(text, "linf") >= 2.0


CONSTANT = """g (float[N, 2] x) => (float[N, 2] y)
  <float[2, 3] W = {1, 2, 3, 40, 5, 6}, int64[1] i = {-1}, int64[1] s = {-2}, int64[1] e = {9223372036854775807},
   int64[1] ax = {-1}, int64[2] sh = {2, -1}>
  { t = Transpose(W) g1 = Gather<axis = -1>(t, i) c = Concat<axis = 1>(g1, t) d = Slice(c, s, e, ax)
    u = Unsqueeze(d, s2) q = Squeeze(u, s2) z = Slice(q, s, e) r = Reshape(z, sh) y = MatMul(x, r) }"""


def test_constants_are_evaluated_as_the_runtime_does() -> None:
    proto = model(CONSTANT.replace("int64[2] sh", "int64[1] s2 = {-2}, int64[2] sh"))
    rows = run(proto, np.eye(2, dtype=np.float32)).astype(np.float64)
    truth = float(np.linalg.norm(rows, 2))
    assert truth * (1 - 1e-12) <= bound(proto) <= truth * (1 + 1e-9)


@pytest.mark.parametrize(
    "nodes",
    [
        "b = Cast<to = 6>(a) c = Cast<to = 1>(b) y = Mul(x, c)",
        "b = Mul(a, a) c = Cast<to = 1>(b) y = Mul(x, c)",
        "b = Sub(a, k) c = Cast<to = 1>(b) y = Mul(x, c)",
        "b = Concat<axis = 0>(a, k) d = Gather(b, k) c = Cast<to = 11>(d) e = Cast<to = 1>(c) y = Mul(x, e)",
    ],
)
def test_integer_constants(nodes: str) -> None:
    for value in (0, 1, -3, 2**31 - 1, 2**31, 2**62, -(2**63)):
        proto = model(f"g (float[N, 1] x) => (float[N, 1] y) <int64[1] k = {{1}}> {{ {nodes} }}")
        proto.graph.initializer.append(numpy_helper.from_array(np.array([value]), "a"))
        verdict = judge(proto)
        if verdict.status == "verified":
            assert verdict.lipschitz_bound is not None
            assert verdict.lipschitz_bound.value >= abs(float(run(proto, np.ones((1, 1), np.float32)).item()))


def test_rounded_constants_are_refused() -> None:
    for nodes in ("c = Mul(a, a)", "c = Sqrt(a)", "c = Exp(a)", "d = Cast<to = 10>(a) c = Cast<to = 1>(d)"):
        text = f"g (float[N, 1] x) => (float[N, 1] y) <float[1] a = {{0.1}}> {{ {nodes} y = Mul(x, c) }}"
        assert codes(model(text)) == ["LIP017"]


def test_dead_nodes_cannot_crash_the_verifier() -> None:
    for dead in ("z = lipdeploy.Foo(x)", "z = Exp(x)", "z = Cast<to = 999>(x)", "z = com.acme.Thing<a = [1, 2]>(x)"):
        text = f"g (float[N, 2] x) => (float[N, 2] y) {{ y = Relu(x) {dead} }}"
        assert judge(model(text, imports={"lipdeploy": 1, "com.acme": 1})).status in {"verified", "refused"}


def test_the_report_names_every_node() -> None:
    proto = model("g (float[N, 2] x) => (float[N, 2] y) <float[2] c = {3, 4}> { h = Mul(x, c) y = Relu(h) }")
    report = judge(proto).to_json()
    assert [node["op"] for node in report["nodes"]] == ["Mul", "Relu"]
    assert [node["gain"] for node in report["nodes"]] == [4.0, 1.0]
    assert report["nodes"][-1]["bound_after"] == report["lipschitz_bound"] == 4.0
    assert report["assumptions"]


def test_limits() -> None:
    proto = single("Mul", (1,), {"c": np.array([2.0], np.float32)})
    assert judge(proto, max_lipschitz=2.0).status == "verified"
    assert judge(proto, max_lipschitz=np.nextafter(2.0, 0)).status == "exceeded"


EXPANDING = """g (float[N, 2] x) => (float[N, 2] y)
    <float[1] half = {0.5}, float[1] two = {2.0}, float[1] three = {3.0}, float[1] four = {4.0}> {
        [second] a = Mul(x, three) [third] b = Mul(a, two) [half] c = Mul(b, half) [relu] d = Relu(c)
        [fourth] e = Mul(d, two) [first] y = Mul(e, four) }"""


def exceeding(text: str, limit: float) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        judge(text, max_lipschitz=limit).raise_for_status()
    return caught.value


def test_a_limit_that_is_exceeded_names_the_three_loosest_nodes_in_one_line() -> None:
    error = exceeding(EXPANDING, 1.0)
    assert error.message.endswith(
        "the proven Lipschitz bound 24 exceeds 1; largest gains: 'first' (Mul) 4, 'second' (Mul) 3, 'third' (Mul) 2"
    )
    assert "export without the limit, then lipdeploy inspect" in error.hint
    assert error.verdict is not None and [node.name for node in error.verdict.loosest_first()] == [
        "first", "second", "third", "fourth", "relu", "half",
    ]  # fmt: skip


def test_only_nodes_that_expand_are_named() -> None:
    one = "g (float[N, 1] x) => (float[N, 1] y) <float[1] two = {2.0}> { [double] a = Mul(x, two) [relu] y = Relu(a) }"
    assert exceeding(one, 1.5).message.endswith("exceeds 1.5; largest gains: 'double' (Mul) 2")
    assert exceeding("g (float[N, 1] x) => (float[N, 1] y) { y = Relu(x) }", 0.5).message.endswith("exceeds 0.5")


def test_an_exceeded_limit_survives_pickling_with_its_verdict() -> None:
    error = exceeding(EXPANDING, 1.0)
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.hint, again.exit_code) == (error.message, error.hint, 1)
    assert again.verdict.to_json() == error.verdict.to_json()


def test_bounds_that_overflow_are_refused() -> None:
    proto = model("g (double[N, 1] x) => (double[N, 1] y) <double[1] c = {1e200}> { a = Mul(x, c) y = Mul(a, c) }")
    assert set(codes(proto)) <= {"LIP014", "LIP011"}
