"""The Open Inference Protocol over REST: every route, both forms of tensors, and answers that are the session's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.runtime import CertifiedSession
from tests.serve.conftest import (
    CLASSIFIER,
    DENOISER,
    FIXED_BATCH,
    Client,
    Serve,
    binary_request,
    json_request,
    write,
)

ROWS = np.array([[1.0, 0.5, -0.25, 2.0], [0.1, 0.2, 0.3, 0.4], [-3.0, 0.25, 1.0, -0.5]], np.float32)
INFER = "/v2/models/net/infer"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> CertifiedSession:
    """The same file, asked directly."""
    return CertifiedSession(write(tmp_path_factory.mktemp("direct") / "net.onnx", CLASSIFIER), threads=1)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(net: Client, path: str) -> None:
    metadata = net.get(path).json
    assert metadata["name"] == "lipdeploy"
    assert {"binary_tensor_data", "model_repository", "statistics", "lipdeploy_certificate"} <= set(
        metadata["extensions"]
    )


@pytest.mark.parametrize("path", ["/v2/health/live", "/healthz", "/v2/health/ready", "/v2/models/net/ready"])
def test_health(net: Client, path: str) -> None:
    assert net.get(path).status == 200
    assert net.request("HEAD", path).body == b""


@pytest.mark.parametrize("path", ["/v2/models/net", "/v2/models/net/versions/1"])
def test_model_metadata(net: Client, session: CertifiedSession, path: str) -> None:
    metadata = net.get(path).json
    assert metadata["name"] == "net"
    assert metadata["versions"] == ["1"]
    assert metadata["platform"] == "onnx_onnxv1"
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    outputs = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert outputs == {
        "label": ("INT64", [-1]),
        "radius": ("FP32", [-1]),
        "certified": ("BOOL", [-1]),
        "abstain": ("BOOL", [-1]),
        "margin": ("FP32", [-1]),
        "logits": ("FP64", [-1, 3]),
    }
    properties = metadata["properties"]
    assert all(isinstance(value, str) for value in properties.values())
    assert properties["lipdeploy_norm"] == "l2"
    assert properties["lipdeploy_guarantee"] == "deployed"
    assert properties["lipdeploy_certificate_sha256"] == session.certificate_sha256
    assert properties["lipdeploy_model_sha256"] == session.verdict.file_sha256
    assert float.fromhex(properties["lipdeploy_lipschitz_bound_hex"]) == session.lipschitz_bound


def test_the_stated_bound_is_never_below_the_proven_one(net: Client, session: CertifiedSession) -> None:
    stated = net.post(INFER, json_request(ROWS)).json["parameters"]["lipdeploy_lipschitz_bound"]
    assert Fraction(stated) >= Fraction(session.lipschitz_bound)
    assert Fraction(stated) <= Fraction(session.lipschitz_bound) * (1 + Fraction(1, 10**15))


def test_the_certificate_is_the_one_that_answers_name(net: Client) -> None:
    reply = net.get("/v2/models/net/certificate")
    digest = hashlib.sha256(reply.body).hexdigest()
    assert reply.json["schema"] == "lipdeploy/certificate/v1"
    assert reply.headers["etag"] == f'"{digest}"'
    assert net.post(INFER, json_request(ROWS)).json["parameters"]["lipdeploy_certificate_sha256"] == digest
    assert net.get("/v2/models/net/certificate", if_none_match=f'"{digest}"').status == 304


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("path", [INFER, "/v2/models/net/versions/1/infer"])
def test_json_answers_are_the_sessions(net: Client, session: CertifiedSession, path: str, nested: bool) -> None:
    request = json_request(ROWS, id="seven", outputs=[{"name": name} for name in ("logits", "label", "margin")])
    if not nested:
        request["inputs"][0]["data"] = ROWS.ravel().tolist()
    answer = net.post(path, request)
    expected = session.predict(ROWS)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json["model_name"], answer.json["model_version"], answer.json["id"]) == ("net", "1", "seven")
    assert [output["name"] for output in answer.json["outputs"]] == ["logits", "label", "margin"]
    tensors = answer.tensors()
    assert tensors["label"].tolist() == expected.label.tolist()
    assert tensors["logits"].tolist() == expected.logits.tolist()  # FP64: exactly


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_binary_answers_are_the_json_answers(net: Client, pieces: int) -> None:
    body, headers = binary_request(ROWS)
    pairs = [(b"inference-header-content-length", headers["inference_header_content_length"].encode())]
    binary = net.request("POST", INFER, body, pairs, pieces)
    plain = net.post(INFER, json_request(ROWS))
    assert binary.headers["content-type"] == "application/octet-stream"
    assert [output["name"] for output in binary.json["outputs"]] == ["label", "radius", "certified", "abstain"]
    for name, values in plain.tensors().items():
        assert np.array_equal(binary.tensors()[name], values)


def test_the_header_decides_not_the_content_type(net: Client) -> None:
    body, headers = binary_request(ROWS)
    assert net.post(INFER, body, **headers, content_type="application/json").status == 200
    assert net.post(INFER, json_request(ROWS), content_type="application/octet-stream").status == 200


def test_forms_may_be_mixed(net: Client) -> None:
    outputs = [
        {"name": "radius", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "certified", "parameters": {"binary_data": True}},
    ]
    mixed = net.post(INFER, json_request(ROWS, outputs=outputs))
    plain = net.post(INFER, json_request(ROWS)).tensors()
    assert ["data" in output for output in mixed.json["outputs"]] == [False, True, False]
    for name, values in mixed.tensors().items():
        assert np.array_equal(values, plain[name])


def test_a_raw_request_is_one_row(net: Client) -> None:
    raw = net.post(INFER, ROWS[0].tobytes(), inference_header_content_length="0")
    assert raw.tensors()["label"].tolist() == net.post(INFER, json_request(ROWS[:1])).tensors()["label"].tolist()
    assert "one row of 'x': 16 bytes" in net.post(INFER, b"12345", inference_header_content_length="0").error


def test_no_radius_grows_on_the_way(net: Client, session: CertifiedSession) -> None:
    """FP32 on the wire, and the decimal digits of its JSON form, both at most the float64 radius."""
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    exact = session.predict(rows).radius
    text = net.post(INFER, json_request(rows)).body
    for number, radius in zip(json.loads(text, parse_float=Fraction)["outputs"][1]["data"], exact, strict=True):
        assert Fraction(number) <= Fraction(float(radius))
        assert float(number) >= float(radius) * (1 - 2.0**-22) or float(radius) == 0.0
    body, headers = binary_request(rows)
    wire = net.post(INFER, body, **headers).tensors()["radius"]
    assert wire.dtype == np.float32
    assert (wire.astype(np.float64) <= exact).all()


def test_an_unbounded_radius_is_the_largest_finite_one(serve: Serve) -> None:
    constant = CLASSIFIER.replace("w = {0.5, -0.25, 0.125, 0.25, 0.5, -0.5, -0.75, 0.25, 0.5, 0.125, 0.75, -0.25}",
                                  "w = {" + ", ".join(["0.0"] * 12) + "}")  # fmt: skip
    answer = serve({"net": constant}).post(INFER, json_request(ROWS))
    assert answer.json["outputs"][1]["data"][0] <= float(np.finfo(np.float32).max)
    assert math.isfinite(answer.json["outputs"][1]["data"][0])


def test_abstention_is_an_answer(net: Client, session: CertifiedSession) -> None:
    radii = np.sort(session.predict(ROWS).radius)
    epsilon = float(radii[1])
    tensors = net.post(INFER, json_request(ROWS, parameters={"lipdeploy_epsilon": epsilon})).tensors()
    expected = session.predict(ROWS, epsilon=epsilon)
    assert tensors["certified"].tolist() == expected.certified.tolist()
    assert tensors["certified"].sum() == 2
    assert (tensors["abstain"] == ~tensors["certified"]).all()
    assert tensors["label"].tolist() == expected.label.tolist()


def test_epsilon_as_text_is_read_exactly_and_rounded_up(net: Client, session: CertifiedSession) -> None:
    radius = Fraction(float(session.predict(ROWS[:1]).radius[0]))
    above = f"{float(radius):.17g}"
    digits = radius.limit_denominator(10**18)
    for text in (above, f"{digits.numerator}/{digits.denominator}"):
        certified = net.post(INFER, json_request(ROWS[:1], parameters={"lipdeploy_epsilon": text})).tensors()
        assert bool(certified["certified"][0]) == (radius >= Fraction(text))
    one_more = radius + Fraction(1, 10**25)  # between two floats: nearest would certify, exact does not
    text = f"{one_more.numerator * 10**30 // one_more.denominator + 1}e-30"
    assert Fraction(text) > radius
    answer = net.post(INFER, json_request(ROWS[:1], parameters={"lipdeploy_epsilon": text}))
    assert not answer.tensors()["certified"][0]


def test_the_servers_epsilon_holds_where_a_request_names_none(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, epsilon=1e6)
    assert not client.post(INFER, json_request(ROWS)).tensors()["certified"].any()
    request = json_request(ROWS, parameters={"lipdeploy_epsilon": 0})
    assert client.post(INFER, request).tensors()["certified"].all()


def test_a_tie_is_not_certified_at_epsilon_zero(serve: Serve) -> None:
    tie = CLASSIFIER.replace("b = {0.25, 0.0, -0.5}", "b = {0.0, 0.0, 0.0}")
    request = json_request(np.zeros((1, 4)), parameters={"lipdeploy_epsilon": "0"})
    tensors = serve({"net": tie}).post(INFER, request).tensors()
    assert (bool(tensors["certified"][0]), float(tensors["radius"][0])) == (False, 0.0)


def test_a_pinned_certificate(net: Client, session: CertifiedSession) -> None:
    right = {"lipdeploy_require_certificate": session.certificate_sha256}
    assert net.post(INFER, json_request(ROWS, parameters=right)).status == 200
    wrong = net.post(INFER, json_request(ROWS, parameters={"lipdeploy_require_certificate": "0" * 64}))
    assert wrong.status == 409
    assert session.certificate_sha256 in wrong.error


def test_a_misspelt_guarantee_is_an_error(net: Client) -> None:
    reply = net.post(INFER, json_request(ROWS, parameters={"lipdeploy_epsilom": 0.1}))
    assert (reply.status, "lipdeploy_epsilom" in reply.error) == (400, True)


@pytest.mark.parametrize("certify", ["f64", "adaptive", "f32", "network"])
def test_every_mode(serve: Serve, tmp_path: Path, certify: str) -> None:
    client = serve({"net": CLASSIFIER}, certify=certify)
    direct = CertifiedSession(tmp_path / "net.onnx", certify=certify, threads=1).predict(ROWS, epsilon=0.01)
    answer = client.post(INFER, json_request(ROWS, parameters={"lipdeploy_epsilon": 0.01}))
    assert answer.json["parameters"]["lipdeploy_guarantee"] == direct.guarantee
    assert answer.tensors()["label"].tolist() == direct.label.tolist()
    assert answer.tensors()["certified"].tolist() == direct.certified.tolist()


def test_a_model_that_does_not_classify_serves_y_and_its_band(serve: Serve) -> None:
    client = serve({"net": DENOISER})
    x = np.array([[[[1.0, -2.0], [0.5, -0.5]]]], np.float32)
    answer = client.post(INFER, json_request(x, parameters={"lipdeploy_epsilon": "0.25"}))
    assert np.array_equal(answer.tensors()["y"], np.maximum(x, 0.0))
    band = Fraction(answer.json["parameters"]["lipdeploy_output_band"])
    assert Fraction(1, 4) <= band < Fraction(1, 4) + Fraction(1, 10**6)
    assert answer.json["parameters"]["lipdeploy_guarantee"] == "network"
    assert client.post(INFER, json_request(x, outputs=[{"name": "label"}])).status == 400


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_fixed_batch_is_filled_and_split(serve: Serve, session: CertifiedSession, count: int) -> None:
    rows = np.random.default_rng(1).standard_normal((count, 4)).astype(np.float32)
    client = serve({"net": FIXED_BATCH})
    assert client.post(INFER, json_request(rows)).tensors()["label"].tolist() == session.predict(rows).label.tolist()


def test_a_request_larger_than_a_batch_is_split(serve: Serve, session: CertifiedSession) -> None:
    rows = np.random.default_rng(2).standard_normal((100, 4)).astype(np.float32)
    client = serve({"net": CLASSIFIER}, max_batch_rows=16)
    tensors = client.post(INFER, json_request(rows, outputs=[{"name": "label"}, {"name": "logits"}])).tensors()
    expected = session.predict(rows)
    assert tensors["label"].tolist() == expected.label.tolist()
    assert np.allclose(tensors["logits"], expected.logits, rtol=0, atol=1e-12)
    stats = client.get("/v2/models/net/stats").json["model_stats"][0]
    assert {entry["batch_size"] for entry in stats["batch_stats"]} == {16, 4}


def test_request_ids_come_back(net: Client) -> None:
    assert net.get("/v2", x_request_id="abc-1").headers["x-request-id"] == "abc-1"
    assert "x-request-id" not in net.get("/v2", x_request_id="a b\n").headers


def test_statistics_count_rows_and_batches(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER})
    for _ in range(3):
        client.post(INFER, json_request(ROWS))
    client.post(INFER, b"{}")
    for path in ("/v2/models/net/stats", "/v2/models/net/versions/1/stats", "/v2/models/stats"):
        (stats,) = client.get(path).json["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (9, 3)
        assert stats["inference_stats"]["success"]["count"] == 3


def test_head_answers_without_a_body(net: Client) -> None:
    assert net.request("HEAD", "/v2").body == b""


def test_a_mounted_app_finds_its_paths(net: Client) -> None:
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/inner/v2", "root_path": "/inner", "headers": []}
    net.do(net.app(scope, receive, send))
    assert sent[0]["status"] == 200


def test_a_body_that_never_comes_is_408(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, body_seconds=0.05)
    for body in (b"", b"{"):
        reply = client.do(_half(client, body))
        assert reply == (408, b"close")
    assert client.post(INFER, json_request(ROWS)).status == 200


async def _half(client: Client, body: bytes) -> tuple[int, bytes]:
    sent: list[dict] = []
    first = [{"type": "http.request", "body": body, "more_body": True}] if body else []

    async def receive() -> dict:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [(b"content-length", b"99")]}
    await client.app(scope, receive, send)
    assert set(json.loads(sent[1]["body"])) == {"error"}
    return sent[0]["status"], dict(sent[0]["headers"]).get(b"connection", b"")


def test_a_client_that_hangs_up_leaves_the_queue(serve: Serve) -> None:
    """On a host that tells of it by ``http.disconnect`` only."""
    client = serve({"net": CLASSIFIER}, inline_seconds=0.0)
    model = client.app.service.repository.model("net", None)
    hold, run = threading.Event(), model.program.run

    def held(feeds: Any, epsilon: Any) -> Any:
        assert hold.wait(20)
        return run(feeds, epsilon)

    model.batcher._run = held

    async def play() -> int:
        running = asyncio.ensure_future(client.requested("POST", INFER, json.dumps(json_request(ROWS)).encode()))
        await asyncio.sleep(0.05)  # its batch is running, so the next one has to wait
        messages = [
            {"type": "http.request", "body": json.dumps(json_request(ROWS)).encode(), "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict:
            return messages.pop(0)

        async def send(message: dict) -> None: ...

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
        await asyncio.wait_for(client.app(scope, receive, send), 10)
        hold.set()
        return int((await running).status)

    assert client.do(play()) == 200
    assert model.counts.batches == 1
    assert client.post(INFER, json_request(ROWS)).status == 200
    text = client.get("/metrics").body.decode()
    assert 'code="499"} 1' in text
    assert 'lipdeploy_rejected_total{reason="gone"} 1' in text


def test_large_bodies_that_arrive_together_are_bounded(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, max_queue_bytes=150, max_body_bytes=100)

    async def play() -> list[int]:
        halves = [asyncio.ensure_future(_half(client, b"{")) for _ in range(2)]
        await asyncio.sleep(0.01)
        statuses = [half.result()[0] for half in halves if half.done()]
        for half in halves:
            half.cancel()
        return statuses

    assert client.do(play()) == [503]  # the second; the first is still being read
    assert client.post(INFER, b"{}").status == 400  # and what was given up no longer counts
