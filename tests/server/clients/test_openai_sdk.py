"""The OpenAI SDK's helpers: parsed answers, stream events, raw responses, classes of errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.server.clients.conftest import Endpoint, connect, say, write_call
from tests.server.serving import MODEL_ID, count_tokens


class Weather(BaseModel):
    """The forecast for a place."""

    days: int = Field(ge=1, le=9)
    unit: Literal["C", "F"]


class Trip(BaseModel):
    """Bounded, so that a model without sense comes to an end."""

    stops: list[Weather] = Field(min_length=1, max_length=2)
    note: str | None = Field(max_length=5)


WEATHER = openai.pydantic_function_tool(Weather)
CALL = write_call("Weather", '{"days": 3, "unit": "C"}')


@pytest.fixture(scope="module")
def sdk(echo: Endpoint) -> Iterator[openai.OpenAI]:
    with connect(echo) as client:
        yield client


@pytest.fixture(scope="module")
def real(model: Endpoint) -> Iterator[openai.OpenAI]:
    with connect(model) as client:
        yield client


def test_call_is_parsed_into_the_tools_own_model(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(model=MODEL_ID, messages=say(CALL), tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(days=3, unit="C")


def test_answer_goes_back_into_the_conversation_as_it_came(sdk: openai.OpenAI) -> None:
    messages = say(CALL)
    parsed = sdk.chat.completions.parse(model=MODEL_ID, messages=messages, tools=[WEATHER])
    message = parsed.choices[0].message
    (call,) = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = sdk.chat.completions.create(
        model=MODEL_ID,
        messages=[*messages, message, result],  # type: ignore[list-item]
        tools=[WEATHER],
    )
    assert after.choices[0].message.content == "sunny"


def test_stream_helper_builds_text_and_calls(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL_ID, messages=say(f"Let me see.{CALL}\n{CALL}"), tools=[WEATHER]
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    pieces = ["", ""]
    for event in events:
        if event.type == "tool_calls.function.arguments.delta":
            pieces[event.index] += event.arguments_delta
    assert [(event.index, event.name) for event in done] == [(0, "Weather"), (1, "Weather")]
    assert pieces == [event.arguments for event in done]
    assert [event.parsed_arguments for event in done] == [Weather(days=3, unit="C")] * 2
    assert final.choices[0].finish_reason == "tool_calls"
    assert (final.choices[0].message.content or "").strip() == "Let me see."
    calls = final.choices[0].message.tool_calls or []
    assert len({call.id for call in calls}) == 2


def test_stream_helper_follows_structured_content(real: openai.OpenAI, model: Endpoint) -> None:
    with real.chat.completions.stream(
        model=model.model, messages=say("hi"), response_format=Trip, max_tokens=200
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0].message
    text = "".join(event.delta for event in events if event.type == "content.delta")
    snapshots = [event.parsed for event in events if event.type == "content.delta"]
    (done,) = [event for event in events if event.type == "content.done"]
    assert isinstance(final.parsed, Trip)
    assert text == done.content == final.content
    assert done.parsed == final.parsed == Trip.model_validate(snapshots[-1])


def test_required_call_streams_through_the_helper(real: openai.OpenAI, model: Endpoint) -> None:
    with real.chat.completions.stream(
        model=model.model,
        messages=say("hi"),
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=90,
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_cut_answer_is_not_taken_for_a_parsed_one(
    real: openai.OpenAI, model: Endpoint, is_stream: bool
) -> None:
    wish: dict[str, Any] = {"model": model.model, "messages": say("hi"), "max_tokens": 3}
    with pytest.raises(openai.LengthFinishReasonError):
        if is_stream:
            with real.chat.completions.stream(response_format=Trip, **wish) as stream:
                stream.until_done()
        else:
            real.chat.completions.parse(response_format=Trip, **wish)


def test_log_probabilities_come_through_the_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL_ID, messages=say("hello there"), logprobs=True, top_logprobs=1
    ) as stream:
        events = list(stream)
    (done,) = [event for event in events if event.type == "logprobs.content.done"]
    assert bytes(b for token in done.content[:-1] for b in token.bytes or []) == b"hello there"
    assert len(done.content) == count_tokens("hello there") + 1  # and the end


def test_models_are_listed_and_found_by_their_id(sdk: openai.OpenAI) -> None:
    (listed,) = sdk.models.list()
    assert sdk.models.retrieve(listed.id) == listed
    assert (listed.id, listed.object, listed.owned_by) == (MODEL_ID, "model", "deepinfer")


def test_raw_response_has_the_id_that_the_log_has(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL_ID, messages=say("x"), extra_headers={"x-request-id": "mine"}
    )
    assert raw.request_id == "mine"
    answer = raw.parse()
    assert answer._request_id == "mine" and answer.choices[0].message.content == "x"
    made = sdk.completions.with_raw_response.create(model=MODEL_ID, prompt="x")
    assert made.request_id and made.parse().choices[0].text == "x"


def test_streamed_raw_response_can_be_read_line_by_line(sdk: openai.OpenAI) -> None:
    with sdk.completions.with_streaming_response.create(
        model=MODEL_ID, prompt="x", stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        (
            {"messages": say("x" * 20_000)},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"verbosity": "loud"}, openai.BadRequestError, "invalid_value", "verbosity"),
        ({"model": "gone"}, openai.NotFoundError, "model_not_found", "model"),
    ],
    ids=["value", "context", "unsupported", "model"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_error_has_the_class_code_and_param_of_its_kind(
    sdk: openai.OpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
    is_stream: bool,
) -> None:
    body = {"model": MODEL_ID, "messages": say("x"), "stream": is_stream} | fields
    with pytest.raises(kind) as caught:
        sdk.chat.completions.create(**body)
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id


def test_missing_route_is_an_error_of_the_sdk(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.embeddings.create(model=MODEL_ID, input="x")
    assert caught.value.code == "not_found"
