"""The client says what became of a request, whatever a server does to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import msgspec
import pytest

from deepinfer.bench.client import BenchClient, Prompt, RequestResult, Target, parse_url
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
