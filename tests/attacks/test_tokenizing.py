"""Texts that take gigabytes to tokenize."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from deepinfer.server.prepare import MAX_TEXT_CHARS

LONG = "x" * (MAX_TEXT_CHARS + 1)
USER = [{"role": "user", "content": LONG}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": LONG}),
        ("/tokenize", {"messages": USER}),
        ("/v1/completions", {"prompt": LONG, "max_tokens": 1}),
        ("/v1/completions", {"prompt": ["a", LONG], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 1}),
        ("/v1/messages", {"messages": USER, "max_tokens": 1, "model": "test/echo"}),
        ("/v1/messages/count_tokens", {"messages": USER, "model": "test/echo"}),
        ("/v1/responses/input_tokens", {"input": LONG}),
    ],
)
def test_text_beyond_any_context_is_refused_before_it_is_tokenized(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    response = http.post(path, json=body)
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert f"{MAX_TEXT_CHARS:,}" in message and "characters" in message


def test_text_up_to_the_bound_is_tokenized(http: httpx.Client) -> None:
    response = http.post("/tokenize", json={"prompt": "x" * 200_000})
    assert response.status_code == 200 and response.json()["count"] > 0
