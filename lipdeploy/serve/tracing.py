"""OpenTelemetry, where it is installed and asked for. Spans carry names and counts, never what was predicted."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

from lipdeploy.errors import InputError


class Tracer:
    """Opens a server span around a request, continuing the caller's ``traceparent``; or does nothing."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._trace: Any = None
        if not wanted:
            return
        try:
            self._trace = importlib.import_module("opentelemetry.trace")
            self._propagate = importlib.import_module("opentelemetry.propagate")
        except ImportError as error:
            hint = "pip install opentelemetry-sdk opentelemetry-exporter-otlp"
            raise InputError("tracing needs opentelemetry, which is not installed", hint=hint) from error
        self._tracer = self._trace.get_tracer("lipdeploy.serve")

    def request(
        self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], model: str
    ) -> contextlib.AbstractContextManager[Any]:
        """The span of one inference request; a context that does nothing without tracing."""
        if self._trace is None:
            return _NOTHING
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "lipdeploy.model": model,
        }
        span: contextlib.AbstractContextManager[Any] = self._tracer.start_as_current_span(
            "infer",
            context=self._propagate.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )
        return span


_NOTHING = contextlib.nullcontext()
