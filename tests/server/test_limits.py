"""Requests, tokens and running requests of one key are counted, refused and told of in headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deepinfer.config import LimitsSection, ServeConfig
from deepinfer.errors import AboveRateLimit, QueueFull, RateLimitExceeded
from deepinfer.generation import FinishReason, TokenChunk
from deepinfer.server.app import create_app
from deepinfer.server.keys import KeyRing, parse_keys
from deepinfer.server.limit_check import LIMITED_PATHS
from deepinfer.server.limits import Allowance, MonotonicStorage, RateLimiter
from deepinfer.server.state import ServerState
from tests.server.serving import ServerProcess, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error
from tests.server.watched import A, Chunks, Generate, answer_in_three, client_for, make_state

PROMPT = [70, 71, 72, 73]
BODY = {"prompt": PROMPT, "max_tokens": 6}  # at most 10 tokens; 7 as it is answered here


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """A limiter whose clock is the test's."""

    def __init__(self, **limits: int) -> None:
        self.clock = Clock()
        self.limits = LimitsSection(**limits)
        self.limiter = RateLimiter(clock=self.clock)

    def allow(self, key_name: str = "alice") -> Allowance:
        return self.limiter.allowance(key_name, self.limits)

    def enter(self, key_name: str = "alice") -> Allowance:
        allowance = self.allow(key_name)
        allowance.enter()
        return allowance

    def reserve(self, prompt_tokens: int, max_tokens: int) -> Allowance:
        allowance = self.enter()
        allowance.reserve(prompt_tokens, max_tokens)
        return allowance

    def header(self, name: str) -> str:
        return dict(self.allow().headers())[f"x-ratelimit-{name}".encode()].decode()


# Counting


def test_minute_begins_with_the_first_request() -> None:
    counting = Counting(requests_per_minute=2)
    counting.clock.now += 30
    counting.enter()
    counting.clock.now += 59
    counting.enter()
    with pytest.raises(
        RateLimitExceeded, match="At most 2 requests a minute; .* in 1 s"
    ) as refused:
        counting.enter()
    assert refused.value.retry_after_s == 1
    counting.clock.now += 1
    counting.enter()


def test_refused_request_counts_for_nothing() -> None:
    counting = Counting(requests_per_minute=1, concurrent_requests=1)
    running = counting.enter()
    for _ in range(3):
        with pytest.raises(RateLimitExceeded, match="At most 1 request may run"):
            counting.enter()
    running.leave()
    with pytest.raises(RateLimitExceeded, match="At most 1 request a minute"):
        counting.enter()
    counting.clock.now += 60
    counting.enter()


def test_keys_are_counted_apart() -> None:
    counting = Counting(requests_per_minute=1, concurrent_requests=1)
    counting.enter("alice")
    counting.enter("bob")
    with pytest.raises(RateLimitExceeded):
        counting.enter("bob")


def test_tokens_are_held_for_the_longest_answer_and_given_back() -> None:
    counting = Counting(tokens_per_minute=100)
    first = counting.reserve(10, 60)
    assert counting.header("remaining-tokens") == "30"
    with pytest.raises(RateLimitExceeded, match="30 are left, and prompt and `max_tokens` come to"):
        counting.reserve(10, 21)
    first.settle(15)
    assert counting.header("remaining-tokens") == "85"
    counting.reserve(10, 75)


def test_tokens_are_given_back_to_their_own_minute_only() -> None:
    counting = Counting(tokens_per_minute=100)
    slow = counting.reserve(10, 60)
    counting.clock.now += 61
    counting.reserve(10, 80)
    slow.settle(15)
    assert counting.header("remaining-tokens") == "10"


def test_answer_longer_than_a_minute_allows_has_its_turn_alone() -> None:
    counting = Counting(tokens_per_minute=100)
    counting.reserve(10, 4000).settle(250)
    assert counting.header("remaining-tokens") == "0"
    counting.clock.now += 60
    counting.reserve(1, 0)
    with pytest.raises(RateLimitExceeded, match="99 are left"):
        counting.reserve(10, 4000)


def test_prompt_longer_than_a_minute_allows_is_never_sent_again() -> None:
    counting = Counting(tokens_per_minute=100)
    with pytest.raises(AboveRateLimit, match="The prompt has 101 tokens; at most 100 tokens a min"):
        counting.reserve(101, 1)
    assert counting.header("remaining-tokens") == "100"


def test_headers_tell_what_is_left_and_for_how_long() -> None:
    counting = Counting(requests_per_minute=3, tokens_per_minute=100)
    assert counting.header("reset-requests") == "0s"
    counting.reserve(10, 5)
    counting.clock.now += 0.5
    assert {name.decode(): value.decode() for name, value in counting.allow().headers()} == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "85",
        "x-ratelimit-reset-tokens": "1m0s",
    }
    counting.clock.now += 42
    assert counting.header("reset-tokens") == "18s"


def test_limit_that_is_not_set_has_no_header() -> None:
    assert Counting(concurrent_requests=1).allow().headers() == []


def test_forgotten_minutes_take_no_memory() -> None:
    clock = Clock()
    storage = MonotonicStorage(clock)
    for i in range(1000):
        storage.incr(f"key-{i}", 60)
        clock.now += 1
    assert storage.reset() == 60


# At the door


def limited(folder: Path, generate: Generate = answer_in_three, **limits: int) -> ServerState:
    config = ServeConfig(limits=LimitsSection(**limits))
    state, _ = make_state(folder, generate, config=config, keys=KeyRing((), config.limits))
    return state


def test_every_route_that_generates_is_limited(tmp_path: Path) -> None:
    document = create_app(limited(tmp_path / "echo")).openapi()
    refusing = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if "rate_limit_exceeded" in operation["responses"].get("429", {}).get("description", "")
    }
    assert refusing == LIMITED_PATHS


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": BODY,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6},
    "/v1/responses": {"input": "a", "max_output_tokens": 16},
    "/v1/messages": {
        "model": "test/echo",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 6,
    },
}


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", list(ROUTES))
async def test_answer_says_what_is_left(tmp_path: Path, path: str, is_stream: bool) -> None:
    state = limited(tmp_path / "echo", requests_per_minute=5, tokens_per_minute=1000)
    async with client_for(state) as client:
        body = {**ROUTES[path], "stream": is_stream}
        first = await client.post(path, json=body)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-remaining-requests"] == "4"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 1000
        assert first.headers["x-ratelimit-reset-requests"] == "1m0s"
        second = await client.post(path, json=body)
        assert second.headers["x-ratelimit-remaining-requests"] == "3"


async def test_bad_request_counts_and_is_told_what_is_left(tmp_path: Path) -> None:
    state = limited(tmp_path / "echo", requests_per_minute=1)
    async with client_for(state) as client:
        bad = await client.post("/v1/completions", content=b"{")
        assert bad.status_code == 400
        assert bad.headers["x-ratelimit-remaining-requests"] == "0"
        refused = await client.post("/v1/completions", json=BODY)
    message = assert_error(refused, 429, "rate_limit_exceeded", None)
    assert message.startswith("At most 1 request a minute; the next minute begins in ")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert state.meter.num_errors["unmatched", "rate_limit_exceeded"] == 1


async def test_other_routes_are_not_counted(tmp_path: Path) -> None:
    async with client_for(limited(tmp_path / "echo", requests_per_minute=1)) as client:
        for _ in range(3):
            models = await client.get("/v1/models")
            assert models.status_code == 200
            assert "x-ratelimit-limit-requests" not in models.headers
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses/input_tokens", {"input": "a"}),
    ],
)
async def test_routes_that_count_tokens_are_requests_and_use_up_no_tokens(
    tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    state = limited(tmp_path / "echo", requests_per_minute=2, tokens_per_minute=100)
    async with client_for(state) as client:
        first = await client.post(path, json=body)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-remaining-tokens"] == "100"
        assert (await client.post(path, json=body)).status_code == 200
        assert (await client.post(path, json=body)).status_code == 429


async def test_unlimited_server_says_nothing_of_limits(tmp_path: Path) -> None:
    async with client_for(limited(tmp_path / "echo")) as client:
        answer = await client.post("/v1/completions", json=BODY)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_used_tokens_are_those_of_prompt_and_answer(tmp_path: Path) -> None:
    async with client_for(limited(tmp_path / "echo", tokens_per_minute=100)) as client:
        left = []
        for is_stream in (False, True, False):
            answer = await client.post("/v1/completions", json={**BODY, "stream": is_stream})
            left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
    # A stream's headers leave before its answer is counted: 10 are held, of which 7 are used.
    assert left == [93, 83, 79]


async def test_work_that_was_not_taken_costs_no_tokens(tmp_path: Path) -> None:
    async def refuse(*_: object) -> Chunks:
        raise QueueFull("The queue is full", retry_after_s=1)
        yield []

    state = limited(tmp_path / "echo", refuse, tokens_per_minute=10)
    async with client_for(state) as client:
        for _ in range(3):
            assert_error(await client.post("/v1/completions", json=BODY), 429, "queue_full", None)


async def test_too_long_prompt_is_not_sent_again(tmp_path: Path) -> None:
    async with client_for(limited(tmp_path / "echo", tokens_per_minute=3)) as client:
        refused = await client.post("/v1/completions", json=BODY)
    assert_error(refused, 429, "rate_limit_exceeded", None)
    assert refused.headers["x-should-retry"] == "false"


async def test_running_requests_are_bounded_until_their_streams_end(tmp_path: Path) -> None:
    may_end = asyncio.Event()
    is_running = asyncio.Event()

    async def wait(requests: Any, terms: Any) -> Chunks:
        is_running.set()
        await may_end.wait()
        yield [TokenChunk(request.request_id, (A,), FinishReason.LENGTH) for request in requests]

    async with client_for(limited(tmp_path / "echo", wait, concurrent_requests=1)) as client:
        first = asyncio.create_task(client.post("/v1/completions", json={**BODY, "stream": True}))
        await is_running.wait()
        refused = await client.post("/v1/chat/completions", json=ROUTES["/v1/chat/completions"])
        assert_error(refused, 429, "rate_limit_exceeded", None)
        assert refused.headers["retry-after"] == "1"
        may_end.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


async def test_messages_are_refused_in_their_own_shape(tmp_path: Path) -> None:
    async with client_for(limited(tmp_path / "echo", requests_per_minute=1)) as client:
        await client.post("/v1/messages", json=ROUTES["/v1/messages"])
        refused = await client.post("/v1/messages", json=ROUTES["/v1/messages"])
    body = refused.json()
    assert (refused.status_code, body["type"]) == (429, "error")
    assert body["error"]["type"] == "rate_limit_error"
    assert body["error"]["details"] == {"error_code": "rate_limit_exceeded"}


@asynccontextmanager
async def keyed(folder: Path, lines: str, **limits: int) -> AsyncIterator[httpx.AsyncClient]:
    config = ServeConfig(limits=LimitsSection(**limits))
    ring = KeyRing(parse_keys(lines, "x", "x", config.limits), config.limits)
    state, _ = make_state(folder, config=config, keys=ring)
    async with client_for(state) as client:
        yield client


async def test_each_key_has_its_own_limit(tmp_path: Path) -> None:
    lines = "alice: a\nbob: b requests_per_minute=3\ncarol: c requests_per_minute=none"
    async with keyed(tmp_path / "echo", lines, requests_per_minute=1) as client:
        counts = {}
        for key in "abc":
            headers = {"x-api-key": key}
            answers = [
                await client.post("/v1/completions", json=BODY, headers=headers) for _ in range(5)
            ]
            counts[key] = sum(answer.status_code == 200 for answer in answers)
    assert counts == {"a": 1, "b": 3, "c": 5}


# Through the SDKs


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("narrow")
    make_echo_engine(folder / "engines" / "echo")
    (folder / "keys").write_text("alice: a\nbob: b\n")
    options = ("--api-key-file", str(folder / "keys"), "--requests-per-minute", "1")
    with serving(folder / "engines", *options) as server:
        yield server


def test_openai_sdk_raises_rate_limit_error(narrow: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="a", max_retries=0) as client:
        raw = client.completions.with_raw_response.create(model="test/echo", prompt="x")
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="test/echo", prompt="x")
    assert refused.value.code == "rate_limit_exceeded"


def test_anthropic_sdk_raises_rate_limit_error(narrow: ServerProcess) -> None:
    with anthropic.Anthropic(base_url=narrow.url, api_key="b", max_retries=0) as client:

        def ask() -> anthropic.types.Message:
            return client.messages.create(
                model="test/echo", max_tokens=4, messages=[{"role": "user", "content": "x"}]
            )

        assert ask().role == "assistant"
        with pytest.raises(anthropic.RateLimitError):
            ask()
