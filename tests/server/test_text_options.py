"""How the text of prompts and answers is cut and shown: the options that vLLM's clients know."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.serving import count_tokens, read_events
from tests.text import samples

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "say this"}


def complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(COMPLETIONS, json={"temperature": 0, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def stream_text(http: httpx.Client, **fields: Any) -> str:
    body = {"temperature": 0, "stream": True, **fields}
    with http.stream("POST", COMPLETIONS, json=body) as response:
        events = [event for event in read_events(response) if event != "[DONE]"]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def test_stop_string_is_shown_when_asked_for(http: httpx.Client) -> None:
    fields = {"prompt": "one two three", "stop": "two"}
    assert complete(http, **fields)["text"] == "one "
    shown = complete(http, **fields, include_stop_str_in_output=True)
    assert (shown["text"], shown["finish_reason"]) == ("one two", "stop")
    assert stream_text(http, **fields, include_stop_str_in_output=True) == "one two"


def test_stop_token_is_shown_when_asked_for(http: httpx.Client) -> None:
    (stop,) = samples.byte_level().encode("!", add_special_tokens=False).ids
    fields = {"prompt": "a! b", "stop_token_ids": [stop]}
    assert complete(http, **fields)["text"] == "a"
    assert complete(http, **fields, include_stop_str_in_output=True)["text"] == "a!"


def test_special_tokens_are_shown_when_asked_for(http: httpx.Client) -> None:
    prompt = "a<s>b"
    assert "<s>" not in complete(http, prompt=prompt)["text"]
    assert "a<s>b" in complete(http, prompt=prompt, skip_special_tokens=False)["text"]


def test_prompt_is_cut_to_its_last_tokens(http: httpx.Client) -> None:
    prompt = "one two three four five six"
    ids = samples.byte_level().encode(prompt).ids
    body = {"prompt": prompt, "truncate_prompt_tokens": 3, "max_tokens": 1}
    answer = http.post(COMPLETIONS, json=body).json()
    assert answer["usage"]["prompt_tokens"] == 3
    assert complete(http, prompt=prompt, truncate_prompt_tokens=3)[
        "text"
    ] == samples.byte_level().decode(ids[-3:])


def test_prompt_longer_than_the_context_fits_once_it_is_cut(http: httpx.Client) -> None:
    body = {"prompt": "x " * 9999, "truncate_prompt_tokens": 8, "max_tokens": 2}
    assert http.post(COMPLETIONS, json=body).status_code == 200


@pytest.mark.parametrize("adds", [True, False])
def test_special_tokens_before_a_prompt_can_be_left_away(http: httpx.Client, adds: bool) -> None:
    body = {"prompt": "plain", "add_special_tokens": adds, "max_tokens": 1}
    counted = http.post(COMPLETIONS, json=body).json()["usage"]["prompt_tokens"]
    plain = len(samples.byte_level().encode("plain", add_special_tokens=False).ids)
    assert counted == (count_tokens("plain") if adds else plain)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_so_far_stands_in_every_chunk(http: httpx.Client, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"prompt": "one two three"} if path == COMPLETIONS else {"messages": [USER]}
    body = {**asked, "stream": True, "stream_options": options}
    with http.stream("POST", path, json=body) as response:
        events = [json.loads(event) for event in read_events(response) if event != "[DONE]"]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] > 0
    assert all(e["usage"]["prompt_tokens"] == events[0]["usage"]["prompt_tokens"] for e in events)


def test_final_message_is_continued_within_it(http: httpx.Client) -> None:
    messages = [USER, {"role": "assistant", "content": "It begins"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    answer = http.post(CHAT, json=body).json()
    # The engine repeats its prompt, which ends with what is to be continued.
    assert answer["choices"][0]["message"]["content"].endswith("It begins")
    both = http.post(CHAT, json={"messages": messages, "continue_final_message": True})
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "continue_final_message"


def test_generation_prompt_can_be_left_away(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": [USER], "add_generation_prompt": False}).json()
    assert answer["choices"][0]["message"]["content"].endswith("say this\n")


def test_template_arguments_are_allow_listed(http: httpx.Client) -> None:
    body = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    assert http.post(CHAT, json={**body, "reasoning_effort": "low"}).status_code == 200
    refused = http.post(CHAT, json={**body, "chat_template_kwargs": {"messages": []}})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unsupported_parameter"
