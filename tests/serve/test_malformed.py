"""Requests that are wrong, one way each: always 4xx with ``{"error"}``, and the server answers the next one."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import Client, Serve, binary_request, json_request

INFER = "/v2/models/net/infer"
GOOD = json_request([[1.0, 2.0, 3.0, 4.0]])


def edited(change: Callable[[Any], Any]) -> bytes:
    """The good request after ``change``."""
    request = copy.deepcopy(GOOD)
    result = change(request)
    return json.dumps(request if result is None else result).encode()


def tensor(**changes: Any) -> bytes:
    """The good request with other members in its input; ``...`` removes one."""

    def change(request: Any) -> None:
        for name, value in changes.items():
            if value is ...:
                del request["inputs"][0][name]
            else:
                request["inputs"][0][name] = value

    return edited(change)


def top(**changes: Any) -> bytes:
    """The good request with other members at the top."""
    return edited(lambda request: {**request, **changes})


def parameter(name: str, value: Any) -> bytes:
    """The good request with one parameter."""
    return top(parameters={name: value})


def output(**content: Any) -> bytes:
    """The good request with one wanted output."""
    return top(outputs=[content])


JSON_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "not json": b"hello",
    "half a document": json.dumps(GOOD).encode()[:-5],
    "two documents": json.dumps(GOOD).encode() * 2,
    "not utf-8": b'{"inputs": "\xff\xfe"}',
    "half a surrogate pair": b'{"id": "\\ud800", "inputs": []}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "NaN literal": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,NaN]}]}',
    "Infinity literal": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,Infinity]}]}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 15_000,
    "no inputs": top(inputs=None),
    "empty inputs": top(inputs=[]),
    "inputs is an object": top(inputs={"x": 1}),
    "an input is a number": top(inputs=[1]),
    "too many inputs": top(inputs=GOOD["inputs"] * 100),
    "an input twice": top(inputs=GOOD["inputs"] * 2),
    "id is a number": top(id=7),
    "id too long": top(id="x" * 5000),
    "no name": tensor(name=...),
    "name is a number": tensor(name=1),
    "name is empty": tensor(name=""),
    "unknown input": tensor(name="other"),
    "no datatype": tensor(datatype=...),
    "unknown datatype": tensor(datatype="FP13"),
    "datatype in lower case": tensor(datatype="fp32"),
    "datatype is a list": tensor(datatype=["FP32"]),
    "wrong datatype": tensor(datatype="FP64"),
    "bytes": tensor(datatype="BYTES", data=["a", "b", "c", "d"]),
    "half precision in json": tensor(datatype="FP16"),
    "no shape": tensor(shape=...),
    "shape is a number": tensor(shape=4),
    "shape of floats": tensor(shape=[1.0, 4.0]),
    "shape of booleans": tensor(shape=[True, 4]),
    "negative shape": tensor(shape=[-1, -4]),
    "huge shape": tensor(shape=[2**62, 2**62]),
    "overflowing shape": tensor(shape=[2**40, 2**40, 2**40]),
    "long shape": tensor(shape=[1] * 100),
    "wrong shape": tensor(shape=[4, 1]),
    "wrong rank": tensor(shape=[4]),
    "no rows": tensor(shape=[0, 4], data=[]),
    "no data": tensor(data=...),
    "data is a string": tensor(data="1,2,3,4"),
    "data is an object": tensor(data={"0": 1}),
    "too little data": tensor(data=[1, 2, 3]),
    "too much data": tensor(data=[1, 2, 3, 4, 5]),
    "data of strings": tensor(data=["1", "2", "3", "4"]),
    "data of null": tensor(data=[1, 2, 3, None]),
    "data of booleans": tensor(data=[True, False, True, True]),
    "data nested unevenly": tensor(data=[[1, 2], [3]]),
    "data nested halfway": tensor(data=[[1, 2], 3, 4]),
    "data nested otherwise": tensor(data=[[1, 2], [3, 4]]),
    "data nested deeply": tensor(data=json.loads("[" * 40 + "1" + "]" * 40)),
    "a value beyond float32": tensor(data=[1e39, 2, 3, 4]),
    "a value beyond float64": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,1e999]}]}',
    "data and binary size": tensor(parameters={"binary_data_size": 16}),
    "binary size without a header": tensor(data=..., parameters={"binary_data_size": 16}),
    "shared memory": tensor(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
    "parameters is a list": top(parameters=[]),
    "parameter is an object": parameter("a", {}),
    "parameter is null": parameter("a", None),
    "epsilon is negative": parameter("lipdeploy_epsilon", -0.1),
    "epsilon is a word": parameter("lipdeploy_epsilon", "nan"),
    "epsilon is infinite": parameter("lipdeploy_epsilon", "inf"),
    "epsilon is a boolean": parameter("lipdeploy_epsilon", True),
    "epsilon divides by zero": parameter("lipdeploy_epsilon", "1/0"),
    "epsilon divides by many zeros": parameter("lipdeploy_epsilon", "1/000"),
    "epsilon with an exponent that fills memory": parameter("lipdeploy_epsilon", "1e999999999"),
    "epsilon beyond float64": parameter("lipdeploy_epsilon", "1e400"),
    "unknown guarantee": parameter("lipdeploy_min_radius", 1),
    "pin is no digest": parameter("lipdeploy_require_certificate", "abc"),
    "pin is a number": parameter("lipdeploy_require_certificate", 5),
    "timeout is negative": parameter("timeout", -1),
    "timeout is a string": parameter("timeout", "1s"),
    "binary_data_output is a string": parameter("binary_data_output", "yes"),
    "a sequence": parameter("sequence_id", 5),
    "outputs is an object": top(outputs={}),
    "an output without a name": output(parameters={}),
    "unknown output": output(name="softmax"),
    "an output twice": top(outputs=[{"name": "label"}, {"name": "label"}]),
    "classification": output(name="logits", parameters={"classification": 3}),
    "output in shared memory": output(name="label", parameters={"shared_memory_region": "r"}),
    "binary_data is a number": output(name="label", parameters={"binary_data": 1}),
    "too many outputs": top(outputs=[{"name": f"o{i}"} for i in range(65)]),
}


@pytest.fixture(autouse=True)
def still_healthy(net: Client) -> Any:
    """Whatever came before, the next request is answered."""
    yield
    assert net.post(INFER, GOOD).status == 200
    assert net.get("/v2/health/ready").status == 200


@pytest.mark.parametrize("body", JSON_BODIES.values(), ids=JSON_BODIES.keys())
def test_json_bodies(net: Client, body: bytes) -> None:
    reply = net.post(INFER, body)
    assert (reply.status, bool(reply.error)) == (400, True)


def test_there_are_at_least_sixty() -> None:
    assert len(JSON_BODIES) >= 60


BODY, HEADERS = binary_request([[1.0, 2.0, 3.0, 4.0]])
LENGTH = int(HEADERS["inference_header_content_length"])
NAN = struct.pack("<4f", 1.0, 2.0, float("nan"), 4.0)


def head_with(size: Any, shape: Any = (1, 4), datatype: str = "FP32") -> bytes:
    """A JSON part that promises ``size`` bytes."""
    tensor = {"name": "x", "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor]}).encode()


BINARY_BODIES: dict[str, tuple[bytes, bytes]] = {
    "length is a word": (BODY, b"all"),
    "length is negative": (BODY, b"-1"),
    "length has a sign": (BODY, b"+" + str(LENGTH).encode()),
    "length is empty": (BODY, b""),
    "length is hexadecimal": (BODY, hex(LENGTH).encode()),
    "length has many digits": (BODY, b"9" * 400),
    "length beyond the body": (BODY, str(len(BODY) + 1).encode()),
    "length one too short": (BODY, str(LENGTH - 1).encode()),
    "length one too long": (BODY, str(LENGTH + 1).encode()),
    "length of everything": (BODY, str(len(BODY)).encode()),
    "a tensor cut off": (BODY[:-1], str(LENGTH).encode()),
    "a tensor missing": (BODY[:LENGTH], str(LENGTH).encode()),
    "a byte too many": (BODY + b"\0", str(LENGTH).encode()),
    "a raw row too short": (b"\0" * 15, b"0"),
    "a raw row too long": (b"\0" * 17, b"0"),
    "a raw row of nothing": (b"", b"0"),
    "NaN": (BODY[:LENGTH] + NAN, str(LENGTH).encode()),
    "infinity": (BODY[:LENGTH] + struct.pack("<4f", 1, 2, float("-inf"), 4), str(LENGTH).encode()),
    "NaN, raw": (NAN, b"0"),
    **{
        f"size {size!r}": (head_with(size) + b"\0" * 16, str(len(head_with(size))).encode())
        for size in (-16, 0, 15, 17, 16.0, "16", True, 2**63, 2**64, 10**30)
    },
    **{
        f"shape {shape}": (head_with(16, shape) + b"\0" * 16, str(len(head_with(16, shape))).encode())
        for shape in ((0, 4), (2, 4), (4, 1), (2**31, 2**31, 2**31), (2**40, 2**24))
    },
    "BF16 in place of FP32": (
        head_with(8, (1, 4), "BF16") + b"\0" * 8, str(len(head_with(8, (1, 4), "BF16"))).encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "length"), BINARY_BODIES.values(), ids=BINARY_BODIES.keys())
def test_binary_bodies(net: Client, body: bytes, length: bytes) -> None:
    reply = net.request("POST", INFER, body, [(b"inference-header-content-length", length)])
    assert (reply.status, bool(reply.error)) == (400, True)


PATHS = {
    "/": 404, "//": 404, "/v1": 404, "/v2/health": 404, "/v2/models": 404, "/v2/models/": 404, "/v2//models/net": 404,
    "/v2/models/other": 404, "/v2/models/net/": 404, "/v2/models/net/versions": 404, "/v2/models/net/versions/": 404,
    "/v2/models/net/versions/2": 404, "/v2/models/net/versions/01": 404, "/v2/models/net/versions/-1": 404,
    "/v2/models/net/versions/1/": 404, "/v2/models/net/versions/1/ready/": 404, "/v2/models/../net": 404,
    "/v2/models/net\0": 404, "/v2/models/" + "x" * 5000: 404, "/v2/models/net/explain": 404, "/V2": 404,
    "/v2/models/net/versions/" + "9" * 5000: 404, "/v2/models/\u2603": 404, "/v2/repository/models/net": 404,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status"), PATHS.items(), ids=[path[:30].encode("ascii", "replace") for path in PATHS]
)
def test_paths(net: Client, path: str, status: int) -> None:
    reply = net.get(path)
    assert (reply.status, bool(reply.error)) == (status, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", INFER), ("PUT", INFER), ("DELETE", "/v2/models/net"), ("POST", "/v2"), ("OPTIONS", INFER),
     ("GET", "/v2/repository/index"), ("GET", "/v2/repository/models/net/load"), ("BREW", "/v2"),
     ("POST", "/metrics")],
)  # fmt: skip
def test_methods(net: Client, method: str, path: str) -> None:
    reply = net.request(method, path)
    assert (reply.status, bool(reply.error)) == (405, True)
    assert reply.headers["allow"] in ("POST", "GET, HEAD")


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("stated", [True, False])
def test_a_body_that_is_too_long(net: Client, stated: bool, pieces: int) -> None:
    headers = [(b"content-length", b"200000")] if stated else []
    reply = net.request("POST", INFER, b" " * 200_000, headers, pieces)
    assert (reply.status, bool(reply.error)) == (413, True)


@pytest.mark.parametrize("length", [b"-1", b"abc", b"9" * 100])
def test_a_content_length_that_is_none(net: Client, length: bytes) -> None:
    assert net.request("POST", INFER, b"", [(b"content-length", length)]).status == 413


def test_a_compressed_body(net: Client) -> None:
    reply = net.request("POST", INFER, b"", [(b"content-encoding", b"gzip")])
    assert (reply.status, bool(reply.error)) == (415, True)


@pytest.mark.parametrize("name", [b"inference-header-content-length", b"content-length", b"authorization"])
def test_a_header_that_is_there_twice(net: Client, name: bytes) -> None:
    reply = net.request("POST", INFER, BODY, [(name, b"1"), (name, b"2")])
    assert (reply.status, "twice" in reply.error) == (400, True)


def test_more_rows_than_can_ever_wait(net: Client) -> None:
    body, headers = binary_request(np.zeros((300, 4)))
    reply = net.post(INFER, body, **headers)
    assert (reply.status, "300 rows" in reply.error) == (413, True)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"parameters": {"config": "{}"}}', b'{"parameters": []}'])
def test_load_takes_no_orders(net: Client, body: bytes) -> None:
    """Triton's load can bring a configuration and files along; here a request cannot say what is loaded."""
    reply = net.post("/v2/repository/models/net/load", body)
    assert (reply.status, bool(reply.error)) == (400, True)


def test_index_with_a_strange_filter(net: Client) -> None:
    assert net.post("/v2/repository/index", {"ready": "yes"}).status == 400


def test_refused_requests_are_counted_under_models_that_exist(serve: Serve) -> None:
    from tests.serve.conftest import CLASSIFIER

    client = serve({"net": CLASSIFIER})
    for path in ("/v2/models/net/infer", "/v2/models/invented/infer", "/v2/models/net/versions/77/infer"):
        client.post(path, b"junk")
        client.post(path, GOOD)
    text = client.get("/metrics").body.decode()
    assert 'lipdeploy_requests_total{model="net",version="",code="400"} 2' in text
    assert 'lipdeploy_requests_total{model="",version="",code="404"} 1' in text
    assert "invented" not in text
    assert "77" not in "".join(line for line in text.splitlines() if line.startswith("lipdeploy_requests"))
