"""Streams are read right however their bytes are cut, and whoever wrote them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.bench.client import CHAT_OUTPUT, COMPLETION_OUTPUT, EventReader
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.sse import ChatEvents, CompletionEvents
from tests.bench.scripted import DONE, text_event, usage_event

STREAM = text_event("a") + text_event("") + text_event('"text":"') + usage_event(7, 3) + DONE


def read(*pieces: bytes, output: object = COMPLETION_OUTPUT) -> EventReader:
    """Each piece comes a second after the one before it."""
    reader = EventReader(output)  # type: ignore[arg-type]
    for at, piece in enumerate(pieces):
        reader.feed(piece, float(at))
    reader.finish(float(len(pieces)))
    return reader


def test_events_with_output_are_noted_with_their_time() -> None:
    reader = read(text_event("a"), text_event("b") + text_event("c"), DONE)
    assert list(reader.output_at) == [0.0, 1.0, 1.0]
    assert reader.is_done


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reader = read(*(STREAM[a:b] for a, b in zip(places, places[1:], strict=False)))
    assert len(reader.output_at) == 2
    assert reader.usage == {"prompt_tokens": 7, "completion_tokens": 3}
    assert reader.is_done


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_text_is_one_event(text: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"choices": [{"text": text}]}, ensure_ascii=ascii_only)
        data = f"data: {body}\n\n".encode(errors="surrogatepass")
        assert len(read(data).output_at) == 1


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("colon", [b"data: ", b"data:"], ids=["space", "no-space"])
def test_line_endings_and_spaces_as_servers_have_them(end: bytes, colon: bytes) -> None:
    lines = [text_event("a", b""), b": a comment", usage_event(1, 1).strip(), b"data: [DONE]"]
    data = b"".join(line.replace(b"data: ", colon) + end for line in lines)
    reader = read(data)
    assert (len(reader.output_at), reader.is_done) == (1, True)
    assert reader.usage is not None and reader.usage["completion_tokens"] == 1


def test_last_event_needs_no_line_break() -> None:
    assert read(text_event("a") + DONE.strip()).is_done


def test_stream_without_usage_has_none() -> None:
    assert read(text_event("a"), DONE).usage is None


def test_usage_of_null_is_none_and_the_last_one_counts() -> None:
    events = CompletionEvents("id", 0, "m", with_usage=True, is_continuous=True)
    data = events.delta(0, "a", None)
    events.count(Usage(5, 1))
    data += events.delta(0, "b", FinishReason.STOP) + events.end(Usage(5, 2))
    reader = read(data)
    assert reader.usage == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert len(reader.output_at) == 2


def test_role_and_finish_of_a_chat_are_no_output() -> None:
    events = ChatEvents("id", 0, "m", with_usage=False)
    data = events.role(0) + events.delta(0, "hello", None) + events.finish(0, "stop")
    assert len(read(data, output=CHAT_OUTPUT).output_at) == 1


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "arguments"])
def test_each_kind_of_output_of_a_chat_counts(field: str) -> None:
    body = json.dumps({"choices": [{"delta": {field: "x"}}]}).encode()
    assert len(read(b"data: " + body + b"\n\n", output=CHAT_OUTPUT).output_at) == 1


def test_error_within_a_stream_has_its_code() -> None:
    event = b'data: {"error": {"message": "gone", "code": "engine_unavailable"}}\n\n'
    assert read(text_event("a"), event).error_code == "engine_unavailable"


def test_text_that_speaks_of_errors_is_no_error() -> None:
    reader = read(text_event('{"error": {"code": 1}, "completion_tokens": 9}'))
    assert reader.error_code is None and reader.usage is None
    assert len(reader.output_at) == 1


def test_line_without_end_is_given_up() -> None:
    reader = EventReader(COMPLETION_OUTPUT)
    with pytest.raises(ValueError):
        for _ in range(17):
            reader.feed(b"x" * 2**20, 0.0)
