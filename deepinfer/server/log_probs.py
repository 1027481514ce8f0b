"""Scored tokens in the two shapes that OpenAI's clients read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from deepinfer.text.scores import PlacedToken

PIECE_ENTRIES = 2_000  # written at once on the event loop; some milliseconds


def as_completion(tokens: Sequence[PlacedToken]) -> dict[str, Any]:
    """Parallel lists, as completions have them; the chosen token is always among the likeliest."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [_top_of(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def as_chat(tokens: Sequence[PlacedToken]) -> dict[str, Any]:
    """One object a token, as chat completions have them."""
    return {"content": [_describe(token) for token in tokens], "refusal": None}


async def encode_completion(tokens: Sequence[PlacedToken]) -> msgspec.Raw:
    """The JSON of `as_completion`, made in pieces between which others are served."""
    lists: dict[str, list[bytes]] = {}
    async for piece in _pieces(tokens):
        for name, values in as_completion(piece).items():
            lists.setdefault(name, []).append(msgspec.json.encode(values)[1:-1])
    fields = (b'"%b":[%b]' % (name.encode(), b",".join(found)) for name, found in lists.items())
    return msgspec.Raw(b"{%b}" % b",".join(fields))


async def encode_chat(tokens: Sequence[PlacedToken]) -> msgspec.Raw:
    """The JSON of `as_chat`, made in pieces between which others are served."""
    content = [
        msgspec.json.encode(list(map(_describe, piece)))[1:-1] async for piece in _pieces(tokens)
    ]
    return msgspec.Raw(b'{"content":[%b],"refusal":null}' % b",".join(content))


async def _pieces(tokens: Sequence[PlacedToken]) -> AsyncIterator[Sequence[PlacedToken]]:
    size = max(PIECE_ENTRIES // (len(tokens[-1].top) + 1), 1)
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]
        await asyncio.sleep(0)


def _top_of(token: PlacedToken) -> dict[str, float] | None:
    if token.log_prob is None:
        return None
    found: dict[str, float] = {}
    for other in token.top:
        # Two tokens may read alike; the likelier one, which comes first, stands for both.
        found.setdefault(other.text, other.log_prob)
    return {**found, token.text: token.log_prob} if token.text not in found else found


def _describe(token: PlacedToken) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.log_prob,
        "bytes": list(token.data),
        "top_logprobs": [
            {"token": other.text, "logprob": other.log_prob, "bytes": list(other.data)}
            for other in token.top
        ],
    }
