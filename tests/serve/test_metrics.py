"""Metrics, as Prometheus' own parser reads them, and logs."""

from __future__ import annotations

import io
import json
import logging
import math
from typing import Any

import numpy as np
import pytest

from lipdeploy.serve import logs
from lipdeploy.serve.metrics import CONTENT_TYPE, Histogram, Metrics, merged, render
from tests.serve.conftest import CLASSIFIER, DENOISER, Client, Serve, json_request

INFER = "/v2/models/net/infer"
ROWS = [[1.0, 0.5, -0.25, 2.0], [0.0, 0.0, 0.0, 0.0]]


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels, read by prometheus-client."""
    from prometheus_client import parser

    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def one(found: Any, name: str, **labels: str) -> float:
    """The only sample of ``name`` with these labels among its own."""
    samples = [value for key, value in found[name].items() if set(labels.items()) <= set(key)]
    assert len(samples) == 1, (name, found[name])
    return float(samples[0])


@pytest.mark.parametrize(("text", "guarantee"), [(CLASSIFIER, "deployed"), (DENOISER, "network")])
def test_the_certificates_labels_are_what_responses_say(serve: Serve, text: str, guarantee: str) -> None:
    client = serve({"net": text})
    told = client.get("/v2/models/net").json["properties"]
    found = read(client.get("/metrics").body.decode())
    assert told["lipdeploy_guarantee"] == guarantee
    assert one(
        found, "lipdeploy_certificate_info", guarantee=guarantee, norm=told["lipdeploy_norm"],
        bound=told["lipdeploy_lipschitz_bound"], sha256=told["lipdeploy_certificate_sha256"],
    ) == 1  # fmt: skip


def test_what_requests_leave_behind(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER})
    radius = client.post(INFER, json_request(ROWS[:1])).tensors()["radius"][0]
    client.post(INFER, json_request(ROWS, parameters={"lipdeploy_epsilon": float(radius)}))
    client.post(INFER, b"{}")
    reply = client.get("/metrics")
    assert reply.headers["content-type"] == CONTENT_TYPE.decode()
    found = read(reply.body.decode())
    model = {"model": "net", "version": "1"}
    assert one(found, "lipdeploy_requests_total", **model, code="200") == 2
    assert one(found, "lipdeploy_requests_total", model="net", code="400") == 1
    assert one(found, "lipdeploy_request_seconds_count", **model) == 2
    assert one(found, "lipdeploy_queue_seconds_count", **model) == 2
    assert one(found, "lipdeploy_infer_seconds_count", **model) == 2
    assert (one(found, "lipdeploy_batch_rows_sum", **model), one(found, "lipdeploy_batch_rows_count", **model)) == (
        3,
        2,
    )
    outcomes = [one(found, "lipdeploy_predictions_total", **model, outcome=o) for o in ("certified", "abstained")]
    assert sum(outcomes) == 3
    assert outcomes[0] >= 2
    assert one(found, "lipdeploy_radius_count", **model) == 3
    assert one(found, "lipdeploy_radius_bucket", **model, le="+Inf") == 3
    assert one(found, "lipdeploy_queue_depth", **model) == 0
    assert one(found, "lipdeploy_inflight") == 0
    assert one(found, "lipdeploy_model_ready", **model) == 1
    assert one(found, "lipdeploy_verify_seconds", **model) > 0
    certificate = client.app.service.repository.model("net", None).sha256
    assert one(found, "lipdeploy_certificate_info", **model, sha256=certificate, norm="l2") == 1
    assert one(found, "process_cpu_seconds_total") > 0
    assert one(found, "process_resident_memory_bytes") > 1e6


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_histogram_counts_as_its_limits_say(count: int) -> None:
    values = np.random.default_rng(count).choice([0.0, 0.001, 0.0011, 1.0, 5.0, 200.0, math.inf], count)
    histogram = Histogram((0.0, 0.001, 1.0, 100.0))
    histogram.observe_all(values)
    below = [int((values <= limit).sum()) for limit in (0.0, 0.001, 1.0, 100.0, math.inf)]
    assert np.cumsum(histogram.counts).tolist() == below
    assert histogram.sum == pytest.approx(float(values[np.isfinite(values)].sum()))


def test_labels_are_escaped() -> None:
    metrics = Metrics()
    metrics.rejected.labelled('a"b\\c\nd').add(3)
    assert one(read(render(metrics.snapshot()).decode()), "lipdeploy_rejected_total", reason='a"b\\c\nd') == 3


def test_workers_add_up() -> None:
    first, second = Metrics(), Metrics()
    for metrics, count in ((first, 2), (second, 3)):
        for _ in range(count):
            metrics.requests.labelled("net", "1", "200").add()
            metrics.request_seconds.labelled("net", "1").observe(0.003)
        metrics.ready.labelled("net", "1").value = float(count == 2)
        metrics.certificate.labelled("net", "1", "ab", "1", "l2", "deployed", "CPU").value = 1.0
    second.requests.labelled("other", "1", "200").add()
    snapshots = [json.loads(json.dumps(metrics.snapshot())) for metrics in (first, second)]  # as over the wire
    found = read(render(merged(snapshots)).decode())
    assert one(found, "lipdeploy_requests_total", model="net") == 5
    assert one(found, "lipdeploy_requests_total", model="other") == 1
    assert one(found, "lipdeploy_request_seconds_bucket", le="0.005") == 5
    assert one(found, "lipdeploy_request_seconds_sum") == pytest.approx(0.015)
    assert one(found, "lipdeploy_model_ready") == 0  # ready when every worker is
    assert one(found, "lipdeploy_certificate_info") == 1


def test_log_lines_are_json(net: Client) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("lipdeploy.serve")
    kept = logger.handlers[:], logger.level, logger.propagate
    try:
        logs.configure("info", stream)
        logs.event("hello", model="n\u2603t", rows=3, odd=object())
        logs.event("quiet", logging.DEBUG)
        logs.event("broken", logging.ERROR, ValueError("why\nso"), request_id="r-1")
        logging.getLogger("lipdeploy.serve").info("bad \udc80 text")
    finally:
        logger.handlers[:], logger.level, logger.propagate = kept
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["hello", "broken", "bad \\udc80 text"]
    assert (lines[0]["model"], lines[0]["rows"], lines[0]["level"]) == ("n\u2603t", 3, "info")
    assert "why" in lines[1]["exception"]
    assert lines[1]["request_id"] == "r-1"


def test_the_access_log_names_requests(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve({"net": CLASSIFIER}, access_log=True)
    with caplog.at_level(logging.INFO, "lipdeploy.serve"):
        client.post(INFER, json_request(ROWS), x_request_id="mine-7")
        client.get("/nowhere")
    requests = [record.fields for record in caplog.records if record.getMessage() == "request"]  # type: ignore[attr-defined]
    assert (requests[0]["request_id"], requests[0]["status"], requests[0]["path"]) == ("mine-7", 200, INFER)
    assert requests[1]["status"] == 404
    assert len({request["request_id"] for request in requests}) == 2
