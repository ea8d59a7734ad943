"""The liar stores weights in few bits, so that what is proven, what is stored and what runs are three networks.

Scales that are NaN, infinite, zero or negative; a product that overflows; a Cast through a narrower type on the way, or
one after a product that float32 had rounded already; infinities that a conversion to float16 left behind; weights so
small that a runtime might flush them; integers in a file outside the folder, or changed after the certificate; and a
runtime that fuses the integers into products of its own. Only what the file means exactly is proven, and that runs.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipdeploy import CertifiedSession
from lipdeploy.errors import IntegrityError
from lipdeploy.verify import verify
from tests.verify.models import bound, codes, judge, model, run

Array = np.ndarray[Any, Any]
INTEGERS = "g (float[N, 2] x) => (float[N, 2] y) { W = DequantizeLinear<axis = 0>(q, s) y = Gemm<transB = 1>(x, W) }"
Q = np.int8([[127, -3], [5, 90]])


def stored(text: str, **values: Any) -> onnx.ModelProto:
    proto = model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return proto


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number(scale: float) -> None:
    proto = stored(INTEGERS, q=Q, s=np.float32([0.5, scale]))
    assert not np.isfinite(run(proto, np.ones((1, 2), np.float32))).all()
    assert codes(proto) == ["LIP003"]


@pytest.mark.parametrize("scale", [0.0, -0.0, -0.5])
def test_a_scale_that_turns_or_deletes_a_channel(scale: float) -> None:
    """Runtimes disagree about these: some take the absolute value, some refuse, some divide by it."""
    assert codes(stored(INTEGERS, q=Q, s=np.float32([0.5, scale]))) == ["LIP013"]


@pytest.mark.parametrize("scale", [1e-45, 2e-40, 1.1754942e-38])
def test_a_subnormal_scale_is_taken_at_its_word(scale: float) -> None:
    """A runtime that flushed it to zero would run another network; ours does not."""
    proto = stored(INTEGERS, q=Q, s=np.float32([0.5, scale]))
    real = Q.astype(float) * np.float32([0.5, scale]).astype(float)[:, None]
    np.testing.assert_array_equal(run(proto, np.eye(2, dtype=np.float32)).T, real.astype(np.float32))
    assert bound(proto) >= np.linalg.norm(real, 2) * (1 - 1e-14)
    answer = CertifiedSession(proto.SerializeToString(), certify="f32").run(None, {"x": np.eye(2, dtype=np.float32)})
    np.testing.assert_array_equal(answer[0].T, real.astype(np.float32))


def test_only_subnormal_scales_are_still_proven() -> None:
    proto = stored(INTEGERS, q=Q, s=np.float32([1e-45, 1e-45]))
    smallest = Fraction(float(np.float32(1e-45)))
    assert Fraction(bound(proto)) >= 127 * smallest


def test_a_product_beyond_float32() -> None:
    proto = stored(INTEGERS, q=Q, s=np.float32([0.5, 1e37]))
    assert not np.isfinite(run(proto, np.ones((1, 2), np.float32))).all()
    assert codes(proto) == ["LIP013"]


THROUGH = "g (float[N, 1] x) => (float[N, 1] y) {{ A = Cast<to = {}>(W) V = Cast<to = 1>(A) y = MatMul(x, V) }}"


@pytest.mark.parametrize(
    ("first", "through", "kept"),
    [
        (np.float32([[0.1]]), TensorProto.FLOAT16, False),
        (np.float32([[0.1]]), TensorProto.BFLOAT16, False),
        (np.float32([[70000.0]]), TensorProto.FLOAT16, False),  # infinite on the way
        (np.float32([[1e-9]]), TensorProto.FLOAT16, False),  # zero on the way
        (np.float16([[0.1]]), TensorProto.BFLOAT16, False),
        (np.array([[3e38]], ml_dtypes.bfloat16), TensorProto.FLOAT16, False),
        (np.float64([[0.1]]), TensorProto.FLOAT16, False),
        (np.float32([[0.1]]), TensorProto.INT8, False),
        (np.float32([[0.25]]), TensorProto.FLOAT16, True),
        (np.float16([[0.1]]), TensorProto.DOUBLE, True),
    ],
)
def test_a_cast_through_another_type(first: Array, through: int, kept: bool) -> None:
    """The proof would be about 0.1, the program multiplies by 0.09997559."""
    proto = stored(THROUGH.format(through), W=first)
    if kept:
        assert bound(proto) == pytest.approx(float(first.astype(float)[0, 0]), rel=1e-12)
    else:
        assert codes(proto) == ["LIP017"]


@pytest.mark.parametrize("through", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_double_rounding(through: int) -> None:
    """127·0.1 is rounded to float32, then again; widened to float64 it is not the exact product either."""
    text = f"{{ W = DequantizeLinear(q, s) A = Cast<to = {through}>(W) V = Cast<to = 1>(A) y = MatMul(x, V) }}"
    proto = stored(f"g (float[N, 1] x) => (float[N, 1] y) {text}", q=np.int8([[127]]), s=np.float32(0.1))
    assert codes(proto) == ["LIP017"]


def test_an_infinity_that_a_conversion_left_behind() -> None:
    text = "g (float[N, 1] x) => (float[N, 1] y) { V = Cast<to = 1>(W) y = MatMul(x, V) }"
    with np.errstate(over="ignore"):
        overflown = np.float32([[70000.0]]).astype(np.float16)
    assert codes(stored(text, W=overflown)) == ["LIP003"]


def test_subnormal_numbers_of_float16_do_not_vanish() -> None:
    text = "g (float[N, 1] x) => (float[N, 1] y) { V = Cast<to = 1>(W) y = MatMul(x, V) }"
    proto = stored(text, W=np.float16([[2.0**-24]]))
    assert run(proto, np.ones((1, 1), np.float32)).item() == 2.0**-24
    assert 2.0**-24 <= bound(proto) <= 2.0**-24 * (1 + 1e-9)


def test_sizes_that_double_two_thousand_times_are_not_computed_with() -> None:
    """The progress of a proof counts weights behind constant nodes before anything refuses them."""
    steps = "".join(f" c{k + 1} = Concat<axis = 0>(c{k}, c{k})" for k in range(2000))
    proto = stored(f"g (float[N, 1] x) => (float[N, 1] y) {{{steps} y = Mul(x, c2000) }}", c0=np.float32([1]))
    assert codes(proto) == ["LIP024"]


def test_zero_points_count() -> None:
    """−128 with the zero point 127 is −255 steps, not −128."""
    text = "g (float[N, 1] x) => (float[N, 1] y) { W = DequantizeLinear(q, s, z) y = MatMul(x, W) }"
    proto = stored(text, q=np.int8([[-128]]), s=np.float32(1), z=np.int8(127))
    assert run(proto, np.ones((1, 1), np.float32)).item() == -255.0
    assert 255.0 <= bound(proto) <= 255.0 * (1 + 1e-9)


def _outside(folder: Path, location: str) -> Path:
    proto = stored(INTEGERS, q=Q, s=np.float32([0.5, 0.25]))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": "4"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_integers_in_another_file_are_read_once_and_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    Q.tofile(tmp_path / "q.bin")
    (refusal,) = verify(_outside(folder, "../q.bin")).refusals
    assert refusal.code == "LIP012"
    Q.tofile(folder / "q.bin")
    path = _outside(folder, "q.bin")
    verdict = verify(path)
    assert verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value == bound(stored(INTEGERS, q=Q, s=np.float32([0.5, 0.25])))
    verdict.write_certificate(folder / "model.cert.json")
    assert CertifiedSession(path).predict(np.float32([[1, 0]])).radius[0] > 0
    changed = Q.copy()
    changed[0, 1] = 100
    changed.tofile(folder / "q.bin")
    with pytest.raises(IntegrityError):
        CertifiedSession(path)


def test_a_scale_changed_after_the_proof(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = stored(INTEGERS, q=Q, s=np.float32([0.5, 0.25]))
    path.write_bytes(proto.SerializeToString())
    verify(path).write_certificate(tmp_path / "model.cert.json")
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32([0.5, 0.125]), "s"))
    path.write_bytes(proto.SerializeToString())
    assert verify(path).status == "integrity"
    certificate = json.loads((tmp_path / "model.cert.json").read_text())
    assert certificate["model"]["semantic_sha256"] != judge(proto).semantic_sha256


def test_the_runtime_makes_no_products_of_integers(tmp_path: Path) -> None:
    """Blocks of four bits in front of a MatMul are what ONNX Runtime would fuse into a kernel of its own."""
    rng = np.random.default_rng(0)
    q = rng.integers(-8, 8, (64, 32))
    proto = model(
        "g (float[N, 64] x) => (float[N, 32] y) "
        "{ W = DequantizeLinear<axis = 0, block_size = 32>(q, s) y = MatMul(x, W) }",
        opset=21,
    )
    scale = (rng.random((2, 32)) + 0.1).astype(np.float32)
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, q.shape, q.ravel().tolist()))
    proto.graph.initializer.append(numpy_helper.from_array(scale, "s"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert "MatMulNBits" in fused  # left to itself
    session = CertifiedSession(proto.SerializeToString(), certify="f32")
    real = (q.astype(np.int8) * np.repeat(scale, 32, axis=0)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": np.eye(64, dtype=np.float32)})[0], real)
