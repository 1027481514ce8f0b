"""Log probabilities of many choices, tokens and alternatives at once."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from deepinfer.server.log_probs import (
    PIECE_ENTRIES,
    as_chat,
    as_completion,
    encode_chat,
    encode_completion,
)
from deepinfer.text.scores import PlacedToken, Spelled

NUM_ALTERNATIVES = 20


def make_tokens(count: int) -> list[PlacedToken]:
    top = tuple(Spelled(f"é{i}\u2028", b"\xc3\xa9", -0.5 - i) for i in range(NUM_ALTERNATIVES))
    return [PlacedToken("a", b"a", i, None if not i else -0.25, top) for i in range(count)]


@pytest.mark.parametrize("count", [1, 7, 500])
async def test_pieces_come_to_the_same_json(count: int) -> None:
    tokens = make_tokens(count)
    assert json.loads(bytes(await encode_completion(tokens))) == as_completion(tokens)
    assert json.loads(bytes(await encode_chat(tokens))) == as_chat(tokens)


@pytest.mark.parametrize("encode", [encode_completion, encode_chat])
async def test_others_have_their_turn_after_each_piece(encode: object) -> None:
    assert callable(encode)
    count = 1_000
    writing = asyncio.ensure_future(encode(make_tokens(count)))
    num_turns = 0
    while not writing.done():
        num_turns += 1
        await asyncio.sleep(0)
    assert num_turns >= count * (NUM_ALTERNATIVES + 1) / PIECE_ENTRIES


CHAT = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 20}
TOO_MANY = [
    ("/v1/chat/completions", {**CHAT, "n": 64, "max_tokens": 512}, "top_logprobs"),
    ("/v1/chat/completions", {**CHAT, "n": 128}, "top_logprobs"),
    (
        "/v1/completions",
        {"prompt": ["x"] * 8, "n": 128, "logprobs": 5, "max_tokens": 500},
        "logprobs",
    ),
    (
        "/v1/completions",
        {"prompt": ["x" * 2_000] * 64, "logprobs": 5, "echo": True, "max_tokens": 0},
        "logprobs",
    ),
]


@pytest.mark.parametrize(("path", "body", "param"), TOO_MANY)
@pytest.mark.parametrize("stream", [False, True])
def test_product_of_what_is_asked_is_bounded_by_name(
    http: httpx.Client, path: str, body: dict[str, object], param: str, stream: bool
) -> None:
    response = http.post(path, json={**body, "stream": stream})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param
    assert "400,000" in error["message"] and "`max_tokens`" in error["message"]


def test_what_one_answer_may_well_ask_for_is_taken(http: httpx.Client) -> None:
    body = {**CHAT, "n": 1, "max_tokens": 3_000}
    response = http.post("/v1/chat/completions", json=body)
    # TensorRT-LLM's double may well have a smaller bound for the alternatives themselves.
    assert response.status_code == 200 or "400,000" not in response.text
