"""Everything that is answered is what the SDKs' own types say, with null only where it is known.

The SDKs for Python read an optional field from null as from nothing; the types of other clients,
such as those of Vercel's AI SDK, tell the two apart. So beside the types stands the list of all
fields that are ever null here: whoever adds one looks at those clients first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai.types
import pytest
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from openai.types import chat, responses
from pydantic import TypeAdapter

from tests.server.messaging import WEATHER, serving_template
from tests.server.serving import client_of
from tests.server.test_responses_agents import FILES, PATCH, WEATHER_TOOL, call_of
from tests.server.test_tools import ECHO_TEMPLATE
from tests.server.test_tools import WEATHER as CHAT_WEATHER

PROMPT = f"<think>hm</think>I see.{call_of('get_weather', '{}')}{call_of('apply_patch', '{}')}"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
MESSAGES = {"messages": [{"role": "user", "content": PROMPT}]}

# By route: requests that show every kind of part, type of the answer, type of a stream's events.
ROUTES: dict[str, tuple[list[dict[str, Any]], Any, Any]] = {
    "/v1/completions": (
        [
            {"prompt": "a b"},
            {"prompt": "a b", "n": 2, "stream_options": {"include_usage": True}},
            # An echoed prompt would begin with a null that the type does not know and OpenAI sends.
            {"prompt": "a b", "logprobs": 0},
            {"prompt": "a b c d", "max_tokens": 1},
        ],
        openai.types.Completion,
        openai.types.Completion,
    ),
    "/v1/chat/completions": (
        [
            MESSAGES,
            {**MESSAGES, "tools": [CHAT_WEATHER]},
            {"messages": [{"role": "user", "content": "a b"}], "logprobs": True},
            {**MESSAGES, "n": 2, "max_tokens": 2, "stream_options": {"include_usage": True}},
            {**MESSAGES, "response_format": {"type": "text"}},
        ],
        chat.ChatCompletion,
        chat.ChatCompletionChunk,
    ),
    "/v1/responses": (
        [
            {"input": "hi"},
            {"input": PROMPT, "tools": [WEATHER_TOOL, PATCH, FILES]},
            {
                "input": "hi",
                "text": {
                    "format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
                },
                "tools": [WEATHER_TOOL],
                "tool_choice": "none",
            },
            {"input": "a b c d", "max_output_tokens": 1, "reasoning": {"effort": "low"}},
            {
                "input": "hi",
                "tools": [WEATHER_TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "get_weather"}],
                },
            },
        ],
        responses.Response,
        responses.ResponseStreamEvent,
    ),
    "/v1/messages": (
        [
            {**MESSAGES, "max_tokens": 999},
            {**MESSAGES, "max_tokens": 999, "tools": [WEATHER]},
            {**MESSAGES, "max_tokens": 1},
            {**MESSAGES, "max_tokens": 999, "stop_sequences": ["see"]},
            {
                **MESSAGES,
                "max_tokens": 999,
                "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
            },
        ],
        BetaMessage,
        BetaRawMessageStreamEvent,
    ),
}
# Each is `T | null` in the types of the SDK for TypeScript, but for those marked as OpenAI's habit:
# its server sends null there, and clients that are made for it expect the field.
NULL_IN_PLAIN = {
    "/v1/completions": {"choices[].logprobs"},
    "/v1/chat/completions": {
        "choices[].logprobs",
        "choices[].logprobs.refusal",
        "choices[].message.content",
        "choices[].message.refusal",
        "choices[].message.reasoning_content",  # no field of OpenAI's
        "choices[].message.tool_calls",
    },
    "/v1/responses": {
        "completed_at",
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "previous_response_id",
        "prompt_cache_key",  # a habit
        "reasoning.effort",
        "reasoning.summary",
        "safety_identifier",  # a habit
        "text.format.description",  # a habit
        "tools[].description",
        "tools[].parameters",
        "tools[].strict",
        "tools[].tools[].description",
        "tools[].tools[].strict",
        "user",  # a habit
    },
    "/v1/messages": {
        "stop_sequence",
        "usage.cache_creation_input_tokens",
        "usage.cache_read_input_tokens",
    },
}
NULL_IN_STREAMS = {
    "/v1/completions": {
        "choices[].finish_reason",
        "choices[].logprobs",
        "usage",
    },
    "/v1/chat/completions": {
        "choices[].finish_reason",
        "choices[].logprobs",
        "choices[].logprobs.refusal",
        "usage",
    },
    "/v1/responses": {
        *(f"response.{place}" for place in NULL_IN_PLAIN["/v1/responses"]),
        "response.usage",
    },
    "/v1/messages": {
        "delta.stop_sequence",
        "message.stop_reason",
        *(f"message.{place}" for place in NULL_IN_PLAIN["/v1/messages"]),
        "usage.cache_creation_input_tokens",
        "usage.cache_read_input_tokens",
    },
}
CASES = [(route, index) for route, (bodies, _, _) in ROUTES.items() for index in range(len(bodies))]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Says the last message, thoughts and calls included."""
    with serving_template(tmp_path_factory.mktemp("types"), ECHO_TEMPLATE) as server:
        with client_of(server) as client:
            yield client


def find_nulls(value: Any, place: str = "") -> set[str]:
    if value is None:
        return {place}
    if isinstance(value, dict):
        prefix = f"{place}." if place else ""
        return set().union(*(find_nulls(one, prefix + name) for name, one in value.items()))
    if isinstance(value, list):
        return set().union(*(find_nulls(one, f"{place}[]") for one in value))
    return set()


def check(value: Any, type_: Any, nulls: set[str]) -> None:
    TypeAdapter(type_).validate_json(json.dumps(value), strict=True)
    # What a client has put into a schema is its own.
    found = {place for place in find_nulls(value) if ".schema" not in place}
    assert found <= nulls


@pytest.mark.parametrize(("route", "index"), CASES)
def test_plain_answer_is_one_by_the_sdk_s_type(echo: httpx.Client, route: str, index: int) -> None:
    bodies, type_, _ = ROUTES[route]
    body = {key: value for key, value in bodies[index].items() if key != "stream_options"}
    answer = echo.post(route, json=body)
    assert answer.status_code == 200, answer.text
    check(answer.json(), type_, NULL_IN_PLAIN[route])


@pytest.mark.parametrize(("route", "index"), CASES)
def test_every_event_is_one_by_the_sdk_s_type(echo: httpx.Client, route: str, index: int) -> None:
    bodies, _, type_ = ROUTES[route]
    answer = echo.post(route, json=bodies[index] | {"stream": True})
    assert answer.status_code == 200, answer.text
    datas = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(data) for data in datas if data != "[DONE]"]
    assert events
    for event in events:
        check(event, type_, NULL_IN_STREAMS[route])


def test_counts_are_ones_by_the_sdks_types(echo: httpx.Client) -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    for fields in ({}, {"context_management": edits}):
        counted = echo.post("/v1/messages/count_tokens", json=MESSAGES | fields).json()
        check(counted, BetaMessageTokensCount, set())
    counted = echo.post("/v1/responses/input_tokens", json={"input": "hi"}).json()
    check(counted, responses.input_token_count_response.InputTokenCountResponse, set())


def test_error_of_messages_is_one_by_the_sdk_s_type(echo: httpx.Client) -> None:
    answer = echo.post("/v1/messages", json={"messages": [], "max_tokens": 1})
    assert answer.status_code == 400
    check(answer.json(), anthropic.types.ErrorResponse, {"error.param"})
    gone = echo.post("/v1/messages", json=MESSAGES | {"max_tokens": 1, "model": "gone"})
    check(gone.json(), anthropic.types.ErrorResponse, {"error.param"})


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_error_of_openai_s_routes_is_one_by_the_sdk_s_type(echo: httpx.Client, route: str) -> None:
    answer = echo.post(route, json={})
    assert answer.status_code == 400
    check(answer.json()["error"], openai.types.shared.ErrorObject, {"param"})
    malformed = echo.post(route, content=b"{", headers={"content-type": "application/json"})
    check(malformed.json()["error"], openai.types.shared.ErrorObject, {"param"})
