"""CertifiedSession: what it answers, what it refuses, and that it is the verified bytes that answer."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.errors import InputError, IntegrityError, LimitExceeded, Refused
from lipdeploy.ops import attach_functions
from lipdeploy.runtime import CertifiedSession, engine, find_library, selftest, session
from lipdeploy.runtime.library import ENVIRONMENT_VARIABLE
from lipdeploy.verify import version

RANDOM = np.random.default_rng(11)
MODES = ("f64", "adaptive", "f32", "network")
LINEAR = "g (float[N,3] x) => (float[N,{classes}] y) {{ y = Gemm<transB=1>(x, w, b) }}"


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture
def linear(parse):
    """A linear classifier: its exact robust radius is known."""

    def build(weight, bias=None):
        weight = np.asarray(weight, np.float32)
        bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
        return parse(LINEAR.format(classes=len(weight)), w=weight, b=bias).SerializeToString()

    return build


@pytest.fixture(scope="session")
def network(parse):
    """A small convolutional network with both of our operators."""
    model = parse(
        """g (float[N,1,8,8] x) => (float[N,5] y) {
            h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k, kb)
            a = lipdeploy.GroupSort<group_size=2>(h)
            p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)
            f = Flatten(p)
            g = Gemm<transB=1>(f, w1, b1)
            s = lipdeploy.LinearSpline<lower=-1.0, knot_spacing=0.25>(g, c)
            y = Gemm<transB=1>(s, w2, b2)
        }""",
        k=normal(8, 1, 3, 3), kb=normal(8), w1=normal(16, 32) / 4, b1=normal(16),
        c=np.sort(RANDOM.uniform(-1, 1, (16, 9)), axis=1).astype(np.float32), w2=normal(5, 16), b2=normal(5),
    )  # fmt: skip
    attach_functions(model, {onnx.TensorProto.FLOAT})
    return model.SerializeToString()


# Radii.


@pytest.mark.parametrize("mode", MODES)
def test_the_radius_of_a_linear_classifier_is_below_the_exact_one_and_near_it(linear, mode):
    weight, bias = normal(4, 3), normal(4)
    x = normal(20, 3)
    predicted = CertifiedSession(linear(weight, bias), certify=mode).predict(x)
    exact = lambda a: np.vectorize(lambda v: Fraction(float(v)))(a)
    for row in range(len(x)):
        scores = exact(weight) @ exact(x[row]) + exact(bias)
        best = max(range(4), key=lambda c: scores[c])
        squares = []
        for other in set(range(4)) - {best}:
            difference = exact(weight[best]) - exact(weight[other])
            squares.append((scores[best] - scores[other]) ** 2 / (difference @ difference))
        radius = Fraction(float(predicted.radius[row]))
        assert predicted.label[row] == best
        assert radius**2 < min(squares)
        if mode in ("f64", "network"):
            assert radius**2 > min(squares) * (1 - Fraction(1, 10**6))


def test_one_logit_is_a_sign(linear):
    certified = CertifiedSession(linear([[3.0, 4.0, 0.0]], [1.0]))
    found = certified.predict(np.float32([[1, 1, 0], [-1, -1, 0], [1, -1, 0]]))
    assert found.label.tolist() == [1, 0, 0]
    assert found.radius[0] < 8 / 5
    assert found.radius == pytest.approx([8 / 5, 6 / 5, 0.0], rel=1e-6)
    assert found.certified.tolist() == [True, True, False]
    assert found.logits.shape == (3, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_tie_is_never_certified(linear, mode):
    found = CertifiedSession(linear([[1, 0, 0], [1, 0, 0], [0, 1, 0]]), certify=mode).predict(
        np.float32([[2, 0, 0], [0, 2, 0]]), epsilon=0.0
    )
    assert found.radius[0] == 0.0
    assert found.certified.tolist() == [False, True]
    assert found.label_or_abstain.tolist() == [-1, 2]


def test_a_class_that_never_loses_keeps_its_place_until_rounding_could_take_it(linear):
    model = linear([[1, 0, 0], [1, 0, 0]], [1, 0])
    # The network's classes never change; the float64 program may confuse them from |x| of about 1e15 on.
    assert CertifiedSession(model, certify="network").predict(np.float32([[1, 2, 3]])).radius[0] > 1e300
    assert 1e12 < CertifiedSession(model).predict(np.float32([[1, 2, 3]])).radius[0] < 1e16


def test_the_margin_is_the_gap_of_the_logits(linear):
    found = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.float32([[3, 1, 0]]))
    assert found.margin[0] == pytest.approx(2.0)
    assert found.logits.tolist() == [[3.0, 1.0]]


def test_overflow_inside_the_ball_is_outside_the_radius(parse):
    # h overflows float32 for x > 1.7e38, where the program answers NaN (sharp_edges 10).
    model = parse(
        "g (float[N,1] x) => (float[N,2] y) { h = Mul(x, two)\n i = Mul(h, two)\n y = Gemm(i, w) }",
        two=np.float32([2.0]), w=np.float32([[0.1, 0.2]]),
    )  # fmt: skip
    certified = CertifiedSession(model.SerializeToString(), certify="f32")
    far = np.float32([[1.6e37], [8e37], [1.6e38]])
    found = certified.predict(far)
    reach = far[:, 0].astype(float) + found.radius
    assert found.radius[0] > 0.0
    assert np.all((found.radius == 0.0) | (reach < 8.6e37))
    assert found.radius[2] == 0.0


def test_epsilon_decides_what_is_certified(linear):
    certified = CertifiedSession(linear([[1, 0, 0], [-1, 0, 0]]))
    x = np.float32([[0.5, 0, 0]])
    assert certified.predict(x, epsilon=0.4).certified.tolist() == [True]
    assert certified.predict(x, epsilon=0.5).certified.tolist() == [False]
    assert certified.predict(x).epsilon is None


@pytest.mark.parametrize("epsilon", [-0.1, np.nan, np.inf, "many", [1.0]])
def test_an_epsilon_that_is_no_radius_is_refused(linear, epsilon):
    with pytest.raises(InputError, match="epsilon must be"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.float32([[1, 0, 0]]), epsilon=epsilon)


def test_the_linf_radius_is_the_l2_radius_over_root_n(linear):
    found = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.float32([[3, 1, 0]]))
    assert Fraction(float(found.linf_radius()[0])) ** 2 * 3 < Fraction(float(found.radius[0])) ** 2
    assert found.linf_radius()[0] == pytest.approx(found.radius[0] / np.sqrt(3))


# Modes.


def test_network_mode_does_not_certify_where_float32_says_otherwise(parse):
    # In float32 1e8 + 1 loses the 1: the float32 program prefers class 1, the real network class 0.
    model = parse(
        "g (float[N,1] x) => (float[N,2] y) { a = Add(x, big)\n b = Sub(a, big)\n y = Gemm(b, w, c) }",
        big=np.float32([1e8]), w=np.float32([[1, 0]]), c=np.float32([0, 0.5]),
    )  # fmt: skip
    x = np.float32([[1.0]])
    in_float32 = CertifiedSession(model.SerializeToString(), certify="network").predict(x)
    in_float64 = CertifiedSession(model.SerializeToString()).predict(x)
    assert in_float32.label.tolist() == [1]
    assert in_float32.radius.tolist() == [0.0]
    assert in_float64.label.tolist() == [0]
    assert in_float64.radius[0] == pytest.approx(0.5, rel=1e-6)


def test_every_mode_names_its_guarantee_and_program(network):
    for mode, guarantee, program in (
        ("f64", "deployed", "f64"),
        ("f32", "deployed", "f32"),
        ("network", "network", "f32"),
    ):
        found = CertifiedSession(network, certify=mode).predict(normal(2, 1, 8, 8))
        assert found.guarantee == guarantee
        assert found.program.tolist() == [program] * 2


def test_float32_alone_certifies_less(network):
    x = normal(10, 1, 8, 8)
    radii = {mode: CertifiedSession(network, certify=mode).predict(x).radius for mode in MODES}
    assert np.all(radii["f32"] <= radii["f64"])
    assert np.all(radii["f64"] <= radii["network"])


@pytest.mark.parametrize("mode", ["float16", "float64", "", None, "F64"])
def test_an_unknown_mode_lists_the_known_ones(linear, mode):
    with pytest.raises(InputError) as error:
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]), certify=mode)
    assert "f64, adaptive, f32, network" in error.value.hint


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_threads_is_a_positive_number(linear, threads):
    with pytest.raises(InputError, match="threads must be a positive whole number"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]), threads=threads)


def test_a_deployed_guarantee_needs_known_rounding(parse):
    model = parse(
        "g (float[N,3] x) => (float[N,2] y) { h = Sin(x)\n y = Gemm(h, w) }", w=normal(3, 2)
    ).SerializeToString()
    for mode in MODES:
        with pytest.raises(Refused) as refusal:
            CertifiedSession(model, certify=mode)
        assert refusal.value.code == "LIP018"


def test_a_float64_model_has_no_float32_program(parse):
    model = parse("g (double[N,3] x) => (double[N,2] y) { y = Gemm(x, w) }", w=RANDOM.standard_normal((3, 2)))
    data = model.SerializeToString()
    assert CertifiedSession(data).predict(RANDOM.standard_normal((2, 3))).radius.min() > 0
    with pytest.raises(Refused, match="LIP018"):
        CertifiedSession(data, certify="f32")


# What it refuses.


def test_above_the_limit(linear):
    with pytest.raises(LimitExceeded) as error:
        CertifiedSession(linear([[3, 0, 0], [0, 3, 0]]), max_lipschitz=1.0)
    assert error.value.exit_code == 1


def test_without_a_limit_nothing_is_exceeded(linear):
    assert CertifiedSession(linear([[3, 0, 0], [0, 3, 0]])).lipschitz_bound == pytest.approx(3.0)


def test_an_unprovable_model_is_refused_in_the_constructor(parse):
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Mul(x, x) }")
    with pytest.raises(Refused, match="LIP004"):
        CertifiedSession(model.SerializeToString())


def test_unreadable_models(tmp_path):
    with pytest.raises(InputError):
        CertifiedSession(tmp_path / "missing.onnx")
    with pytest.raises(InputError):
        CertifiedSession(b"not a model")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_input_is_an_input_error(linear, value):
    with pytest.raises(InputError, match="every value must be finite"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.float32([[1, value, 0]]))


def test_a_wrong_shape_is_an_input_error(linear):
    with pytest.raises(InputError, match=r"expected shape \(batch, 3\), got \(1, 4\)"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.zeros((1, 4), np.float32))


def test_a_denoiser_has_bands_and_no_labels(one_node):
    model = one_node("Conv", (1, 6, 6), {"w": np.full((1, 1, 3, 3), 0.1, np.float32)}, pads=[1, 1, 1, 1])
    certified = CertifiedSession(model.SerializeToString())
    assert not certified.classes
    with pytest.raises(Refused, match="LIP019") as refusal:
        certified.predict(np.zeros((1, 1, 6, 6), np.float32))
    assert "output_band" in refusal.value.hint
    assert certified.output_band(0.0) == 0.0
    assert Fraction(certified.output_band(0.1)) >= Fraction(certified.lipschitz_bound) * Fraction(0.1)
    with pytest.raises(InputError):
        certified.output_band(-1.0)
    assert certified.run(None, {"x": np.zeros((1, 1, 6, 6), np.float32)})[0].shape == (1, 1, 6, 6)


# What runs is what was verified.


def test_the_bytes_are_read_once(linear, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear([[1, 0, 0], [0, 1, 0]]))
    read = session.read_certified

    def read_and_replace(model):
        source = read(model)
        path.write_bytes(linear([[0, 1, 0], [1, 0, 0]]))
        return source

    monkeypatch.setattr(session, "read_certified", read_and_replace)
    assert CertifiedSession(path).predict(np.float32([[1, 0, 0]])).label.tolist() == [0]


def test_external_data_is_handed_over_as_bytes(parse, tmp_path):
    model = parse(LINEAR.format(classes=2), w=np.float32([[1, 0, 0], [0, 1, 0]]), b=np.float32([0, 0]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    certified = CertifiedSession(path)
    (tmp_path / "model.data").unlink()
    assert certified.predict(np.float32([[1, 0, 0]])).label.tolist() == [0]
    assert certified.certificate["model"]["external"].keys() == {"model.data"}


def test_an_edited_certificate_beside_the_model_is_an_integrity_error(linear, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear([[1, 0, 0], [0, 1, 0]]))
    first = CertifiedSession(path)
    first.verdict.write_certificate(tmp_path / "model.cert.json")
    CertifiedSession(path)
    document = json.loads((tmp_path / "model.cert.json").read_text())
    document["statement"]["lipschitz_bound"] = "0.5"
    (tmp_path / "model.cert.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError):
        CertifiedSession(path)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_an_optimised_graph_is_refused(parse, monkeypatch, level):
    model = parse(
        """g (float[N,1,6,6] x) => (float[N,2] y) {
            h = Conv(x, k)
            s = Mul(h, c)
            f = Flatten(s)
            y = Gemm(f, w)
        }""",
        k=normal(2, 1, 3, 3), c=normal(2, 1, 1), w=normal(32, 2),
    )  # fmt: skip
    original = engine.Engine._options

    def optimised(self, asked, dump):
        options = original(self, asked, dump)
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        return options

    CertifiedSession(model.SerializeToString())
    monkeypatch.setattr(engine.Engine, "_options", optimised)
    with pytest.raises(IntegrityError):
        CertifiedSession(model.SerializeToString())


def test_cuda_without_a_gpu_is_an_integrity_error(linear):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(IntegrityError, match="CUDAExecutionProvider"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]), providers=["CUDAExecutionProvider"])


def test_convolutions_on_cuda_have_no_float32_guarantee(network, monkeypatch):
    monkeypatch.setattr(CertifiedSession, "providers", property(lambda self: ("CUDAExecutionProvider",)))
    CertifiedSession(network)
    with pytest.raises(Refused, match=r"LIP018.*convolution algorithms"):
        CertifiedSession(network, certify="f32")


def test_a_tampered_library_is_an_integrity_error(linear, tmp_path, monkeypatch):
    library = find_library()
    data = Path(library.path).read_bytes() if library else b"\x7fELF"
    tampered = tmp_path / "liblipdeploy_ops.so"
    tampered.write_bytes(data[: len(data) // 2])
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tampered))
    with pytest.raises(IntegrityError, match="operator library"):
        CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]))


def test_kernels_that_disagree_with_the_bodies_are_refused(network, monkeypatch):
    if find_library() is None:
        pytest.skip("the operator library is not built (make build)")
    CertifiedSession(network)

    def lying(model, types):
        attach_functions(model, types)
        for function in model.functions:
            del function.node[:]
            function.node.append(onnx.helper.make_node("Neg", ["X"], ["Y"]))

    monkeypatch.setattr(selftest, "attach_functions", lying)
    with pytest.raises(IntegrityError, match=r"the kernel in .* and the function body disagree"):
        CertifiedSession(network)


def test_with_and_without_the_library_the_answers_are_the_same(network, monkeypatch):
    x = 3 * normal(20, 1, 8, 8)
    first = CertifiedSession(network, threads=1).predict(x)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    bare = CertifiedSession(network, threads=1)
    assert bare.library is None
    _same_answers(bare.predict(x), first)


def _same_answers(one, other):
    """Two float64 programs of one network: sums in another order, the same labels."""
    assert np.array_equal(one.label, other.label)
    assert np.abs(one.logits - other.logits).max() <= 1e-14 * np.abs(other.logits).max()


def test_a_file_without_function_bodies_runs_without_the_library_too(network, monkeypatch):
    bare = onnx.ModelProto.FromString(network)
    del bare.functions[:]
    x = normal(4, 1, 8, 8)
    with_bodies = CertifiedSession(network, threads=1).predict(x)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    without = CertifiedSession(bare.SerializeToString(), threads=1)
    _same_answers(without.predict(x), with_bodies)
    assert without.run(None, {"x": x})[0].shape == (4, 5)


def wrong_bias(honest, dims):
    """``double_model`` with half too much in its biases of these dimensions."""

    def wrong(*given):
        program = honest(*given)
        for tensor in program.graph.initializer:
            if tensor.dims == dims:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.5, tensor.name))
        return program

    return wrong


@pytest.mark.parametrize("certify", MODES)
def test_a_wrong_float64_program_is_noticed(network, monkeypatch, certify):
    """Also where float32 answers: the two are held against each other, and nobody knows which is wrong."""
    monkeypatch.setattr(session, "double_model", wrong_bias(session.double_model, [5]))
    with pytest.raises(IntegrityError, match="on a probe the stored and the float64 program differ by"):
        CertifiedSession(network, certify=certify)


def test_a_program_that_mixes_rows_is_noticed(network, monkeypatch):
    honest = session.double_model

    def wrong(*given):
        program = honest(*given)
        output = program.graph.output[0].name
        last = next(node for node in program.graph.node if output in node.output)
        last.output[list(last.output).index(output)] = "alone"
        axes = numpy_helper.from_array(np.array([0]), "first")
        program.graph.initializer.append(axes)
        mean = helper.make_node("ReduceMean", ["alone", "first"], ["mean"])
        program.graph.node.extend([mean, helper.make_node("Add", ["alone", "mean"], [output])])
        return program

    monkeypatch.setattr(session, "double_model", wrong)
    with pytest.raises(IntegrityError, match="on a probe rows alone and together in the float64 program differ by"):
        CertifiedSession(network)


def test_a_wrong_program_beside_unspecified_rounding_is_noticed(monkeypatch):
    """How Tanh rounds in float32 nobody says; half more than the network's range is not rounding."""
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32) / 4, "w")
    bias = numpy_helper.from_array(np.zeros(2, np.float32), "b")
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, bias])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    assert CertifiedSession(file).verdict.numeric_error.get("f32") is None
    monkeypatch.setattr(session, "double_model", wrong_bias(session.double_model, [2]))
    with pytest.raises(IntegrityError, match="more than rounding explains"):
        CertifiedSession(file)


def test_flushing_subnormals_to_zero_is_noticed(linear):
    certified = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with pytest.raises(IntegrityError, match="not IEEE-754"):
            certified.predict(np.float32([[1, 0, 0]]))
        with pytest.raises(IntegrityError, match="not IEEE-754"):
            CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]))
    finally:
        torch.set_flush_denormal(False)
    certified.predict(np.float32([[1, 0, 0]]))


# Being used.


def test_it_drops_in_for_an_inference_session(network):
    x = normal(3, 1, 8, 8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    certified = CertifiedSession(network)
    name = certified.get_inputs()[0].name
    assert name == plain.get_inputs()[0].name
    assert certified.get_outputs()[0].shape == plain.get_outputs()[0].shape
    assert np.allclose(certified.run(None, {name: x})[0], plain.run(None, {name: x})[0], atol=1e-5)
    assert certified.get_providers() == ["CPUExecutionProvider"]


def test_eight_threads_get_the_same_answers(network):
    certified = CertifiedSession(network, threads=1)
    batches = [normal(rows, 1, 8, 8) for rows in (1, 2, 3, 5)]
    alone = [certified.predict(x) for x in batches]

    def ask(index):
        return index, certified.predict(batches[index % len(batches)])

    with ThreadPoolExecutor(8) as pool:
        for index, answer in pool.map(ask, range(400)):
            expected = alone[index % len(batches)]
            assert np.array_equal(answer.logits, expected.logits)
            assert np.array_equal(answer.radius, expected.radius)


@pytest.mark.parametrize("mode", MODES)
def test_no_rows_is_no_problem(network, mode):
    found = CertifiedSession(network, certify=mode).predict(np.zeros((0, 1, 8, 8), np.float32))
    assert len(found) == 0
    assert found.logits.shape == (0, 5)
    assert found.label_or_abstain.shape == (0,)


def test_large_batches_are_split(network, monkeypatch):
    x = normal(23, 1, 8, 8)
    whole = CertifiedSession(network, threads=1).predict(x)
    monkeypatch.setattr(session, "BYTES_PER_RUN", 5000)
    split = CertifiedSession(network, threads=1)
    assert 1 <= split._rows_per_run < 23
    assert np.array_equal(split.predict(x).label, whole.label)


def test_a_static_batch_is_served_as_it_is(parse):
    model = parse("g (float[2,3] x) => (float[2,2] y) { y = Gemm(x, w) }", w=normal(3, 2))
    certified = CertifiedSession(model.SerializeToString())
    assert len(certified.predict(normal(2, 3))) == 2
    with pytest.raises(InputError, match=r"expected shape \(2, 3\)"):
        certified.predict(normal(1, 3))


def test_bytes_in_pixels_out(parse):
    model = parse(
        """g (uint8[N,4] x) => (float[N,2] y) {
            f = Cast<to=1>(x)
            s = Div(f, d)
            y = Gemm(s, w)
        }""",
        d=np.float32(255), w=np.float32([[1, 0], [0, 1], [0, 0], [0, 0]]),
    )  # fmt: skip
    found = CertifiedSession(model.SerializeToString()).predict(np.uint8([[255, 0, 9, 9]]))
    assert found.radius[0] == pytest.approx(255 / np.sqrt(2), rel=1e-6)  # in units of the bytes


def test_two_inputs_are_one_vector(parse):
    model = parse(
        "g (float[N,2] a, float[N,1] b) => (float[N,2] y) { c = Concat<axis=1>(a, b)\n y = Gemm(c, w) }",
        w=np.float32([[1, 0], [0, 0], [0, 1]]),
    )
    certified = CertifiedSession(model.SerializeToString())
    found = certified.predict({"a": np.float32([[3, 4]]), "b": np.float32([[1]])})
    assert found.input_size == 3
    assert found.radius[0] <= 2 / np.sqrt(2)
    assert found.radius[0] > 0.5


def test_one_of_several_outputs(parse):
    model = parse(
        "g (float[N,3] x) => (float[N,2] y, float[N,3] z) { y = Gemm(x, w)\n z = Relu(x) }", w=normal(3, 2)
    ).SerializeToString()
    with pytest.raises(Refused, match="LIP016"):
        CertifiedSession(model)
    certified = CertifiedSession(model, output_name="y")
    assert certified.predict(normal(2, 3)).logits.shape == (2, 2)
    assert len(certified.run(None, {"x": normal(2, 3)})) == 2


def test_functions_of_others_and_nodes_nobody_needs(parse):
    model = parse(
        "g (float[N,3] x) => (float[N,2] y) { h = Relu(x)\n y = Gemm(h, w)\n d = Neg(h)\n e = Mul(d, d) }",
        w=normal(3, 2),
    )
    inner = [onnx.helper.make_node("Shift", ["a"], ["b"], domain="mine")]
    shift = [
        onnx.helper.make_node("Constant", [], ["c"], value_float=0.5),
        onnx.helper.make_node("Add", ["p", "c"], ["q"]),
    ]
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mine", 1)]
    model.functions.append(onnx.helper.make_function("mine", "Outer", ["a"], ["b"], inner, opsets))
    model.functions.append(onnx.helper.make_function("mine", "Shift", ["p"], ["q"], shift, opsets[:1]))
    model.opset_import.append(opsets[1])
    model.graph.node[0].op_type, model.graph.node[0].domain = "Outer", "mine"
    x, weight = normal(4, 3), numpy_helper.to_array(model.graph.initializer[0]).astype(float)
    for mode in MODES:
        found = CertifiedSession(model.SerializeToString(), certify=mode).predict(x)
        assert np.allclose(found.logits, (x + 0.5) @ weight, atol=1e-5)


def test_the_session_tells_what_it_stands_on(linear):
    certified = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]), norm="linf")
    assert certified.norm == certified.certificate["statement"]["norm"] == "linf"
    assert certified.verdict.status == "verified"
    assert certified.providers == ("CPUExecutionProvider",)
    assert certified.certificate["verifier"]["version"] == version()
    assert len(certified.certificate_sha256) == 64
    assert certified.predict(np.float32([[1, 0, 0]])).certificate_sha256 == certified.certificate_sha256


def test_the_digest_is_that_of_the_written_certificate(linear, tmp_path):
    import hashlib

    certified = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]))
    certified.verdict.write_certificate(tmp_path / "model.cert.json")
    assert hashlib.sha256((tmp_path / "model.cert.json").read_bytes()).hexdigest() == certified.certificate_sha256


def test_predictions_are_values(linear):
    found = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]])).predict(np.float32([[1, 0, 0]]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.label = None
    assert (found.label.dtype, found.radius.dtype, found.certified.dtype) == (np.int64, np.float64, np.bool_)


def test_an_initialiser_that_callers_could_override_is_not_theirs_to_set(parse):
    model = parse("g (float[N,2] x, float[2,2] w) => (float[N,2] y) { y = Gemm(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"))
    try:
        certified = CertifiedSession(model.SerializeToString())
    except Refused:
        return
    assert [spec.name for spec in certified.inputs] == ["x"]


def test_a_bound_that_swallows_every_margin_is_no_guarantee(parse):
    """Two rows a millionth apart: the float32 error of each is larger than what can ever lie between them."""
    row = (1e6 * normal(6)).astype(np.float32)
    apart = row.copy()
    apart[0] = np.nextafter(apart[0], np.float32(1e9))
    model = parse("g (float[N,6] x) => (float[N,2] y) { y = Gemm<transB=1>(x, w) }", w=np.stack([row, apart]))
    data = model.SerializeToString()
    with pytest.raises(Refused, match=r"LIP018.*larger than any margin"):
        CertifiedSession(data, certify="f32")
    adaptive = CertifiedSession(data, certify="adaptive").predict(normal(4, 6))
    assert set(adaptive.program) == {"f64"}, "float32 is not even asked"
    assert (adaptive.radius > 0).any()


@pytest.mark.parametrize("mode", MODES)
def test_open_sizes_are_named_as_the_reason(parse, mode):
    graph = "g (float[N,2,H,W] x) => (float[N,2] y) { h = GlobalMaxPool(x)\n y = Flatten(h) }"
    with pytest.raises(Refused, match=r"LIP018 the sizes of the input are open") as refusal:
        CertifiedSession(parse(graph).SerializeToString(), certify=mode)
    assert "fixed sizes" in refusal.value.hint


def test_idle_threads_may_sleep(linear):
    for spinning, value in ((True, "1"), (False, "0")):
        session = CertifiedSession(linear([[1, 0, 0], [0, 1, 0]]), threads=2, spinning=spinning)
        options = session._stored.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == value
        assert session.predict(np.float32([[1, 0, 0]])).label.tolist() == [0]
