"""How long an answer may be when a request does not say, by route and by the operator's setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.serving import client_of, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error

CONTEXT = 700
TURN = [{"role": "user", "content": "hi"}]
COMPLETION = ("/v1/completions", {"prompt": "hi"}, "max_tokens")
CHAT = ("/v1/chat/completions", {"messages": TURN}, "max_completion_tokens")
RESPONSE = ("/v1/responses", {"input": "hi"}, "max_output_tokens")
Route = tuple[str, dict[str, Any], str]


def count(client: httpx.Client, route: Route, **fields: Any) -> tuple[int, int]:
    """The tokens of the prompt, and of prompt and answer together."""
    path, body, _ = route
    usage = client.post(path, json={**body, **fields, "ignore_eos": True}).json()["usage"]
    prompt = usage.get("prompt_tokens") or usage["input_tokens"]
    return prompt, usage["total_tokens"]


def test_answer_is_as_long_as_route_and_operator_say(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", max_seq_len=CONTEXT)
    with serving(tmp_path) as server, client_of(server) as client:
        for route in (COMPLETION, CHAT):
            prompt, total = count(client, route)
            assert total == prompt + 512, route
        assert count(client, RESPONSE)[1] == CONTEXT
        for route in (COMPLETION, CHAT, RESPONSE):
            path, body, name = route
            assert count(client, route, **{name: -1})[1] == CONTEXT
            for wrong in (-2, 0):
                refused = client.post(path, json={**body, name: wrong})
                message = assert_error(refused, 400, "invalid_value", name)
                assert name == "max_tokens" or "-1" in message
    with serving(tmp_path, "--default-max-tokens", "0") as server, client_of(server) as client:
        assert [count(client, r)[1] for r in (COMPLETION, CHAT, RESPONSE)] == [CONTEXT] * 3
    with serving(tmp_path, "--default-max-tokens", "7") as server, client_of(server) as client:
        for route in (COMPLETION, CHAT, RESPONSE):
            prompt, total = count(client, route)
            assert total == prompt + 7, route
            assert count(client, route, **{route[2]: 9}) == (prompt, prompt + 9)


TEXT = "x " * 5000
LONG_TURN = [{"role": "user", "content": TEXT}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": TEXT}),
        ("/v1/completions", {"prompt": TEXT, "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": LONG_TURN}),
        ("/v1/responses", {"input": TEXT}),
        ("/v1/messages", {"messages": LONG_TURN, "max_tokens": 5}),
    ],
)
def test_prompt_beyond_the_context_is_told_in_the_words_that_clients_look_for(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    response = http.post(path, json=body)
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert "This model's maximum context length is 4096 tokens" in message
    assert "prompt is too long" in message and "at most 4,095" in message


@pytest.mark.parametrize("route", [COMPLETION, CHAT, RESPONSE])
def test_answer_beyond_the_context_is_told_likewise(http: httpx.Client, route: Route) -> None:
    path, body, name = route
    error = http.post(path, json={**body, name: 4095}).json()["error"]
    assert "This model's maximum context length is 4096 tokens" in error["message"]
    assert "4,095" in error["message"] and error["code"] == "context_length_exceeded"
