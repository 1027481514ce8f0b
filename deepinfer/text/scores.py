"""Log probabilities beside the text that they belong to: which token, spelled how, beginning where.

The engine scores token ids; clients want their spelling, their bytes and their place in the answer.
Scores leave together with the text of their tokens, and those of a stop string do not leave at all.
This module knows no answer's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from deepinfer.generation import TokenId, TokenLogProbs

if TYPE_CHECKING:
    from deepinfer.text.tokenizer import Tokenizer

# JSON has no infinity; it is what vLLM sends for a token that cannot come.
LOWEST_LOG_PROB = -9999.0


class Spelled(msgspec.Struct, frozen=True, gc=False):
    """A token that was possible at some place. `text` has U+FFFD for a part of a character."""

    text: str
    data: bytes
    log_prob: float


class PlacedToken(msgspec.Struct, frozen=True, gc=False):
    """A token of the text: its spelling, where that begins, and what else was likely there.

    `log_prob` is None for the first token of a prompt, before which there was nothing.
    """

    text: str
    data: bytes
    offset: int  # characters of the text before it
    log_prob: float | None
    top: tuple[Spelled, ...] = ()


class ScoreKeeper:
    """The scored tokens of one choice that wait for their text to be shown."""

    def __init__(self, tokenizer: Tokenizer, start: int = 0) -> None:
        self._tokenizer = tokenizer
        self._start = start  # characters that are shown before the answer: an echoed prompt
        self._waiting: list[PlacedToken] = []

    def add(self, token_id: TokenId, score: TokenLogProbs, offset: int) -> None:
        self._waiting.append(place(self._tokenizer, token_id, score, self._start + offset))

    def take_shown(self, num_chars: int) -> list[PlacedToken]:
        """Those whose text begins within the first `num_chars` of the answer."""
        end = self._start + num_chars
        num_shown = next(
            (i for i, token in enumerate(self._waiting) if token.offset >= end), len(self._waiting)
        )
        taken, self._waiting = self._waiting[:num_shown], self._waiting[num_shown:]
        return taken

    def take_rest(self) -> list[PlacedToken]:
        """All that wait, at the end of an answer that no stop string has cut."""
        taken, self._waiting = self._waiting, []
        return taken


def place(
    tokenizer: Tokenizer, token_id: TokenId, score: TokenLogProbs | None, offset: int
) -> PlacedToken:
    data = tokenizer.spell(token_id)
    if score is None:
        return PlacedToken(_as_text(data), data, offset, None)
    top = tuple(_spell(tokenizer, other, log_prob) for other, log_prob in score.top)
    return PlacedToken(_as_text(data), data, offset, max(score.log_prob, LOWEST_LOG_PROB), top)


def place_prompt(
    tokenizer: Tokenizer, token_ids: Sequence[TokenId], scores: Sequence[TokenLogProbs | None]
) -> list[PlacedToken]:
    """The tokens of a prompt, each with its place in the prompt's text."""
    detokenizer = tokenizer.detokenizer()
    placed, offset = [], 0
    for token_id, score in zip(token_ids, scores, strict=True):
        placed.append(place(tokenizer, token_id, score, offset))
        offset += len(detokenizer.push((token_id,)))
    return placed


def _spell(tokenizer: Tokenizer, token_id: TokenId, log_prob: float) -> Spelled:
    data = tokenizer.spell(token_id)
    return Spelled(_as_text(data), data, max(log_prob, LOWEST_LOG_PROB))


def _as_text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
