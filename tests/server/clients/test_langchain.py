"""LangChain's ChatOpenAI: messages, tools, structured answers, token counts, errors, async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.server.clients.conftest import Endpoint, write_call
from tests.server.serving import DEADLINE_S, MODEL_ID, count_tokens

# LangChain dumps the SDK's parsed answer by its general type, in which there is no parsed value.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")

TEXT = "Grüße 🎉 from LangChain"
MAX_ROOM = 90  # of the real model's 512 tokens, beside a prompt with a tool


class Weather(BaseModel):
    """The forecast for a place."""

    days: int = Field(ge=1, le=9)
    unit: Literal["C", "F"]


@tool
def get_weather(city: str, days: int) -> str:
    """Say what the weather will be."""
    return f"{days} days of sun in {city}"


@tool
def clock() -> str:
    """Say the time."""
    return "noon"


ARGUMENTS = {"city": "Zoë's {town}", "days": 3}
CALL = write_call("get_weather", '{"city": "Zoë\'s {town}", "days": 3}')


@pytest.fixture(scope="module")
def sync_http() -> Iterator[Any]:
    with openai.DefaultHttpxClient() as client:
        yield client


def connect(endpoint: Endpoint, kind: type[Any], **options: Any) -> Any:
    options = {"max_retries": 0, "timeout": DEADLINE_S} | options
    return kind(model=endpoint.model, base_url=endpoint.base_url, api_key="not-needed", **options)


@pytest.fixture(scope="module")
def chat(echo: Endpoint, sync_http: Any) -> ChatOpenAI:
    llm: ChatOpenAI = connect(echo, ChatOpenAI, http_client=sync_http)
    return llm


@pytest.fixture(scope="module")
def real(model: Endpoint, sync_http: Any) -> ChatOpenAI:
    llm: ChatOpenAI = connect(model, ChatOpenAI, http_client=sync_http, max_tokens=MAX_ROOM)
    return llm


@pytest.fixture
async def async_chat(echo: Endpoint) -> AsyncIterator[ChatOpenAI]:
    async with openai.DefaultAsyncHttpxClient() as http:
        yield connect(echo, ChatOpenAI, http_async_client=http)


def join(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    first, *others = chunks
    for chunk in others:
        first += chunk  # type: ignore[assignment]
    return first


def test_answer_is_a_message_with_its_usage(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(TEXT)])
    assert isinstance(answer, AIMessage) and answer.content == TEXT
    num_tokens = count_tokens(TEXT)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == num_tokens
    assert answer.usage_metadata["output_tokens"] == num_tokens + 1  # and the end
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == MODEL_ID


def test_streamed_chunks_add_up_to_the_same_message(chat: ChatOpenAI) -> None:
    whole = chat.invoke(TEXT)
    joined = join(chat.stream(TEXT, stream_usage=True))
    assert joined.content == whole.content
    assert joined.usage_metadata == whole.usage_metadata
    assert joined.response_metadata["finish_reason"] == "stop"
    assert join(chat.stream(TEXT)).usage_metadata is None


def test_batch_keeps_its_order(chat: ChatOpenAI) -> None:
    questions = [f"question {number}" for number in range(12)]
    assert [answer.content for answer in chat.batch(questions)] == questions


def test_options_of_a_call_arrive(chat: ChatOpenAI) -> None:
    assert chat.invoke("one STOP two", stop=["STOP"]).content == "one "
    cut = chat.invoke(TEXT, max_tokens=3)
    assert cut.response_metadata["finish_reason"] == "length"
    scored = chat.bind(logprobs=True, top_logprobs=1).invoke("ab")
    tokens = scored.response_metadata["logprobs"]["content"]
    assert [token["bytes"] for token in tokens[:2]] == [[97], [98]]
    (generations,) = chat.generate([[HumanMessage("ab")]], n=3).generations
    assert [generation.text for generation in generations] == ["ab"] * 3


def test_parts_of_a_message_are_its_text(chat: ChatOpenAI) -> None:
    parts: list[str | dict[str, Any]] = [{"type": "text", "text": text} for text in ("a", "b")]
    assert chat.invoke([HumanMessage(parts)]).content == "a\nb"


def test_thoughts_are_not_in_the_content(chat: ChatOpenAI) -> None:
    assert chat.invoke("<think>two and two</think>four").content == "four"
    assert join(chat.stream("<think>two and two</think>four")).content == "four"


def test_calls_of_bound_tools_are_parsed(chat: ChatOpenAI) -> None:
    answer = chat.bind_tools([get_weather, clock]).invoke(CALL)
    assert answer.invalid_tool_calls == []
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", ARGUMENTS)
    assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_streamed_calls_add_up(chat: ChatOpenAI) -> None:
    text = f"Let me see.{CALL}\n{write_call('clock', '{}')}"
    joined = join(chat.bind_tools([get_weather, clock]).stream(text))
    assert str(joined.content).strip() == "Let me see."
    assert joined.invalid_tool_calls == []
    assert [(call["name"], call["args"]) for call in joined.tool_calls] == [
        ("get_weather", ARGUMENTS),
        ("clock", {}),
    ]
    assert len({call["id"] for call in joined.tool_calls}) == 2


def test_tool_answers_the_call_and_the_conversation_goes_on(chat: ChatOpenAI) -> None:
    agent = chat.bind_tools([get_weather])
    asked = agent.invoke(CALL)
    result = get_weather.invoke(asked.tool_calls[0])
    after = agent.invoke([HumanMessage("weather?"), asked, result])
    assert after.content == "3 days of sun in Zoë's {town}"


@pytest.mark.parametrize("choice", ["any", "Weather"])
def test_forced_call_fits_the_tool(real: ChatOpenAI, choice: str) -> None:
    forced = real.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
    (call,) = forced.invoke("hi").tool_calls
    assert call["name"] == "Weather" and Weather.model_validate(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [True, None], ids=["strict", "lax"])
def test_structured_answer_is_an_object_of_the_class(
    real: ChatOpenAI, method: Literal["json_schema", "function_calling"], strict: bool | None
) -> None:
    llm = real.with_structured_output(Weather, method=method, strict=strict)
    whole = llm.invoke("hi")
    *_, streamed = llm.stream("hi")
    assert isinstance(whole, Weather) and isinstance(streamed, Weather)


def test_structured_answer_from_a_plain_schema_is_a_dict(real: ChatOpenAI) -> None:
    llm = real.with_structured_output(Weather.model_json_schema(), include_raw=True)
    answer: Any = llm.invoke("hi")
    assert answer["parsing_error"] is None
    assert isinstance(answer["raw"], AIMessage) and Weather.model_validate(answer["parsed"])


def test_tokens_are_counted_by_the_servers_tokenizer(echo: Endpoint, sync_http: Any) -> None:
    url = echo.base_url.removesuffix("/v1") + "/tokenize"

    def tokenize(text: str) -> list[int]:
        token_ids: list[int] = httpx.post(url, json={"prompt": text}).json()["tokens"]
        return token_ids

    llm = connect(echo, ChatOpenAI, http_client=sync_http, custom_get_token_ids=tokenize)
    usage = llm.invoke(TEXT).usage_metadata
    assert llm.get_num_tokens(TEXT) == usage["input_tokens"] == count_tokens(TEXT)


@pytest.mark.parametrize(
    ("options", "text", "kind"),
    [
        ({}, "x" * 20_000, ContextOverflowError),
        ({"temperature": 3}, "x", ModelInvalidRequestError),
        ({"model": "gone"}, "x", ModelNotFoundError),
    ],
    ids=["context", "value", "model"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_error_has_the_class_that_langchain_has_for_it(
    chat: ChatOpenAI, options: dict[str, Any], text: str, kind: type[Exception], is_stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        list(chat.stream(text, **options)) if is_stream else chat.invoke(text, **options)
    assert isinstance(caught.value, openai.APIStatusError) and caught.value.request_id


def test_image_is_refused_by_name(chat: ChatOpenAI) -> None:
    image: list[str | dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "http://images.invalid/a.png"}}
    ]
    with pytest.raises(openai.BadRequestError, match="image_url") as caught:
        chat.invoke([HumanMessage(image)])
    assert caught.value.param == "messages[0].content[0].type"


def test_completions_of_the_older_class(echo: Endpoint, sync_http: Any) -> None:
    llm = connect(echo, OpenAI, http_client=sync_http)
    assert llm.invoke(TEXT) == TEXT
    assert "".join(llm.stream(TEXT)) == TEXT
    assert llm.batch(["one", "two"]) == ["one", "two"]


async def test_async_calls_streams_and_events(async_chat: ChatOpenAI) -> None:
    answer = await async_chat.ainvoke(TEXT)
    assert answer.content == TEXT
    assert "".join([str(chunk.content) async for chunk in async_chat.astream(TEXT)]) == TEXT
    questions = [f"question {number}" for number in range(12)]
    assert [answer.content for answer in await async_chat.abatch(questions)] == questions
    events = [event["event"] async for event in async_chat.astream_events(TEXT, version="v2")]
    assert events[0] == "on_chat_model_start" and events[-1] == "on_chat_model_end"
    called = await async_chat.bind_tools([get_weather]).ainvoke(CALL)
    assert called.tool_calls[0]["args"] == ARGUMENTS
