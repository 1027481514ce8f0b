"""POST /v1/completions through the OpenAI SDK. The engine answers with the prompt's own tokens."""

from __future__ import annotations

import openai
import pytest

from tests.server.serving import ENGINE_NAME, MODEL_ID, count_tokens
from tests.text import samples

PROMPTS = [
    "The capital of France is Paris.",
    "naïve café, 日本語のテキスト, текст",
    "🎉🎊🧑‍🚀 emoji of several code points",
    "line\nbreaks\r\n\ttabs \x85 and \u2028 separators\u2029",
    'quotes " and \\ backslashes </s\x00>',
]


def stream_text(sdk: openai.OpenAI, **fields: object) -> dict[int, str]:
    """Each choice's text, put together from a stream."""
    texts: dict[int, str] = {}
    with sdk.completions.create(model=MODEL_ID, stream=True, **fields) as stream:  # type: ignore[call-overload]
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "wide", "emoji", "breaks", "quotes"])
def test_completion_text_is_exact_streamed_or_not(sdk: openai.OpenAI, prompt: str) -> None:
    answer = sdk.completions.create(model=MODEL_ID, prompt=prompt)
    assert answer.choices[0].text == prompt
    assert answer.choices[0].finish_reason == "stop"
    assert stream_text(sdk, prompt=prompt) == {0: prompt}


@pytest.mark.parametrize("stop", ["Paris", ["zzz", "ris"], "s P", "."], ids=str)
def test_text_ends_before_the_stop_string_streamed_or_not(
    sdk: openai.OpenAI, stop: str | list[str]
) -> None:
    prompt = "The capital of France is Paris. More."
    found = [prompt.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in prompt]
    answer = sdk.completions.create(model=MODEL_ID, prompt=prompt, stop=stop)
    assert answer.choices[0].text == prompt[: min(found)]
    assert answer.choices[0].finish_reason == "stop"
    assert stream_text(sdk, prompt=prompt, stop=stop) == {0: answer.choices[0].text}


def test_every_choice_of_every_prompt_has_its_own_index(sdk: openai.OpenAI) -> None:
    prompts = ["first", "second one", "third"]
    answer = sdk.completions.create(model=MODEL_ID, prompt=prompts, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [p for p in prompts for _ in range(2)]
    streamed = stream_text(sdk, prompt=prompts, n=2)
    assert streamed == dict(enumerate(choice.text for choice in answer.choices))


def test_one_choice_stops_while_the_others_go_on(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=MODEL_ID, prompt=["one STOP two", "three"], stop="STOP")
    assert [choice.text for choice in answer.choices] == ["one ", "three"]


def test_usage_counts_each_prompt_once_and_every_generated_token(sdk: openai.OpenAI) -> None:
    prompts = ["first", "second one"]
    num_tokens = sum(count_tokens(prompt) for prompt in prompts)
    usage = sdk.completions.create(model=MODEL_ID, prompt=prompts, n=3).usage
    assert usage is not None
    assert usage.prompt_tokens == num_tokens
    assert usage.completion_tokens == 3 * (num_tokens + len(prompts))  # with an EOS each
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_usage_of_a_stream_comes_last_and_equals_that_of_the_whole(sdk: openai.OpenAI) -> None:
    prompt, stop = "The capital of France", "Fr"
    whole = sdk.completions.create(model=MODEL_ID, prompt=prompt, stop=stop)
    with sdk.completions.create(
        model=MODEL_ID,
        prompt=prompt,
        stop=stop,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_max_tokens_ends_with_length(sdk: openai.OpenAI) -> None:
    prompt = "a a a a a a"
    answer = sdk.completions.create(model=MODEL_ID, prompt=prompt, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 2
    assert prompt.startswith(answer.choices[0].text)


def test_no_broken_character_at_max_tokens(sdk: openai.OpenAI) -> None:
    emoji = "🧑"
    assert count_tokens(emoji) > 1
    for max_tokens in range(1, count_tokens(emoji) + 1):
        answer = sdk.completions.create(model=MODEL_ID, prompt=emoji, max_tokens=max_tokens)
        assert answer.choices[0].text in ("", emoji)


def test_token_ids_are_taken_as_they_are(sdk: openai.OpenAI) -> None:
    text = "Once upon a time"
    token_ids = samples.byte_level().encode(text).ids
    answer = sdk.completions.create(model=MODEL_ID, prompt=token_ids)
    assert answer.choices[0].text == text
    assert answer.usage is not None and answer.usage.prompt_tokens == len(token_ids)
    both = sdk.completions.create(model=MODEL_ID, prompt=[token_ids, token_ids[:1]])
    assert both.choices[0].text == text
    assert text.startswith(both.choices[1].text)


def test_default_max_tokens_is_512_and_gives_way_to_the_context(sdk: openai.OpenAI) -> None:
    body = {"ignore_eos": True}
    short = sdk.completions.create(model=MODEL_ID, prompt="a", extra_body=body)
    assert short.usage is not None and short.usage.completion_tokens == 512
    near_the_end = [5] * 4000
    cut = sdk.completions.create(model=MODEL_ID, prompt=near_the_end, extra_body=body)
    assert cut.usage is not None and cut.usage.completion_tokens == 96
    assert cut.choices[0].finish_reason == "length"


def test_engine_name_is_a_model_too(sdk: openai.OpenAI) -> None:
    assert sdk.completions.create(model=ENGINE_NAME, prompt="x").model == MODEL_ID


def test_ids_are_unique(sdk: openai.OpenAI) -> None:
    ids = {sdk.completions.create(model=MODEL_ID, prompt="x").id for _ in range(20)}
    assert len(ids) == 20
    assert all(id_.startswith("cmpl-") for id_ in ids)


async def test_async_completions_run_side_by_side(async_sdk: openai.AsyncOpenAI) -> None:
    import asyncio

    prompts = [f"prompt number {i}" for i in range(30)]
    answers = await asyncio.gather(
        *(async_sdk.completions.create(model=MODEL_ID, prompt=prompt) for prompt in prompts)
    )
    assert [answer.choices[0].text for answer in answers] == prompts


async def test_async_stream(async_sdk: openai.AsyncOpenAI) -> None:
    stream = await async_sdk.completions.create(model=MODEL_ID, prompt="some text", stream=True)
    async with stream:
        texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == "some text"
