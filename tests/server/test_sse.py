"""The byte templates say what the response models say, whatever the text."""

from __future__ import annotations

import asyncio
import json

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message

from deepinfer.errors import EngineUnavailable
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.answers import ChatChunk, CompletionChunk
from deepinfer.server.event_stream import EventStream
from deepinfer.server.generate import Delta
from deepinfer.server.sse import (
    DONE,
    PING,
    ChatEvents,
    CompletionEvents,
    encode_text,
    error_event,
)
from tests.server.sources import PlainWriter, ScriptedSource

MODEL = 'a "quoted" \\ model/ünïcode'
# Every character that UTF-8 can carry.
texts = st.text(st.characters(exclude_categories=["Cs"]))


def events_of(stream: bytes) -> list[str]:
    """The data of each event, cut as a careless client would: at whatever Python calls a line."""
    lines = stream.decode().splitlines()
    assert lines[1::2] == [""] * (len(lines) // 2)
    assert all(line.startswith("data: ") for line in lines[::2])
    return [line.removeprefix("data: ") for line in lines[::2]]


@given(texts)
@example("\x85\u2028\u2029\r\n\x00\x1c</script>")
def test_text_survives_and_breaks_no_line(text: str) -> None:
    encoded = encode_text(text)
    assert json.loads(encoded) == text
    assert len(encoded.decode().splitlines()) == 1


@given(texts, st.integers(0, 1023), st.sampled_from([None, *FinishReason][:3]), st.booleans())
def test_completion_event_is_a_completion_chunk(
    text: str, index: int, reason: FinishReason | None, with_usage: bool
) -> None:
    events = CompletionEvents("cmpl-1", 17, MODEL, with_usage=with_usage)
    (data,) = events_of(events.delta(index, text, reason))
    chunk = CompletionChunk.model_validate_json(data, strict=True)
    assert (chunk.id, chunk.created, chunk.model) == ("cmpl-1", 17, MODEL)
    assert (chunk.choices[0].index, chunk.choices[0].text) == (index, text)
    assert chunk.choices[0].finish_reason == reason
    expected = chunk.model_dump(exclude=set() if with_usage else {"usage"})
    assert json.loads(data) == expected


@given(texts.filter(bool), st.booleans())
def test_chat_events_are_chat_chunks(text: str, with_usage: bool) -> None:
    events = ChatEvents("chatcmpl-1", 17, MODEL, with_usage=with_usage)
    stream = events.role(2) + events.delta(2, text, FinishReason.STOP)
    data = events_of(stream)
    role, content, finish = [ChatChunk.model_validate_json(d, strict=True) for d in data]
    assert (role.choices[0].delta.role, role.choices[0].delta.content) == ("assistant", None)
    assert (content.choices[0].index, content.choices[0].delta.content) == (2, text)
    assert finish.choices[0].finish_reason == "stop"
    assert json.loads(data[2])["choices"][0]["delta"] == {}
    assert all(("usage" in json.loads(d)) == with_usage for d in data)


def test_token_without_text_is_no_chat_event() -> None:
    assert ChatEvents("id", 1, "m", with_usage=False).delta(0, "", None) == b""


def test_end_has_the_usage_when_asked() -> None:
    usage = Usage(3, 4)
    assert ChatEvents("id", 1, "m", with_usage=False).end(usage) == DONE
    data = events_of(ChatEvents("id", 1, "m", with_usage=True).end(usage))
    chunk = ChatChunk.model_validate_json(data[0], strict=True)
    assert chunk.choices == []
    assert chunk.usage is not None and chunk.usage.total_tokens == 7
    assert data[1] == "[DONE]"


def test_error_event_has_the_whole_error() -> None:
    (data,) = events_of(error_event(EngineUnavailable("It ended\nsuddenly", param=None)))
    assert msgspec.json.decode(data) == {
        "error": {
            "message": "It ended\nsuddenly",
            "type": "server_error",
            "param": None,
            "code": "engine_unavailable",
        }
    }


async def test_silence_is_filled_with_comments() -> None:
    goes_on = asyncio.Event()

    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if sent.count(PING) == 2:
            goes_on.set()

    source = ScriptedSource([Delta(0, "1", None)], goes_on.wait, [Delta(0, "2", None)])
    deltas, writer = source.deltas(), PlainWriter()
    first = writer.write(await anext(deltas))
    response = EventStream(source, deltas, first, writer, ping_interval_s=0.01)
    await response({"type": "http"}, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert [body for body in sent if body] == [b"1", PING, PING, b"2", DONE]
