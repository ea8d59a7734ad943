"""Hostile files are answered by a refusal, in seconds and megabytes, never by a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.errors import InputError
from lipdeploy.ops import attach_functions
from lipdeploy.verify import read_source, verify
from lipdeploy.verify.digest import semantic_sha256
from tests.verify import hostile
from tests.verify.models import bound, judge, model, session
from tests.verify.test_source import external, write

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 20.0, 700.0
#: Large, or odd, but true: these have a bound.
PROVEN = {
    "maximum with a broadcast constant", "gather at the end", "twenty thousand names", "two thousand nodes",
    "sum of everything",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """One child process with a cap on its memory judges all of them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.verify.hostile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {entry["name"]: entry for entry in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", hostile.CASES)
def test_each_is_refused_in_time(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    outcome = outcomes[name]
    assert outcome["outcome"].startswith("bound" if name in PROVEN else ("LIP", "exit 2", "exit 3")), outcome
    assert outcome["seconds"] < SECONDS, outcome
    assert outcome["megabytes"] < MEGABYTES, outcome


def test_limits_do_not_reach_ordinary_networks() -> None:
    """A fraction below each limit is judged."""
    assert bound(hostile.single("Relu", (2**28,))) == 1.0
    assert bound(hostile.calling(6, 2)) == 1.0
    assert bound(hostile.calling(60, 1)) == 1.0


def test_a_broadcast_constant_is_counted_not_written_out() -> None:
    """x + c with c copied along an axis: the numeric error's constant part is that of the whole tensor."""
    column = np.arange(1, 4, dtype=np.float32).reshape(3, 1)
    copied = judge(hostile.single("Add", (3, 5), column)).numeric_error["f32"]
    written = judge(hostile.single("Add", (3, 5), np.repeat(column, 5, axis=1))).numeric_error["f32"]
    assert copied is not None and written is not None
    assert copied.c0 == pytest.approx(written.c0, rel=1e-12) and copied.c0 > 0


SLICES = [(-100, -(2**63) + 1, -1), (-2, -100, -1), (5, 0, -2), (-1, -100, -1), (0, -100, -1), (1, 100, 2), (-3, -1, 1)]


@pytest.mark.parametrize(("start", "end", "step"), SLICES)
def test_slices_of_constants_mean_what_the_runtime_means(start: int, end: int, step: int) -> None:
    """Going backwards from before the first entry ONNX takes that entry; Python would take nothing.

    The slice is a list of indices here, so an entry more or less is another constant of the network.
    """
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["i", "s", "e", "a", "t"], ["part"]),
            helper.make_node("Concat", ["i0", "part"], ["index"], axis=0),
            helper.make_node("Gather", ["x", "index"], ["y"], axis=1),
        ],
        "g",
        [hostile.value("x", ["N", 2])],
        [hostile.value("y", ["N", "K"])],
        [
            numpy_helper.from_array(array, name)
            for name, array in (
                ("i", np.array([0, 1, 0])), ("i0", np.array([0])), ("s", np.array([start])), ("e", np.array([end])),
                ("a", np.array([0])), ("t", np.array([step])),
            )
        ],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    columns = [session(proto).run(None, {"x": row.reshape(1, 2)})[0][0] for row in np.eye(2, dtype=np.float32)]
    truth = float(np.linalg.norm(np.stack(columns, axis=1).astype(np.float64), 2))
    assert truth * (1 - 1e-12) <= bound(proto) <= truth * (1 + 1e-9)


def test_an_axis_of_a_constant_that_is_sliced_twice() -> None:
    graph = """g (float[N, 3] x) => (float[N, K] y)
      <int64[2] i = {0, 1}, int64[2] s = {0, 1}, int64[2] e = {1, 2}, int64[2] a = {0, -1}>
      { p = Slice(i, s, e, a) y = Gather<axis = 1>(x, p) }"""
    assert judge(graph).status == "refused"


def test_versions_that_are_no_versions() -> None:
    """An unused import of version 2⁴⁰ does not stop the digest."""
    for version in (2**40, -(2**40), 0):
        proto = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", imports={"odd": 1})
        proto.opset_import[1].version = version
        assert verify(proto.SerializeToString()).status == "verified"


def test_the_digest_takes_tensors_that_point_elsewhere() -> None:
    assert semantic_sha256(external("weights.bin")) != semantic_sha256(external("other.bin"))


@pytest.mark.parametrize("length", [1, 10, 100, 1000])
def test_bombs_of_repeated_fields(length: int) -> None:
    """Protobuf joins repeated occurrences of one field; the reader must not be slower than the bytes are many."""
    data = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }").SerializeToString()
    again = data * length
    if length == 1:
        assert verify(again).status == "verified"
        return
    assert verify(again).status == "refused"  # the graphs are merged: everything is defined twice


@pytest.mark.parametrize("depth", [50, 99, 200, 5000])
def test_deeply_nested_messages(depth: int) -> None:
    """Graphs in attributes of nodes in graphs: protobuf's own limit of depth, or a refusal."""
    data = b""
    for _ in range(depth):
        attribute = b"\x32" + varint(len(data)) + data  # AttributeProto.g
        node = b"\x2a" + varint(len(attribute)) + attribute  # NodeProto.attribute
        data = b"\x0a" + varint(len(node)) + node  # GraphProto.node
    whole = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }").SerializeToString()
    whole += b"\x3a" + varint(len(data)) + data  # ModelProto.graph
    try:
        assert verify(whole).status == "refused"
    except InputError:
        assert depth > 30


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_external_data_that_is_not_there_costs_nothing(tmp_path: Path) -> None:
    """A stated length of terabytes is compared with the file, not allocated."""
    (tmp_path / "weights.bin").write_bytes(b"12345678")
    verdict = verify(write(tmp_path, external("weights.bin", offset="0", length="9" * 18)))
    assert [refusal.code for refusal in verdict.refusals] == ["LIP012"]


def test_external_data_in_a_file_of_holes(tmp_path: Path) -> None:
    """A sparse file of a terabyte is above the budget, and refused before it is read."""
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(2**40)
    verdict = verify(write(tmp_path, external("weights.bin", offset="0", length="8")))
    assert [refusal.code for refusal in verdict.refusals] == ["LIP012"]


def test_a_model_of_holes(tmp_path: Path) -> None:
    with open(tmp_path / "model.onnx", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(InputError, match="larger than"):
        read_source(tmp_path / "model.onnx")


def test_every_truncation_of_a_valid_file() -> None:
    proto = model(
        "g (float[N, 2] x) => (float[N, 2] y) { y = lipdeploy.GroupSort<group_size = 2>(x) }", imports={"lipdeploy": 1}
    )
    attach_functions(proto, {onnx.TensorProto.FLOAT})
    data = proto.SerializeToString()
    for length in range(len(data)):
        try:
            verdict = verify(data[:length])
        except InputError:
            continue
        assert verdict.status == "refused" or onnx.ModelProto.FromString(data[:length]).graph.node
