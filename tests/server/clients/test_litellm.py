"""LiteLLM, through its providers `openai` and `hosted_vllm`: answers, streams, tools, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.server.clients.conftest import Endpoint, write_call
from tests.server.serving import DEADLINE_S, MODEL_ID, count_tokens

# The library silences these itself, when it is imported, which a test's own filters undo.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*`ReadOnly` qualifier:UserWarning",
    "ignore:.*Accessing the.*attribute on the instance is deprecated:DeprecationWarning",
)

PROVIDERS = ("openai", "hosted_vllm")
TEXT = "Grüße 🎉 from LiteLLM"
THOUGHT = "<think>two and two</think>four"
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else a table of prices is fetched at import
    "LITELLM_MODE": "PRODUCTION",  # else a `.env` file somewhere above is read
}


class Weather(BaseModel):
    """The forecast for a place."""

    days: int = Field(ge=1, le=9)
    unit: Literal["C", "F"]


WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": Weather.model_json_schema()},
}
ARGUMENTS = '{"days": 3, "unit": "C"}'
CALL = write_call("get_weather", ARGUMENTS)


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    """The library, imported late because it reads its settings and takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("TIKTOKEN_CACHE_DIR", raising=False)  # the library sets it
        asyncio.set_event_loop(None)  # else the library opens a loop and leaves it open
        import litellm

        patch.setattr(litellm, "suppress_debug_info", True)
        patch.setattr(litellm, "num_retries", 0)
        yield litellm
        asyncio.run(close_clients(litellm))


@pytest.fixture
async def async_litellm(litellm: Any) -> AsyncIterator[Any]:
    """Its asynchronous clients live as long as the event loop of one test."""
    yield litellm
    await close_clients(litellm)


async def close_clients(litellm: Any) -> None:
    """Close the connections that the library keeps for later calls, and have it forget them."""
    clients = list(litellm.in_memory_llm_clients_cache.cache_dict.values())
    litellm.in_memory_llm_clients_cache.flush_cache()
    for client in clients:
        closed = client.close()
        if closed is not None:  # an asynchronous client's
            await closed


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(endpoint: Endpoint, provider: str, text: str, **options: Any) -> dict[str, Any]:
    """The arguments of a chat."""
    return {
        "model": f"{provider}/{endpoint.model}",
        "api_base": endpoint.base_url,
        "api_key": "not-needed",
        "messages": [{"role": "user", "content": text}],
        "max_retries": 0,
        "timeout": DEADLINE_S,
    } | options


def join(chunks: list[Any], field: str = "content") -> str:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return "".join(getattr(delta, field, None) or "" for delta in deltas)


def test_answer_and_usage(litellm: Any, echo: Endpoint, provider: str) -> None:
    answer = litellm.completion(**ask(echo, provider, TEXT))
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert answer.model == MODEL_ID
    assert answer.usage.prompt_tokens == count_tokens(TEXT)
    assert answer.usage.completion_tokens == count_tokens(TEXT) + 1  # and the end


def test_stream_adds_up_and_ends_with_the_usage(
    litellm: Any, echo: Endpoint, provider: str
) -> None:
    wish = ask(echo, provider, TEXT, stream=True, stream_options={"include_usage": True})
    chunks = list(litellm.completion(**wish))
    assert join(chunks) == TEXT
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert chunks[-1].usage.prompt_tokens == count_tokens(TEXT)


def test_parameters_of_vllm_pass_through(litellm: Any, echo: Endpoint, provider: str) -> None:
    wish = ask(echo, provider, "a b c", top_k=5, min_p=0.1, repetition_penalty=1.1)
    assert litellm.completion(**wish).choices[0].message.content == "a b c"
    cut = litellm.completion(**ask(echo, provider, "a", ignore_eos=True, max_tokens=7))
    assert cut.usage.completion_tokens == 7 and cut.choices[0].finish_reason == "length"


def test_thoughts_are_told_from_the_answer(litellm: Any, echo: Endpoint, provider: str) -> None:
    message = litellm.completion(**ask(echo, provider, THOUGHT)).choices[0].message
    assert (message.reasoning_content, message.content) == ("two and two", "four")
    chunks = list(litellm.completion(**ask(echo, provider, THOUGHT, stream=True)))
    assert (join(chunks, "reasoning_content"), join(chunks)) == ("two and two", "four")


def test_calls_are_read_streamed_or_not(litellm: Any, echo: Endpoint, provider: str) -> None:
    wish = ask(echo, provider, f"{CALL}\n{CALL}", tools=[WEATHER])
    whole = litellm.completion(**wish).choices[0]
    chunks = list(litellm.completion(**wish, stream=True))
    built = litellm.stream_chunk_builder(chunks, messages=wish["messages"]).choices[0]
    for choice in (whole, built):
        assert choice.finish_reason == "tool_calls"
        found = [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ]
        assert found == [("get_weather", ARGUMENTS)] * 2


def test_result_of_a_tool_follows_its_call(litellm: Any, echo: Endpoint, provider: str) -> None:
    wish = ask(echo, provider, CALL, tools=[WEATHER])
    message = litellm.completion(**wish).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    messages = [*wish["messages"], message, result]
    assert litellm.completion(**{**wish, "messages": messages}).choices[0].message.content == (
        "sunny"
    )


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "get_weather"}}],
    ids=["required", "named"],
)
def test_forced_call_fits_the_schema(
    litellm: Any, model: Endpoint, provider: str, choice: Any
) -> None:
    options = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    answer = litellm.completion(**ask(model, provider, "hi", max_tokens=90, **options))
    (call,) = answer.choices[0].message.tool_calls
    assert Weather.model_validate_json(call.function.arguments)


def test_response_format_is_kept_to(litellm: Any, model: Endpoint, provider: str) -> None:
    wish = ask(model, provider, "hi", response_format=Weather, max_tokens=90)
    answer = litellm.completion(**wish)
    assert Weather.model_validate(json.loads(answer.choices[0].message.content))


@pytest.mark.parametrize("provider", [*PROVIDERS, "text-completion-openai"])
def test_text_completions(litellm: Any, echo: Endpoint, provider: str) -> None:
    wish = ask(echo, provider, "")
    del wish["messages"]
    answer = litellm.text_completion(prompt=[TEXT, "two"], **wish)
    assert [choice.text for choice in answer.choices] == [TEXT, "two"]
    chunks = list(litellm.text_completion(prompt=TEXT, stream=True, **wish))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == TEXT


@pytest.mark.parametrize(
    ("text", "options", "kind"),
    [
        ("x" * 20_000, {}, "ContextWindowExceededError"),
        ("x", {"max_tokens": 10_000}, "ContextWindowExceededError"),
        ("x", {"temperature": 3}, "BadRequestError"),
        ("x", {"top_logprobs": 3}, "BadRequestError"),
        ("x", {"model": "gone"}, "NotFoundError"),
    ],
    ids=["long prompt", "long answer", "value", "together", "model"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_error_has_the_class_that_litellm_has_for_it(
    litellm: Any,
    echo: Endpoint,
    provider: str,
    text: str,
    options: dict[str, Any],
    kind: str,
    is_stream: bool,
) -> None:
    if "model" in options:
        options = {"model": f"{provider}/{options['model']}"}
    wish = ask(echo, provider, text, stream=is_stream, **options)
    with pytest.raises(getattr(litellm, kind)) as caught:
        list(litellm.completion(**wish))
    assert type(caught.value).__name__ == kind


def test_models_of_the_server_are_listed(litellm: Any, echo: Endpoint) -> None:
    names = litellm.get_valid_models(
        custom_llm_provider="openai",
        check_provider_endpoint=True,
        api_base=echo.base_url,
        api_key="not-needed",
    )
    assert names == [MODEL_ID]


async def test_async_answers_and_streams(async_litellm: Any, echo: Endpoint, provider: str) -> None:
    answer = await async_litellm.acompletion(**ask(echo, provider, TEXT))
    assert answer.choices[0].message.content == TEXT
    stream = await async_litellm.acompletion(**ask(echo, provider, TEXT, stream=True))
    assert join([chunk async for chunk in stream]) == TEXT
    with pytest.raises(async_litellm.ContextWindowExceededError):
        await async_litellm.acompletion(**ask(echo, provider, "x" * 20_000))
