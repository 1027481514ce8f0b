"""Answers go back as the SDKs have parsed them: with null in each field that says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic.types.text_block import TextBlock
from anthropic.types.tool_use_block import ToolUseBlock
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.parsed_chat_completion import ParsedChatCompletionMessage
from openai.types.responses import ParsedResponseOutputMessage

from tests.server.serving import DEADLINE_S, make_echo_engine, serving
from tests.server.test_tools import CALL, ECHO_TEMPLATE, WEATHER

CHAT = "/v1/chat/completions"
USER: dict[str, Any] = {"role": "user", "content": "hi"}
# Fields of an assistant's turn that are null in what clients keep of an answer: those that the
# types of the SDKs for Python and TypeScript allow as null, and other servers' own.
NULLS_OF_ASSISTANTS = (
    "annotations",
    "audio",
    "function_call",
    "name",
    "parsed",
    "provider_specific_fields",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
    "thinking_blocks",
    "tool_call_id",
    "tool_calls",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=ECHO_TEMPLATE)
    with serving(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def find_prompt(http: httpx.Client, messages: list[dict[str, Any]]) -> list[int]:
    response = http.post("/tokenize", json={"messages": messages})
    assert response.status_code == 200, response.text
    tokens: list[int] = response.json()["tokens"]
    return tokens


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("name", NULLS_OF_ASSISTANTS)
def test_null_in_a_message_says_nothing(http: httpx.Client, role: str, name: str) -> None:
    said = {"role": role, "content": "I say."}
    answer = http.post(CHAT, json={"messages": [USER, {**said, name: None}, USER]})
    assert answer.status_code == 200, answer.text
    assert find_prompt(http, [USER, {**said, name: None}]) == find_prompt(http, [USER, said])


@pytest.mark.parametrize("content", [f"I see. {CALL}", CALL, "just words"])
def test_chat_message_goes_back_as_the_sdk_has_parsed_it(
    http: httpx.Client, sdk: openai.OpenAI, content: str
) -> None:
    answer = sdk.chat.completions.parse(  # with `parsed` and `parsed_arguments`
        model="", messages=[{"role": "user", "content": content}], tools=[strict(WEATHER)]
    )
    message = answer.choices[0].message
    assert isinstance(message, ParsedChatCompletionMessage)
    whole = message.model_dump()  # as many programs do, and not `exclude_none=True`
    nulls = {name for name, value in whole.items() if value is None}
    assert {"function_call", "audio", "annotations", "refusal"} <= nulls
    short = message.model_dump(exclude_none=True)
    assert find_prompt(http, [USER, whole]) == find_prompt(http, [USER, short])
    assert http.post(CHAT, json={"messages": [USER, whole, USER]}).status_code == 200


def strict(tool: dict[str, Any]) -> Any:
    """`parse` takes no other tools."""
    return {**tool, "function": {**tool["function"], "strict": True}}


def test_every_nullable_field_of_the_sdk_s_message_is_among_them() -> None:
    nullable = {
        name
        for name, field in ChatCompletionMessage.model_fields.items()
        if not field.is_required()
    }
    assert nullable - {"content"} <= {*NULLS_OF_ASSISTANTS}


def test_stream_s_first_pieces_of_calls_go_back(http: httpx.Client) -> None:
    """Clients that add deltas up keep their `index`, and null where a piece had none."""
    call = {
        "index": 0,
        "id": "call_1",
        "type": None,
        "function": {"name": "clock", "arguments": None, "parsed_arguments": None},
    }
    plain = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        [USER, {"role": "assistant", "content": None, "tool_calls": [one]}] for one in (call, plain)
    ]
    assert find_prompt(http, turns[0]) == find_prompt(http, turns[1])


@pytest.mark.parametrize("content", [f"<think>hm</think>I see. {CALL}", "just words"])
def test_items_of_a_response_go_back_as_the_sdk_has_parsed_them(
    http: httpx.Client, sdk: openai.OpenAI, content: str
) -> None:
    tool = {"type": "function", **strict(WEATHER)["function"]}
    answer = sdk.responses.parse(model="", input=content, tools=[tool])
    assert any(isinstance(item, ParsedResponseOutputMessage) for item in answer.output)
    items = [item.model_dump() for item in answer.output]
    assert any(value is None for item in items for value in item.values())
    short = [item.model_dump(exclude_none=True) for item in answer.output]
    counts = [count(http, [USER, *given]) for given in (items, short)]
    assert counts[0] == counts[1]
    again = http.post("/v1/responses", json={"input": [USER, *items, USER], "tools": [tool]})
    assert again.status_code == 200, again.text


def count(http: httpx.Client, items: list[dict[str, Any]]) -> int:
    response = http.post("/v1/responses/input_tokens", json={"input": items})
    assert response.status_code == 200, response.text
    tokens: int = response.json()["input_tokens"]
    return tokens


def test_blocks_of_a_message_go_back_as_the_sdk_has_parsed_them(
    http: httpx.Client, url: str
) -> None:
    tool = {"name": "clock", "input_schema": {"type": "object"}}
    said = f"<think>hm</think>I see. {CALL.replace('get_weather', 'clock')}"
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        answer = client.messages.create(
            model="",
            max_tokens=200,
            messages=[{"role": "user", "content": said}],
            tools=[tool],  # type: ignore[list-item]
        )
    text, call = answer.content[-2:]
    assert isinstance(text, TextBlock) and isinstance(call, ToolUseBlock)
    blocks = [block.model_dump() for block in answer.content]
    assert blocks[-2]["citations"] is None and blocks[-1]["caller"] is None
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "late", "is_error": None}
    turns = [USER, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    again = http.post("/v1/messages", json={"messages": turns, "max_tokens": 20, "tools": [tool]})
    assert again.status_code == 200, again.text
