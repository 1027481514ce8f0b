"""One sequence that TensorRT-LLM generates: from its cumulative outputs to chunks of new tokens.

The library yields one mutable object again and again, with every token so far; whoever looks late
sees several steps at once. What was emitted is therefore counted here, and each token leaves once.
Pure: nothing here knows the library, threads or event loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk, TokenLogProbs


class LogProb(Protocol):
    """The library's entry for one token at one place."""

    logprob: float


# Of the chosen token alone, or of it and the likeliest ones by their ids.
LibraryLogProbs = float | Mapping[int, LogProb]


@dataclass
class TokenStream:
    """What one request has emitted so far.

    `end_id` is the EOS that the library ends on by itself, None when nothing ends the sequence.
    `watched_ids` end it too, once `min_tokens` are out: the library would let a stop token end a
    sequence before that, so with `min_tokens` it is not told of them.
    """

    request: GenerationRequest
    end_id: int | None
    watched_ids: frozenset[int] = frozenset()
    num_emitted: int = 0
    is_ended: bool = False
    _last_id: int | None = field(default=None)

    @property
    def num_total(self) -> int:
        """Tokens of the sequence, its prompt's included."""
        return len(self.request.prompt_token_ids) + self.num_emitted

    @property
    def has_log_probs(self) -> bool:
        return self.request.sampling.num_log_probs is not None

    def advance(
        self,
        token_ids: Sequence[int],
        finish_reason: str | None = None,
        stop_reason: int | str | None = None,
        log_probs: Sequence[LibraryLogProbs] = (),
    ) -> TokenChunk | None:
        """The chunk for the sequence as it stands; None when it has nothing new.

        `token_ids` are all tokens so far, the prompt's excluded, and `log_probs` theirs. Sets
        `is_ended` with the last one, which may come before the library's own end: the caller then
        aborts the sequence.
        """
        new_ids = list(token_ids[self.num_emitted :])
        new_log_probs = log_probs[self.num_emitted :]
        reason, message = _translate_finish(finish_reason)
        if (stop := self._find_watched(new_ids)) is not None:
            new_ids, reason, message = new_ids[: stop + 1], FinishReason.STOP, None
        elif reason is FinishReason.STOP:
            self._complete_stop(new_ids, stop_reason)
        if not new_ids and reason is None:
            return None
        self.num_emitted += len(new_ids)
        self._last_id = new_ids[-1] if new_ids else self._last_id
        self.is_ended = reason is not None
        return TokenChunk(
            self.request.request_id,
            tuple(new_ids),
            reason,
            message,
            tuple(self._score(*pair) for pair in zip(new_ids, new_log_probs, strict=False)),
        )

    def _score(self, token_id: int, found: LibraryLogProbs) -> TokenLogProbs:
        if isinstance(found, float):
            return TokenLogProbs(found)
        # The chosen token is among them even where it is not one of the likeliest.
        pairs = [(other, entry.logprob) for other, entry in found.items()]
        pairs.sort(key=lambda pair: -pair[1])
        count = self.request.sampling.num_log_probs or 0
        return TokenLogProbs(found[token_id].logprob, tuple(pairs[:count]))

    def _find_watched(self, new_ids: Sequence[int]) -> int | None:
        if not self.watched_ids:
            return None
        first = max(0, self.request.sampling.min_tokens - self.num_emitted)
        for place in range(first, len(new_ids)):
            if new_ids[place] in self.watched_ids:
                return place
        return None

    def _complete_stop(self, new_ids: list[int], stop_reason: int | str | None) -> None:
        """Add the token that ended the sequence where the library keeps it to itself."""
        ended_by = stop_reason if isinstance(stop_reason, int) else self.end_id
        last_id = new_ids[-1] if new_ids else self._last_id
        if ended_by is not None and last_id != ended_by:
            new_ids.append(ended_by)


def _translate_finish(reason: str | None) -> tuple[FinishReason | None, str | None]:
    if reason is None:
        return None, None
    if reason in ("stop", "length"):
        return FinishReason(reason), None
    return FinishReason.ERROR, f"the engine ended the request: {reason}"


def merge_chunks(chunks: Sequence[TokenChunk]) -> list[TokenChunk]:
    """At most one chunk a request, in the order of their first ones."""
    merged: dict[str, TokenChunk] = {}
    for chunk in chunks:
        earlier = merged.get(chunk.request_id)
        merged[chunk.request_id] = (
            chunk
            if earlier is None
            else TokenChunk(
                chunk.request_id,
                earlier.token_ids + chunk.token_ids,
                chunk.finish_reason,
                chunk.message,
                earlier.log_probs + chunk.log_probs,
            )
        )
    return list(merged.values())
