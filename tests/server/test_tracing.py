"""A request becomes a trace: its own, or a part of the caller's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from deepinfer.errors import QueueFull
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.server.tracing import RequestTracer
from tests.server.serving import client_of, make_echo_engine, serving
from tests.server.watched import A, Chunks, Generate, answer_in_three, client_for, make_state

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"prompt": "something private"}


async def spans_of(
    folder: Path,
    path: str = "/v1/completions",
    *,
    body: object = None,
    headers: dict[str, str] | None = None,
    generate: Generate = answer_in_three,
) -> dict[str, ReadableSpan]:
    """The spans of one request by their names."""
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(SimpleSpanProcessor(exporter))
    state, _ = make_state(folder / "echo", generate, tracer=tracer)
    async with client_for(state) as client:
        if body is None:
            await client.get(path, headers=headers)
        else:
            await client.post(path, json=body, headers=headers)
    return {span.name: span for span in exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_request_is_a_span_with_its_stages_one_after_the_other(tmp_path: Path) -> None:
    spans = await spans_of(tmp_path, body=BODY)
    request, *stages = (
        spans[name] for name in ("POST /v1/completions", "queue", "prefill", "decode")
    )
    assert len(spans) == 4
    assert request.kind is SpanKind.SERVER and request.parent is None
    assert all(stage.parent == request.context for stage in stages)
    moments = [request.start_time, *(stage.start_time for stage in stages), stages[-1].end_time]
    moments = [*moments, request.end_time]
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    assert [a.end_time for a in stages[:-1]] == [b.start_time for b in stages[1:]]


async def test_span_says_what_was_generated_and_no_text(tmp_path: Path) -> None:
    headers = {"x-request-id": "mine"}
    spans = await spans_of(tmp_path, body={**BODY, "stream": True}, headers=headers)
    found = attributes(spans["POST /v1/completions"])
    assert found.pop("gen_ai.usage.input_tokens") > 1
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "deepinfer.request_id": "mine",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "deepinfer",
        "gen_ai.request.model": "test/echo",
        "gen_ai.response.model": "test/echo",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.output_tokens": 3,
    }
    assert not any("private" in span.to_json() for span in spans.values())


async def test_chat_is_the_operation_of_a_conversation(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    spans = await spans_of(tmp_path, "/v1/chat/completions", body=body)
    found = attributes(spans["POST /v1/chat/completions"])
    assert found["gen_ai.operation.name"] == "chat"


async def test_traceparent_makes_it_a_part_of_the_caller_s_trace(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
    spans = await spans_of(tmp_path, body=BODY, headers=headers)
    parent = spans["POST /v1/completions"].parent
    assert parent is not None and parent.is_remote
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE, SPAN)
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}


async def test_caller_who_does_not_sample_decides_for_us(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    assert await spans_of(tmp_path, body=BODY, headers=headers) == {}


BAD_PARENTS = {
    "empty": "",
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "short": f"00-{TRACE[:-1]}-{SPAN}-01",
    "not hexadecimal": f"00-{TRACE[:-1]}g-{SPAN}-01",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
    "more than version 00 has": f"00-{TRACE}-{SPAN}-01-more",
    "anything": "'; drop table spans; --",
    "long": "0" * 5000,
}


@pytest.mark.parametrize("header", BAD_PARENTS.values(), ids=BAD_PARENTS)
async def test_malformed_traceparent_is_ignored(tmp_path: Path, header: str) -> None:
    spans = await spans_of(tmp_path, body=BODY, headers={"traceparent": header})
    assert spans["POST /v1/completions"].parent is None


async def test_malformed_tracestate_does_no_harm(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "=,;=" * 200}
    spans = await spans_of(tmp_path, body=BODY, headers=headers)
    assert spans["POST /v1/completions"].parent is not None


# What goes wrong, and what is not worth a trace


async def refuse(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
    raise QueueFull("full", retry_after_s=1)
    yield []


async def fail_later(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
    yield [TokenChunk(requests[0].request_id, (A,))]
    yield [TokenChunk(requests[0].request_id, (), FinishReason.ERROR, "no room for it")]


@pytest.mark.parametrize(
    ("generate", "code", "is_ours"),
    [(refuse, "queue_full", False), (fail_later, "internal_error", True)],
    ids=["the client's", "ours"],
)
async def test_error_has_its_code_and_is_an_error_of_the_span_when_it_is_ours(
    tmp_path: Path, generate: Generate, code: str, is_ours: bool
) -> None:
    spans = await spans_of(tmp_path, body=BODY, generate=generate)
    span = spans["POST /v1/completions"]
    assert attributes(span)["error.type"] == code
    assert span.status.is_ok is not is_ours
    assert ("decode" in spans) is is_ours  # what was refused came through no stage


async def test_route_that_generates_nothing_has_no_stages(tmp_path: Path) -> None:
    spans = await spans_of(tmp_path, "/v1/models/test/echo")
    assert list(spans) == ["GET /v1/models/{model_id:path}"]


async def test_name_of_a_span_is_no_client_s_to_choose(tmp_path: Path) -> None:
    spans = await spans_of(tmp_path, "/secret")
    assert list(spans) == ["GET unmatched"]
    assert "secret" not in spans["GET unmatched"].to_json()


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_probe_is_not_traced(tmp_path: Path, path: str) -> None:
    assert await spans_of(tmp_path, path) == {}


# As an operator switches it on


@contextmanager
def collecting() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OpenTelemetry collector's address, and what has been sent to it."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_server_sends_its_last_spans_before_it_ends(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with collecting() as (url, received):
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        with serving(tmp_path, "--traces", "true", environment=environment) as server:
            with client_of(server) as client:
                client.post("/v1/completions", json={"prompt": "x"})
            server.signal()
            assert server.wait() == 0
    (resource,) = received[0].resource_spans
    named = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert named["service.name"] == "deepinfer"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/completions", "decode", "prefill", "queue"]


def test_server_without_a_collector_serves_and_ends(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with serving(tmp_path, "--traces", "true", environment=environment) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 200
        server.signal()
        assert server.wait() == 0


def test_traces_without_the_extra_are_an_error_of_one_line(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    options = ["serve", "--engine-dir", str(tmp_path), "--port", "0", "--traces", "true"]
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        f"from deepinfer.__main__ import main; sys.exit(main({options}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: `logging.traces` needs OpenTelemetry, which is not installed",
        "hint: `pip install 'deepinfer[otel]'`, or serve without `--traces`",
    ]
