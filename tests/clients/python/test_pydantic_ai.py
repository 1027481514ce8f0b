"""pydantic-ai through its three models that speak our dialects."""

from __future__ import annotations

from typing import Literal

import pytest
from conftest import MAX_TOKENS, MODELS, TEXT, TOLD, write_call
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

DIALECTS = {
    "chat": OpenAIChatModel,
    "responses": OpenAIResponsesModel,
    "messages": AnthropicModel,
}
CALL = write_call("get_weather", {"city": "Oslo", "days": 3})
SETTINGS = {"max_tokens": MAX_TOKENS, "parallel_tool_calls": False}


class Fact(BaseModel):
    is_true: bool
    year: int = Field(ge=0, le=2100)
    kind: Literal["river", "mountain"]


def get_weather(city: str, days: int) -> str:
    """Say the weather."""
    return f"{days} days of sun in {city}"


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


def make_agent(dialect: str, model: str, **options: object) -> Agent:
    return Agent(DIALECTS[dialect](model), model_settings=SETTINGS, **options)


async def test_answer_has_its_usage(dialect: str) -> None:
    result = await make_agent(dialect, "echo", instructions="Be brief.").run(TEXT)
    assert result.output == TEXT
    usage = result.usage
    assert usage.output_tokens == usage.input_tokens + 1


async def test_stream_adds_up_to_the_answer(dialect: str) -> None:
    async with make_agent(dialect, "echo").run_stream(TEXT) as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    assert "".join(pieces) == TEXT


@pytest.mark.parametrize("model", ["echo", "agent"])
async def test_tool_is_called_and_its_result_answered(dialect: str, model: str) -> None:
    agent = make_agent(dialect, model, tools=[get_weather])
    result = await agent.run(CALL if model == "echo" else "The weather?")
    assert result.output == TOLD
    assert result.usage.requests == 2 and result.usage.tool_calls == 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
async def test_output_is_of_its_type(dialect: str, kind: type, model: str) -> None:
    if dialect == "messages" and kind is NativeOutput:
        pytest.skip("pydantic-ai sends no output format to models whose names it does not know")
    result = await make_agent(dialect, model, output_type=kind(Fact)).run("A fact?")
    assert isinstance(result.output, Fact)


async def test_error_has_its_status(dialect: str) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        await make_agent(dialect, "gone").run(TEXT)
    assert caught.value.status_code == 404
