"""Every mistake that a client can make: status, code, parameter, and a server that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deepinfer.server.answers import ErrorBody
from tests.server.serving import CONTEXT_LENGTH, MODEL_ID

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
INVALID, UNSUPPORTED = (400, "invalid_value"), (400, "unsupported_parameter")
MISSING, TOO_LONG = (400, "missing_required_parameter"), (400, "context_length_exceeded")

TOOL = {"type": "function", "function": {"name": "f"}}


def allowing(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


# What is wrong, the fields of the body, then status and code, then the parameter that is blamed.
Case = tuple[str, dict[str, Any], tuple[int, str], str | None]

BAD_COMPLETIONS: list[Case] = [
    ("no prompt", {}, MISSING, "prompt"),
    ("prompt null", {"prompt": None}, INVALID, "prompt"),
    ("prompt empty", {"prompt": ""}, INVALID, "prompt"),
    ("prompt number", {"prompt": 5}, INVALID, "prompt"),
    ("prompt object", {"prompt": {"text": "x"}}, INVALID, "prompt"),
    ("prompt no items", {"prompt": []}, INVALID, "prompt"),
    ("prompt mixed", {"prompt": ["a", 1]}, INVALID, "prompt[1]"),
    ("prompt mixed ids", {"prompt": [1, "a"]}, INVALID, "prompt"),
    ("prompt ids of ids", {"prompt": [[1], []]}, INVALID, "prompt[1]"),
    ("prompt booleans", {"prompt": [True]}, INVALID, "prompt[0]"),
    ("prompt fractions", {"prompt": [1.5]}, INVALID, "prompt[0]"),
    ("prompt empty string inside", {"prompt": ["a", ""]}, INVALID, "prompt[1]"),
    ("prompt too many", {"prompt": ["a"] * 1025}, INVALID, "prompt"),
    ("token id negative", {"prompt": [-1]}, INVALID, "prompt"),
    ("token id unknown", {"prompt": [1, 999_999]}, INVALID, "prompt"),
    ("token id huge", {"prompt": [2**70]}, INVALID, "prompt"),
    ("too many sequences", {"prompt": ["a"] * 9, "n": 128}, INVALID, "n"),
    ("prompt too long", {"prompt": [5] * CONTEXT_LENGTH}, TOO_LONG, "prompt"),
    ("prompt far too long", {"prompt": [5] * 1_000_000, "n": 128}, TOO_LONG, "prompt"),
    ("no room", {"prompt": "a", "max_tokens": CONTEXT_LENGTH}, TOO_LONG, "prompt"),
    ("one of many too long", {"prompt": ["a", "b " * 9999]}, TOO_LONG, "prompt"),
    ("best_of in a stream", {"prompt": "a", "best_of": 3, "stream": True}, INVALID, "best_of"),
    ("best_of below n", {"prompt": "a", "best_of": 1, "n": 2}, INVALID, "best_of"),
    ("echo text", {"prompt": "a", "echo": "yes"}, INVALID, "echo"),
    ("suffix", {"prompt": "a", "suffix": "end"}, UNSUPPORTED, "suffix"),
    ("logprobs true", {"prompt": "a", "logprobs": True}, INVALID, "logprobs"),
    ("logprobs high", {"prompt": "a", "logprobs": 6}, INVALID, "logprobs"),
]

BAD_CHATS: list[Case] = [
    ("no messages", {}, MISSING, "messages"),
    ("messages empty", {"messages": []}, INVALID, "messages"),
    ("messages string", {"messages": "hi"}, INVALID, "messages"),
    ("message string", {"messages": ["hi"]}, INVALID, "messages[0]"),
    ("messages too many", {"messages": [USER] * 10_001}, INVALID, "messages"),
    ("no role", {"messages": [{"content": "x"}]}, MISSING, "messages[0].role"),
    ("no content", {"messages": [USER, {"role": "user"}]}, MISSING, "messages[1].content"),
    ("role unknown", {"messages": [{**USER, "role": "boss"}]}, INVALID, "messages[0].role"),
    (
        "role function",
        {"messages": [{**USER, "role": "function"}]},
        UNSUPPORTED,
        "messages[0].role",
    ),
    ("content number", {"messages": [{**USER, "content": 1}]}, INVALID, "messages[0].content"),
    ("content null", {"messages": [{**USER, "content": None}]}, INVALID, "messages[0].content"),
    ("content no parts", {"messages": [{**USER, "content": []}]}, INVALID, "messages[0].content"),
    (
        "image",
        {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        UNSUPPORTED,
        "messages[0].content[0].type",
    ),
    (
        "part without text",
        {"messages": [{**USER, "content": [{"type": "text"}]}]},
        INVALID,
        "messages[0].content[0].text",
    ),
    (
        "tool call without a function",
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        MISSING,
        "messages[0].tool_calls[0].function",
    ),
    (
        "tool call of a user",
        {"messages": [{**USER, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
        INVALID,
        "messages[0].tool_calls",
    ),
    ("too long", {"messages": [{**USER, "content": "x " * 9999}]}, TOO_LONG, "messages"),
    (
        "no room",
        {"messages": [USER], "max_completion_tokens": CONTEXT_LENGTH},
        TOO_LONG,
        "messages",
    ),
    (
        "two lengths",
        {"messages": [USER], "max_tokens": 1, "max_completion_tokens": 2},
        INVALID,
        "max_completion_tokens",
    ),
    (
        "tool without a function",
        {"messages": [USER], "tools": [{"type": "function"}]},
        MISSING,
        "tools[0].function",
    ),
    (
        "tool with a bad name",
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "a b"}}]},
        INVALID,
        "tools[0].function.name",
    ),
    ("tool_choice alone", {"messages": [USER], "tool_choice": "required"}, INVALID, "tool_choice"),
    ("tool_choice unknown", {"messages": [USER], "tool_choice": "any"}, INVALID, "tool_choice"),
    (
        "allowed tools of no array",
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        INVALID,
        "tool_choice.allowed_tools",
    ),
    (
        "allowed tools without a mode",
        {"messages": [USER], "tools": [TOOL], "tool_choice": allowing("f", mode="any")},
        INVALID,
        "tool_choice.allowed_tools.mode",
    ),
    (
        "allowed tool that is not there",
        {"messages": [USER], "tools": [TOOL], "tool_choice": allowing("f", "g")},
        INVALID,
        "tool_choice.allowed_tools.tools[1].function.name",
    ),
    (
        "reasoning number",
        {"messages": [{"role": "assistant", "reasoning_content": 1}]},
        INVALID,
        "messages[0].reasoning_content",
    ),
    (
        "response_format",
        {"messages": [USER], "response_format": {"type": "xml"}},
        UNSUPPORTED,
        "response_format.type",
    ),
    ("logprobs number", {"messages": [USER], "logprobs": 1}, INVALID, "logprobs"),
    ("top_logprobs alone", {"messages": [USER], "top_logprobs": 1}, INVALID, "top_logprobs"),
    (
        "top_logprobs high",
        {"messages": [USER], "logprobs": True, "top_logprobs": 21},
        INVALID,
        "top_logprobs",
    ),
    ("echo in a chat", {"messages": [USER], "echo": True}, UNSUPPORTED, "echo"),
]

# Of both routes.
BAD_FIELDS: list[Case] = [
    ("model unknown", {"model": "gpt-4"}, (404, "model_not_found"), "model"),
    ("model number", {"model": 4}, INVALID, "model"),
    ("max_tokens zero", {"max_tokens": 0}, INVALID, "max_tokens"),
    ("max_tokens negative", {"max_tokens": -2}, INVALID, "max_tokens"),
    ("max_tokens text", {"max_tokens": "5"}, INVALID, "max_tokens"),
    ("max_tokens fraction", {"max_tokens": 5.5}, INVALID, "max_tokens"),
    ("max_tokens true", {"max_tokens": True}, INVALID, "max_tokens"),
    ("max_tokens huge", {"max_tokens": 10**30}, INVALID, "max_tokens"),
    ("temperature high", {"temperature": 2.1}, INVALID, "temperature"),
    ("temperature negative", {"temperature": -0.1}, INVALID, "temperature"),
    ("temperature text", {"temperature": "hot"}, INVALID, "temperature"),
    ("top_p high", {"top_p": 1.1}, INVALID, "top_p"),
    ("top_p negative", {"top_p": -0.1}, INVALID, "top_p"),
    ("top_k low", {"top_k": -2}, INVALID, "top_k"),
    ("min_p high", {"min_p": 1.5}, INVALID, "min_p"),
    ("frequency_penalty", {"frequency_penalty": 2.5}, INVALID, "frequency_penalty"),
    ("presence_penalty", {"presence_penalty": -2.5}, INVALID, "presence_penalty"),
    ("repetition_penalty zero", {"repetition_penalty": 0}, INVALID, "repetition_penalty"),
    ("repetition_penalty tiny", {"repetition_penalty": 1e-38}, INVALID, "repetition_penalty"),
    ("repetition_penalty high", {"repetition_penalty": 11}, INVALID, "repetition_penalty"),
    ("seed beyond 64 bits", {"seed": 2**63}, INVALID, "seed"),
    ("n zero", {"n": 0}, INVALID, "n"),
    ("n high", {"n": 129}, INVALID, "n"),
    ("n huge", {"n": 10**12}, INVALID, "n"),
    ("stop number", {"stop": 5}, INVALID, "stop"),
    ("stop null inside", {"stop": ["a", None]}, INVALID, "stop"),
    ("stop of 65", {"stop": [f"{i}" for i in range(65)]}, INVALID, "stop"),
    ("stop long", {"stop": "x" * 1001}, INVALID, "stop"),
    ("stop long inside", {"stop": ["a", "x" * 1001]}, INVALID, "stop[1]"),
    ("stop long together", {"stop": ["x" * 999] * 9}, INVALID, "stop"),
    ("stop_token_ids text", {"stop_token_ids": ["a"]}, INVALID, "stop_token_ids[0]"),
    ("stop_token_ids unknown", {"stop_token_ids": [10**6]}, INVALID, "stop_token_ids"),
    ("min_tokens above", {"min_tokens": 9, "max_tokens": 3}, INVALID, "min_tokens"),
    ("stream text", {"stream": "yes"}, INVALID, "stream"),
    ("stream_options alone", {"stream_options": {}}, INVALID, "stream_options"),
    ("stream_options text", {"stream": True, "stream_options": "x"}, INVALID, "stream_options"),
    (
        "include_usage text",
        {"stream": True, "stream_options": {"include_usage": 1}},
        INVALID,
        "stream_options.include_usage",
    ),
    (
        "continuous usage text",
        {"stream": True, "stream_options": {"continuous_usage_stats": "yes"}},
        INVALID,
        "stream_options.continuous_usage_stats",
    ),
    ("logit_bias number", {"logit_bias": 5}, INVALID, "logit_bias"),
    ("logit_bias word", {"logit_bias": {"the": 1}}, INVALID, "logit_bias.the"),
    ("logit_bias high", {"logit_bias": {"5": 101}}, INVALID, "logit_bias.5"),
    ("logit_bias text", {"logit_bias": {"5": "1"}}, INVALID, "logit_bias.5"),
    ("logit_bias many", {"logit_bias": {str(i): 1 for i in range(2000)}}, INVALID, "logit_bias"),
    ("logit_bias unknown", {"logit_bias": {"99999": 1}}, INVALID, "logit_bias"),
    ("guided_json", {"guided_json": {"not": {}}}, INVALID, "guided_json.not"),
    ("streamed all the same", {"stream": True, "n": 0}, INVALID, "n"),
]


def all_cases() -> Iterator[Any]:
    for name, fields, expected, param in BAD_COMPLETIONS:
        yield pytest.param(COMPLETIONS, fields, expected, param, id=f"completion: {name}")
    for name, fields, expected, param in BAD_CHATS:
        yield pytest.param(CHAT, fields, expected, param, id=f"chat: {name}")
    for name, fields, expected, param in BAD_FIELDS:
        whole = {"prompt": "a", **fields}
        yield pytest.param(COMPLETIONS, whole, expected, param, id=f"completion: {name}")
        whole = {"messages": [USER], **fields}
        yield pytest.param(CHAT, whole, expected, param, id=f"chat: {name}")


def assert_error(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The message of an error that has the promised shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = ErrorBody.model_validate_json(response.content, strict=True)
    assert set(response.json()) == {"error", "detail"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert (body.error.code, body.error.param) == (code, param)
    assert body.error.message and not body.error.message.endswith(".")
    return body.error.message


def assert_serves(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "next"})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "next"


@pytest.mark.parametrize(("path", "fields", "expected", "param"), [*all_cases()])
def test_bad_request_is_refused_and_the_next_one_served(
    http: httpx.Client, path: str, fields: dict[str, Any], expected: tuple[int, str], param: str
) -> None:
    message = assert_error(http.post(path, json=fields), *expected, param)
    assert len(message) < 300
    assert_serves(http)


BAD_BODIES = {
    "nothing": b"",
    "not JSON": b"prompt=a",
    "cut off": b'{"prompt": "a"',
    "two": b'{"prompt": "a"} {}',
    "array": b'["a"]',
    "string": b'"a"',
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in an unknown field": b'{"prompt": "a", "x": ' + b'{"x":' * 5000 + b"1" + b"}" * 5001,
    "number of absurd length": b'{"prompt": "a", "seed": ' + b"1" * 100_000 + b"}",
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
}


@pytest.mark.parametrize("body", list(BAD_BODIES.values()), ids=list(BAD_BODIES))
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_body_that_is_no_json_object_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    message = assert_error(response, 400, "invalid_json", None)
    assert len(message) < 200
    assert_serves(http)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_number_that_is_none_is_refused(http: httpx.Client, number: bytes) -> None:
    body = b'{"prompt": "a", "temperature": ' + number + b"}"
    response = http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert_error(response, 400, "invalid_value", "temperature")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=lambda headers: ", ".join(headers.values()),
)
def test_media_type_that_is_not_understood_is_refused(
    http: httpx.Client, headers: dict[str, str]
) -> None:
    response = http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers=headers)
    assert_error(response, 415, "unsupported_media_type", None)
    assert_serves(http)


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json; charset=UTF-8", "Application/JSON", "application/x+json"],
)
def test_media_type_of_json_is_taken(http: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers=headers).status_code == 200


LARGE_BODY = json.dumps({"prompt": "x" * (9 * 2**20)}).encode()


def test_large_body_is_refused_by_its_length(http: httpx.Client) -> None:
    response = http.post(
        COMPLETIONS, content=LARGE_BODY, headers={"content-type": "application/json"}
    )
    assert "8,388,608" in assert_error(response, 413, "content_too_large", None)
    assert_serves(http)


def test_large_body_without_a_length_is_refused(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(LARGE_BODY), 2**16):
            yield LARGE_BODY[start : start + 2**16]

    response = http.post(
        COMPLETIONS, content=pieces(), headers={"content-type": "application/json"}
    )
    assert_error(response, 413, "content_too_large", None)
    assert_serves(http)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/models/", "/health/", "/docs"])
def test_route_that_does_not_exist(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    if path == "/v1/models/":
        assert_error(response, 404, "model_not_found", "model")
    else:
        assert_error(response, 404, "not_found", None)


def test_method_that_a_route_does_not_have(http: httpx.Client) -> None:
    response = http.get(COMPLETIONS)
    assert_error(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


def test_methods_of_one_path_are_allowed_together(http: httpx.Client) -> None:
    response = http.put("/v1/responses/resp_1")
    assert_error(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "DELETE, GET, HEAD"


def test_sdk_raises_its_own_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.completions.create(model=MODEL_ID, prompt="a", max_tokens=CONTEXT_LENGTH)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "prompt")
    assert too_long.value.request_id is not None
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4")
