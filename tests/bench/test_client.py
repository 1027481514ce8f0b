"""The benchmark's client against a scripted server, and its reading of event streams."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.bench.client import (
    CHAT_OUTPUT,
    COMPLETION_OUTPUT,
    BenchClient,
    EventReader,
    Prompt,
    RequestResult,
    Target,
    parse_url,
)
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.sse import ChatEvents, CompletionEvents
from tests.bench.scripted import (
    CUT,
    DONE,
    HANG,
    OK,
    STREAM_HEAD,
    chunk,
    scripted,
    stream,
    text_event,
    usage_event,
    whole,
)

PROMPT = Prompt("Once upon a time", 8)
DEADLINE_S = 20.0
GOOD = stream(text_event("a"), text_event("b"), usage_event(5, 2), DONE)
LONG_BODY = b'{"choices": [{"text": "ab"}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'


def ask(
    *answers: Sequence[bytes], timeout_s: float = DEADLINE_S, **target: object
) -> RequestResult:
    return ask_all(*answers, timeout_s=timeout_s, **target)[-1]


def ask_all(
    *answers: Sequence[bytes], timeout_s: float = DEADLINE_S, **target: object
) -> list[RequestResult]:
    """One request an answer, one after the other."""

    async def run() -> list[RequestResult]:
        async with scripted(*answers) as (_, place):
            client = BenchClient(msgspec.structs.replace(place, **target), timeout_s=timeout_s)
            try:
                return [await client.send(PROMPT) for _ in answers]
            finally:
                client.close()

    return asyncio.run(run())


def test_tokens_are_counted_by_usage_where_there_is_one() -> None:
    result = ask(stream(text_event("three tokens at once"), usage_event(5, 3), DONE))
    assert (result.error, result.output_tokens, result.counted_by) == (None, 3, "usage")
    assert (result.prompt_tokens, result.num_events) == (5, 1)


def test_tokens_are_counted_by_events_where_there_is_no_usage() -> None:
    result = ask(stream(text_event("a"), text_event("b"), DONE))
    assert (result.error, result.output_tokens, result.counted_by) == (None, 2, "events")
    assert result.prompt_tokens is None


def test_times_of_a_stream_are_in_order() -> None:
    result = ask(GOOD)
    assert result.ttft_s is not None
    assert 0 < result.ttft_s <= result.latency_s
    assert len(result.gaps_s) == 1 and result.gaps_s[0] >= 0


def test_answer_in_one_piece_has_tokens_and_no_first_token() -> None:
    result = ask(whole(LONG_BODY), is_streaming=False)
    assert (result.error, result.output_tokens, result.counted_by) == (None, 2, "usage")
    assert result.ttft_s is None and result.gaps_s == []


def test_answer_in_one_piece_without_usage_has_no_count() -> None:
    result = ask(whole(b'{"choices": [{"text": "ab"}]}'), is_streaming=False)
    assert (result.error, result.output_tokens, result.counted_by) == (None, None, "nothing")


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"], ids=["CRLF", "LF"])
def test_chunks_need_not_be_events(end: bytes) -> None:
    data = text_event("a", end) + text_event("b", end) + b"data: [DONE]" + end
    pieces = [chunk(data[i : i + 7]) for i in range(0, len(data), 7)]
    result = ask([STREAM_HEAD, *pieces, b"0\r\n\r\n"])
    assert (result.error, result.output_tokens) == (None, 2)


def test_bytes_may_come_one_by_one() -> None:
    raw = b"".join(GOOD)
    result = ask([raw[i : i + 1] for i in range(len(raw))])
    assert (result.error, result.output_tokens) == (None, 2)


def test_stream_that_ends_with_its_connection_is_whole() -> None:
    head = OK + b"content-type: text/event-stream\r\n\r\n"
    assert ask([head, text_event("a"), DONE, CUT]).error is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([*GOOD[:2], CUT], "closed_mid_answer"),
        ([CUT], "closed_before_answer"),
        ([b"SMTP ready\r\n\r\n"], "broken_http"),
        ([STREAM_HEAD, b"zz\r\n"], "broken_http"),
        (stream(), "empty_stream"),
        (whole(b"Internal Server Error", "500 Internal Server Error"), "http_500"),
        (
            whole(b'{"error": {"code": "queue_full", "message": "x"}}', "429 Too Many Requests"),
            "http_429 queue_full",
        ),
        (whole(b'{"error": "model not loaded"}', "404 Not Found"), "http_404 unnamed"),
        (stream(text_event("a"), b'data: {"error": {"type": "boom"}}\n\n'), "stream boom"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_goes_wrong_has_a_name(answer: list[bytes], error: str) -> None:
    result = ask(answer)
    assert result.error == error


def test_server_that_says_nothing_more_is_given_up() -> None:
    assert ask([*GOOD[:2], HANG], timeout_s=0.1).error == "timeout"


def test_nobody_at_the_address_is_connection_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = parse_url(f"http://127.0.0.1:{unused.getsockname()[1]}")
        result = asyncio.run(BenchClient(target, timeout_s=DEADLINE_S).send(PROMPT))
    assert result.error == "connection_refused"


def test_error_is_followed_by_a_good_answer_on_the_same_client() -> None:
    results = ask_all([*GOOD[:2], CUT], GOOD, whole(b"{}", "503 Unavailable"), GOOD)
    errors = [result.error for result in results]
    assert errors == ["closed_mid_answer", None, "http_503", None]


async def test_connection_is_used_again() -> None:
    async with scripted(GOOD, GOOD, GOOD) as (server, target):
        client = BenchClient(target, timeout_s=DEADLINE_S)
        results = [await client.send(PROMPT) for _ in range(3)]
        client.close()
        assert [result.error for result in results] == [None] * 3
        assert server.num_connections == 1


async def test_connection_that_the_server_let_go_is_replaced() -> None:
    async with scripted(GOOD, [CUT], GOOD) as (server, target):
        client = BenchClient(target, timeout_s=DEADLINE_S)
        results = [await client.send(PROMPT) for _ in range(2)]
        client.close()
        assert [result.error for result in results] == [None, None]
        assert server.num_connections == 2


async def test_open_loop_counts_from_when_a_request_was_due() -> None:
    async with scripted(GOOD) as (_, target):
        client = BenchClient(target, timeout_s=DEADLINE_S)
        late = await client.send(PROMPT, due_at=0.0)
        client.close()
        assert late.started_at == 0.0 and late.latency_s == late.ended_at


def body_of(target: Target) -> dict[str, object]:
    _, _, body = target.request(PROMPT).partition(b"\r\n\r\n")
    fields: dict[str, object] = msgspec.json.decode(body)
    return fields


def test_request_asks_for_usage_and_is_greedy() -> None:
    assert body_of(parse_url("http://x")) == {
        "model": "",
        "prompt": PROMPT.content,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_sends_the_prompt_as_a_message_and_extra_fields_win() -> None:
    target = msgspec.structs.replace(
        parse_url("http://x"), route="chat", ignores_eos=True, extra={"temperature": 1, "n": 2}
    )
    fields = body_of(target)
    assert fields["messages"] == [{"role": "user", "content": PROMPT.content}]
    assert (fields["temperature"], fields["n"], fields["ignore_eos"]) == (1, 2, True)


def test_key_travels_in_the_header() -> None:
    target = msgspec.structs.replace(parse_url("http://x:8000"), api_key="secret")
    head = target.render("GET", "/v1/models")
    assert b"\r\nAuthorization: Bearer secret\r\n" in head
    assert b"\r\nHost: x:8000\r\n" in head


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("https://example.com/api/v1/", "https://example.com:443/api"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_address_is_taken_with_or_without_v1(url: str, shown: str) -> None:
    assert parse_url(url).url == shown


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://x:port", "http://x?a=b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    from deepinfer.errors import ConfigError

    with pytest.raises(ConfigError):
        parse_url(url)


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
