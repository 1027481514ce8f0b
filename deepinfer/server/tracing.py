"""A trace of each request for OpenTelemetry, made when the request has ended.

The spans are written with the moments that the record holds, so nothing is done while tokens come.
Names and attributes are those of the semantic conventions for HTTP and generative AI. No text of a
prompt or an answer is in a trace. This module needs the extra `otel` and is imported only when
traces are asked for.
"""

from __future__ import annotations

import os
import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from deepinfer import __version__
from deepinfer.server.record import RequestRecord

OPERATIONS = {"/v1/completions": "text_completion"}
CHAT = "chat"  # the operation of every other route that generates
PROVIDER = "deepinfer"
CLOSE_TIMEOUT_S = 3


def open_tracer() -> RequestTracer:
    """One that exports in the background, to where the standard OTEL_* variables say."""
    return RequestTracer(BatchSpanProcessor(OTLPSpanExporter()))


class RequestTracer:
    """Turns a record into a span with children for its time in the queue, prefill and decode."""

    def __init__(self, processor: SpanProcessor) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "deepinfer")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("deepinfer", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def export(self, scope: Scope, record: RequestRecord, route: str) -> None:
        """Hand over the spans of a request that ends now."""
        ended_at_ns = record.unix_ns(time.monotonic())
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            self._parent_of(scope),
            SpanKind.SERVER,
            {**_http_attributes(scope, record, route), **_generation_attributes(record, route)},
            start_time=record.started_at_unix_ns,
        )
        if record.error_code is not None and (record.status or 0) >= 500:
            span.set_status(StatusCode.ERROR, record.error_code)
        self._export_stages(span, record)
        span.end(ended_at_ns)

    def close(self) -> None:
        """Send what is left, unless the collector does not answer."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)

    def _parent_of(self, scope: Scope) -> Context:
        """The caller's span by its W3C headers; none when they are missing or malformed."""
        headers = Headers(scope=scope)
        carrier = {name: headers.get(name, "") for name in ("traceparent", "tracestate")}
        return self._propagator.extract(carrier, Context())

    def _export_stages(self, parent: Span, record: RequestRecord) -> None:
        context = trace.set_span_in_context(parent, Context())
        for name, start, end in _stages(record):
            child = self._tracer.start_span(name, context, start_time=record.unix_ns(start))
            child.end(record.unix_ns(end))


def _stages(record: RequestRecord) -> list[tuple[str, float, float]]:
    """The stages that a request has come through, each with its begin and end."""
    stages = []
    if record.submitted_at is not None and record.admitted_at is not None:
        stages.append(("queue", record.submitted_at, record.admitted_at))
    if record.first_token_at is not None and record.last_token_at is not None:
        prefill_at = record.admitted_at or record.submitted_at or record.started_at
        stages.append(("prefill", prefill_at, record.first_token_at))
        stages.append(("decode", record.first_token_at, record.last_token_at))
    return stages


def _http_attributes(scope: Scope, record: RequestRecord, route: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "deepinfer.request_id": record.request_id,
    }
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.error_code is not None:
        attributes["error.type"] = record.error_code
    return attributes


def _generation_attributes(record: RequestRecord, route: str) -> dict[str, AttributeValue]:
    if record.model is None or record.usage is None:
        return {}
    return {
        "gen_ai.operation.name": OPERATIONS.get(route, CHAT),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.request.stream": record.is_stream,
        "gen_ai.response.finish_reasons": [str(reason) for reason in record.finish_reasons],
        "gen_ai.usage.input_tokens": record.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": record.usage.completion_tokens,
    }
