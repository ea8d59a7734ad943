"""Change one byte of a certified file, or of its certificate, and nothing passes as verified.

The model's certificate lies beside it. Every position is changed at least once; the verdict may be "integrity" or
"refused", or there may be no model left to read (InputError). A crash is a failure too. The search that is guided by
coverage is ``make fuzz`` (tools/fuzz/verify.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lipdeploy.errors import InputError
from lipdeploy.ops import attach_functions
from lipdeploy.verify import verify
from tests.properties.graphs import grow
from tests.verify.models import lengths, model, session

PLAIN = """g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] W = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[4,
  2] V = {1, 0, 0, 1, 1, 1, 2, 2}>
{ h = MatMul(x, W) a = lipdeploy.GroupSort<group_size = 2>(h) y = MatMul(a, V) }"""  # fmt: skip


def certified(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    verdict = verify(path)
    assert verdict.status == "verified", verdict.refusals
    verdict.write_certificate(folder / "model.cert.json")
    assert verify(path).status == "verified"
    return path


def outcome(path: Path) -> str:
    try:
        return verify(path).status
    except InputError:
        return "no model"


@pytest.fixture(params=["plain", "with body", "random"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "random":
        return certified(tmp_path, grow(12, 5))
    proto = model(PLAIN, imports={"lipdeploy": 1})
    if request.param == "with body":
        attach_functions(proto, {TensorProto.FLOAT})
    return certified(tmp_path, proto)


def test_one_byte_of_the_model(path: Path) -> None:
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        flipped = data[position] ^ int(rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 255]))
        path.write_bytes(data[:position] + bytes([flipped]) + data[position + 1 :])
        assert outcome(path) in {"integrity", "refused", "no model"}, position
    path.write_bytes(data)
    assert outcome(path) == "verified"


def test_one_byte_more_or_less(path: Path) -> None:
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(data), 150).tolist():
        for changed in (
            data[:position] + data[position + 1 :],
            data[:position] + bytes([int(rng.integers(0, 256))]) + data[position:],
            data[:position],
        ):
            path.write_bytes(changed)
            assert changed == data or outcome(path) in {"integrity", "refused", "no model"}, position


def test_unknown_fields_are_other_bytes(path: Path) -> None:
    """protobuf keeps fields it does not know; the file's digest does not."""
    path.write_bytes(path.read_bytes() + b"\xf2\x7f\x02hi")
    assert outcome(path) in {"integrity", "no model"}


def test_one_byte_of_the_certificate(path: Path) -> None:
    """A mutated certificate is a contradiction, or says something weaker, or differs where nothing is claimed."""
    certificate = path.with_suffix(".cert.json")
    data = certificate.read_bytes()
    honest = json.loads(data)
    rng = np.random.default_rng(2)
    positions = rng.permutation(len(data))[:400].tolist()
    for position in positions:
        changed = data[:position] + bytes([data[position] ^ int(rng.choice([1, 2, 4, 8, 16]))]) + data[position + 1 :]
        certificate.write_bytes(changed)
        if outcome(path) == "verified":
            claims = json.loads(changed)
            assert weaker(claims["statement"], honest["statement"]), (position, changed[position - 20 : position + 20])
            assert claims["model"] == honest["model"]
            assert claims["schema"] == honest["schema"]


def weaker(claimed: object, honest: object) -> bool:
    """Whether every number of one statement is at least the other's, up to its 1e-9 head-room (x_max: at most)."""
    if isinstance(honest, dict) and isinstance(claimed, dict):
        return all(
            weaker(1 / claimed[key], 1 / value) if key == "x_max" and value else weaker(claimed[key], value)
            for key, value in honest.items()
        )
    if isinstance(honest, list) and isinstance(claimed, list):
        return all(map(weaker, claimed, honest))
    if isinstance(honest, str) and isinstance(claimed, str) and honest[:1].isdigit():
        read = float.fromhex if honest.startswith("0x") else float
        return read(claimed) >= read(honest) * (1 - 2e-9)
    if isinstance(honest, (int, float)) and isinstance(claimed, (int, float)):
        return claimed >= honest * (1 - 2e-9)
    return claimed == honest


@pytest.mark.parametrize("first", [100, 200, 300])
def test_what_a_mutated_file_means(first: int) -> None:
    """Without a certificate a mutated file is just another model: judged as the runtime runs it, or refused.

    ONNX Runtime's output shape must be the verifier's, and no sampled ratio may beat the bound.
    """
    rng = np.random.default_rng(first)
    compared = 0
    for number in range(first, first + 10):
        proto = grow(number, 4)
        attach_functions(proto, {TensorProto.FLOAT})
        data = proto.SerializeToString()
        for _ in range(60):
            changed = bytearray(data)
            changed[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
            compared += same_meaning(bytes(changed))
    assert compared > 30


def same_meaning(data: bytes) -> bool:
    """Whether the model is verified and runs; fails when verifier and runtime disagree."""
    try:
        verdict = verify(data)
    except InputError:
        return False
    if verdict.status != "verified" or verdict.inputs[0].shape[0] is not None or None in verdict.inputs[0].shape[1:]:
        return False  # sizes that the mutation opened have tests of their own
    proto = onnx.ModelProto.FromString(data)
    shape = verdict.inputs[0].shape[1:]
    assert verdict.lipschitz_bound is not None and verdict.output is not None
    try:
        runner = session(proto)
        name = proto.graph.input[0].name
        outputs = runner.run([verdict.output.name], {name: np.zeros((2, *shape), np.float32)})[0].shape
    except Exception as error:  # what the runtime cannot run needs no bound
        assert "onnxruntime" in type(error).__module__ or isinstance(error, ValueError), error
        return False
    assert outputs == (2, *verdict.output.shape[1:]), proto.graph.node
    error = verdict.numeric_error["f32"]
    if error is None or error.c0 + error.c1 * 100 > 0.1:
        return True  # float32 itself would be off by more than what could be seen
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 64, *shape)).astype(np.float32)
    moved = [runner.run(None, {name: point})[0].astype(np.float64) for point in (x, z)]
    distance, change = lengths(z.astype(np.float64) - x, "l2"), lengths(moved[1] - moved[0], "l2")
    slack = 2 * (error.c0 + error.c1 * 100) * float(np.sqrt(max(change.size, moved[0][0].size)))
    assert np.all(change <= verdict.lipschitz_bound.value * distance * (1.0 + 1e-12) + slack)
    return True
