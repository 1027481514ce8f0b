"""Scored tokens in the two shapes that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepinfer.text.scores import PlacedToken


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
