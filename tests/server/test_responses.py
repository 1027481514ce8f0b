"""POST /v1/responses through the OpenAI SDK. The engine repeats what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import jsonschema
import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel, Field

from tests.building import BuildEngine
from tests.server.serving import DEADLINE_S, MODEL_ID, make_echo_engine, serving
from tests.server.test_tools import ARGUMENTS, CALL, ECHO_TEMPLATE, WEATHER, write_template

PATH = "/v1/responses"
LOG_PROBS = ["message.output_text.logprobs"]
RENDERED = "system: Be brief.\nuser: Grüße 🎉\nassistant:"
WEATHER_TOOL: dict[str, Any] = {"type": "function", **cast(dict[str, Any], WEATHER["function"])}
CLOCK_TOOL: dict[str, Any] = {"type": "function", "name": "clock"}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """An engine that says the last message of the conversation, and what it calls."""
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=ECHO_TEMPLATE)
    with (
        serving(folder) as server,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=DEADLINE_S
        ) as client,
    ):
        yield client


def post(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(PATH, json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_response_has_one_message(sdk: openai.OpenAI) -> None:
    response = sdk.responses.create(model=MODEL_ID, instructions="Be brief.", input="Grüße 🎉")
    assert response.output_text == RENDERED
    assert response.id.startswith("resp_") and response.status == "completed"
    (message,) = response.output
    assert message.type == "message" and message.status == "completed"
    assert message.id.startswith("msg_") and message.role == "assistant"
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_response_is_one_by_the_sdk_s_own_model(http: httpx.Client) -> None:
    response = http.post(
        PATH,
        json={"input": "hi", "metadata": {"a": "b"}, "max_output_tokens": 2, "user": "me"},
    )
    parsed = Response.model_validate_json(response.content, strict=True)
    assert parsed.to_dict(exclude_unset=True)["id"] == response.json()["id"]
    assert parsed.metadata == {"a": "b"} and parsed.user == "me"
    assert parsed.incomplete_details is not None
    assert parsed.incomplete_details.reason == "max_output_tokens"


def test_what_was_asked_is_said_back(http: httpx.Client) -> None:
    asked = {
        "instructions": "x",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "parallel_tool_calls": False,
        "metadata": {"key": "value"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "store": False,
        "service_tier": "default",
        "truncation": "disabled",
        "background": False,
    }
    answer = post(http, input="hi", **asked)
    assert {name: answer[name] for name in asked} == asked
    defaults = post(http, input="hi")
    assert (defaults["temperature"], defaults["top_p"]) == (0.7, 0.95)
    assert defaults["store"] is True
    assert defaults["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert defaults["metadata"] == {} and defaults["tools"] == []


def test_answer_that_was_cut_is_incomplete(sdk: openai.OpenAI) -> None:
    response = sdk.responses.create(model=MODEL_ID, input="a b c d", max_output_tokens=3)
    assert response.status == "incomplete" and response.completed_at is None
    (message,) = response.output
    assert message.type == "message" and message.status == "incomplete"
    assert response.usage is not None and response.usage.output_tokens == 3


ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Obey."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
    {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "two", "annotations": [], "logprobs": []}],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "never"}]},
    {"role": "user", "content": [{"type": "input_text", "text": t} for t in ("three", "four")]},
]


def test_items_become_a_conversation(http: httpx.Client) -> None:
    answer = post(http, input=ITEMS, instructions="Be brief.")
    (part,) = answer["output"][0]["content"]
    assert part["text"] == (
        "system: Be brief.\nsystem: Obey.\nuser: one\nassistant: two\nuser: three\nfour\nassistant:"
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop": "user"}, "system: x\n"),
        ({"stop_token_ids": [0]}, None),
        ({"ignore_eos": True, "max_output_tokens": 40}, None),
        ({"min_tokens": 30, "max_output_tokens": 40, "seed": 1, "top_k": 5, "min_p": 0.1}, None),
    ],
)
def test_extensions_are_taken(http: httpx.Client, fields: dict[str, Any], text: str | None) -> None:
    answer = post(http, input="hi", instructions="x", **fields)
    if text is not None:
        assert answer["output"][0]["content"][0]["text"] == text
    if "ignore_eos" in fields:
        assert answer["usage"]["output_tokens"] == 40


def test_log_probs_stand_with_the_text(http: httpx.Client) -> None:
    answer = post(http, input="hi", max_output_tokens=4, include=LOG_PROBS)
    (part,) = answer["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == "<s>" + part["text"]
    assert len(part["logprobs"]) == 4 and answer["top_logprobs"] == 0


def test_likeliest_tokens_are_shown_or_refused_by_name(http: httpx.Client) -> None:
    response = http.post(PATH, json={"input": "hi", "include": LOG_PROBS, "top_logprobs": 1})
    if response.status_code == 400:  # an engine that gives those of the chosen tokens only
        assert response.json()["error"]["param"] == "top_logprobs"
        return
    (part,) = response.json()["output"][0]["content"]
    assert all(len(entry["top_logprobs"]) == 1 for entry in part["logprobs"])


def test_thoughts_are_an_item_of_their_own(echo: openai.OpenAI) -> None:
    response = echo.responses.create(model=MODEL_ID, input="<think>two and two</think>four")
    reasoning, message = response.output
    assert reasoning.type == "reasoning" and reasoning.summary == []
    assert [part.text for part in reasoning.content or []] == ["two and two"]
    assert message.type == "message" and response.output_text == "four"


def test_thoughts_alone_are_an_answer(echo: openai.OpenAI) -> None:
    response = echo.responses.create(model=MODEL_ID, input="<think>hm</think>")
    assert [item.type for item in response.output] == ["reasoning"]
    assert response.output_text == "" and response.status == "completed"


def test_calls_are_items_in_the_order_of_the_text(echo: openai.OpenAI) -> None:
    second = CALL.replace("get_weather", "clock")
    response = echo.responses.create(
        model=MODEL_ID,
        input=f"Let me see.{CALL}{second}",
        tools=[WEATHER_TOOL, CLOCK_TOOL],  # type: ignore[list-item]
    )
    message, first, last = response.output
    assert message.type == "message" and response.output_text == "Let me see."
    assert first.type == "function_call" and last.type == "function_call"
    assert (first.name, last.name) == ("get_weather", "clock")
    assert first.arguments == last.arguments == ARGUMENTS
    assert first.status == "completed" and first.call_id.startswith("call_")
    assert first.call_id != last.call_id and str(first.id).startswith("fc_")
    assert [tool.to_dict()["name"] for tool in response.tools] == ["get_weather", "clock"]


def test_no_call_follows_where_one_is_enough(echo: openai.OpenAI) -> None:
    response = echo.responses.create(
        model=MODEL_ID,
        input=f"{CALL}{CALL}",
        tools=[WEATHER_TOOL],  # type: ignore[list-item]
        parallel_tool_calls=False,
    )
    assert [item.type for item in response.output] == ["function_call"]
    assert response.parallel_tool_calls is False and response.status == "completed"


def test_call_that_was_cut_is_incomplete(echo: openai.OpenAI) -> None:
    response = echo.responses.create(
        model=MODEL_ID,
        input=CALL,
        tools=[WEATHER_TOOL],  # type: ignore[list-item]
        max_output_tokens=60,
    )
    call = response.output[0]
    assert response.status == "incomplete"
    assert call.type == "function_call" and call.status == "incomplete"
    assert ARGUMENTS.startswith(call.arguments) and call.arguments != ARGUMENTS


def test_call_that_ends_early_is_incomplete_and_no_text(echo: openai.OpenAI) -> None:
    text = CALL.partition("days")[0]
    response = echo.responses.create(
        model=MODEL_ID,
        input=text,
        tools=[WEATHER_TOOL],  # type: ignore[list-item]
    )
    assert response.status == "completed", "the model has ended it"
    (call,) = response.output
    assert call.type == "function_call" and call.status == "incomplete"
    assert text.endswith(call.arguments) and call.arguments.startswith("{")


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER_TOOL], "tool_choice": "none"}])
def test_without_an_offer_nothing_is_a_call(echo: openai.OpenAI, fields: dict[str, Any]) -> None:
    response = echo.responses.create(model=MODEL_ID, input=CALL, **fields)
    assert response.output_text == CALL


def test_result_of_a_call_goes_on_from_the_response(echo: openai.OpenAI) -> None:
    first = echo.responses.create(
        model=MODEL_ID,
        input=CALL,
        tools=[WEATHER_TOOL],  # type: ignore[list-item]
    )
    (call,) = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    second = echo.responses.create(
        model=MODEL_ID,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
    )
    assert second.output_text == "sunny"
    assert second.previous_response_id == first.id
    kinds = [item.type for item in echo.responses.input_items.list(second.id, order="asc")]
    assert kinds == ["message", "function_call", "function_call_output"]


def test_output_can_be_sent_back_as_input(echo: openai.OpenAI) -> None:
    tools: Any = [WEATHER_TOOL]
    first = echo.responses.create(
        model=MODEL_ID, input=f"<think>hm</think>see {CALL}", tools=tools, store=False
    )
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    items: Any = [{"role": "user", "content": "x"}, *first.output]
    second = echo.responses.create(model=MODEL_ID, input=items, store=False)
    assert second.output_text == f"see{ARGUMENTS}"


def test_call_without_its_result_is_part_of_the_assistant_s_turn(echo: openai.OpenAI) -> None:
    said = {"role": "assistant", "content": "see: "}
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'}
    items = [said, call, {**call, "arguments": "{oops"}]
    response = echo.responses.create(model=MODEL_ID, input=items)  # type: ignore[arg-type]
    assert response.output_text == 'see: {"a": 1}"{oops"'


async def test_async_client(async_sdk: openai.AsyncOpenAI) -> None:
    response = await async_sdk.responses.create(
        model=MODEL_ID, instructions="Be brief.", input="Grüße 🎉"
    )
    assert response.output_text == RENDERED
    async with async_sdk.responses.stream(
        model=MODEL_ID, instructions="Be brief.", input="Grüße 🎉"
    ) as stream:
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
    assert "".join(texts) == RENDERED


@pytest.fixture(scope="module")
def model(build_engine: BuildEngine) -> Iterator[openai.OpenAI]:
    """A real model with random weights: what it writes has a form only because it must."""
    built = build_engine("llama", "fp32", "--max-batch-size", "4", edit_checkpoint=write_template)
    with (
        serving(built.engine.path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=DEADLINE_S) as client,
    ):
        yield client


class Person(BaseModel):
    age: int = Field(ge=0, le=150)
    nickname: str | None = Field(max_length=5)


def test_text_is_parsed_by_the_sdk(model: openai.OpenAI) -> None:
    name = model.models.list().data[0].id
    response = model.responses.parse(
        model=name, input="hi", text_format=Person, max_output_tokens=100
    )
    assert isinstance(response.output_parsed, Person)
    with model.responses.stream(
        model=name, input="hi", text_format=Person, max_output_tokens=100
    ) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)
    assert response.text is not None and response.text.format is not None
    assert response.text.format.type == "json_schema" and response.text.format.name == "Person"


def test_any_json_object_is_an_object(model: openai.OpenAI) -> None:
    for seed in range(8):
        response = model.responses.create(
            model=model.models.list().data[0].id,
            input="hi",
            text={"format": {"type": "json_object"}},
            max_output_tokens=200,
            extra_body={"seed": seed},
        )
        if response.status == "completed":
            assert isinstance(json.loads(response.output_text), dict)
            return
    # A string of a model without sense may go on for long; that all 8 do is out of the question.
    raise AssertionError("no answer ended")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_required_call_cannot_fail(model: openai.OpenAI, choice: Any) -> None:
    response = model.responses.create(
        model=model.models.list().data[0].id,
        input="hi",
        tools=[WEATHER_TOOL] if choice == "required" else [CLOCK_TOOL, WEATHER_TOOL],  # type: ignore[list-item]
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=100,
    )
    (call,) = response.output
    assert call.type == "function_call" and call.name == "get_weather"
    jsonschema.validate(json.loads(call.arguments), WEATHER_TOOL["parameters"])
    said = response.tool_choice
    assert (said if isinstance(said, str) else said.to_dict()) == choice
