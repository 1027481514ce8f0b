"""/tokenize and /detokenize: the tokens that a generating route would read, and their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.server import refused
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody
from tests.server.serving import CONTEXT_LENGTH, ENGINE_NAME, MODEL_ID, count_tokens
from tests.server.test_bad_requests import INVALID, MISSING, UNSUPPORTED, assert_error

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def tokenize(http: httpx.Client, **body: Any) -> list[int]:
    response = http.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert list(answer) == ["count", "max_model_len", "tokens"]
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == CONTEXT_LENGTH
    tokens: list[int] = answer["tokens"]
    return tokens


def detokenize(http: httpx.Client, tokens: list[int]) -> str:
    response = http.post("/detokenize", json={"model": MODEL_ID, "tokens": tokens})
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["prompt"]
    text: str = response.json()["prompt"]
    return text


@pytest.mark.parametrize("text", ["", "The capital", "naïve 🙂 漢字", "a</s>b", "x " * 5_000])
def test_text_is_what_it_was_after_both_routes(http: httpx.Client, text: str) -> None:
    tokens = tokenize(http, prompt=text, add_special_tokens=False)
    assert len(tokens) == count_tokens(text)
    assert detokenize(http, tokens) == text


def test_prompt_has_the_tokens_that_a_completion_counts(http: httpx.Client) -> None:
    tokens = tokenize(http, model=ENGINE_NAME, prompt="The capital")
    usage = http.post("/v1/completions", json={"prompt": "The capital"}).json()["usage"]
    assert len(tokens) == usage["prompt_tokens"]


def test_messages_have_the_tokens_that_a_chat_counts(http: httpx.Client) -> None:
    tokens = tokenize(http, messages=[USER])
    usage = http.post("/v1/chat/completions", json={"messages": [USER]}).json()["usage"]
    assert len(tokens) == usage["prompt_tokens"]
    assert detokenize(http, tokens) == "<s>user: hi\n<s>assistant:"
    bare = tokenize(http, messages=[USER], add_generation_prompt=False)
    assert detokenize(http, bare) == "<s>user: hi\n"
    open_ended = tokenize(
        http, messages=[USER], add_generation_prompt=False, continue_final_message=True
    )
    assert detokenize(http, open_ended) == "<s>user: hi"


def test_prompt_beyond_the_context_is_counted(http: httpx.Client) -> None:
    assert len(tokenize(http, prompt="a b" * CONTEXT_LENGTH)) > CONTEXT_LENGTH


BAD_TOKENIZE: list[tuple[str, dict[str, Any], tuple[int, str], str]] = [
    ("nothing", {}, MISSING, "prompt"),
    ("both", {"prompt": "a", "messages": [USER]}, INVALID, "messages"),
    ("array", {"prompt": ["a"]}, INVALID, "prompt"),
    ("no messages", {"messages": []}, INVALID, "messages"),
    ("too many messages", {"messages": [USER] * 10_001}, INVALID, "messages"),
    ("bad message", {"messages": [{"role": "me", "content": ""}]}, INVALID, "messages[0].role"),
    ("number", {"prompt": "a", "add_special_tokens": 1}, INVALID, "add_special_tokens"),
    ("model", {"prompt": "a", "model": "gpt-4"}, (404, "model_not_found"), "model"),
    ("tool of a prompt", {"prompt": "a", "tools": [TOOL]}, INVALID, "tools"),
    ("bad tool", {"messages": [USER], "tools": [{}]}, MISSING, "tools[0].type"),
    ("too many tools", {"messages": [USER], "tools": [TOOL] * 129}, INVALID, "tools"),
    ("spelling", {"prompt": "a", "return_token_strs": True}, UNSUPPORTED, "return_token_strs"),
    ("template", {"messages": [USER], "chat_template": "x"}, UNSUPPORTED, "chat_template"),
    (
        "argument that is none of a template's",
        {"messages": [USER], "chat_template_kwargs": {"add_special_tokens": True}},
        UNSUPPORTED,
        "add_special_tokens",
    ),
]


@pytest.mark.parametrize(
    ("about", "body", "error", "param"), BAD_TOKENIZE, ids=lambda v: str(v)[:30]
)
def test_bad_tokenize_is_refused(
    http: httpx.Client, about: str, body: dict[str, Any], error: tuple[int, str], param: str
) -> None:
    assert_error(http.post("/tokenize", json=body), *error, param)


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (None, INVALID),
        ("text", INVALID),
        ([-1], INVALID),
        ([10**6], INVALID),
        ([2**70], INVALID),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bad_detokenize_is_refused(
    http: httpx.Client, tokens: object, error: tuple[int, str]
) -> None:
    response = http.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == error[0]
    assert response.json()["error"]["code"] == error[1]
    assert response.json()["error"]["param"].startswith("tokens")


def test_detokenize_needs_tokens(http: httpx.Client) -> None:
    assert_error(http.post("/detokenize", json={}), *MISSING, "tokens")
    assert detokenize(http, []) == ""


@pytest.mark.parametrize(
    "name", sorted({*TokenizeBody.model_fields, *DetokenizeBody.model_fields, *refused.TOKENIZE})
)
def test_every_field_is_in_the_reference(name: str) -> None:
    section = PAGE.split("## `POST /tokenize`")[1].split("\n## ")[0]
    assert f"`{name}`" in section
