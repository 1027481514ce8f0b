"""The OpenAI SDK's connections: retries, streams that are left early, many at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from deepinfer.errors import EngineLoading, InternalError, RequestError
from deepinfer.server.errors import error_response
from tests.server.clients.conftest import Endpoint, connect, say
from tests.server.serving import DEADLINE_S, MODEL_ID, ServerProcess, serving

ENDLESS: dict[str, Any] = {"max_tokens": 4_000, "extra_body": {"ignore_eos": True}}  # 8 s if slow
NUM_AT_ONCE = 24


@pytest.mark.parametrize(
    ("error", "waits_s"),
    [(InternalError("our fault"), []), (EngineLoading("loading", retry_after_s=7), [7, 7])],
    ids=["not to be retried", "to be retried"],
)
def test_headers_of_an_error_tell_the_sdk_whether_to_retry(
    error: RequestError, waits_s: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = error_response(error)
    attempts: list[httpx2.Request] = []
    slept: list[float] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        attempts.append(request)
        headers = dict(answer.headers)
        return httpx2.Response(answer.status_code, headers=headers, content=bytes(answer.body))

    monkeypatch.setattr(time, "sleep", slept.append)
    http = httpx2.Client(transport=httpx2.MockTransport(refuse))
    endpoint = Endpoint("http://127.0.0.1/v1", MODEL_ID)
    with connect(endpoint, max_retries=2, http_client=http) as client:
        with pytest.raises(openai.InternalServerError):
            client.models.list()
    assert slept == waits_s and len(attempts) == len(waits_s) + 1


def hold_the_slot(client: openai.OpenAI, name: str, *, n: int = 1) -> openai.Stream[Any]:
    """An endless stream that has begun."""
    stream = client.chat.completions.create(
        model=MODEL_ID,
        messages=say("a b"),
        n=n,
        stream=True,
        extra_headers={"x-request-id": name},
        **ENDLESS,
    )
    next(iter(stream))
    return stream


def test_sdk_comes_again_when_the_queue_was_full(
    slow_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serving(slow_engine, "--max-waiting-requests", "2") as server,
        connect(Endpoint(f"{server.url}/v1", MODEL_ID), max_retries=1) as client,
    ):
        running = hold_the_slot(client, "first", n=2)  # one of the two waits for the other
        waits_s: list[float] = []

        def hang_up_meanwhile(seconds: float) -> None:
            waits_s.append(seconds)
            running.close()
            server.wait_for_request("first")

        monkeypatch.setattr(time, "sleep", hang_up_meanwhile)
        headers = {"x-request-id": "again"}
        answer = client.completions.create(model=MODEL_ID, prompt="x", n=2, extra_headers=headers)
        assert [choice.text for choice in answer.choices] == ["x", "x"]
        assert len(waits_s) == 1 and 1 <= waits_s[0] <= 120
        assert "error=queue_full" in server.wait_for_request("again")  # the first line of two
        server.wait_for_log("request_id=again\n", count=2)


def assert_slot_is_free(server: ServerProcess, client: openai.OpenAI, name: str) -> None:
    assert "200 disconnected" in server.wait_for_request(name)
    # An endless answer would take longer than this waits.
    answer = client.with_options(timeout=3).completions.create(model=MODEL_ID, prompt="x")
    assert answer.choices[0].text == "x"


async def test_stream_that_is_left_early_frees_its_slot(slow_engine: Path) -> None:
    with serving(slow_engine) as server:
        endpoint = Endpoint(f"{server.url}/v1", MODEL_ID)
        with connect(endpoint) as client:
            hold_the_slot(client, "closed").close()
            assert_slot_is_free(server, client, "closed")
            with hold_the_slot(client, "left"):
                pass
            assert_slot_is_free(server, client, "left")
            await cancel_a_task(endpoint, "cancelled")
            assert_slot_is_free(server, client, "cancelled")


async def cancel_a_task(endpoint: Endpoint, name: str) -> None:
    """End a task in the middle of the stream that it reads."""
    has_begun = asyncio.Event()

    async def read(client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model=MODEL_ID,
            prompt="a b",
            stream=True,
            extra_headers={"x-request-id": name},
            **ENDLESS,
        )
        async with stream:
            async for _ in stream:
                has_begun.set()

    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="not-needed") as client:
        task = asyncio.create_task(read(client))
        await asyncio.wait_for(has_begun.wait(), DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def ask(client: openai.AsyncOpenAI, question: str, *, is_patient: bool) -> str:
    """The streamed answer; who has no patience goes away after its first piece."""
    stream = await client.chat.completions.create(
        model=MODEL_ID, messages=say(question), stream=True
    )
    text = ""
    async with stream, aclosing(aiter(stream)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            text += chunk.choices[0].delta.content or ""
            if text and not is_patient:
                break
    return text


async def test_many_streams_at_once_keep_their_answers_apart(echo: Endpoint) -> None:
    questions = [f"Question number {number}: 🎉 ünïcode" for number in range(NUM_AT_ONCE)]
    async with openai.AsyncOpenAI(
        base_url=echo.base_url, api_key="not-needed", max_retries=0, timeout=DEADLINE_S
    ) as client:
        answers = await asyncio.gather(
            *(ask(client, text, is_patient=index % 3 > 0) for index, text in enumerate(questions))
        )
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        assert answer == question if index % 3 > 0 else question.startswith(answer) and answer
