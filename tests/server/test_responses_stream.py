"""Streams of /v1/responses: the events, their order, and the same response in the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from deepinfer.errors import EngineUnavailable, InvalidValue
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.chat_reader import ChatReader
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.record import RECORD_KEY, RequestRecord
from deepinfer.server.responses_api.answer import ResponseObject
from deepinfer.server.responses_api.body import ResponsesBody
from deepinfer.server.responses_api.draft import Draft
from deepinfer.server.responses_api.items import FunctionCallItem, MessageItem, ReasoningItem
from deepinfer.server.responses_api.run import ResponseRun
from deepinfer.text.reasoning import ReasoningParser
from deepinfer.text.tool_formats.hermes import HermesParser
from tests.server.serving import DEADLINE_S, MODEL_ID, client_of, make_echo_engine, serving
from tests.server.sources import ScriptedSource
from tests.server.test_responses import CLOCK_TOOL, PATH, WEATHER_TOOL
from tests.server.test_tools import ARGUMENTS, CALL, ECHO_TEMPLATE

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
BROKEN_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": oops}}\n</tool_call>'
ANSWERS = [
    "plain",
    "line\u2028break \x85 and 🎉",
    "<think>two and two</think>four",
    "<think>never closed",
    f"Let me see.{CALL}",
    f"<think>hm</think>{CALL}\n{CALL.replace('get_weather', 'clock')} and more",
    f"first {BROKEN_CALL} then {CALL}",
]
TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An engine that says the last message, a token at a time."""
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=ECHO_TEMPLATE, step_us=500)
    with serving(folder) as server, client_of(server) as client:
        yield client


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of each event, cut as a careless client would: at whatever Python calls a line."""
    lines = text.splitlines()
    assert lines[-2:] == ["data: [DONE]", ""], "the specification's last event"
    events = []
    for name, data, blank in zip(lines[:-2:3], lines[1:-2:3], lines[2:-2:3], strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert (name, blank) == (f"event: {event['type']}", "")
        events.append(event)
    return events


def stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    response = http.post(PATH, json={**fields, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


def shape_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without the ids, which are new each time."""
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


def test_events_come_in_order_and_are_numbered_without_gaps(http: httpx.Client) -> None:
    events = stream(http, input="Grüße")
    kinds = [event["type"] for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        *TEXT_EVENTS,
        "response.completed",
    ]
    assert {kind for kind in kinds if kinds.count(kind) > 1} <= {"response.output_text.delta"}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["status"] == "in_progress" and not events[0]["response"]["output"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_stream_and_plain_answer_are_one(echo: httpx.Client, answer: str) -> None:
    fields = {"input": answer, "tools": [WEATHER_TOOL, CLOCK_TOOL]}
    whole = echo.post(PATH, json=fields).json()
    events = stream(echo, **fields)
    last = events[-1]["response"]
    assert shape_of(last["output"]) == shape_of(whole["output"])
    assert (last["status"], last["usage"]) == (whole["status"], whole["usage"])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_event_is_one_by_the_sdk_s_own_models(echo: httpx.Client, answer: str) -> None:
    for event in stream(echo, input=answer, tools=[WEATHER_TOOL, CLOCK_TOOL]):
        EVENTS.validate_json(json.dumps(event), strict=True)


def test_items_open_and_close_one_after_the_other(echo: httpx.Client) -> None:
    events = stream(echo, input=ANSWERS[5], tools=[WEATHER_TOOL, CLOCK_TOOL])
    open_index = None
    for event in events:
        if event["type"] == "response.output_item.added":
            assert open_index is None
            open_index = event["output_index"]
        elif event["type"] == "response.output_item.done":
            assert event["output_index"] == open_index
            open_index = None
        elif "output_index" in event:
            assert event["output_index"] == open_index
    added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    assert added == list(range(4))


def test_arguments_come_as_they_are_written(echo: httpx.Client) -> None:
    events = stream(echo, input=CALL, tools=[WEATHER_TOOL])
    deltas = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 3 and "".join(deltas) == ARGUMENTS
    (done,) = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert (done["name"], done["arguments"]) == ("get_weather", ARGUMENTS)


def test_thoughts_are_streamed_as_reasoning(echo: httpx.Client) -> None:
    events = stream(echo, input="<think>two and two</think>four")
    thoughts = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
    texts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert ("".join(thoughts), "".join(texts)) == ("two and two", "four")


def test_cut_stream_ends_incomplete(http: httpx.Client) -> None:
    last = stream(http, input="a b c d e", max_output_tokens=3)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("answer", ANSWERS)
def test_snapshot_of_the_sdk_is_the_response(echo: httpx.Client, answer: str) -> None:
    url = f"{echo.base_url}".rstrip("/") + "/v1"
    tools: Any = [WEATHER_TOOL, CLOCK_TOOL]
    with (
        openai.OpenAI(base_url=url, api_key="x", timeout=DEADLINE_S) as sdk,
        sdk.responses.stream(model=MODEL_ID, input=answer, tools=tools) as events,
    ):
        seen = [event for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert "".join(event.delta for event in seen) == final.output_text
    assert final.status == "completed"


def test_log_probs_come_with_the_deltas(http: httpx.Client) -> None:
    fields = {"input": "hi", "include": ["message.output_text.logprobs"], "max_output_tokens": 4}
    events = stream(http, **fields)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    (done,) = [e for e in events if e["type"] == "response.output_text.done"]
    assert [entry for e in deltas for entry in e["logprobs"]] == done["logprobs"]
    assert len(done["logprobs"]) == 4


def write(pieces: Sequence[str], *, is_cut: bool = False) -> tuple[Draft, list[Any]]:
    """A draft of an answer that came in these pieces, by a model that thinks and calls."""
    body = ResponsesBody.model_validate({"input": "x"})
    reader = ChatReader(ReasoningParser(is_open=False), HermesParser())
    draft = Draft(ResponseObject.of(body, "resp_1", "m"), reader)
    events = draft.begin()
    for piece in pieces:
        events += draft.write(Delta(0, piece, None))
    reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
    events += draft.write(Delta(0, "", reason))
    return draft, [*events, *draft.end(Usage(1, 1))]


def describe(draft: Draft) -> list[tuple[str, str, str]]:
    found = []
    for item in draft.response.output:
        if isinstance(item, MessageItem):
            found.append(("message", "".join(item.texts), item.status))
        elif isinstance(item, ReasoningItem):
            found.append(("reasoning", item.content[0].text, item.status))
        elif isinstance(item, FunctionCallItem):
            found.append((item.name, item.arguments, item.status))
    return found


@given(st.sampled_from(ANSWERS), st.data())
def test_items_are_the_same_however_the_text_is_cut(answer: str, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(answer)), max_size=8).map(sorted))
    cuts = [0, *places, len(answer)]
    pieces = [answer[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    whole, _ = write([answer])
    draft, events = write(pieces)
    assert describe(draft) == describe(whole)
    deltas = [e.delta for e in events if type(e).__name__ == "TextDelta"]
    texts = [text for kind, text, _ in describe(draft) if kind == "message"]
    assert "".join(deltas) == "".join(texts)


def test_call_that_turns_out_to_be_none_is_incomplete() -> None:
    draft, _ = write([f"first {BROKEN_CALL}"])
    assert [kind for kind, _, _ in describe(draft)] == ["message", "get_weather", "message"]
    assert describe(draft)[1][2] == "incomplete"
    assert describe(draft)[2] == ("message", f" {BROKEN_CALL}", "completed")


def test_answer_without_any_text_is_an_empty_message() -> None:
    draft, _ = write([])
    assert describe(draft) == [("message", "", "completed")]


async def fail(error: EngineUnavailable | InvalidValue) -> tuple[bytes, list[ResponseObject]]:
    """The bytes of a stream that fails, and what was kept of it."""
    kept: list[ResponseObject] = []
    body = ResponsesBody.model_validate({"input": "x"})
    draft = Draft(ResponseObject.of(body, "resp_1", "m"), None)
    source = ScriptedSource([Delta(0, "one", None)], error)
    run = ResponseRun(cast(Generation, source), draft, kept.append)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    stream = await open_stream(source, run, DEADLINE_S)
    scope = {"type": "http", RECORD_KEY: RequestRecord("req-1")}
    await stream(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    return b"".join(sent), kept


async def test_failure_after_the_start_is_an_error_and_a_failed_response() -> None:
    sent, kept = await fail(EngineUnavailable("It ended"))
    events = events_of(sent.decode())
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    error = {"code": "engine_unavailable", "message": "It ended", "param": None}
    assert events[-2].items() >= error.items()
    assert events[-2]["error"] == {**error, "type": "server_error"}
    failed = Response.model_validate_json(json.dumps(events[-1]["response"]), strict=True)
    assert failed.status == "failed" and failed.error is not None
    assert (failed.error.code, failed.error.message) == ("server_error", "It ended")
    assert kept == []


async def test_failure_names_this_route_s_fields() -> None:
    error = InvalidValue("`max_tokens` and `messages[0]` do not fit", param="max_tokens")
    events = events_of((await fail(error))[0].decode())
    assert events[-2]["param"] == "max_output_tokens"
    assert events[-2]["message"] == "`max_output_tokens` and `input[0]` do not fit"


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that answers everything with these events."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_sdk_raises_the_failure() -> None:
    sent, _ = await fail(EngineUnavailable("It ended"))
    with answering(sent) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as sdk:
        with sdk.responses.stream(model="m", input="x") as events:
            with pytest.raises(openai.APIError, match="It ended") as caught:
                events.until_done()
    assert caught.value.code == "engine_unavailable"


def test_failure_before_the_start_has_a_status(echo: httpx.Client) -> None:
    response = echo.post(PATH, json={"input": "x " * 9_000, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_call_that_max_output_tokens_cuts_is_an_incomplete_item(echo: httpx.Client) -> None:
    body = {"input": CALL, "tools": [WEATHER_TOOL], "max_output_tokens": 40}
    whole = echo.post(PATH, json=body).json()
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = whole["output"]
    assert (item["type"], item["status"], item["name"]) == (
        "function_call",
        "incomplete",
        "get_weather",
    )
    assert item["arguments"] != ARGUMENTS and ARGUMENTS.startswith(item["arguments"])
    streamed = events_of(echo.post(PATH, json={**body, "stream": True}).text)
    assert streamed[-1]["type"] == "response.incomplete"
    (last,) = streamed[-1]["response"]["output"]
    assert (last["arguments"], last["status"]) == (item["arguments"], "incomplete")
    assert not [event for event in streamed if "output_text" in event["type"]]
