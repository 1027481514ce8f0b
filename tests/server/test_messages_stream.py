"""Streams of /v1/messages: events in Anthropic's order, and the same message in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import anthropic
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from deepinfer.errors import EngineUnavailable
from deepinfer.generation import Usage
from deepinfer.server.chat_reader import ChatReader
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.messages_api import answer as shapes
from deepinfer.server.messages_api.events import (
    render_block_event,
    render_end,
    render_error,
    render_start,
)
from deepinfer.server.messages_api.run import MessageRun
from deepinfer.server.messages_api.writer import BlockWriter
from deepinfer.server.prepare import Choice
from deepinfer.server.record import RECORD_KEY, RequestRecord
from deepinfer.text.reasoning import ReasoningParser
from deepinfer.text.tool_formats.hermes import HermesParser
from tests.server.messaging import (
    CALL,
    INPUT,
    SAYING_TEMPLATE,
    WEATHER,
    messages_client,
    serving_template,
    user,
)
from tests.server.serving import DEADLINE_S, MODEL_ID, ServerProcess, client_of
from tests.server.sources import ScriptedSource

EVENTS: TypeAdapter[Any] = TypeAdapter(
    shapes.MessageStart
    | shapes.ContentBlockStart
    | shapes.ContentBlockDelta
    | shapes.ContentBlockStop
    | shapes.MessageDelta
    | shapes.MessageStop
)
BROKEN_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": oops}}\n</tool_call>'
ANSWERS = [
    "plain",
    "",
    "line\u2028break \x85 and 🎉",
    "<think>hm</think>four",
    "<think>never closed",
    f"<think>hm</think>see{CALL}and{CALL}",
    CALL,
    f"{BROKEN_CALL} and {CALL} then",
    f"{CALL}<tool_call>",
]


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Answers with the last message."""
    with serving_template(tmp_path_factory.mktemp("saying"), SAYING_TEMPLATE) as server:
        yield server


def read_stream(stream: bytes) -> list[dict[str, Any]]:
    """The data of each event, whose line names the type that the data has."""
    lines = stream.decode().splitlines()
    assert lines[2::3] == [""] * (len(lines) // 3)
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::3]]
    assert lines[::3] == [f"event: {event['type']}" for event in events]
    return events


def rebuild(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of events, whose order is checked on the way."""
    blocks: list[dict[str, Any]] = []
    open_index = None
    for event in events:
        kind = event["type"]
        if kind == "content_block_start":
            assert open_index is None and event["index"] == len(blocks)
            open_index = event["index"]
            blocks.append(dict(event["content_block"]))
        elif kind == "content_block_delta":
            assert event["index"] == open_index
            apply(blocks[-1], event["delta"])
        elif kind == "content_block_stop":
            assert event["index"] == open_index
            open_index = None
    assert open_index is None
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("json"))
    return blocks


def apply(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if delta["type"] == "input_json_delta":
        block["json"] = block.get("json", "") + delta["partial_json"]
    else:
        key = delta["type"].removesuffix("_delta")
        block[key] += delta[key]


def write(text: str, cuts: list[int], **options: Any) -> tuple[list[dict[str, Any]], BlockWriter]:
    """The events of an answer that comes in pieces, and its writer."""
    ids = iter(f"toolu_{i}" for i in range(9))
    reader = ChatReader(ReasoningParser(is_open=False), HermesParser())
    writer = BlockWriter(reader, new_id=lambda: next(ids), **options)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    stream = b"".join(
        render_block_event(event)
        for i, piece in enumerate(pieces)
        for event in writer.write(piece, is_over=i == len(pieces) - 1)
    )
    return read_stream(stream), writer


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 500), max_size=40))
def test_message_is_the_same_however_its_text_comes(text: str, cuts: list[int]) -> None:
    events, writer = write(text, cuts)
    _, whole = write(text, [])
    assert writer.blocks == whole.blocks
    assert rebuild(events) == [block.model_dump() for block in writer.blocks]
    assert writer.has_calls == whole.has_calls


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 500), max_size=40))
def test_events_are_what_the_models_say(text: str, cuts: list[int]) -> None:
    events, writer = write(text, cuts)
    message = shapes.Message(
        id="msg_1",
        model='a "quoted"\u2028model',
        content=writer.blocks,
        stop_reason="end_turn",
        stop_sequence="\x85",
        usage=shapes.MessageUsage.of(Usage(3, 4)),
    )
    edges = read_stream(render_start(message) + render_end(message))
    for event in [*events, *edges]:
        parsed = EVENTS.validate_python(event, strict=True)
        assert parsed.model_dump() == event


def test_call_that_breaks_off_is_text_and_never_a_block() -> None:
    events, writer = write(f"a {BROKEN_CALL} b", list(range(80)))
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["content_block"]["type"] for event in starts] == ["text"]
    assert writer.blocks == [shapes.TextBlock(text=f"a {BROKEN_CALL} b")]


def test_omitted_thoughts_are_an_empty_block_with_a_signature() -> None:
    events, _ = write("<think>hm</think>x", [8, 9, 10], shows_thinking=False)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[0] == {"type": "signature_delta", "signature": ""}
    assert [delta["type"] for delta in deltas[1:]] == ["text_delta"]


BODY: dict[str, Any] = {
    "model": MODEL_ID,
    "max_tokens": 1000,
    "messages": [user(f"<think>hm</think>Let me see.{CALL}")],
    "tools": [WEATHER],
}


def test_stream_begins_and_ends_as_clients_expect(saying: ServerProcess) -> None:
    with client_of(saying) as http:
        response = http.post("/v1/messages", json=BODY | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = read_stream(response.content)
    begin, end, stop = events[0], events[-2], events[-1]
    assert begin["message"]["content"] == [] and begin["message"]["stop_reason"] is None
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["input_tokens"] == begin["message"]["usage"]["input_tokens"] > 0
    assert end["usage"]["output_tokens"] > 1
    assert stop == {"type": "message_stop"}
    kinds = {event["type"] for event in events[1:-2]}
    assert kinds == {"content_block_start", "content_block_delta", "content_block_stop"}


@pytest.mark.parametrize("fields", [{}, {"stop_sequences": ["me"]}, {"max_tokens": 9}])
def test_helper_of_the_sdk_builds_the_plain_message(
    saying: ServerProcess, fields: dict[str, Any]
) -> None:
    body = BODY | fields
    with messages_client(saying) as client:
        plain: anthropic.types.Message = client.messages.create(**body)
        with client.messages.stream(**body) as stream:
            built = stream.get_final_message()
    assert without_ids(built.model_dump()) == without_ids(plain.model_dump())


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [
        {key: value for key, value in block.items() if key not in ("id", "parsed_output")}
        for block in message["content"]
    ]
    return {**message, "id": None, "content": blocks}


def test_text_stream_of_the_sdk(server: ServerProcess) -> None:
    with messages_client(server) as client:
        body: dict[str, Any] = {"model": MODEL_ID, "max_tokens": 99, "messages": [user("Grüße 🎉")]}
        with client.messages.stream(**body) as stream:
            assert "".join(stream.text_stream) == "user: Grüße 🎉\nassistant:"


def test_what_goes_wrong_before_the_stream_has_a_status(saying: ServerProcess) -> None:
    with client_of(saying) as http:
        response = http.post("/v1/messages", json=BODY | {"stream": True, "model": "gone"})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


async def test_what_goes_wrong_later_is_the_last_event() -> None:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        raise AssertionError("a stream reads nothing")

    source = ScriptedSource([Delta(0, "one", None)], EngineUnavailable("It ended\nsuddenly"))
    run = MessageRun(
        id="msg_1",
        request_id="req-1",
        model="m",
        asked_max_tokens=4,
        choice=cast(Choice, None),  # which is looked at when it is over
        generation=cast(Generation, source),
        writer=BlockWriter(ChatReader()),
    )
    stream = await open_stream(source, run, DEADLINE_S)
    await stream({"type": "http", RECORD_KEY: RequestRecord("req-1")}, receive, send)
    *_, event = b"".join(sent).strip().split(b"\n\n")
    (error,) = read_stream(event + b"\n\n")
    assert error["error"]["type"] == "overloaded_error"
    assert (error["error"]["code"], error["request_id"]) == ("engine_unavailable", "req-1")
    shapes.MessagesErrorBody.model_validate(error)


def test_sdk_raises_for_an_error_event() -> None:
    event = render_error(EngineUnavailable("It ended"), request_id="req-1")
    decoded = list(anthropic.Stream.raw_events(httpx.Response(200, content=event)))
    assert [sse.event for sse in decoded] == ["error"]
    assert decoded[0].json()["error"]["message"] == "It ended"


@pytest.mark.parametrize("max_tokens", [20, 30, 40])
def test_call_that_max_tokens_cuts_is_a_block_with_what_there_is_of_its_input(
    saying: ServerProcess, max_tokens: int
) -> None:
    body: dict[str, Any] = {
        "model": MODEL_ID,
        "max_tokens": max_tokens,
        "messages": [user(CALL)],
        "tools": [WEATHER],
    }
    with messages_client(saying) as sdk:
        plain = sdk.messages.create(**body)
        with sdk.messages.stream(**body) as stream:
            streamed = stream.get_final_message()
    assert plain.stop_reason == streamed.stop_reason == "max_tokens"
    assert not [block for block in plain.content if block.type == "text"]
    inputs = [
        [b.input for b in answer.content if b.type == "tool_use"] for answer in (plain, streamed)
    ]
    assert inputs[0] == inputs[1]
    assert all(INPUT.items() >= given.items() for given in inputs[0])  # type: ignore[union-attr]
