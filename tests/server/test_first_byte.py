"""Streams whose first token takes long: they begin with a ping, and what fails then is an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from starlette.types import Message

from deepinfer.errors import EngineUnavailable
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta
from deepinfer.server.record import RECORD_KEY, RequestRecord
from deepinfer.server.sse import DONE, PING
from tests.server.serving import (
    DEADLINE_S,
    MODEL_ID,
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
)
from tests.server.sources import PlainWriter, ScriptedSource
from tests.server.test_bad_requests import assert_error

TURN = [{"role": "user", "content": "hi"}]
CHAT: Any = {"messages": TURN, "max_tokens": 2}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": CHAT,
}
STEP_US = 500_000  # of the slow engine
ENDLESS = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000, "stream": True}


async def respond(stream: Any, sent: list[bytes], on_send: Any = lambda body: None) -> None:
    async def send(message: Message) -> None:
        if body := message.get("body"):
            sent.append(body)
            on_send(body)

    await stream({"type": "http", RECORD_KEY: RequestRecord("r")}, lambda: None, send)


async def test_stream_without_a_token_begins_with_a_ping_and_goes_on() -> None:
    goes_on, sent = asyncio.Event(), list[bytes]()
    source = ScriptedSource(goes_on.wait, [Delta(0, "1", None)], [Delta(0, "2", None)])
    stream = await open_stream(source, PlainWriter(), 0.001)
    await respond(stream, sent, lambda body: goes_on.set())
    assert sent == [PING, b"1", b"2", DONE]


async def test_stream_with_a_token_in_time_begins_with_it() -> None:
    sent: list[bytes] = []
    source = ScriptedSource([Delta(0, "1", None)])
    await respond(await open_stream(source, PlainWriter(), DEADLINE_S), sent)
    assert sent == [b"1", DONE]


async def test_error_in_time_is_raised_and_a_later_one_is_an_event() -> None:
    failure = EngineUnavailable("It ended")
    with pytest.raises(EngineUnavailable):
        await open_stream(ScriptedSource(failure), PlainWriter(), DEADLINE_S)
    goes_on, sent = asyncio.Event(), list[bytes]()
    stream = await open_stream(ScriptedSource(goes_on.wait, failure), PlainWriter(), 0.001)
    await respond(stream, sent, lambda body: goes_on.set())
    assert sent[0] == PING and b"engine_unavailable" in sent[1] and len(sent) == 2


@pytest.mark.parametrize("timeout_s", [0.001, DEADLINE_S], ids=["after the ping", "before it"])
async def test_client_that_leaves_before_the_first_token_ends_the_generation(
    timeout_s: float,
) -> None:
    waits, has_ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        waits.set()
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    async def handle() -> None:
        stream = await open_stream(ScriptedSource(wait), PlainWriter(), timeout_s)
        await respond(stream, sent, lambda body: pinged.set())

    sent, pinged = list[bytes](), asyncio.Event()
    handling = asyncio.create_task(handle())
    await (waits if timeout_s > 1 else pinged).wait()
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    assert has_ended.is_set()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Each step takes longer than a stream may be without a byte."""
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", step_us=STEP_US)
    with serving(folder, "--first-byte-timeout", "0.05") as process:
        yield process


@pytest.mark.parametrize(("path", "fields"), BODIES.items(), ids=BODIES)
def test_every_dialect_begins_with_a_ping(
    slow: ServerProcess, path: str, fields: dict[str, Any]
) -> None:
    with (
        client_of(slow) as client,
        client.stream("POST", path, json={**fields, "stream": True}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[0] == ": ping"
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    objects = [json.loads(text) for text in data if text != "[DONE]"]
    assert objects and not any(event.get("error") for event in objects)


def test_clients_pass_over_the_ping(slow: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="x", timeout=DEADLINE_S) as sdk:
        chunks = sdk.chat.completions.create(**CHAT, model=MODEL_ID, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with sdk.responses.stream(model=MODEL_ID, input="hi", max_output_tokens=2) as events:
            assert [event.type for event in events][-1] == "response.incomplete"
    with (
        anthropic.Anthropic(base_url=slow.url, api_key="x", timeout=DEADLINE_S) as client,
        client.messages.stream(**CHAT, model=MODEL_ID) as message,
    ):
        assert message.get_final_text()


@pytest.fixture
def queueing(tmp_path: Path) -> Iterator[ServerProcess]:
    """One request runs and does not end; whoever waits for its place gives up after a while."""
    make_echo_engine(tmp_path / "echo", max_batch_size=1, step_us=5_000)
    options = ("--first-byte-timeout", "0.05", "--queue-timeout", "1")
    with (
        serving(tmp_path, *options, "--max-waiting-requests", "1") as server,
        client_of(server) as client,
        client.stream("POST", "/v1/completions", json=ENDLESS) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        yield server
        del lines  # only now: that ends the request


def read_stream(server: ServerProcess, path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines of a stream, and the objects of its events."""
    with (
        client_of(server) as client,
        client.stream("POST", path, json={**BODIES[path], "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return lines, [json.loads(text) for text in data if text != "[DONE]"]


def test_error_after_the_ping_is_an_event_in_the_shape_of_the_dialect(
    queueing: ServerProcess,
) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        lines, [error] = read_stream(queueing, path)
        assert lines[0] == ": ping" and "[DONE]" not in lines[-1]
        assert error["error"]["code"] == "request_timeout"
    lines, [message] = read_stream(queueing, "/v1/messages")
    assert lines[:2] == [": ping", "event: error"]
    assert (message["type"], message["error"]["type"]) == ("error", "timeout_error")
    lines, events = read_stream(queueing, "/v1/responses")
    assert lines[0] == ": ping"
    kinds = ["response.created", "response.in_progress", "error", "response.failed"]
    assert [event["type"] for event in events] == kinds
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]


def test_sdks_raise_for_an_error_after_the_ping(queueing: ServerProcess) -> None:
    url = f"{queueing.url}/v1"
    with openai.OpenAI(base_url=url, api_key="x", timeout=DEADLINE_S, max_retries=0) as sdk:
        with pytest.raises(openai.APIError, match="waited"):
            list(sdk.completions.create(model=MODEL_ID, prompt="hi", stream=True))
    with (
        anthropic.Anthropic(
            base_url=queueing.url, api_key="x", timeout=DEADLINE_S, max_retries=0
        ) as client,
        pytest.raises(anthropic.APIStatusError, match="waited"),
        client.messages.stream(**CHAT, model=MODEL_ID) as message,
    ):
        message.get_final_text()


def test_what_is_known_at_once_keeps_its_status(queueing: ServerProcess) -> None:
    with (
        client_of(queueing) as client,
        client.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 1}) as waiting,
    ):
        lines = waiting.iter_lines()
        assert next(lines) == ": ping"
        for path, fields in BODIES.items():
            full = client.post(path, json={**fields, "stream": True})
            assert (full.status_code, full.headers["retry-after"] > "0") == (429, True)
        bad = client.post("/v1/completions", json={**ENDLESS, "n": 0})
        assert_error(bad, 400, "invalid_value", "n")
        del lines


def test_answer_that_is_no_stream_has_its_status(queueing: ServerProcess) -> None:
    with httpx.Client(base_url=queueing.url, timeout=DEADLINE_S) as client:
        waited = client.post("/v1/completions", json={"prompt": "hi"})
    assert_error(waited, 504, "request_timeout", None)
