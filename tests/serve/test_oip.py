"""The parser alone: what comes out is what NumPy wrote, and nothing but 400 comes out of anything else."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy.serve import RequestProblem, oip

NAMES = [*oip.DTYPES, "BF16"]
NUMPY = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def body(tensors: list[tuple[str, str, list[int], bytes]], **more: Any) -> tuple[bytes, int]:
    """A request with binary tensors, written by hand."""
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, kind, shape, data in tensors
    ]
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + b"".join(data for *_, data in tensors), len(head)


@pytest.mark.parametrize("name", NAMES)
def test_every_datatype_in_binary(name: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "BF16" else np.dtype(NUMPY[name])
    values = np.arange(6).reshape(2, 3).astype(dtype)
    data, length = body([("before", "UINT8", [1], b"\7"), ("x", name, [2, 3], values.tobytes())])  # odd offsets
    parsed = oip.parse(data, length).tensors[1].values
    assert parsed is not None
    assert parsed.flags.aligned
    assert parsed.dtype == dtype
    assert np.array_equal(parsed, values)
    assert oip.datatype_of(dtype) == name


@pytest.mark.parametrize(
    ("name", "data"),
    [("BOOL", [True, False]), ("UINT8", [0, 255]), ("INT8", [-128, 127]), ("UINT64", [0, 2**64 - 1]),
     ("INT64", [-(2**63), 2**63 - 1]), ("FP32", [0.1, -3]), ("FP64", [1e300, 5e-324])],
)  # fmt: skip
def test_json_values(name: str, data: list[Any]) -> None:
    head = {"inputs": [{"name": "x", "datatype": name, "shape": [2], "data": data}]}
    values = oip.parse(json.dumps(head).encode()).tensors[0].values
    assert values is not None
    assert values.tolist() == np.array(data, NUMPY[name]).tolist()


@pytest.mark.parametrize(
    ("name", "data"),
    [("BOOL", [1, 0]), ("UINT8", [0, 256]), ("UINT8", [-1, 0]), ("INT8", [0, 128]), ("UINT64", [0, 2**64]),
     ("INT64", [0, 2**63]), ("INT64", [0, 1.0]), ("FP32", [0, 3.5e38]), ("FP64", [0, True]), ("BF16", [0, 1])],
)  # fmt: skip
def test_json_values_that_do_not_fit(name: str, data: list[Any]) -> None:
    head = {"inputs": [{"name": "x", "datatype": name, "shape": [2], "data": data}]}
    with pytest.raises(RequestProblem):
        oip.parse(json.dumps(head).encode())


def test_a_bool_is_a_byte_zero_or_one() -> None:
    """A bool that is neither would be undefined behaviour further down."""
    data, length = body([("x", "BOOL", [3], b"\0\1\2")])
    with pytest.raises(RequestProblem, match="byte 0 or 1"):
        oip.parse(data, length)


def test_tensors_follow_in_the_order_of_the_inputs() -> None:
    data, length = body([("b", "INT32", [1], struct.pack("<i", 7)), ("a", "FP64", [1], struct.pack("<d", 0.5))])
    first, second = oip.parse(data, length).tensors
    assert (first.name, second.name) == ("b", "a")
    assert first.values is not None and second.values is not None
    assert (first.values.tolist(), second.values.tolist()) == ([7], [0.5])


def test_json_and_binary_tensors_in_one_request() -> None:
    raw = {"name": "r", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}}
    plain = {"name": "p", "datatype": "INT16", "shape": [2], "data": [3, 4]}
    head = json.dumps({"inputs": [plain, raw]}).encode()
    tensors = oip.parse(head + struct.pack("<2h", 1, 2), len(head)).tensors
    assert [tensor.values.tolist() for tensor in tensors if tensor.values is not None] == [[3, 4], [1, 2]]


def test_a_remembered_head_is_not_a_remembered_tensor() -> None:
    for value in (1.0, 2.0):
        data, length = body([("x", "FP32", [1], struct.pack("<f", value))])
        values = oip.parse(data, length).tensors[0].values
        assert values is not None
        assert values.tolist() == [value]


@given(st.fractions(min_value=0, max_value=10**6))
def test_epsilon_is_never_read_too_small(exact: Fraction) -> None:
    for text in (f"{exact.numerator}/{exact.denominator}", f"{float(exact):.20f}"):
        if len(text) < 60 and exact.denominator < 10**20:
            found = Fraction(oip.epsilon(text))
            assert found >= Fraction(text)
            assert found <= Fraction(text) * (1 + Fraction(1, 2**52)) + Fraction(1, 2**1000)


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400)))
def test_noise_is_a_bad_request(data: bytes, length: int | None) -> None:
    try:
        request = oip.parse(data, length)
    except RequestProblem as problem:
        assert problem.status == 400
    else:
        assert length == 0 and request.raw is not None  # only a raw request is any bytes


DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
              st.sampled_from(["FP32", "x", "BOOL", "binary_data_size", "data"]), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["inputs", "name", "datatype", "shape", "data", "parameters", "outputs", "id",
                             "binary_data_size", "binary_data", "lipdeploy_epsilon", "timeout"]),
            inner, max_size=6,
        ),
    ),
    max_leaves=30,
)  # fmt: skip


@given(DOCUMENTS, st.binary(max_size=40), st.booleans())
def test_documents_that_are_almost_requests(document: Any, tail: bytes, binary: bool) -> None:
    head = json.dumps(document).encode()
    try:
        request = oip.parse(head + tail if binary else head, len(head) if binary else None)
    except RequestProblem as problem:
        assert problem.status == 400
        assert problem.message
    else:
        assert request.tensors
        _sound(request)


@given(st.data())
def test_a_changed_request_is_refused_or_sound(data: st.DataObject) -> None:
    """Flip, drop or insert bytes of a good binary request: what is accepted has exactly the bytes it says."""
    good, length = body([("x", "FP32", [2, 2], bytes(16)), ("f", "BOOL", [3], bytes(3))], id="a")
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["flip", "drop", "insert"]))
        if kind == "flip":
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "drop":
            del changed[at]
        else:
            changed.insert(at, data.draw(st.integers(0, 255)))
    try:
        request = oip.parse(bytes(changed), length + data.draw(st.integers(-2, 2)))
    except RequestProblem as problem:
        assert problem.status == 400
    else:
        _sound(request)


def _sound(request: oip.InferenceRequest) -> None:
    names = [tensor.name for tensor in request.tensors]
    assert len(set(names)) == len(names)
    for tensor in request.tensors:
        assert tensor.values is not None
        assert tensor.values.shape == tensor.shape
        assert oip.datatype_of(tensor.values.dtype) == tensor.datatype


@pytest.mark.parametrize("binary", [(True, True, True), (False, False, False), (True, False, True)])
def test_answers_read_back(binary: tuple[bool, ...]) -> None:
    values = {
        "a": ("FP32", np.array([0.1, 16777217.0, 1e-45], np.float32)),
        "b": ("INT64", np.array([[1], [-(2**63)]])),
        "c": ("BOOL", np.array([True, False])),
    }
    outputs = [(name, kind, array) for name, (kind, array) in values.items()]
    answer = oip.Answer(b'{"model_name":"m"', b'{"p":"q"}', "i\u2603d", outputs)
    data, length = oip.encode(answer, binary)
    head = json.loads(data if length is None else data[:length])
    at = length or 0
    assert (head["id"], head["parameters"]) == ("i\u2603d", {"p": "q"})
    for entry, raw in zip(head["outputs"], binary, strict=True):
        kind, array = values[entry["name"]]
        if raw:
            size = entry["parameters"]["binary_data_size"]
            found, at = np.frombuffer(data[at : at + size], NUMPY[kind]), at + size
        else:
            found = np.array([Fraction(x) if kind == "FP32" else x for x in entry["data"]])
            array = np.array([Fraction(float(x)) for x in array]) if kind == "FP32" else array
        assert entry["shape"] == list(values[entry["name"]][1].shape)
        assert np.array_equal(found.ravel(), array.ravel())  # exactly, digits of decimals included
    assert at == (len(data) if any(binary) else 0)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (("x", "INT8", [1, 2], [1.9, 0]), "INT8 data holds float"),
        (("x", "INT8", [1, 2], ["1", 0]), "INT8 data holds str"),
        (("x", "UINT8", [1, 2], [300, 0]), "does not fit into UINT8"),
        (("x", "UINT8", [1, 2], [-1, 0]), "does not fit into UINT8"),
        (("x", "UINT64", [1, 2], [2**64, 0]), "does not fit into UINT64"),
        (("x", "BOOL", [1, 2], [7, 0]), "BOOL data holds int"),
        (("x", "FP16", [1, 2], [1.0001, 0]), "not a float16 number"),
        (("x", "FP16", [1, 2], [1e6, 0]), "not a float16 number"),
        (("x", "FP32", [1, 2], [1e39, 0]), "does not fit into FP32"),
        (("x", "FP32", [1, 3], [1.0, 0.0]), "shape"),
        (("x", "BYTES", [1, 2], ["a", "b"]), "not offered"),
        (("x", "FP32", [1, 2], b"\0" * 8), "must be a list"),
    ],
)
def test_a_host_s_numbers_are_never_converted(tensor: tuple[str, str, list[int], Any], words: str) -> None:
    with pytest.raises(RequestProblem, match=words):
        oip.arrays_of([tensor])


def test_a_host_s_tensors() -> None:
    found = oip.arrays_of([("a", "INT8", [2, 1], [-128, 127]), ("b", "FP16", [1, 2], [[0.5, 65504]])])
    assert found["a"].dtype == np.int8
    assert found["a"].tolist() == [[-128], [127]]
    assert found["b"].dtype == np.float16
    assert found["b"].tolist() == [[0.5, 65504.0]]
    with pytest.raises(RequestProblem, match="twice"):
        oip.arrays_of([("a", "INT8", [1], [1]), ("a", "INT8", [1], [2])])


@pytest.mark.parametrize("name", ["lipdeploy_epsilon", "lipdeploy_require_certificate", "lipdeploy_anything"])
@pytest.mark.parametrize("place", ["input", "output", "object"])
def test_a_guarantee_asked_for_in_the_wrong_place_is_not_lost(name: str, place: str) -> None:
    tensor: dict[str, Any] = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}
    document: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": "label"}]}
    entry = {"input": tensor, "output": document["outputs"][0], "object": document}[place]
    if place == "object":
        entry[name] = 1
    else:
        entry["parameters"] = {name: 1}
    with pytest.raises(RequestProblem, match="belongs into the parameters of the request"):
        oip.parse(json.dumps(document).encode())
