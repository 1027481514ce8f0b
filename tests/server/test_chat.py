"""POST /v1/chat/completions through the OpenAI SDK. The engine repeats the rendered prompt."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.server.serving import MODEL_ID

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße 🎉"},
]
# The special tokens of the template are not part of the text.
RENDERED = "system: Be brief.\nuser: Grüße 🎉\nassistant:"


def test_chat_answers_with_a_message(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES)
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", RENDERED)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.usage is not None and answer.usage.completion_tokens > 1


def test_chat_stream_begins_with_the_role_and_ends_with_the_reason(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == RENDERED
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_streamed_choices_have_a_role_each_and_dense_indices(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES, n=3, stream=True) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    assert [choice.index for choice in choices[:3]] == [0, 1, 2]
    assert [choice.delta.role for choice in choices[:3]] == ["assistant"] * 3
    for index in range(3):
        own = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == RENDERED
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]


def test_streaming_helper_of_the_sdk_builds_the_same_completion(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL_ID, messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == RENDERED
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_content_parts_are_texts_with_a_line_break_between(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL_ID,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            }
        ],
    )
    assert answer.choices[0].message.content == "user: one\ntwo\nassistant:"


def test_developer_speaks_as_the_system(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL_ID, messages=[{"role": "developer", "content": "x"}]
    )
    assert answer.choices[0].message.content == "system: x\nassistant:"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_is_limited_by_either_name(sdk: openai.OpenAI, name: str) -> None:
    answer = sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES, extra_body={name: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 3


async def test_async_chat(async_sdk: openai.AsyncOpenAI) -> None:
    answer = await async_sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES)
    assert answer.choices[0].message.content == RENDERED
    stream = await async_sdk.chat.completions.create(model=MODEL_ID, messages=MESSAGES, stream=True)
    async with stream:
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == RENDERED
