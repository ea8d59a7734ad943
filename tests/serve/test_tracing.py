"""OpenTelemetry spans, as its own SDK collects them."""

from __future__ import annotations

from typing import Any

import pytest

from lipdeploy.errors import InputError
from lipdeploy.serve import tracing
from tests.serve.conftest import CLASSIFIER, Serve, json_request

INFER = "/v2/models/net/infer"
ROWS = [[1.0, 0.5, -0.25, 1234.5]]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def spans() -> Any:
    """Where finished spans go."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_a_request_is_a_span_of_its_callers_trace(serve: Serve, spans: Any) -> None:
    client = serve({"net": CLASSIFIER}, tracing=True)
    spans.clear()
    assert client.post(INFER, json_request(ROWS), traceparent=f"00-{TRACE}-b7ad6b7169203331-01").status == 200
    assert client.post(INFER, b"{}").status == 400
    first, second = spans.get_finished_spans()
    assert format(first.context.trace_id, "032x") == TRACE
    assert first.attributes["lipdeploy.model"] == "net"
    assert first.attributes["url.path"] == INFER
    assert "1234.5" not in first.to_json()
    assert not second.status.is_ok


def test_without_the_flag_there_is_none(serve: Serve, spans: Any) -> None:
    client = serve({"net": CLASSIFIER})
    spans.clear()
    assert client.post(INFER, json_request(ROWS)).status == 200
    assert spans.get_finished_spans() == ()


def test_tracing_without_opentelemetry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(tracing.importlib, "import_module", missing)
    with pytest.raises(InputError, match="opentelemetry"):
        tracing.Tracer(True)
    tracing.Tracer(False)
