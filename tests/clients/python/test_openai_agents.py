"""OpenAI's agents library, through chats and through responses."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from conftest import MAX_TOKENS, MODELS, TEXT, TOLD, write_call
from pydantic import BaseModel, Field

set_tracing_disabled(True)
DIALECTS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
CALL = write_call("get_weather", {"city": "Oslo", "days": 3})


class Fact(BaseModel):
    is_true: bool
    year: int = Field(ge=0, le=2100)
    kind: Literal["river", "mountain"]


@function_tool
def get_weather(city: str, days: int) -> str:
    """Say the weather."""
    return f"{days} days of sun in {city}"


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


def make_agent(dialect: str, model: str, **options: object) -> Agent:
    client = openai.AsyncOpenAI(max_retries=0)
    return Agent(name="agent", model=DIALECTS[dialect](model, openai_client=client), **options)


async def test_answer_has_its_usage(dialect: str) -> None:
    result = await Runner.run(make_agent(dialect, "echo", instructions="Be brief."), TEXT)
    assert result.final_output == TEXT
    usage = result.context_wrapper.usage
    assert usage.requests == 1 and usage.output_tokens == usage.input_tokens + 1


@pytest.mark.parametrize("model", ["echo", "agent"])
async def test_tool_is_called_and_its_result_answered(dialect: str, model: str) -> None:
    agent = make_agent(dialect, model, tools=[get_weather])
    result = await Runner.run(agent, CALL if model == "echo" else "The weather?")
    assert result.final_output == TOLD
    assert [item.type for item in result.new_items][:2] == [
        "tool_call_item",
        "tool_call_output_item",
    ]


async def test_stream_calls_the_tool_as_well(dialect: str) -> None:
    result = Runner.run_streamed(make_agent(dialect, "echo", tools=[get_weather]), CALL)
    events = [event async for event in result.stream_events()]
    assert result.final_output == TOLD
    deltas = [
        event.data.delta
        for event in events
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas).strip() == TOLD


@pytest.mark.parametrize("model", MODELS)
async def test_output_is_of_its_type(dialect: str, model: str) -> None:
    settings = ModelSettings(max_tokens=MAX_TOKENS)
    agent = make_agent(dialect, model, output_type=Fact, model_settings=settings)
    assert isinstance((await Runner.run(agent, "A fact?")).final_output, Fact)


@pytest.mark.parametrize("model", MODELS)
async def test_required_call_comes_before_an_output_of_its_type(dialect: str, model: str) -> None:
    asked = []

    @function_tool
    def note(kind: Literal["river", "mountain"]) -> str:
        """Note a kind."""
        asked.append(kind)
        return "noted"

    settings = ModelSettings(
        max_tokens=MAX_TOKENS, tool_choice="required", parallel_tool_calls=False
    )
    # The library asks for the call once, and leaves the choice to the model afterwards.
    agent = make_agent(dialect, model, tools=[note], output_type=Fact, model_settings=settings)
    result = await Runner.run(agent, "A fact?", max_turns=20)
    assert set(asked) <= {"river", "mountain"} and asked
    assert isinstance(result.final_output, Fact)


async def test_error_is_that_of_the_sdk(dialect: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await Runner.run(make_agent(dialect, "gone"), TEXT)
    assert caught.value.code == "model_not_found"
